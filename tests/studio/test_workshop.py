"""Several users, comparisons, grids, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from studio_line import alone

from lora_runtime import LoraCatalog, parse_prompt
from lora_runtime.studio.canvas import Step
from lora_runtime.studio.faults import CancelledError, StudioError
from lora_runtime.studio.models import EMBEDDED, Models
from lora_runtime.studio.settings import Settings
from lora_runtime.studio.workshop import Workshop, grid_of, strength_points, without


def test_one_user_cancels_only_what_is_their_own(shop: Workshop, asked: Settings) -> None:
    painting = shop.paint([asked], EMBEDDED, "anna")
    assert isinstance(next(painting), Step)
    assert not shop.cancel("ben")
    assert shop.cancel("anna")
    with pytest.raises(CancelledError):
        list(painting)
    assert not shop.cancel("anna")
    *_, [painted] = shop.paint([asked], EMBEDDED, "ben")
    assert painted.pictures


def test_the_steps_of_several_settings_are_counted_as_one_painting(shop: Workshop, asked: Settings) -> None:
    *steps, painted = shop.paint([asked, replace(asked, steps=3, pictures=2)], EMBEDDED, "anna")
    counted = [(each.step, each.done, each.now, each.total) for each in steps]
    assert counted == [(1, 0, 1, 3), (2, 0, 1, 3), (1, 1, 2, 3), (2, 1, 2, 3), (3, 1, 2, 3)]
    assert [len(each.pictures) for each in painted] == [1, 2]


def test_a_model_that_is_not_in_the_list_is_refused(shop: Workshop, asked: Settings) -> None:
    with pytest.raises(StudioError, match=r"no model '\.\./secret'"):
        next(shop.paint([asked], "../secret", "anna"))


def test_pictures_are_numbered_and_a_copy_is_left_where_it_was_asked_for(
    pipe: Any, loras: LoraCatalog, asked: Settings, tmp_path: Path
) -> None:
    (tmp_path / "00001-7.png").write_bytes(b"of another day")
    shop = Workshop(Models(load=lambda model: pipe), loras, tmp_path)
    picture = alone(pipe, asked, loras).pictures[0]
    path = shop.save(picture)
    assert (path.name, path.read_bytes()) == ("00002-4.png", picture.png)
    assert (tmp_path / "00002-4.png").read_bytes() == picture.png
    shop.close()
    assert not path.exists()
    assert (tmp_path / "00002-4.png").exists()


def test_a_picture_is_compared_without_one_tag_or_without_all() -> None:
    both = Settings("a <lora:ink:1> boat<lora:night:0.5>", pictures=4)
    assert without(both).prompt == "a  boat"
    one = without(both, "<lora:night:0.5>")
    assert (one.prompt, one.pictures) == ("a <lora:ink:1> boat", 1)
    with pytest.raises(StudioError, match="not in the prompt of this picture"):
        without(both, "<lora:wash:1>")


def test_a_grid_has_a_picture_for_each_combination() -> None:
    cells = grid_of(Settings("a <lora:ink:1>", seed=9), {"strengths": "ink: 0, 0.5", "seeds": "1-2", "loras": []})
    assert [(cell.prompt, cell.seed) for cell in cells] == [
        ("a <lora:ink:0>", 1),
        ("a <lora:ink:0>", 2),
        ("a <lora:ink:0.5>", 1),
        ("a <lora:ink:0.5>", 2),
    ]
    swapped = grid_of(Settings("a <lora:ink:0.3>", seed=9), {"loras": ["wash", "None"]})
    assert [(cell.prompt, cell.seed) for cell in swapped] == [("a <lora:wash:0.3>", 9), ("a ", 9)]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "a grid without an axis"),
        ({"seeds": "1-100"}, "a grid of 100 pictures: 64 are the most"),
        ({"strengths": "wash: ?"}, "strengths of a grid"),
    ],
)
def test_a_grid_that_cannot_be_says_why(axes: dict[str, Any], said: str) -> None:
    with pytest.raises(StudioError, match=said):
        grid_of(Settings("a <lora:ink:1>"), axes)


def test_a_grid_becomes_one_sheet(shop: Workshop, asked: Settings) -> None:
    cells = grid_of(replace(asked, prompt="a <lora:night:1>"), {"strengths": "night: 0, 1"})
    *_, painted = shop.paint(cells, EMBEDDED, "anna")
    path = shop.sheet(painted)
    assert path is not None
    with Image.open(path) as sheet:
        assert sheet.width > 2 * 48


def test_each_strength_holds_until_the_next_step() -> None:
    tags = parse_prompt("<lora:ink:0@0,1@1><lora:ink:0.5>").tags
    points = strength_points(tags, 3)
    assert points[:6] == [
        (0, 0.0, "ink (1)"),
        (1, 0.0, "ink (1)"),
        (1, 0.5, "ink (1)"),
        (2, 0.5, "ink (1)"),
        (2, 1.0, "ink (1)"),
        (3, 1.0, "ink (1)"),
    ]
    assert {name for *_, name in points} == {"ink (1)", "ink (2)"}
