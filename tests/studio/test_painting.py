"""Settings to pictures: the bytes, what stands in them, what acted, and an end before that."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studio_line import alone

import lora_runtime
from lora_runtime import LoraCatalog, read_infotext
from lora_runtime.demo.scene_pipeline import LORAS
from lora_runtime.demo.scene_pipeline import paint as painted_by_hand
from lora_runtime.demo.sheet import weights_hash
from lora_runtime.studio.canvas import Commission, Step, canvases_of
from lora_runtime.studio.faults import CancelledError, StudioError
from lora_runtime.studio.painting import paint
from lora_runtime.studio.preview import Previews
from lora_runtime.studio.samplers import OWN, SAMPLERS, called, fields_of, fitting, sampling
from lora_runtime.studio.settings import Settings

# diffusers 0.42 hands tensors to numpy 2 in the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def test_a_tag_changes_the_picture_and_without_it_every_byte_is_as_before(
    pipe: Any, loras: LoraCatalog, asked: Settings
) -> None:
    tagged = replace(asked, prompt="a red circle <lora:stripes:1>")
    before, with_tag, after = (alone(pipe, each, loras).pictures[0].png for each in (asked, tagged, asked))
    assert abs(pixels(before) - pixels(with_tag)).mean() > 5  # of 255
    assert before == after


def test_a_picture_is_what_the_library_paints_by_hand(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    found = alone(pipe, replace(asked, prompt="a red circle <lora:heart:0.7>"), loras)
    with lora_runtime.apply(pipe, "a red circle <lora:heart:0.7>", loras=LORAS) as applied:
        [by_hand] = painted_by_hand(pipe, [applied.prompt], seeds=[4], steps=2)
    assert np.array_equal(pixels(found.pictures[0].png), np.asarray(by_hand).astype(int))
    [said] = found.pictures[0].report.loras
    assert (said.name, said.te, said.unet) == ("heart", 0.7, 0.7)


def test_a_seed_gives_the_same_bytes_alone_and_among_others(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    several = alone(pipe, replace(asked, seed=3, pictures=2), loras).pictures
    assert [each.seed for each in several] == [3, 4]
    assert several[1].png == alone(pipe, asked, loras).pictures[0].png != several[0].png


def test_the_text_in_the_png_is_what_the_webui_writes(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    wanted = replace(asked, prompt="a boat <lora:night:0.5>", negative="people", sampler="DPM++ 2M Karras")
    png = alone(pipe, wanted, loras, model="embedded").pictures[0].png
    with Image.open(io.BytesIO(png)) as opened:
        text = opened.info["parameters"]
        said = read_infotext(opened, LORAS)
    digits = loras.hashes(loras.resolve("night")).sha256_of_tensors[:12]
    assert text == (
        "a boat <lora:night:0.5>\nNegative prompt: people\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, "
        f'CFG scale: 4.0, Seed: 4, Model: embedded, Size: 48x48, Lora hashes: "night: {digits}"'
    )
    assert (said.prompt, said.negative_prompt) == ("a boat <lora:night:0.5>", "people")


def test_each_step_is_told_and_an_end_at_one_leaves_every_weight_as_it_was(
    pipe: Any, loras: LoraCatalog, asked: Settings
) -> None:
    before = weights_hash(pipe)
    told: list[Step] = []
    commission = Commission(3, told.append, lambda: len(told) == 3)
    canvases = canvases_of([replace(asked, prompt="a <lora:night:1>", pictures=3)], "", commission)
    found = [outcome for part in (canvases[:1], canvases[1:]) for outcome in paint(pipe, part, loras)]
    assert [type(outcome) for outcome in found[1:]] == [CancelledError] * 2
    assert [(each.step, each.steps, each.done, each.now, each.total) for each in told] == [
        (1, 2, 0, 1, 3),
        (2, 2, 0, 1, 3),
        (1, 2, 1, 2, 3),
    ]
    lora_runtime.restore(pipe)
    assert weights_hash(pipe) == before


def test_what_cannot_be_found_costs_only_itself_and_is_said(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    found = alone(pipe, replace(asked, prompt="a red circle<lora:hart:1>"), loras)
    [said] = found.diagnostics
    assert "Did you mean" in said.message
    assert '"heart"' in said.message
    assert np.array_equal(pixels(found.pictures[0].png), pixels(alone(pipe, asked, loras).pictures[0].png))


def test_weighted_words_count_as_in_the_webui(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    plain, heavy, same = (
        pixels(alone(pipe, replace(asked, prompt=prompt), loras).pictures[0].png)
        for prompt in ("a red circle", "a red (circle:1.4)", "a red (circle:1)")
    )
    assert not np.array_equal(plain, heavy)
    assert np.array_equal(plain, same)


def test_a_painting_that_begins_with_a_picture_stays_near_it(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    source = Image.new("RGB", (96, 96), (200, 40, 40))
    begun = replace(asked, prompt="a blue circle", steps=4, source=source)
    near, far = (
        abs(pixels(alone(pipe, replace(begun, strength=strength), loras).pictures[0].png) - (200, 40, 40)).mean()
        for strength in (0.25, 1.0)
    )
    assert near < far / 2


def test_a_picture_without_numbers_is_refused_with_advice(pipe: Any, loras: LoraCatalog, asked: Settings) -> None:
    weight = pipe.unet.conv_out.bias
    kept = weight.data
    weight.data = torch.full_like(kept, float("nan"))
    try:
        with pytest.raises(StudioError, match=r"after step 1 .*NaN.*lower strengths"):
            alone(pipe, asked, loras)
    finally:
        weight.data = kept


def test_a_sampler_is_taken_for_one_block_and_the_model_keeps_its_own(pipe: Any) -> None:
    own = pipe.scheduler
    for name in SAMPLERS:
        with sampling(pipe, name):
            assert called(pipe) == ("DDIM" if name == OWN else name)
        assert pipe.scheduler is own
    assert fields_of("DPM++ 2M SDE Karras") == {"Sampler": "DPM++ 2M SDE", "Schedule type": "Karras"}


def test_a_model_that_flows_is_sampled_by_its_own_alone() -> None:
    assert fitting("FlowMatchEulerDiscreteScheduler") == (OWN,)
    assert fitting("EulerDiscreteScheduler") == tuple(SAMPLERS)


def test_previews_take_a_fifth_of_the_time_at_most(pipe: Any) -> None:
    now = iter([0.0, 1.0, 3.0, 5.9, 11.0, 12.0]).__next__  # made; started, ended; too early; started, ended
    previews = Previews(pipe, clock=now)
    latents = torch.zeros(3, 4, 12, 12)
    found = previews.of(latents, [0, 2])
    assert found is not None
    assert [each.size for each in found] == [(48, 48), (48, 48)]
    assert previews.of(latents, [0]) is None  # 8 s after 2 s of work
    assert previews.of(latents, [0]) is not None


def test_latents_that_the_decoder_does_not_take_have_no_preview(pipe: Any) -> None:
    assert Previews(pipe).of(torch.zeros(1, 36, 16), [0]) is None
    assert Previews(pipe).of(torch.zeros(1, 16, 12, 12), [0]) is None
