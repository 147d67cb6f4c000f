"""Boxes and masks at the resolution of any layer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_runtime import regions
from lora_runtime.errors import RegionError
from lora_runtime.prompt.strength import Region
from lora_runtime.regions import Place, find_place, place_of


def box(*edges: float, soft: float = 0.0, height: int = 8, width: int = 8) -> Tensor:
    assert len(edges) == 4
    return place_of(Region(box=edges, soft=soft)).mask(height, width)


def picture(path: Path, pixels: Tensor, kind: str = "L") -> Path:
    """Write a grey picture, (height, width), values 0 to 255."""
    size = (pixels.shape[1], pixels.shape[0])
    Image.frombytes("L", size, pixels.to(torch.uint8).contiguous().numpy().tobytes()).convert(kind).save(path)
    return path


def test_a_box_on_the_grid_is_one_inside_and_zero_outside() -> None:
    expected = torch.zeros(8, 8)
    expected[2:4, 4:8] = 1
    assert torch.equal(box(0.5, 0.25, 1.0, 0.5), expected)


def test_no_region_is_everywhere() -> None:
    assert torch.equal(Place().mask(3, 5), torch.ones(3, 5))


def test_a_cell_that_an_edge_cuts_has_the_share_inside() -> None:
    row = box(0.3, 0.0, 1.0, 1.0, height=10, width=5)[0]
    # The edge is at 1.5 of 5 cells.
    torch.testing.assert_close(row, torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("soft", [0.0, 0.1, 0.5, 1.0])
def test_edges_at_the_borders_of_the_picture_do_not_fade(soft: float) -> None:
    assert torch.equal(box(0.0, 0.0, 1.0, 1.0, soft=soft), torch.ones(8, 8))
    upper = box(0.0, 0.0, 1.0, 0.5, soft=soft)
    assert torch.equal(upper, upper[:, :1].expand(8, 8))


def test_a_soft_edge_goes_from_inside_to_outside_in_its_width_of_the_shorter_side() -> None:
    fine = box(0.5, 0.0, 1.0, 1.0, soft=0.2, height=100, width=400)[0]
    # 0.2 of 100 cells, half of them on each side of the edge at 200.
    at = torch.arange(400) + 0.5
    torch.testing.assert_close(fine, ((at - 190) / 20).clamp(0, 1), rtol=0, atol=1e-5)


def test_two_boxes_that_share_a_soft_edge_make_one_together() -> None:
    left, right = box(0.0, 0.0, 0.4, 1.0, soft=0.3), box(0.4, 0.0, 1.0, 1.0, soft=0.3)
    torch.testing.assert_close(left + right, torch.ones(8, 8))


def test_a_mask_is_the_mean_of_its_pixels_in_each_cell(tmp_path: Path) -> None:
    grey = torch.randint(256, (12, 18), generator=torch.Generator().manual_seed(0))
    place = place_of(Region(mask="grey.png"), picture(tmp_path / "grey.png", grey).parent)
    assert torch.equal(place.mask(12, 18), grey / 255)
    expected = (grey / 255).double().reshape(4, 3, 6, 3).mean((1, 3))
    torch.testing.assert_close(place.mask(4, 6).double(), expected, rtol=1e-6, atol=1e-6)


def test_a_mask_that_is_smaller_than_the_layer_is_spread(tmp_path: Path) -> None:
    path = picture(tmp_path / "half.png", torch.tensor([[0, 255]]))
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)
    assert torch.equal(place_of(Region(mask=str(path))).mask(3, 4), expected)


def test_a_mask_in_colour_and_another_format_is_grey(tmp_path: Path) -> None:
    path = picture(tmp_path / "white.bmp", torch.full((2, 2), 255), "RGB")
    assert torch.equal(place_of(Region(mask=str(path))).mask(2, 2), torch.ones(2, 2))


def test_a_box_and_a_mask_hold_where_both_do(tmp_path: Path) -> None:
    path = picture(tmp_path / "left.png", torch.tensor([[255, 255, 0, 0]] * 4))
    place = place_of(Region(str(path), (0.0, 0.5, 1.0, 1.0)))
    expected = torch.zeros(4, 4)
    expected[2:, :2] = 1
    assert torch.equal(place.mask(4, 4), expected)


def test_the_same_pixels_under_another_name_are_the_same_place(tmp_path: Path) -> None:
    pixels = torch.arange(16).view(4, 4)
    one, other = (place_of(Region(mask=str(picture(tmp_path / name, pixels)))) for name in ("a.png", "b.bmp"))
    assert one == other
    assert hash(one) == hash(other)
    assert one != place_of(Region(mask=str(picture(tmp_path / "a.png", pixels.T))))
    assert one != place_of(Region(mask=str(picture(tmp_path / "a.png", pixels.view(2, 8)))))
    assert one != place_of(Region(str(tmp_path / "b.bmp"), soft=0.5))


def test_a_mask_that_is_missing_says_where() -> None:
    with pytest.raises(RegionError, match=r"the mask .*nothing\.png cannot be used: No such file"):
        place_of(Region(mask="nothing.png"))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(RegionError, match=r"x\.png cannot be used: it is no picture that can be read"):
        place_of(Region(mask="x.png"), tmp_path)


def test_a_picture_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", torch.randint(256, (64, 64)))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(RegionError, match=r"x\.png cannot be used: it is no picture that can be read"):
        place_of(Region(mask="x.png"), tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_a_pipe_is_no_mask(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mask.png")  # who opened it would wait for ever
    with pytest.raises(RegionError, match="no plain file"):
        place_of(Region(mask="mask.png"), tmp_path)


def test_a_folder_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="cannot be used"):
        place_of(Region(mask="."), tmp_path)


def test_too_large_a_file_or_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "x.png", torch.zeros(64, 64))
    monkeypatch.setattr(regions, "_LARGEST_MASK", 2000)
    assert path.stat().st_size < 2000
    with pytest.raises(RegionError, match="64 × 64 pixels, which is too many"):
        place_of(Region(mask=str(path)))
    monkeypatch.setattr(regions, "_LARGEST_MASK", 50)
    with pytest.raises(RegionError, match="is larger than"):
        place_of(Region(mask=str(path)))


@pytest.mark.filterwarnings("error")
def test_a_picture_of_very_many_pixels_is_refused_before_it_is_read(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(RegionError, match="too many pixels"):
        place_of(Region(mask="x.png"), tmp_path)


def test_a_mask_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RegionError, match="pip install pillow"):
        place_of(Region(mask="x.png"))


@pytest.mark.parametrize(
    "name", ["../left.png", "/left.png", "C:\\left.png", "\\\\host\\share\\left.png", "a\\..\\..\\x.png"]
)
def test_a_mask_is_found_within_the_folders_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="write its path within the folder"):
        find_place(Region(mask=name), [tmp_path])


def test_a_mask_is_looked_for_in_each_folder_and_read_again_when_it_is_new(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = picture(tmp_path / "b" / "x.png", torch.zeros(2, 2))
    region, folders = Region(mask="x.png"), [tmp_path / "a", tmp_path / "b"]
    assert torch.equal(find_place(region, folders).mask(2, 2), torch.zeros(2, 2))
    picture(path, torch.full((3, 3), 255.0))
    assert torch.equal(find_place(region, folders).mask(2, 2), torch.ones(2, 2))
    assert find_place(Region(box=(0.0, 0.0, 1.0, 1.0)), []).pixels is None
    with pytest.raises(RegionError, match=r"there is no mask y\.png in"):
        find_place(Region(mask="y.png"), folders)


def test_the_whole_picture_is_told_from_a_part_of_it() -> None:
    white, grey = torch.ones(2, 3), torch.tensor([[1.0, 1.0, 0.5]])
    assert Place((0.0, 0.0, 1.0, 1.0), soft=0.2).whole
    assert Place(None, 0.0, "white", white).whole
    assert not Place((0.0, 0.0, 1.0, 0.99)).whole
    assert not Place(None, 0.0, "grey", grey).whole
