"""Which rows of a step a denoiser has had, and what text encoders show for one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from extension_package import module
from safetensors.torch import save_file
from torch import nn

from lora_runtime.lora import load_lora
from lora_runtime.prompt.strength import Moment
from lora_runtime.prompt.tags import Conditions
from lora_runtime.requests import Request
from lora_runtime.stage import Call, Row, Stage

Denoising = module("engine.denoising").Denoising
rows = module("engine.per_prompt")

TWO = (Row(0), Row(1), Row(0, "negative"), Row(1, "negative"))


class Denoiser(nn.Module):
    def forward(self, x: Any, text: Any = None) -> Any:
        return x


@pytest.fixture
def watched() -> Any:
    denoiser, stage, denoising = Denoiser(), Stage(), Denoising()
    end = denoising.watch(denoiser, stage)
    return denoiser, stage, denoising, end


def latents(count: int) -> torch.Tensor:
    return torch.zeros(count, 4, 6, 8)


def test_all_rows_at_once_or_some_at_a_time(watched: Any) -> None:
    denoiser, stage, denoising, _ = watched
    for sizes in ((4,), (2, 2), (1, 1, 1, 1), (3, 1)):
        denoising.begin(Moment(1, 5), TWO)
        found: list[Row] = []
        for size in sizes:
            denoiser(x=latents(size), text="not a tensor")
            assert stage.call == Call(Moment(1, 5), stage.call.rows, (6, 8))
            found += stage.call.rows
        assert tuple(found) == TWO


def test_rows_that_are_left_out_are_not_those_of_the_next_step(watched: Any) -> None:
    denoiser, stage, denoising, _ = watched
    denoising.begin(Moment(0, 2), TWO)
    denoiser(latents(2))
    denoising.begin(Moment(1, 2), TWO)
    denoiser(latents(2))
    assert stage.call.rows == TWO[:2]


def test_who_calls_it_once_more_begins_again(watched: Any) -> None:
    denoiser, stage, denoising, _ = watched
    denoising.begin(Moment(0, 2), TWO)
    for _ in range(2):
        denoiser(latents(4))
        assert stage.call.rows == TWO


def test_without_a_step_nothing_is_said_and_after_its_end_nobody_listens(watched: Any) -> None:
    denoiser, stage, denoising, end = watched
    denoiser(latents(2))
    assert stage.call == Call()
    denoising.begin(Moment(0, 2), ())
    denoiser(latents(2))
    assert stage.call.rows == (Row(),)
    assert denoising.watched
    end()
    denoising.begin(Moment(1, 2), TWO)
    denoiser(latents(4))
    assert stage.call.moment == Moment(0, 2)
    assert not denoising.watched


def test_text_encoders_show_what_one_row_asks_for(tmp_path: Path) -> None:
    save_file(
        {"lora_te_x.lora_up.weight": torch.ones(2, 1), "lora_te_x.lora_down.weight": torch.ones(1, 2)},
        tmp_path / "ink.safetensors",
    )
    ink = load_lora(tmp_path / "ink.safetensors")
    common = Request(ink, 0.1, 0.1)
    first = Request(ink, 0.2, 0.2, images=frozenset({0}))
    negative = Request(ink, 0.3, 0.3, side="negative")
    part = Request(ink, 0.4, 0.4, conditions=Conditions(part=1))
    every = (common, first, negative, part)

    def shown(row: Row) -> list[tuple[float, float]]:
        return [(request.te, request.unet) for request in rows.seen_by(every, row)]

    assert not rows.differs([common, Request(ink, 0.0, 1.0, images=frozenset({0}))])
    assert rows.differs([first])
    assert shown(Row(0)) == [(0.1, 0.1), (0.0, 0.2), (0.2, 0.0), (0.0, 0.3), (0.0, 0.4)]
    assert shown(Row(1, "positive", 1)) == [(0.1, 0.1), (0.0, 0.2), (0.0, 0.3), (0.0, 0.4), (0.4, 0.0)]
    assert shown(Row(1, "negative", 1)) == [(0.1, 0.1), (0.0, 0.2), (0.0, 0.3), (0.3, 0.0), (0.0, 0.4)]
    assert rows.of_text(every, Row(0)) == [first]
