"""The options as the extension reads them: at the time of use, so that a changed setting works at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_runtime.panel.patterns import patterns_of
from lora_runtime.prompt.tags import Scope

# What the settings page shows, and what it means.
NEGATIVE_TAGS = ("words (as the WebUI)", "apply to the negative side")
SCOPES: Mapping[str, Scope] = {
    "whole picture": "all",
    "while its words are in the prompt": "edit",
    "its part of the prompt (AND)": "and",
}

BUILTIN_KEY = "lora_runtime_without_builtin"
# Those of our settings that change the picture, by their names in its parameters: what is pasted from a picture is
# painted as it was. What has the setting's first value is not written.
INFOTEXT: Mapping[str, tuple[str, str]] = {
    "LoRA always on": ("sd_lora", "None"),
    "LoRA negative tags": ("lora_runtime_negative_tags", NEGATIVE_TAGS[0]),
    "LoRA scope": ("lora_runtime_scope", next(iter(SCOPES))),
}
FIELDS: Mapping[str, str] = {key: field for field, (key, _) in INFOTEXT.items()}


class Settings:
    """A reader of the WebUI's options by what they mean here."""

    def __init__(self, opts: Any) -> None:
        self._opts = opts

    def _get(self, key: str, default: Any) -> Any:
        value = getattr(self._opts, key, None)
        return default if value is None else value

    def in_infotext(self) -> dict[str, str]:
        """Return what is not as it is at first of the settings that change the picture, by the names in INFOTEXT."""
        values = {field: (str(self._get(key, usual)), usual) for field, (key, usual) in INFOTEXT.items()}
        return {field: value for field, (value, usual) in values.items() if value and value != usual}

    @property
    def always_on(self) -> str | None:
        """The LoRA that is added to every prompt, by name."""
        name = str(self._get("sd_lora", "None"))
        return None if name in ("", "None") else name

    @property
    def default_strength(self) -> float:
        """The strength of a LoRA that is added without one."""
        return float(self._get("extra_networks_default_multiplier", 1.0))

    @property
    def prefer_alias(self) -> bool:
        """Whether a click on a card writes the name that the file gives itself, instead of the file's name."""
        return bool(self._get("lora_preferred_name", "Alias from file") == "Alias from file")

    @property
    def show_all(self) -> bool:
        """Whether the page makes no difference between files for this model and for others."""
        return bool(self._get("lora_show_all", False))

    @property
    def hide_unknown_for(self) -> list[str]:
        """The model families for which files of unknown family are hidden."""
        return list(self._get("lora_hide_unknown_for_versions", []))

    @property
    def hidden_folders(self) -> list[str]:
        """The folders whose files are not shown: names or paths, with * and ? as signs for more."""
        return patterns_of(str(self._get("lora_runtime_hide_folders", "")))

    @property
    def blurred(self) -> list[str]:
        """What a card has in its path or its notes whose picture is blurred."""
        return patterns_of(str(self._get("lora_runtime_blur", "")))

    @property
    def changes_files(self) -> bool:
        """Whether files may be renamed, moved and thrown away from the page."""
        return bool(self._get("lora_runtime_file_operations", True))

    @property
    def hashes_in_infotext(self) -> bool:
        """Whether the hashes of the files are written beside the picture's parameters."""
        return bool(self._get("lora_add_hashes_to_infotext", True))

    @property
    def embedding_hashes_in_infotext(self) -> bool:
        """Whether a bundled embedding is listed with the LoRA's name as its hash."""
        return bool(self._get("lora_bundled_ti_to_infotext", True))

    @property
    def negative_tags_act(self) -> bool:
        """Whether tags in the negative prompt are applied to its side instead of being words."""
        return bool(self._get("lora_runtime_negative_tags", NEGATIVE_TAGS[0]) == NEGATIVE_TAGS[1])

    @property
    def scope(self) -> Scope:
        """How far a tag reaches that stands inside of prompt editing, or in one part of a prompt with AND."""
        chosen = self._get("lora_runtime_scope", "")
        return SCOPES.get(chosen, "all")

    @property
    def comments(self) -> bool:
        """Whether the WebUI takes what stands behind a "#" out of prompts."""
        return bool(self._get("enable_prompt_comments", False))  # 1.8 and before have no comments

    @property
    def stand_back_for_loractl(self) -> bool:
        """Whether loractl has the tags where it is installed."""
        return bool(self._get("lora_runtime_stand_back", False))

    @property
    def files_in_memory(self) -> int:
        """How many files to keep in memory; 0: as many as the library's limit in bytes allows."""
        return max(0, int(self._get("lora_in_memory_limit", 0)))

    @property
    def warn_in_console(self) -> bool:
        """Whether notices are printed too."""
        return bool(self._get("lora_not_found_warning_console", False))

    @property
    def warn_in_popup(self) -> bool:
        """Whether errors open a popup too."""
        return bool(self._get("lora_not_found_gradio_warning", False))
