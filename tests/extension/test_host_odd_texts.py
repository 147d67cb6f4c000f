"""File names that are not UTF-8, and notes with half of a character: nothing of them stops the program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system has no such file names")


def rename(path: Path, name: bytes) -> None:
    os.rename(os.fsencode(path), os.path.join(os.fsencode(path.parent), name))  # noqa: PTH104, PTH118 - bytes


def names_no_text_can_have(folder: Path) -> None:
    """Put three such files into a folder: by their own name, beside a picture, and by their folder's name."""
    for name in (b"caf\xe9.safetensors", b"\xff\xfe.safetensors"):
        rename(loras.write(folder / "tmp.safetensors", plain(), metadata={"ss_output_name": "coffee"}).path, name)
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"caf\xe9.png"))).write_bytes(b"\x89PNG")  # noqa: PTH118
    loras.write(folder / "sub" / "inside.safetensors", plain())
    rename(folder / "sub", b"d\xe9")


def test_the_program_starts_with_them(start: Callable[..., WebUI], tmp_path: Path) -> None:
    names_no_text_can_have(tmp_path / "models" / "Lora")
    webui = start()
    loras.write(webui.loras / "ink.safetensors", plain())
    sent = json.loads(webui.configuration())
    choices = [each["props"].get("choices") for each in sent["components"] if each["props"].get("choices")]
    assert any("ink" in str(choice) for choice in choices)
    assert webui.errors == []


@pytest.mark.parametrize("style", ["Dirs", "Tree"])
def test_pages_and_answers_can_be_sent_when_they_come_later(webui: WebUI, style: str) -> None:
    webui.options.extra_networks_tree_view_style = style
    loras.write(webui.loras / "ink.safetensors", plain())
    names_no_text_can_have(webui.loras)
    client = webui.client()
    client.post("/sdapi/v1/refresh-loras")
    cards = client.get("/lora-runtime/cards").json()
    assert cards["total"] == 1
    assert "3 files cannot be used" in cards["note"]
    assert "caf\\xe9.safetensors" in cards["note"]
    assert "rename it" in cards["note"]
    assert [each["name"] for each in client.get("/sdapi/v1/loras").json()] == ["ink"]
    page = webui.module("ui_extra_networks").extra_pages[0]
    page.create_html("txt2img").encode("utf-8")


def test_a_tag_that_means_one_is_told_so(webui: WebUI) -> None:
    path = webui.loras / "tmp.safetensors"
    loras.write(path, plain(), metadata={"ss_output_name": "coffee"})
    rename(path, b"caf\xe9.safetensors")
    done = webui.generate("a <lora:coffee>")
    [comment] = done.comments
    assert "is not UTF-8, so that no prompt can have it; rename it" in comment
    comment.encode("utf-8")
    assert webui.changed(done.passes[0].weights) == []


def test_notes_with_half_of_a_character_are_shown_and_kept(webui: WebUI) -> None:
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    notes = ink.path.with_suffix(".json")
    notes.write_text('{"activation text": "\\ud83d broken", "description": "d", "tool": {"x": ["\\udc00"]}}')
    client = webui.client()
    client.post("/sdapi/v1/refresh-loras")
    assert 'data-activation="\N{REPLACEMENT CHARACTER}' in client.get("/lora-runtime/cards").json()["html"]
    page = webui.module("ui_extra_networks").extra_pages[0]
    json.dumps(page.items["ink"]["user_metadata"], ensure_ascii=False).encode("utf-8")
    entry = page.shelf.entry("ink")
    page.shelf.notes.write(entry, page.shelf.notes.of(entry))
    kept = json.loads(notes.read_text(encoding="utf-8"))  # it is UTF-8
    assert (kept["description"], kept["tool"]) == ("d", {"x": ["\udc00"]})


def test_prompts_with_half_of_a_character_are_answered(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    webui.generate("a")
    prompt = "\ud83d <lora:\ud83d:1> <lora:ink:\udc00>"
    answer = webui.client().post("/lora-runtime/explain", content=json.dumps({"prompt": prompt}).encode())
    assert answer.status_code == 200
    done = webui.generate(prompt)
    assert len(done.comments) == 2
    json.dumps([done.comments, done.extra_generation_params], ensure_ascii=False).encode("utf-8")


def test_a_folder_of_files_may_have_such_a_name(start: Callable[..., WebUI], tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"mod\xe8les")))  # noqa: PTH118 - bytes
    loras.write(folder / "ink.safetensors", plain())
    webui = start(arguments=("--lora-dir", str(folder)))
    client = webui.client()
    assert client.get("/lora-runtime/cards").json()["total"] == 1
    [listed] = client.get("/sdapi/v1/loras").json()
    assert "mod\\xe8les" in listed["path"]
    assert webui.changed(webui.generate("a <lora:ink>").passes[0].weights)
    found: Any = client.post("/lora-runtime/explain", json={"prompt": "<lora:ink>"}).json()
    assert "mod\\xe8les" in found["tags"][0]["file"]
    webui.configuration()
