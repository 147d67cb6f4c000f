"""Several users at once: who shares a call of the pipeline, and that each gets what would be theirs alone."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studio_line import Gate, alone, until

import lora_runtime
from lora_runtime import LoraCatalog, read_infotext
from lora_runtime.demo.sheet import weights_hash
from lora_runtime.studio.faults import CancelledError, StudioError
from lora_runtime.studio.models import EMBEDDED
from lora_runtime.studio.painting import Painted
from lora_runtime.studio.settings import Settings

# diffusers 0.42 hands tensors to numpy 2 in the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STRIPES, NIGHT, HEART = "a red circle <lora:stripes:1>", "a boat <lora:night:0.7>", "a tree <lora:heart:0.6>"


@pytest.fixture
def gate(pipe: Any, loras: LoraCatalog) -> Iterator[Gate]:
    found = Gate(pipe, loras)
    yield found
    found.close()


@pytest.fixture
def calls(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets the seeds of each call of the pipeline."""
    from diffusers import StableDiffusionImg2ImgPipeline

    found: list[list[int]] = []
    for kind in (type(pipe), StableDiffusionImg2ImgPipeline):
        monkeypatch.setattr(kind, "__call__", watched(kind.__call__, found.append))
    return found


def watched(call: Callable[..., Any], tell: Callable[[list[int]], None]) -> Callable[..., Any]:
    """Return a pipeline's call that first tells its seeds."""

    @functools.wraps(call)
    def told(*args: Any, **given: Any) -> Any:
        generators = given["generator"]
        generators = generators if isinstance(generators, list) else [generators]
        tell([generator.initial_seed() for generator in generators])
        return call(*args, **given)

    return told


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def far(one: Painted, other: Painted) -> int:
    """Return by how many levels of 255 two paintings differ at most."""
    assert len(one.pictures) == len(other.pictures)
    pairs = zip(one.pictures, other.pictures, strict=True)
    return max(int(abs(pixels(a.png) - pixels(b.png)).max()) for a, b in pairs)


