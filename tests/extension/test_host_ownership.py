"""Whose the tags, the page, the options and the routes are, whatever loads when and under whatever name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI

HERE = Path(__file__).resolve().parent.parent / "double"
BUILTIN, REPOSITORY, OTHERS = HERE / "builtin" / "Lora", HERE.parent.parent, HERE / "others"
ORDERS = {
    "after the built-in": (BUILTIN, REPOSITORY),
    "before the built-in": (REPOSITORY, BUILTIN),
    "between others": (OTHERS, REPOSITORY, BUILTIN),
    "alone": (REPOSITORY,),
}


def is_ours(thing: Any) -> bool:
    return type(thing).__module__.startswith("lora_runtime_webui_extension.")


def reached_the_builtin(webui: WebUI) -> list[str]:
    return [what for what, _ in sys.modules["networks"].calls if what in ("activate", "deactivate")]


def owns_everything(webui: WebUI) -> None:
    """Fail unless tags, page, routes and options are ours, and nothing of that twice."""
    assert is_ours(webui.owner("lora"))
    assert webui.owner("lora") is webui.owner("lyco")
    pages = [page for page in webui.module("ui_extra_networks").extra_pages if page.title == "Lora"]
    assert [is_ours(page) for page in pages] == [True]
    paths = [route.path for route in webui.app.router.routes]
    assert [paths.count(path) for path in ("/sdapi/v1/loras", "/sdapi/v1/refresh-loras")] == [1, 1]
    assert isinstance(webui.client().get("/sdapi/v1/loras").json(), list)
    options = webui.module("shared").options_templates
    assert "the built-in's" not in [options[key].label for key in options if key.startswith(("lora_", "sd_lora"))]
    assert webui.errors == []


@pytest.mark.parametrize("order", ORDERS)
def test_everything_is_owned_in_every_order_of_loading(start: Callable[..., WebUI], order: str) -> None:
    webui = start(extensions=ORDERS[order])
    owns_everything(webui)
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    weights = webui.generate("a <lora:ink:0.7>").passes[0].weights
    assert loras.differences(weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []
    if BUILTIN in ORDERS[order]:
        assert reached_the_builtin(webui) == []


@pytest.mark.quick(2)
@pytest.mark.parametrize("order", ORDERS)
def test_reload_ui_changes_nothing_of_that(start: Callable[..., WebUI], order: str) -> None:
    webui = start(extensions=ORDERS[order])
    for _ in range(2):
        webui.reload_ui()
        owns_everything(webui)
    assert webui.paste("a <lora:ink:1>")["Prompt"] == "a <lora:ink:1>"


@pytest.mark.parametrize(
    "folder",
    [
        "lora_runtime",
        "Lora runtime (copy)",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("0-first", "zzz last", "lora", "日本")),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_folder_may_have_any_name(start: Callable[..., WebUI], tmp_path: Path, folder: str, first: bool) -> None:
    from double.webui import install_copy

    copy = install_copy(tmp_path / "extensions" / folder)
    webui = start(extensions=(copy, BUILTIN) if first else (BUILTIN, copy))
    owns_everything(webui)
    assert Path(sys.modules["lora_runtime"].__file__ or "").is_relative_to(copy)
    loras.write(webui.loras / "ink.safetensors", plain())
    assert webui.changed(webui.generate("a <lora:ink>").passes[0].weights)
    webui.reload_ui()
    owns_everything(webui)


def test_reload_ui_takes_up_new_code(start: Callable[..., WebUI], tmp_path: Path) -> None:
    from double.webui import install_copy

    copy = install_copy(tmp_path / "extensions" / "mine")
    webui = start(extensions=(BUILTIN, copy))
    notices = copy / "extension" / "prompts" / "notices.py"
    notices.write_text(notices.read_text(encoding="utf-8").replace('f"LoRA {', 'f"Updated {'), encoding="utf-8")
    shutil.rmtree(copy / "extension" / "__pycache__", ignore_errors=True)
    assert webui.generate("a <lora:nobody>").comments[0].startswith("LoRA error")
    webui.reload_ui()
    assert webui.generate("a <lora:nobody>").comments[0].startswith("Updated error")


def test_reload_ui_takes_up_a_new_library_behind_a_linked_folder_too(
    start: Callable[..., WebUI], tmp_path: Path
) -> None:
    from double.webui import install_copy

    copy = install_copy(tmp_path / "elsewhere" / "mine")
    link = tmp_path / "extensions" / "mine"
    link.parent.mkdir()
    link.symlink_to(copy, target_is_directory=True)
    webui = start(extensions=(BUILTIN, link))
    before = sys.modules["lora_runtime.catalog"]
    assert Path(before.__file__ or "").is_relative_to(link)  # as the WebUI's path has it
    webui.reload_ui()
    assert sys.modules["lora_runtime.catalog"] is not before
    owns_everything(webui)


def test_other_extensions_modules_keep_their_names(webui: WebUI) -> None:
    """Ours has `extension` and `network` too; in sys.modules they would be others'."""
    root = {name.partition(".")[0] for name, module in sys.modules.items() if _is_in(module, REPOSITORY / "extension")}
    assert root <= {"lora_runtime_webui_extension", "lora_runtime_extension_under_test"}
    assert str(REPOSITORY) not in sys.path[:1]


