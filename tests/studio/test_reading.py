"""A picture's parameters back into settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from studio_line import alone

from lora_runtime import LoraCatalog
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.reading import read_picture, settings_in
from lora_runtime.studio.settings import Settings

# diffusers 0.42 hands tensors to numpy 2 in the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def test_what_a_picture_says_paints_it_again(pipe: Any, loras: LoraCatalog, asked: Settings, tmp_path: Path) -> None:
    wanted = Settings(**{**vars(asked), "prompt": "a <lora:heart:0.5>", "negative": "sea", "sampler": "Euler a"})
    picture = alone(pipe, wanted, loras).pictures[0]
    (tmp_path / "one.png").write_bytes(picture.png)
    again = Settings(**read_picture(tmp_path / "one.png", loras))
    assert again == wanted
    assert alone(pipe, again, loras).pictures[0].png == picture.png


def test_a_file_that_has_another_name_here_is_known_by_its_hash(loras: LoraCatalog, tmp_path: Path) -> None:
    digits = loras.hashes(loras.resolve("heart")).sha256_of_tensors[:12]
    notes = PngInfo()
    text = (
        f'a <lora:their heart:1>\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Lora hashes: "their heart: {digits}"'
    )
    notes.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=notes)
    assert read_picture(tmp_path / "theirs.png", loras)["prompt"] == "a <lora:heart:1>"


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"Sampler": "DPM++ 2M", "Schedule type": "Karras"}, {"sampler": "DPM++ 2M Karras"}),
        ({"Sampler": "DPM++ 2M Karras"}, {"sampler": "DPM++ 2M Karras"}),  # as the WebUI wrote it before 1.9
        ({"Sampler": "Euler", "Schedule type": "Automatic"}, {"sampler": "Euler"}),
        ({"Sampler": "Restart", "Steps": "x", "Size": "wide"}, {}),
    ],
)
def test_settings_are_read_as_the_webui_writes_them(parameters: dict[str, str], found: dict[str, Any]) -> None:
    assert settings_in(parameters) == found


def test_a_picture_without_parameters_and_what_is_no_picture_are_refused(loras: LoraCatalog, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("plain.png", "text.png"):
        with pytest.raises(StudioError, match="has no parameters in it"):
            read_picture(tmp_path / name, loras)
