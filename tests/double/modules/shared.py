"""What everybody shares: options, the command line, the state of the job, templates of HTML, the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

cmd_opts = SimpleNamespace()


class OptionInfo:
    """One option: its value until somebody sets it, and how the settings show it."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Any = None,
        section: Any = None,
        refresh: Any = None,
        infotext: str | None = None,
    ) -> None:
        self.default = default
        self.label = label
        self.component = component
        self.component_args = component_args
        self.onchange = onchange
        self.section = section
        self.refresh = refresh
        self.infotext = infotext  # the name under which a picture's parameters have the value
        self.comment_after = ""

    def info(self, text: str) -> OptionInfo:
        """Add a remark that stands behind the label."""
        self.comment_after += text
        return self


def options_section(section: tuple[str, str], options: dict[str, OptionInfo]) -> dict[str, OptionInfo]:
    """Put options into a section of the settings."""
    for option in options.values():
        option.section = section
    return options


class Options:
    """The values: those that were set, else the defaults of the options that are defined by now."""

    def __init__(self, labels: dict[str, OptionInfo]) -> None:
        vars(self).update(data_labels=labels, data={})

    def __getattr__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key].default
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        assert not getattr(cmd_opts, "freeze_settings", False), "changing settings is disabled"
        self.data[key] = value

    def set(self, key: str, value: Any) -> None:
        """Set a value as the settings page does: who asked to be told of changes is."""
        self.data[key] = value
        changed = self.data_labels[key].onchange
        if changed is not None:
            changed()

    def onchange(self, key: str, function: Any, call: bool = True) -> None:
        """Ask to be told of changes of an option."""
        self.data_labels[key].onchange = function
        if call:
            function()


_DEFAULTS = {
    "samples_format": "png",
    "batch_cond_uncond": True,
    "disabled_extensions": [],
    "enable_prompt_comments": True,
    "sd_model_checkpoint": None,
    "sd_checkpoints_limit": 1,
    "sd_checkpoints_keep_in_cpu": True,
    "extra_networks_default_multiplier": 1.0,
    "extra_networks_add_text_separator": " ",
    "extra_networks_show_hidden_directories": True,
    "extra_networks_dir_button_function": False,
    "extra_networks_hidden_models": "When searched",
    "extra_networks_card_width": 0,
    "extra_networks_card_height": 0,
    "extra_networks_card_text_scale": 1.0,
    "extra_networks_card_show_desc": True,
    "extra_networks_card_description_is_html": False,
    "extra_networks_card_order_field": "Path",
    "extra_networks_card_order": "Ascending",
    "extra_networks_tree_view_style": "Dirs",
    "extra_networks_tree_view_default_enabled": True,
    "extra_networks_tree_view_default_width": 180,
    "list_hidden_files": True,
}
options_templates: dict[str, OptionInfo] = {key: OptionInfo(value) for key, value in _DEFAULTS.items()}
opts = Options(options_templates)


class State:
    """What the program is doing; `job` is empty while it paints nothing."""

    job = ""
    interrupted = False


state = State()

# The ids and classes are those that scripts and style sheets look for.
_PAGE = "{tabname}_{extra_networks_tabname}"
_CONTROLS = "".join(
    f"<div id='{_PAGE}_extra_sort_{name}' class='extra-network-control--sort{{sort_{name}_active}}' "
    f"data-sortkey='{'default' if name == 'path' else name}'></div>"
    for name in ("path", "name", "date_created", "date_modified")
)
_CARDS = f"<div id='{_PAGE}_cards' class='extra-network-cards'>{{items_html}}</div>"
_TEMPLATES = {
    "extra-networks-pane.html": f"<div id='{_PAGE}_pane' class='extra-network-pane "
    "{tree_view_div_default_display_class}'>"
    f"<div id='{_PAGE}_controls' class='extra-network-control' style='display: none'>"
    f"<input id='{_PAGE}_extra_search' class='extra-network-control--search-text' type='search' placeholder='Search'>"
    f"<small>Sort: </small>{_CONTROLS}"
    f"<div id='{_PAGE}_extra_sort_dir' class='extra-network-control--sort-dir' data-sortdir='{{data_sortdir}}'></div>"
    f"<div id='{_PAGE}_extra_tree_view' class='extra-network-control--tree-view {{tree_view_btn_extra_class}}'></div>"
    f"<div id='{_PAGE}_extra_refresh' class='extra-network-control--refresh' title='Refresh page' onclick="
    "\"extraNetworksControlRefreshOnClick(event, '{tabname}', '{extra_networks_tabname}')\">↻</div></div>"
    "{pane_content}</div>",
    "extra-networks-pane-tree.html": "<div class='extra-network-pane-content-tree'>"
    f"<div id='{_PAGE}_tree' class='extra-network-tree' "
    f"style='flex-basis: {{extra_networks_tree_view_default_width}}px'>{{tree_html}}</div>{_CARDS}</div>",
    "extra-networks-pane-dirs.html": "<div class='extra-network-pane-content-dirs'>"
    f"<div id='{_PAGE}_dirs' class='extra-network-dirs'>{{dirs_html}}</div>{_CARDS}</div>",
    "extra-networks-no-cards.html": "<ul>{dirs}</ul>",
}


def html(filename: str) -> str:
    """Return a template; those that the extension does not fill in are empty."""
    return _TEMPLATES.get(filename, "")


def __getattr__(name: str) -> Any:
    # Asking for the model loads one if there is none.
    if name == "sd_model":
        from modules import sd_models

        return sd_models.model_data.get_sd_model()
    raise AttributeError(name)