def _is_in(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(file).is_relative_to(folder)


# --- where it cannot start ---


@pytest.mark.parametrize("order", ["after the built-in", "before the built-in"])
def test_where_it_cannot_start_the_builtin_stays_and_one_line_says_why(
    start: Callable[..., WebUI],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    order: str,
) -> None:
    monkeypatch.setitem(sys.modules, "lark", None)  # importing it raises
    webui = start(extensions=ORDERS[order])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("[lora-runtime] not started, the built-in Lora extension stays: ")
    assert "lark" in line
    the_builtin_owns_everything(webui)


def the_builtin_owns_everything(webui: WebUI) -> None:
    assert type(webui.owner("lora")).__name__ == type(webui.owner("lyco")).__name__ == "Network"
    assert webui.client().get("/sdapi/v1/loras").json() == "of the built-in"
    assert webui.paste("a")["Prompt"] == "mended by the built-in"
    assert webui.module("shared").options_templates["sd_lora"].label == "the built-in's"
    assert not hasattr(webui.module("sd_models").reload_model_weights, "__wrapped__")
    assert [page.title for page in webui.module("ui_extra_networks").extra_pages] == ["Lora"]
    webui.generate("a <lora:ink:1>")
    assert reached_the_builtin(webui)
    assert webui.errors == []


def raise_for_ours(module: str, function: str) -> None:
    """Make one of the program's functions fail in the middle of what our extension does with it."""
    import importlib

    place = importlib.import_module(f"modules.{module}")
    original = getattr(place, function)

    def broken(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        known = [str(getattr(thing, "__module__", "")) for arg in args for thing in (arg, type(arg))]
        if any(name.startswith("lora_runtime_webui_extension") for name in known):
            raise RuntimeError(f"{function} is broken")
        return result

    setattr(place, function, broken)


FAULTS = {
    "script_callbacks": (
        "on_before_ui",
        "on_app_started",
        "on_infotext_pasted",
        "on_script_unloaded",
        "on_cfg_denoiser",
    ),
    "extra_networks": ("register_extra_network", "register_extra_network_alias"),
    "ui_extra_networks": ("register_page",),
}


@pytest.mark.quick
@pytest.mark.parametrize("order", ["after the built-in", "before the built-in"])
@pytest.mark.parametrize("fault", [(module, name) for module in FAULTS for name in FAULTS[module]])
def test_whichever_step_fails_all_others_are_undone(
    start: Callable[..., WebUI], capsys: pytest.CaptureFixture[str], order: str, fault: tuple[str, str]
) -> None:
    webui = start(extensions=ORDERS[order], prepare=lambda: raise_for_ours(*fault))
    lines = [line for line in capsys.readouterr().out.splitlines() if "[lora-runtime]" in line]
    assert len(lines) == 1
    assert lines[0].startswith("[lora-runtime] not started, the built-in Lora extension stays: RuntimeError: ")
    reported = webui.module("errors").reported
    assert all("[lora-runtime]" in message for message, _ in reported)
    reported.clear()
    assert "lora_runtime_scope" not in webui.module("shared").options_templates
    the_builtin_owns_everything(webui)
    assert webui.job.comments == {}
    webui.build_ui()


def hide_from_ours(name: str) -> None:
    """Make a name of the program's as good as missing: for our extension, not for the program itself."""
    import importlib

    module = importlib.import_module("modules.script_callbacks")
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    exec(compile(source.replace(name, f"_{name}"), str(module.__file__), "exec"), vars(module))
    delattr(module, name)


def without_templates() -> None:
    import importlib

    pages = importlib.import_module("modules.ui_extra_networks")
    made = pages.ExtraNetworksPage.__init__

    def init(self: Any, title: str) -> None:
        made(self, title)
        del self.pane_content_tree_tpl, self.pane_content_dirs_tpl

    pages.ExtraNetworksPage.__init__ = init


def without_caching() -> None:
    import importlib

    del importlib.import_module("modules.processing").StableDiffusionProcessing.get_conds_with_caching


@pytest.mark.parametrize(
    ("prepare", "lacking"),
    [
        (lambda: hide_from_ours("ordered_callbacks_map"), "script_callbacks.ordered_callbacks_map"),
        (without_templates, "pane_content_tree_tpl"),
        (without_caching, "processing.StableDiffusionProcessing.get_conds_with_caching"),
    ],
    ids=["callbacks of 1.8", "pages of 1.8", "encoding"],
)
def test_an_older_version_keeps_its_builtin_and_is_told_which_serve(
    start: Callable[..., WebUI], capsys: pytest.CaptureFixture[str], prepare: Callable[[], None], lacking: str
) -> None:
    webui = start(prepare=prepare)
    [line] = capsys.readouterr().out.splitlines()
    assert lacking in line
    assert "1.9.4 and later" in line
    assert type(webui.owner("lora")).__name__ == "Network"
    assert webui.module("shared").options_templates["sd_lora"].label == "the built-in's"
    assert not hasattr(webui.module("sd_models").reload_model_weights, "__wrapped__")
    assert webui.errors == []
    webui.build_ui()


def test_in_a_forge_it_does_not_start(
    start: Callable[..., WebUI], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "modules_forge").mkdir()
    (tmp_path / "modules_forge" / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    webui = start()
    assert "this is a Forge" in capsys.readouterr().out
    the_builtin_owns_everything(webui)


def test_when_it_is_removed_the_builtin_is_there_again_after_reload_ui(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    webui.generate("a <lora:ink>")
    webui.extensions.remove(REPOSITORY)
    webui.reload_ui()
    assert webui.not_whole() == []
    the_builtin_owns_everything(webui)


def test_why_it_cannot_start_is_said_on_any_console(
    start: Callable[..., WebUI], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    class Missing:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "lark":
                raise ImportError("cannot open /home/日本/lark.py")

    written = io.BytesIO()
    console = io.TextIOWrapper(written, encoding="cp1252", write_through=True)
    monkeypatch.delitem(sys.modules, "lark")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", console)
        webui = start()
    assert "/home/\\u65e5\\u672c/lark.py" in written.getvalue().decode("cp1252")
    the_builtin_owns_everything(webui)


# --- options ---


@pytest.mark.quick(2)
@pytest.mark.parametrize("order", ORDERS)
def test_a_user_s_values_stay(start: Callable[..., WebUI], order: str) -> None:
    values = {"sd_lora": "ink", "lora_preferred_name": "Filename", "lora_add_hashes_to_infotext": False}
    values |= {"lora_in_memory_limit": 3, "lora_show_all": True, "lora_hide_unknown_for_versions": ["SD2"]}
    webui = start(extensions=ORDERS[order], options=values)
    webui.reload_ui()
    assert {key: getattr(webui.options, key) for key in values} == values


def test_the_options_have_the_builtin_s_keys_defaults_and_sections(start: Callable[..., WebUI]) -> None:
    def described(extensions: Sequence[Path]) -> dict[str, Any]:
        webui = start(extensions=extensions)
        options = webui.module("shared").options_templates
        return {key: (options[key].default, options[key].section) for key in options}

    ours = described((REPOSITORY,))
    assert {key: ours[key] for key in ours if not key.startswith("lora_runtime_")} == described((BUILTIN,))


def test_the_list_of_always_on_loras_has_the_files_and_can_be_refreshed(webui: WebUI) -> None:
    option = webui.module("shared").options_templates["sd_lora"]
    assert option.component_args() == {"choices": ["None"]}
    loras.write(webui.loras / "ink.safetensors", plain())
    option.refresh()
    assert option.component_args() == {"choices": ["None", "ink"]}


def test_one_click_keeps_the_builtin_from_being_loaded_and_one_more_brings_it_back(webui: WebUI) -> None:
    webui.options.disabled_extensions = ["other"]
    webui.options.set("lora_runtime_without_builtin", True)
    assert webui.options.disabled_extensions == ["other", "Lora"]
    webui.reload_ui()
    webui.options.set("lora_runtime_without_builtin", False)
    assert webui.options.disabled_extensions == ["other"]


# --- folders ---


def test_the_folder_is_that_of_the_command_line(start: Callable[..., WebUI], tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        loras.write(folder / f"{folder.name}.safetensors", plain())
    webui = start(arguments=("--xformers", "--lora-dir", str(first), f"--lora-dir={second}"))
    assert {page["name"] for page in webui.client().get("/sdapi/v1/loras").json()} == {"one", "two"}


@pytest.mark.parametrize("known", [True, False], ids=["known to the command line", "without the built-in's folder"])
def test_without_one_it_is_the_usual_folder(start: Callable[..., WebUI], tmp_path: Path, known: bool) -> None:
    shutil.rmtree(tmp_path / "models", ignore_errors=True)
    webui = start(extensions=(REPOSITORY,), lora_dir=known)
    assert webui.loras.is_dir()
    loras.write(webui.loras / "ink.safetensors", plain())
    assert webui.changed(webui.generate("a <lora:ink>").passes[0].weights)


def test_the_folder_of_lycoris_is_searched_too(start: Callable[..., WebUI], tmp_path: Path) -> None:
    loras.write(tmp_path / "models" / "LyCORIS" / "old.safetensors", plain())
    webui = start()
    assert webui.changed(webui.generate("a <lyco:old>").passes[0].weights)


# --- the XYZ plot ---


def axes(webui: WebUI) -> dict[str, Any]:
    grid = next(data.module for data in webui.module("scripts").scripts_data if hasattr(data.module, "axis_options"))
    return {axis.label: axis for axis in grid.axis_options}


@pytest.mark.parametrize("extensions", [(REPOSITORY, OTHERS), (OTHERS, REPOSITORY), (BUILTIN, OTHERS, REPOSITORY)])
def test_the_axes_are_added_once(start: Callable[..., WebUI], extensions: Sequence[Path]) -> None:
    webui = start(extensions=extensions)
    grid = next(data.module for data in webui.module("scripts").scripts_data if hasattr(data.module, "axis_options"))
    for _ in range(2):
        webui.module("script_callbacks").before_ui_callback()
        labels = [axis.label for axis in grid.axis_options]
        assert labels[:2] == ["Nothing", "Seed"]
        assert len(labels) == len(set(labels)) == 4


def test_an_axis_of_strengths_paints_with_them(webui: WebUI) -> None:
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    axis = next(axis for label, axis in axes(webui).items() if "Strength" in label)
    values = axis.prepare("ink: 0-1[3]")
    assert len(values) == 3
    for value, strength in zip(values, (0.0, 0.5, 1.0), strict=True):
        job = webui.module("processing").StableDiffusionProcessing(prompt="a <lora:ink:0.9>")
        axis.apply(job, axis.type(value), values)
        weights = webui.generate(job.prompt).passes[0].weights
        assert loras.differences(weights, plain(), loras.patched(plain(), [(ink, strength)])) == []


def test_an_axis_of_loras_offers_the_files_and_refuses_others(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    webui.client().post("/sdapi/v1/refresh-loras")
    axis = next(axis for label, axis in axes(webui).items() if "Which" in label)
    assert axis.choices() == ["None", "ink"]
    axis.confirm(None, ["None", "ink"])
    with pytest.raises(RuntimeError, match='no LoRA named "imk"'):
        axis.confirm(None, ["imk"])


@pytest.mark.quick
@pytest.mark.parametrize("prompt", ["a", "a <lora:ink:0.9>"])
@pytest.mark.parametrize("turned", [False, True])
def test_which_by_strength_has_each_lora_at_each_strength(webui: WebUI, prompt: str, turned: bool) -> None:
    files = {
        name: loras.write(webui.loras / f"{name}.safetensors", plain(), seed=len(name)) for name in ("ink", "wash")
    }
    strength, which = (next(axis for label, axis in axes(webui).items() if word in label) for word in ("Stre", "Which"))
    values = strength.prepare("0, 0.5, 1")
    strength.confirm(None, values)
    for name in files:
        for value in values:
            job = webui.module("processing").StableDiffusionProcessing(prompt=prompt)
            steps = [(which, name), (strength, value)]
            for axis, chosen in reversed(steps) if turned else steps:
                axis.apply(job, chosen, [])
            done = webui.generate(job.prompt)
            wanted = loras.patched(plain(), [(files[name], float(value))])
            assert loras.differences(done.passes[0].weights, plain(), wanted) == []


# --- the page ---


def test_the_page_and_its_editor_are_made_of_the_program_s_components(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    made = webui.build_ui()
    assert len(made.pages) == 1
    assert "Loading..." in made.pages[0].value
    page = webui.module("ui_extra_networks").extra_pages[0]
    page.refresh()
    assert "ink" in page.create_html("txt2img")
    client = webui.client()
    card = client.get(
        "/sd_extra_networks/get-single-card", params={"page": "lora", "tabname": "txt2img", "name": "ink"}
    )
    assert "ink" in card.json()["html"]
    assert webui.errors == []


# --- the list that other extensions read ---


@pytest.mark.parametrize("way", ["the page", "the API"])
def test_the_builtin_s_list_of_files_follows_our_refresh(webui: WebUI, way: str) -> None:
    networks: Any = sys.modules["networks"]

    def refresh() -> set[str]:
        if way == "the page":
            webui.module("ui_extra_networks").extra_pages[0].refresh()
        else:
            webui.client().post("/sdapi/v1/refresh-loras")
        return set(networks.available_networks)

    ink = loras.write(webui.loras / "ink.safetensors", plain())
    assert refresh() == {"ink"}
    looked = networks.calls.count(("list_available_networks", []))
    assert refresh() == {"ink"}
    assert networks.calls.count(("list_available_networks", [])) == looked  # nothing is new: nothing is read again
    ink.path.unlink()
    loras.write(webui.loras / "wash.safetensors", plain())
    assert refresh() == {"wash"}


def test_a_builtin_that_cannot_list_its_files_costs_nobody_our_page(
    webui: WebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(sys.modules["networks"], "list_available_networks", fail)
    loras.write(webui.loras / "ink.safetensors", plain())
    page = webui.module("ui_extra_networks").extra_pages[0]
    page.refresh()
    assert page.search("") == ["ink"]
    ((message, error),) = webui.errors
    assert "could not list its files anew" in message
    assert isinstance(error, OSError)
