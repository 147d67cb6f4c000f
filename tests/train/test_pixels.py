"""Pixels: a picture as it is seen, at the size of its bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_runtime.errors import TrainingError
from lora_runtime.train.buckets import Placed, bucket_of
from lora_runtime.train.folders import Picture
from lora_runtime.train.pixels import read_pixels

Draw = Callable[..., Path]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def read(path: Path, placed: Placed, flipped: bool = False) -> Tensor:
    return read_pixels(Picture(path, "", "1_x", 1, False, placed.resized), placed, flipped)


def whole(width: int, height: int) -> Placed:
    """Return the place of a picture that is neither scaled nor cut."""
    return Placed((width, height), (width, height), (0, 0))


def expected(pixels: np.ndarray) -> Tensor:
    """Return (height, width, 3) in 0 to 255 as (3, height, width) in -1 to 1, in float64."""
    return torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1) / 127.5 - 1


def close(found: Tensor, pixels: np.ndarray, off: float = 0.0) -> None:
    torch.testing.assert_close(found.double(), expected(pixels), rtol=0, atol=off / 127.5 + 1e-6)


def test_pixels_go_from_minus_one_to_one_and_no_value_is_changed(tmp_path: Path) -> None:
    pixels = noise(40, 24)
    pixels[0, 0], pixels[0, 1] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png", whole(24, 40))
    assert found.dtype == torch.float32 and found.shape == (3, 40, 24) and found.is_contiguous()
    assert torch.equal(found[:, 0, 0], torch.full((3,), -1.0)) and torch.equal(found[:, 0, 1], torch.ones(3))
    close(found, pixels)


def test_a_picture_is_cut_where_it_is_placed_and_mirrored_after(tmp_path: Path) -> None:
    pixels = noise(50, 70)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    placed = Placed((64, 40), (70, 50), (3, 5))
    close(read(tmp_path / "a.bmp", placed), pixels[5:45, 3:67])
    assert torch.equal(read(tmp_path / "a.bmp", placed, True), read(tmp_path / "a.bmp", placed).flip(2))


# EXIF 2.32, tag 274: which side of what is seen the first row and the first column of the file are.
@pytest.mark.parametrize(
    ("turned", "seen"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: p.transpose(1, 0, 2)[:, ::-1]),
        (7, lambda p: p.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda p: p.transpose(1, 0, 2)[::-1]),
    ],
)
def test_a_picture_is_turned_as_its_exif_says(
    tmp_path: Path, turned: int, seen: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = noise(16, 24)
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    close(read(tmp_path / "a.png", whole(24, 16) if turned < 5 else whole(16, 24)), seen(pixels))


def test_what_is_transparent_is_seen_over_white(tmp_path: Path) -> None:
    pixels = noise(16, 16, 4)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    alpha = pixels[..., 3:] / 255.0
    close(read(tmp_path / "a.png", whole(16, 16)), pixels[..., :3] * alpha + 255 * (1 - alpha), off=1.0)


def test_hidden_colours_do_not_bleed_when_a_picture_is_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, 32:] = (255, 255, 255, 255)  # what is left of it is black, and not to be seen
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png", Placed((24, 24), (24, 24), (0, 0))), torch.ones(3, 24, 24))


@pytest.mark.parametrize(
    ("mode", "color", "seen"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 25700, (100, 100, 100)),  # 25700 of 65535 is 100 of 255
        ("I;16", 65535, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_kind_of_picture_becomes_three_colours(
    tmp_path: Path, draw: Draw, mode: str, color: object, seen: tuple[int, int, int]
) -> None:
    path = draw(tmp_path / "a.png", (16, 8), color, mode)
    close(read(path, whole(16, 8)), np.broadcast_to(np.array(seen), (8, 16, 3)))


def test_a_palettes_transparent_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (16, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((3, 2), 1)
    image.save(tmp_path / "a.png", transparency=0)
    pixels = np.full((8, 16, 3), 255)
    pixels[2, 3] = (0, 0, 200)
    close(read(tmp_path / "a.png", whole(16, 8)), pixels)


def test_print_colours_are_read(tmp_path: Path, draw: Draw) -> None:
    path = draw(tmp_path / "a.jpg", (16, 16), (0, 255, 255, 0), "CMYK", quality=100)
    close(read(path, whole(16, 16)), np.broadcast_to(np.array((255, 0, 0)), (16, 16, 3)), off=6)


def test_scaling_keeps_plain_colours_and_does_not_alias(tmp_path: Path, draw: Draw) -> None:
    for size in ((300, 200), (20, 30)):
        path = draw(tmp_path / "plain.png", size, (10, 120, 230))
        placed = bucket_of(size, [(64, 64)])
        close(read(path, placed), np.broadcast_to(np.array((10, 120, 230)), (64, 64, 3)))
    # Black and white columns, one pixel each: at a quarter of the size, all that is left is their mean.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = read(tmp_path / "stripes.png", Placed((64, 64), (64, 64), (0, 0)))
    assert small[:, 4:-4, 4:-4].abs().max() < 0.05


def test_a_picture_that_is_gone_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.png: the picture can no longer be read"):
        read(tmp_path / "gone.png", whole(8, 8))
