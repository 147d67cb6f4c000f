"""The pictures beside files, made small."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from handmade import write
from PIL import Image

from lora_runtime import LoraCatalog
from lora_runtime.studio.thumbnails import picture_of, thumbnail


def test_a_picture_keeps_its_shape_and_is_made_anew_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "ink.png"
    Image.new("RGB", (800, 400), (1, 200, 3)).save(path)
    with Image.open(io.BytesIO(thumbnail(path))) as small:
        assert (small.format, small.size) == ("WEBP", (256, 128))
    Image.new("RGB", (30, 60)).save(tmp_path / "other.png")
    (tmp_path / "other.png").replace(path)
    with Image.open(io.BytesIO(thumbnail(path))) as small:
        assert small.size == (30, 60)  # none is made larger


def test_what_cannot_be_read_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "ink.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "ink.png") == thumbnail(tmp_path / "gone.png") == b""


def test_a_row_of_the_panel_has_the_picture_in_its_address(tmp_path: Path) -> None:
    write(tmp_path / "ink.safetensors")
    write(tmp_path / "wash.safetensors")
    Image.new("RGB", (20, 10)).save(tmp_path / "ink.preview.png")
    ink, wash = LoraCatalog(tmp_path).entries
    kind, _, data = picture_of(ink).partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (20, 10)
    assert picture_of(wash) == ""
