"""The nodes as people meet them: what can be set, what they write, and when they run again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double.loras import File, write
from torch import nn

if TYPE_CHECKING:
    from comfyui.program import Comfy

REPOSITORY = Path(__file__).resolve().parent.parent.parent.parent


def stack(comfy: Comfy, text: str = "", **rows: Any) -> str:
    (written,) = comfy.nodes["LoraRuntimeStack"]().write(text, **rows)
    return str(written)


def schedule(comfy: Comfy, **given: Any) -> tuple[str, str]:
    usual = {"text": "", "lora": "ink.safetensors", "first": 0.0, "first_at": 0.0, "last": 1.0, "last_at": 1.0}
    usual |= {"curve": "linear", "clip": 0.0}
    written: tuple[str, str] = comfy.nodes["LoraRuntimeSchedule"]().write(**{**usual, **given})
    return written


def test_the_folder_is_loaded_as_the_program_loads_it(comfy: Comfy) -> None:
    from comfyui.program import load_folder

    module = load_folder()
    assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
    assert module.NODE_DISPLAY_NAME_MAPPINGS["LoraRuntimeTags"] == "LoRA tags"
    for node in module.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
        assert node.CATEGORY and node.DESCRIPTION


def test_imported_by_anything_else_it_does_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u; before = set(sys.modules); "
        f"spec = u.spec_from_file_location('anything', {str(REPOSITORY / '__init__.py')!r}); "
        "module = u.module_from_spec(spec); path = list(sys.path); spec.loader.exec_module(module); "
        "print(module.NODE_CLASS_MAPPINGS, sys.path == path, "
        "{n for n in set(sys.modules) - before if 'lora' in n or 'torch' in n})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "{} True set()\n"


def test_beside_the_folder_its_name_means_the_library(tmp_path: Path) -> None:
    try:
        (tmp_path / "lora_runtime").symlink_to(REPOSITORY, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    code = "import lora_runtime, lora_runtime.prompt; print(lora_runtime.parse_prompt('a <lora:ink:0.5>').tags[0].unet)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "0.5\n"


def test_a_program_that_is_too_old_is_told_so(start_comfy: Callable[..., Comfy], monkeypatch: Any) -> None:
    comfy = start_comfy()
    monkeypatch.delattr(sys.modules["comfy.patcher_extension"].WrappersMP, "APPLY_MODEL")
    with pytest.raises(ImportError, match=r"needs ComfyUI 0\.3\.64 or later: this one has no .*APPLY_MODEL; update"):
        sys.modules["lora_runtime_comfyui_extension.hosts.comfyui"].start()
    assert comfy.nodes


def test_a_package_that_is_missing_is_named(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["lora_runtime_comfyui_extension.hosts.comfyui"]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="the package lark, which is not installed: run install"):
        module.start()


def test_files_are_chosen_by_the_programs_names(comfy: Comfy, ink: File, wash: File) -> None:
    (comfy.loras / "old.pt").write_bytes(b"")
    choices, _ = comfy.nodes["LoraRuntimeStack"].INPUT_TYPES()["optional"]["lora_1"]
    assert choices == ["None", "ink.safetensors", str(Path("style", "wash.safetensors"))]
    assert comfy.nodes["LoraRuntimeSchedule"].INPUT_TYPES()["required"]["lora"][0] == choices


def test_each_setting_says_what_it_is(comfy: Comfy) -> None:
    for node in comfy.nodes.values():
        for group, options in node.INPUT_TYPES().items():
            for name, (kind, option) in options.items() if group != "hidden" else ():
                assert kind in ("MODEL", "CLIP") or option["tooltip"], name


def test_a_stack_writes_a_tag_for_each_row_that_is_on(comfy: Comfy, ink: File, wash: File) -> None:
    wash_name = str(Path("style", "wash.safetensors"))
    rows: dict[str, Any] = {"lora_1": "ink.safetensors", "model_1": 0.8, "clip_1": 0.5, "on_1": True}
    rows |= {"lora_2": wash_name, "model_2": 0.7, "clip_2": 0.7, "lora_3": "ink.safetensors", "on_3": False}
    rows |= {"lora_4": "None"}
    assert stack(comfy, "a boat", **rows) == "a boat <lora:ink:te=0.5:unet=0.8> <lora:wash:0.7>"
    assert stack(comfy) == ""
    assert stack(comfy, lora_1="ink.safetensors") == "<lora:ink:1>"


def test_what_a_stack_writes_acts_as_its_widgets_say(comfy: Comfy, ink: File, wash: File) -> None:
    rows = {"lora_1": "ink.safetensors", "model_1": 0.8, "clip_1": 0.5}
    report = comfy.tags(stack(comfy, "a boat", **rows))[3]
    assert "ink × te 0.5, unet 0.8: 21 of 21 keys" in report


def test_a_name_that_two_files_have_means_the_one_that_was_chosen(comfy: Comfy, ink: File) -> None:
    write(comfy.loras / "style" / "ink.safetensors", comfy.plain(), seed=4)
    for name in ("ink.safetensors", str(Path("style", "ink.safetensors"))):
        text = stack(comfy, lora_1=name)
        entry, _ = (
            sys.modules["lora_runtime_comfyui_extension.hosts.comfyui.files"]
            .loader()
            .shelf.find(text.removeprefix("<lora:").removesuffix(":1>"))
        )
        assert entry.path == comfy.loras / name


def test_a_file_that_is_gone_is_named_by_its_tag(comfy: Comfy) -> None:
    text = stack(comfy, lora_1="style\\gone.safetensors")
    assert text == "<lora:style/gone:1>"
    assert 'no LoRA named "style/gone"' in comfy.tags(text)[3]


@pytest.mark.parametrize(
    ("given", "written", "alone"),
    [
        ({}, "<lora:ink:te=0:unet=0@0,1@1>", "0@0,1@1"),
        ({"last": 0.5, "clip": 0.3}, "<lora:ink:te=0.3:unet=0@0,0.5@1>", "0@0,0.5@1"),
        (
            {"first": 1.0, "first_at": 0.9, "last": 0.2, "last_at": 0.1},
            "<lora:ink:te=0:unet=0.2@0.1,1@0.9>",
            "0.2@0.1,1@0.9",
        ),
        ({"curve": "ease"}, "<lora:ink:te=0:unet=0@0,1@1:curve=ease>", "0@0,1@1"),
        ({"lora": "None"}, "", "0@0,1@1"),
        ({"text": "a boat"}, "a boat <lora:ink:te=0:unet=0@0,1@1>", "0@0,1@1"),
    ],
)
def test_a_schedule_is_written_as_text(
    comfy: Comfy, ink: File, given: dict[str, Any], written: str, alone: str
) -> None:
    assert schedule(comfy, **given) == (written, alone)


def test_a_schedule_of_one_place_is_a_jump(comfy: Comfy, ink: File) -> None:
    text, _ = schedule(comfy, first=0.2, last=0.9, first_at=0.5, last_at=0.5)
    (ink_report,) = [line for line in comfy.tags(text)[3].splitlines() if "ink" in line]
    assert "LoRA" not in ink_report


def test_a_node_runs_again_where_a_file_has_other_contents(comfy: Comfy, ink: File) -> None:
    node = comfy.nodes["LoraRuntimeTags"]
    first = node.IS_CHANGED(text="a cat <lora:ink:0.7>", unique_id="7")
    assert node.IS_CHANGED(text="a dog <lora:ink:0.7>", unique_id="7") == first
    write(ink.path, comfy.plain(), seed=5)
    assert node.IS_CHANGED(text="a cat <lora:ink:0.7>", unique_id="7") != first


def test_a_text_that_comes_by_a_wire_is_remembered_for_that(comfy: Comfy, ink: File) -> None:
    node = comfy.nodes["LoraRuntimeTags"]
    before = node.IS_CHANGED(unique_id="8")  # the program gives no text: nothing upstream has run
    comfy.tags("a cat <lora:ink:0.7>", unique_id="8")
    assert node.IS_CHANGED(unique_id="8") == before
    write(ink.path, comfy.plain(), seed=5)
    after = node.IS_CHANGED(unique_id="8")
    assert after != before
    comfy.tags("a cat <lora:ink:0.7>", unique_id="8")
    assert node.IS_CHANGED(unique_id="8") == after
    write(ink.path, comfy.plain(), seed=6)
    assert node.IS_CHANGED(unique_id="8") not in (before, after)


def test_a_file_that_comes_later_is_seen(comfy: Comfy) -> None:
    node = comfy.nodes["LoraRuntimeTags"]
    comfy.tags("a cat <lora:ink:0.7>", unique_id="9")
    before = node.IS_CHANGED(unique_id="9")
    write(comfy.loras / "ink.safetensors", comfy.plain())
    assert node.IS_CHANGED(unique_id="9") != before


def test_random_block_weights_are_drawn_from_a_number(comfy: Comfy, ink: File) -> None:
    text = "<lora:ink:1:lbw=1,R,R,R,R,R,R,R,R,R,R,R,R,R,R,R,R>"
    nodes = [comfy.tags(text, drawn_from=number)[0] for number in (1, 1, 2)]
    assert nodes[0].patches_uuid == nodes[1].patches_uuid != nodes[2].patches_uuid


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["clip_l"], ["text_encoder"]),
        (["clip_h"], ["text_encoder"]),
        (["clip_l", "clip_g"], ["text_encoder", "text_encoder_2"]),
        (["clip_g"], ["text_encoder_2"]),
        (["clip_l", "t5xxl"], ["text_encoder", "text_encoder_2"]),
        (["t5xxl"], ["text_encoder"]),
        (["clip_l", "clip_g", "t5xxl"], ["text_encoder", "text_encoder_2", "text_encoder_3"]),
        (["clip_l", "clip_g", "t5xxl", "llama"], [f"text_encoder{end}" for end in ("", "_2", "_3", "_4")]),
        (["clip_l", None, "t5xxl"], ["text_encoder", "text_encoder_3"]),  # of a checkpoint without the second one
        (["qwen25_7b"], ["text_encoder"]),
    ],
)
def test_text_encoders_have_the_numbers_that_files_give_them(
    comfy: Comfy, names: list[str | None], numbers: list[str]
) -> None:
    stage = nn.Module()
    if None in names:
        stage.clip_g = None  # type: ignore[assignment]
    for name in filter(None, names):
        encoder = nn.Module()
        encoder.transformer = nn.Linear(1, 1)
        stage.add_module(name, encoder)
    clip = type(comfy.clip)(stage, comfy.kind(stage))
    view = sys.modules["lora_runtime_comfyui_extension.hosts.comfyui.models"].view_of(comfy.model, clip)
    assert list(view.components) == ["unet", *numbers]


def test_the_example_names_nodes_and_settings_that_there_are(comfy: Comfy) -> None:
    graph = json.loads((REPOSITORY / "docs" / "comfyui-workflow.json").read_text(encoding="utf-8"))
    ours = [node for node in graph.values() if node["class_type"] in comfy.nodes]
    assert {node["class_type"] for node in ours} == set(comfy.nodes)
    for node in ours:
        types = comfy.nodes[node["class_type"]].INPUT_TYPES()
        known = {**types["required"], **types.get("optional", {})}
        assert set(node["inputs"]) <= set(known)
        assert set(types["required"]) <= set(node["inputs"])