def test_two_users_share_a_call_and_each_gets_their_own_picture_with_their_own_tags(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    wishes = {"anna": replace(asked, prompt=STRIPES), "ben": replace(asked, prompt=NIGHT, seed=9)}
    with gate.gathering(asked):
        users = [gate.ask(name, wish) for name, wish in wishes.items()]
    found = {user.who: user.painted[0] for user in users}
    assert [*map(len, calls)] == [1, 2]
    own = {name: alone(pipe, wish, loras, model=EMBEDDED) for name, wish in wishes.items()}
    for name, wish in wishes.items():
        assert far(found[name], own[name]) <= 1
        [picture] = found[name].pictures
        assert (picture.batch, picture.seed) == (2, wish.seed)
        with Image.open(io.BytesIO(picture.png)) as opened:
            assert opened.info["parameters"] == own[name].pictures[0].infotext == picture.infotext
            assert read_infotext(opened).prompt == wish.prompt
    assert far(found["anna"], found["ben"]) > 20
    strengths = {name: [(lora.name, lora.unet) for lora in found[name].pictures[0].report.loras] for name in found}
    assert strengths == {"anna": [("stripes", 1.0)], "ben": [("night", 0.7)]}
    told = [[(step.step, step.now, step.others, step.total) for step in user.steps] for user in users]
    assert told == [[(1, 1, 1, 1), (2, 1, 1, 1)]] * 2


def test_in_batches_of_one_every_byte_is_that_of_the_picture_alone(
    pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    wishes = {"anna": replace(asked, prompt=STRIPES, pictures=2), "ben": replace(asked, prompt=NIGHT)}
    gate = Gate(pipe, loras, max_batch=1)
    with gate.gathering(asked):
        users = [gate.ask(name, wish) for name, wish in wishes.items()]
    found = {user.who: [each.png for each in user.painted[0].pictures] for user in users}
    gate.close()
    assert [*map(len, calls)] == [1, 1, 1, 1]
    own = {name: alone(pipe, wish, loras, model=EMBEDDED) for name, wish in wishes.items()}
    assert found == {name: [each.png for each in painted.pictures] for name, painted in own.items()}


def test_the_pictures_of_one_user_share_a_call_with_each_other_and_with_those_of_others(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    several = replace(asked, prompt=STRIPES, seed=2**32 - 1, pictures=3)
    with gate.gathering(asked):
        anna, ben = gate.ask("anna", several), gate.ask("ben", replace(asked, prompt=NIGHT))
    [painted] = anna.painted
    assert [*map(len, calls)] == [1, 4]
    assert [picture.seed for picture in painted.pictures] == [2**32 - 1, 0, 1]
    assert far(painted, alone(pipe, several, loras)) <= 1
    assert [(step.now, step.others) for step in anna.steps] == [(3, 1), (3, 1)]
    assert [(step.now, step.others) for step in ben.steps] == [(1, 3), (1, 3)]


def test_weighted_words_and_loras_of_the_text_encoder_share_a_call(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    wishes = [
        replace(asked, prompt=f"({HEART}:1.4)", negative="blue"),
        replace(asked, prompt="a (boat:0.7) <lora:heart:1>", negative="(green:1.3)"),
        replace(asked, prompt="a sea", negative="x"),
    ]
    with gate.gathering(asked):
        users = [gate.ask(str(number), wish) for number, wish in enumerate(wishes)]
    found = [user.painted[0] for user in users]
    assert [*map(len, calls)] == [1, 3]
    for painted, wish in zip(found, wishes, strict=True):
        assert far(painted, alone(pipe, wish, loras)) <= 1
        assert not painted.diagnostics


def test_a_long_prompt_is_painted_apart_since_it_would_change_the_others(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    wishes = [
        replace(asked, prompt=STRIPES),
        replace(asked, prompt="a boat BREAK by night <lora:night:1>"),
        replace(asked, prompt=NIGHT),
    ]
    with gate.gathering(asked):
        users = [gate.ask(str(number), wish) for number, wish in enumerate(wishes)]
    found = [user.painted[0] for user in users]
    assert [*map(len, calls)] == [1, 2, 1]
    assert all(far(painted, alone(pipe, wish, loras)) <= 1 for painted, wish in zip(found, wishes, strict=True))
    assert [painted.pictures[0].batch for painted in found] == [2, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"height": 64},
        {"steps": 3},
        {"guidance": 5.0},
        {"sampler": "Euler"},
        {"negative": "people"},
        {"source": Image.new("RGB", (48, 48), (200, 40, 40))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_a_call_has_one_of_keeps_pictures_apart_and_who_came_first_is_painted_next(
    gate: Gate, asked: Settings, calls: list[list[int]], other: dict[str, Any]
) -> None:
    wishes = [replace(asked, seed=11), replace(asked, seed=12, **other), replace(asked, seed=13, prompt=NIGHT)]
    with gate.gathering(asked):
        users = [gate.ask(str(number), wish) for number, wish in enumerate(wishes)]
    assert [user.painted[0].pictures[0].batch for user in users] == [2, 1, 2]
    assert calls == [[4], [11, 13], [12]]


def test_pictures_that_begin_with_one_share_a_call_where_as_much_is_painted_anew(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings
) -> None:
    red, blue = (replace(asked, steps=4, source=Image.new("RGB", (96, 96), c)) for c in ((200, 40, 40), (20, 30, 220)))
    wishes = [replace(red, prompt=STRIPES), replace(blue, prompt=NIGHT), replace(blue, strength=0.5)]
    with gate.gathering(asked):
        users = [gate.ask(str(number), wish) for number, wish in enumerate(wishes)]
    found = [user.painted[0] for user in users]
    assert [painted.pictures[0].batch for painted in found] == [2, 2, 1]
    assert all(far(painted, alone(pipe, wish, loras)) <= 1 for painted, wish in zip(found, wishes, strict=True))


def test_a_grid_is_painted_in_batches_beside_the_picture_of_another(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    cells = [replace(asked, prompt=f"a boat <lora:night:{strength}>") for strength in (0, 0.5, 1)]
    with gate.gathering(asked):
        anna, ben = gate.ask("anna", *cells), gate.ask("ben", replace(asked, prompt=STRIPES))
    assert ben.painted[0].pictures[0].batch == 4
    assert [painted.pictures[0].batch for painted in anna.painted] == [4, 4, 4]
    assert [*map(len, calls)] == [1, 4]
    assert all(far(painted, alone(pipe, cell, loras)) <= 1 for painted, cell in zip(anna.painted, cells, strict=True))


def test_who_cancels_goes_and_the_others_are_painted_on(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    wish = replace(asked, prompt=NIGHT)
    with gate.gathering(asked):
        anna = gate.ask("anna", replace(asked, prompt=STRIPES), on_step=lambda step: gate.shop.cancel("anna"))
        ben = gate.ask("ben", wish)
    [painted] = ben.painted
    anna.join()
    assert isinstance(anna.error, CancelledError)
    assert len(anna.steps) == 1
    assert [step.step for step in ben.steps] == [1, 2]
    assert [*map(len, calls)] == [1, 2]
    assert far(painted, alone(pipe, wish, loras)) <= 1


def test_who_cancels_while_waiting_is_not_painted_at_all(gate: Gate, asked: Settings, calls: list[list[int]]) -> None:
    with gate.gathering(asked):
        anna, ben = gate.ask("anna", replace(asked, prompt=STRIPES)), gate.ask("ben", replace(asked, prompt=NIGHT))
        assert gate.shop.cancel("anna")
        until(lambda: gate.shop.line_length == 2)
    assert ben.painted[0].pictures[0].batch == 1
    anna.join()
    assert isinstance(anna.error, CancelledError)
    assert [*map(len, calls)] == [1, 1]


def test_a_call_ends_at_its_next_step_once_nobody_waits(
    gate: Gate, pipe: Any, asked: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, go_on = weights_hash(pipe), threading.Event()
    steps: list[int] = []
    forward = pipe.unet.forward

    def slow(sample: Any, *given: Any, **more: Any) -> Any:
        steps.append(len(sample))
        assert len(steps) == 1 or go_on.wait(60)
        return forward(sample, *given, **more)

    monkeypatch.setattr(pipe.unet, "forward", slow)
    with gate.gathering(replace(asked, steps=1)):
        users = [gate.ask(who, replace(asked, prompt=STRIPES, steps=50)) for who in ("anna", "ben")]
    until(lambda: len(steps) == 2)
    for user in users:
        gate.shop.cancel(user.who)
        user.join()
    go_on.set()
    until(lambda: gate.shop.line_length == 0)
    assert steps == [2, 4]  # for the guidance twice
    lora_runtime.restore(pipe)
    assert weights_hash(pipe) == before


def test_a_picture_without_numbers_costs_itself_alone(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]]
) -> None:
    wish = replace(asked, prompt=NIGHT)
    with gate.gathering(asked):
        anna, ben = gate.ask("anna", replace(asked, prompt="a <lora:stripes:1e38>")), gate.ask("ben", wish)
    [painted] = ben.painted
    anna.join()
    assert isinstance(anna.error, StudioError)
    assert "NaN" in str(anna.error)
    assert [*map(len, calls)] == [1, 2, 1]  # and by itself, as it might have numbers then
    assert far(painted, alone(pipe, wish, loras)) <= 1


def test_what_the_pipeline_refuses_of_one_costs_that_one(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []

    def refuse(seeds: list[int]) -> None:
        if 13 in seeds:
            raise RuntimeError("no picture for 13")

    monkeypatch.setattr(type(pipe), "__call__", watched(watched(type(pipe).__call__, refuse), calls.append))
    wish = replace(asked, prompt=NIGHT)
    with gate.gathering(asked):
        anna = gate.ask("anna", replace(asked, prompt=STRIPES, seed=12, pictures=2))
        ben = gate.ask("ben", wish)
    [painted], [of_ben] = anna.painted, ben.painted
    assert calls == [[4], [12, 13, 4], [12], [13, 4], [13], [4]]
    assert [picture.seed for picture in painted.pictures] == [12]
    assert {seed: str(error) for seed, error in painted.faults.items()} == {13: "no picture for 13"}
    assert all(error.__traceback__ is None for error in painted.faults.values())  # it would keep the latents
    assert far(of_ben, alone(pipe, wish, loras)) == 0  # painted alone at last


def test_a_batch_that_the_memory_is_too_small_for_is_painted_in_halves(
    gate: Gate, pipe: Any, loras: LoraCatalog, asked: Settings, calls: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = pipe.unet.forward

    def small(sample: Any, *given: Any, **more: Any) -> Any:
        if len(sample) > 4:  # two pictures, for the guidance twice
            raise torch.cuda.OutOfMemoryError("out of memory")
        return forward(sample, *given, **more)

    monkeypatch.setattr(pipe.unet, "forward", small)
    wish = replace(asked, prompt=NIGHT, pictures=4)
    with gate.gathering(asked):
        anna = gate.ask("anna", wish)
    [painted] = anna.painted
    assert not painted.faults
    assert [*map(len, calls)] == [1, 4, 2, 2]
    assert far(painted, alone(pipe, wish, loras)) <= 1


def test_what_is_wrong_with_one_prompt_is_said_to_whoever_wrote_it(gate: Gate, asked: Settings) -> None:
    with gate.gathering(asked):
        anna = gate.ask("anna", replace(asked, prompt="a <lora:hart:1>", negative="<lora:night:1>"))
        ben = gate.ask("ben", replace(asked, prompt="a <lora:heart:1>", negative="people"))
    [said, of_negative] = sorted(each.message for each in anna.painted[0].diagnostics)[::-1]
    assert "hart" in said
    assert "<lora:night:1> in the negative prompt" in of_negative
    assert not ben.painted[0].diagnostics
    assert anna.painted[0].pictures[0].batch == 2


def test_each_user_sees_their_own_picture_so_far(gate: Gate, pipe: Any, asked: Settings) -> None:
    wishes = [replace(asked, prompt=STRIPES, steps=4), replace(asked, prompt=NIGHT, steps=4, seed=9)]
    with gate.gathering(asked):
        users = [gate.ask(str(number), wish) for number, wish in enumerate(wishes)]
    for user in users:
        user.join()
    firsts = [np.asarray(user.steps[0].preview).astype(int) for user in users]
    assert all(first.shape == (48, 48, 3) for first in firsts)
    assert abs(firsts[0] - firsts[1]).max() > 20


def test_when_the_server_stops_whoever_waits_is_told_so(gate: Gate, asked: Settings) -> None:
    with gate.gathering(asked):
        anna = gate.ask("anna", replace(asked, prompt=STRIPES))
        closing = threading.Thread(target=gate.shop.close)
        closing.start()
        anna.join()
    closing.join()
    assert isinstance(anna.error, CancelledError)
    with pytest.raises(lora_runtime.LoraError, match="stopping"):
        list(gate.shop.paint([asked], EMBEDDED, "late"))
