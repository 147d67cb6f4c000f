"""Parameters in pictures: those of the WebUI are read, and names are found again by hash."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import lora_runtime
from lora_runtime.infotext import infotext_of

# As AUTOMATIC1111's WebUI 1.10.1 writes it.
TEXT = """a boat,
by the sea <lora:ink:0.7> <lora:gone:1>
Negative prompt: people,
text
Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Model: v1-5, \
Lora hashes: "ink: {digits}, gone: ffffffffffff", TI hashes: "x: y, z: 1", Note: "a \\"b\\": c", Version: v1.10.1"""


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Give the text for a picture with a file that is called otherwise here."""
    save_file({"a.lora_A.weight": torch.ones(1, 2)}, tmp_path / "tusche.safetensors")
    raw = (tmp_path / "tusche.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return TEXT.format(digits=hashlib.sha256(raw[start:]).hexdigest()[:12])


def png(path: Path, text: str) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return path


def with_comment(path: Path, text: str) -> Path:
    """Write a picture whose EXIF comment has the text, as the WebUI does for JPEG and WebP."""
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\0" + text.encode("utf-16-be")}
    Image.new("RGB", (2, 2)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["text", "png", "picture", "jpg", "webp"])
def test_a_picture_of_the_webui_is_read(tmp_path: Path, text: str, kind: str) -> None:
    source: Any = text
    if kind in ("png", "picture"):
        source = png(tmp_path / "a.png", text)
    elif kind != "text":
        source = with_comment(tmp_path / f"a.{kind}", text)
    if kind == "picture":
        with Image.open(source) as opened:
            found = lora_runtime.read_infotext(opened, loras=tmp_path)
    else:
        found = lora_runtime.read_infotext(source, loras=tmp_path)
    assert found.prompt == "a boat,\nby the sea <lora:tusche:0.7> <lora:gone:1>"
    assert found.negative_prompt == "people,\ntext"
    assert found.parameters["Steps"] == "20"
    assert found.parameters["Sampler"] == "Euler a"
    assert found.parameters["Note"] == 'a "b": c'
    assert found.parameters["Version"] == "v1.10.1"
    assert found.loras == {"ink": found.loras["ink"], "gone": "ffffffffffff"}
    assert len(found.loras["ink"]) == 12


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    parameters = {"num_inference_steps": 4, "guidance_scale": 2.5, "seed": 3, "Odd": 'x, "y": z\nw'}
    text = infotext_of("a <lora:ink:1>", "b", parameters, {"ink": "0" * 64})
    found = lora_runtime.read_infotext(text, loras=tmp_path)
    assert (found.prompt, found.negative_prompt) == ("a <lora:ink:1>", "b")
    assert found.parameters == {
        "Steps": "4",
        "CFG scale": "2.5",
        "Seed": "3",
        "Odd": 'x, "y": z\nw',
        "Lora hashes": "ink: 000000000000",
    }


@pytest.mark.parametrize("parameters", [{}, {"seed": 3}, {"seed": 3, "width": 8, "height": 16}, {"Odd": "x"}])
def test_a_line_of_fewer_than_three_is_read_back_too(parameters: dict[str, Any], tmp_path: Path) -> None:
    found = lora_runtime.read_infotext(infotext_of("a\nb", "c", parameters, {"ink": "0" * 64}), loras=tmp_path)
    assert (found.prompt, found.negative_prompt) == ("a\nb", "c")
    names = {"seed": "Seed", "width": "Size", "height": "Size", "Odd": "Odd"}
    assert [*found.parameters] == [*dict.fromkeys([*map(names.__getitem__, parameters), "Lora hashes"])]
    plain = lora_runtime.read_infotext(infotext_of("a\nb", "", {"seed": 3}))
    assert (plain.prompt, plain.parameters) == ("a\nb", {"Seed": "3"})


def test_a_prompt_alone_is_a_prompt() -> None:
    found = lora_runtime.read_infotext("a boat: red, and\nblue: sea")
    assert (found.prompt, found.parameters) == ("a boat: red, and\nblue: sea", {})


def test_the_fields_of_additional_networks_are_tags() -> None:
    text = "a boat\nSteps: 2, Seed: 1, AddNet Module 1: LoRA, AddNet Model 1: ink(0123456789ab), AddNet Weight A 1: 0.5"
    assert lora_runtime.read_infotext(text).prompt == "a boat\n<lora:ink:0.5>"


def test_a_picture_without_parameters_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "bare.png")
    with pytest.raises(ValueError, match=r"bare\.png: has no parameters"):
        lora_runtime.read_infotext(tmp_path / "bare.png")
    with pytest.raises(FileNotFoundError):
        lora_runtime.read_infotext(tmp_path / "gone.png")


@pytest.mark.parametrize("piece", ["a ", "<lora:", "<lora:a:", 'a: "', '"', "a: \\", ":", ","])
def test_hostile_text_takes_no_time(piece: str) -> None:
    began = time.perf_counter()
    lora_runtime.read_infotext("\n" + piece * (300_000 // len(piece)))
    assert time.perf_counter() - began < 20  # it guards against what never ends
