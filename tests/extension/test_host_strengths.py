"""Strengths that differ between steps, pictures of a batch, sides and passes, as the models see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double import loras
from double.loras import plain
from torch import Tensor

from lora_runtime.wildcards import draw_name

if TYPE_CHECKING:
    from double.webui import WebUI

# The layer that the double looks at, and a layer of the text encoder.
TO_Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
FC1 = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def wash(webui: WebUI) -> loras.File:
    return loras.write(webui.loras / "wash.safetensors", plain(), seed=1)


def strength_of(weight: Tensor, file: loras.File, name: str = TO_Q) -> float:
    """Return how much of the file's change a weight has, which must be nothing but that: least squares in float64."""
    delta = (loras.patched(plain(), [(file, 1.0)])[name] - plain()[name].double()).flatten()
    change = (weight.double() - plain()[name].double()).flatten()
    strength = float(change @ delta / (delta @ delta))
    assert torch.allclose(change, strength * delta, atol=2e-6)
    return round(strength, 4)


def strengths(run: Any, file: loras.File) -> list[list[float]]:
    """Return the strength in effect: of each call of the denoiser, of each row."""
    return [[strength_of(row, file) for row in call] for call in run.effective]


def of_text(weights: dict[str, Tensor], *wanted: Any) -> bool:
    """Return whether a text encoder had just these."""
    return loras.differences(weights, plain(), loras.patched(plain(), wanted)) == []


# --- steps ---


def test_a_schedule_follows_the_steps(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink:te=0:unet=1@0,0@1>", steps=5)
    assert strengths(done.passes[0], ink) == [[1, 1], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25], [0, 0]]
    assert done.comments == []
    webui.generate("a")
    assert webui.not_whole() == []


def test_two_calls_of_one_step_are_at_one_strength(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink:te=0:unet=0@0,1@1>", steps=3, order=2)
    assert [row[0] for row in strengths(done.passes[0], ink)] == [0, 0, 0.5, 0.5, 1]


def test_windows_open_and_close(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink:0.5:start=1:stop=3>", steps=4)
    assert [row[0] for row in strengths(done.passes[0], ink)] == [0, 0.5, 0.5, 0]
    assert of_text(done.passes[0].conditioning.weights, (ink, 0.5, 0))


def test_the_hires_pass_begins_anew_and_has_strengths_of_its_own(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink:0@0,1@1:hrte=0.3:hrunet=0.8@0,0@1>", steps=3, enable_hr=True)
    first, hires = done.passes
    assert [row[0] for row in strengths(first, ink)] == [0, 0.5, 1]
    assert [row[0] for row in strengths(hires, ink)] == [0.8, 0.4, 0]
    assert of_text(first.conditioning.weights)
    assert of_text(hires.conditioning.weights, (ink, 0.3, 0))


def test_a_lora_for_the_hires_pass_alone(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink:0:hr=1>", enable_hr=True)
    assert webui.changed(done.passes[0].weights) == []
    assert loras.differences(done.passes[1].weights, plain(), loras.patched(plain(), [(ink, 1.0)])) == []


def test_after_the_refiner_has_come_the_schedule_goes_on_there(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink:te=0.5:unet=1@0,0@1>", steps=3, refiner_checkpoint="b")
    run = done.passes[1]
    assert run.checkpoint == "b"
    delta = (loras.patched(plain("b"), [(ink, 1.0)])[TO_Q] - plain("b")[TO_Q].double()).flatten()
    found = [
        float((call[0].double() - plain("b")[TO_Q].double()).flatten() @ delta / (delta @ delta))
        for call in run.effective
    ]
    assert found == pytest.approx([1, 0.5, 0], abs=1e-4)
    webui.generate("a")
    assert webui.not_whole() == []


@pytest.mark.parametrize("value", ["0", "0.5"])
def test_a_schedule_without_change_is_a_number(webui: WebUI, ink: loras.File, value: str) -> None:
    done = webui.generate(f"a <lora:ink:te=0:unet={value}@0,{value}@1>")
    assert {strength for call in strengths(done.passes[0], ink) for strength in call} == {float(value)}


def test_the_same_schedule_again_computes_nothing(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink:0.3:unet=0@0,1@1>")
    shown = webui.weights()[FC1].data_ptr()
    hooks = [dict(module._forward_hooks) for module in webui.model.modules()]
    webui.generate("a <lora:ink:0.3:unet=0@0,1@1>")
    assert [dict(module._forward_hooks) for module in webui.model.modules()] == hooks
    assert webui.weights()[FC1].data_ptr() == shown


# --- nothing is left behind ---


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_where_nothing_varies_nothing_runs_beside(webui: WebUI, ink: loras.File) -> None:
    webui.generate(["a <lora:ink:0.5>", "b <lora:ink:0.5>"], batch_size=2)
    assert hooks(webui.model) == 0


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "event",
    [
        lambda webui: webui.generate("a"),
        lambda webui: webui.generate("a <lora:ink:0.5>"),
        lambda webui: webui.generate("a <lora:ink>", disable_extra_networks=True),
        lambda webui: webui.choose_checkpoint("sdxl"),
        lambda webui: webui.reload_ui(),
    ],
    ids=["no tag", "a number", "disabled", "another checkpoint", "Reload UI"],
)
def test_what_runs_beside_goes_with_the_tag(webui: WebUI, ink: loras.File, event: Callable[[Any], Any]) -> None:
    webui.options.sd_checkpoints_limit = 2
    webui.generate("a <lora:ink:0@0,1@1>")
    model = webui.model
    assert hooks(model) > 1
    event(webui)
    assert hooks(model) == 0


def test_after_reload_ui_the_program_s_own_functions_are_back(webui: WebUI, ink: loras.File) -> None:
    from double.webui import BUILTIN

    webui.extensions[:] = [BUILTIN]
    webui.reload_ui()
    job, callbacks = webui.module("processing"), webui.module("script_callbacks")
    assert job.StableDiffusionProcessing.get_conds_with_caching.__qualname__.startswith("StableDiffusionProcessing.")
    assert callbacks.callback_map["callbacks_cfg_denoiser"] == []


def test_where_another_has_wrapped_our_wrapper_ours_stays_and_does_nothing(webui: WebUI, ink: loras.File) -> None:
    job = webui.module("processing").StableDiffusionProcessing
    ours = job.get_conds_with_caching
    job.get_conds_with_caching = lambda *args, **kwargs: ours(*args, **kwargs)
    webui.reload_ui()
    done = webui.generate(["a <lora:ink:0.7>", "a"], batch_size=2)
    (first,), (second,) = done.passes[0].conditioning.batch
    assert of_text(first.weights, (ink, 0.7, 0))
    assert of_text(second.weights)


# --- pictures of a batch ---


@pytest.mark.parametrize("together", [True, False])
def test_each_picture_has_its_own_loras(webui: WebUI, ink: loras.File, wash: loras.File, together: bool) -> None:
    webui.options.batch_cond_uncond = together
    prompts = ["a <lora:ink:0.7>", "a <lora:wash:0.4>", "a", "a <lora:ink:0.7>"]
    run = webui.generate(prompts, batch_size=4, negative_prompt="bad").passes[0]
    for call in run.effective:
        for rows in (call[:4], call[4:]):  # the prompts, then the negative prompts
            assert [strength_of(row, ink) for row in (rows[0], rows[2], rows[3])] == [0.7, 0, 0.7]
            assert strength_of(rows[1], wash) == 0.4
    positive = [part for [part] in run.conditioning.batch]
    for encoded in (positive, run.negative):
        assert len({id(text) for text in encoded}) == 3
        assert encoded[0] is encoded[3]
        assert of_text(encoded[0].weights, (ink, 0.7, 0))
        assert of_text(encoded[1].weights, (wash, 0.4, 0))
        assert of_text(encoded[2].weights)


def test_prompts_of_a_batch_are_encoded_once_while_nothing_changes(webui: WebUI, ink: loras.File) -> None:
    def encoded(*prompts: str) -> Any:
        return webui.generate(list(prompts), batch_size=2).passes[0].conditioning

    first = encoded("a <lora:ink:0.7>", "a")
    assert encoded("a <lora:ink:0.7>", "a") is first
    other = encoded("a <lora:ink:0.7>", "a <lora:ink:0.1>")
    assert other is not first
    assert of_text(other.batch[1][0].weights, (ink, 0.1, 0))


def test_a_batch_whose_first_picture_has_no_tag(webui: WebUI, ink: loras.File) -> None:
    run = webui.generate(["a", "b <lora:ink:0.6>"], batch_size=2).passes[0]
    assert strengths(run, ink)[0] == [0, 0.6, 0, 0.6]
    assert of_text(run.conditioning.batch[0][0].weights)
    assert of_text(run.conditioning.batch[1][0].weights, (ink, 0.6, 0))


def test_where_memory_is_scarce_passes_are_told_apart_by_any_kind_of_tag(start: Callable[..., WebUI]) -> None:
    webui = start(medvram=True)
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    done = webui.generate("a <loractl:ink:0.7>", enable_hr=True, hr_prompt="b <loractl:ink:0.1:hr=0.2>")
    for run, strength in zip(done.passes, (0.7, 0.2), strict=True):
        assert strengths(run, ink)[0] == [strength, strength]
        assert of_text(run.conditioning.weights, (ink, strength, 0))


@pytest.mark.parametrize("medvram", [False, True])
def test_each_picture_has_its_own_loras_in_the_hires_pass(start: Callable[..., WebUI], medvram: bool) -> None:
    webui = start(medvram=medvram)
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    done = webui.generate(
        ["a <lora:ink:0.7>", "a"],
        batch_size=2,
        enable_hr=True,
        hr_prompt=["b <lora:ink:0.1>", "b <lora:ink:0.2:hr=0.3>"],
    )
    first, hires = done.passes
    assert strengths(first, ink)[0] == [0.7, 0, 0.7, 0]
    assert strengths(hires, ink)[0] == [0.1, 0.3, 0.1, 0.3]
    for run, wanted in ((first, (0.7, 0)), (hires, (0.1, 0.3))):
        for parts, strength in zip(run.conditioning.batch, wanted, strict=True):
            assert of_text(parts[0].weights, (ink, strength, 0))


def test_the_refiner_s_text_encoder_shows_each_picture_s_own_too(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate(["a <lora:ink:0.7>", "a"], batch_size=2, refiner_checkpoint="b")
    (first,), (second,) = done.passes[1].conditioning.batch
    expected = loras.patched(plain("b"), [(ink, 0.7, 0)])
    assert loras.differences(first.weights, plain("b"), expected) == []
    assert loras.differences(second.weights, plain("b"), {}) == []


def test_the_always_on_lora_joins_what_each_picture_asks_for(webui: WebUI, ink: loras.File, wash: loras.File) -> None:
    webui.options.sd_lora = "ink"
    run = webui.generate(["a <lora:ink:0.2>", "b"], batch_size=2, enable_hr=True).passes[1]
    assert strengths(run, ink)[0] == [0.2, 1, 0.2, 1]
    assert webui.job.all_prompts == ["a <lora:ink:0.2>", "b<lora:ink:1>"]
    assert webui.job.comments == {}


def test_where_a_script_has_changed_different_prompts_the_first_one_s_loras_count(
    webui: WebUI, ink: loras.File
) -> None:
    scripts = webui.module("scripts")

    class Adds(scripts.Script):  # type: ignore[name-defined, misc]
        def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            p.prompts = [f"{prompt} <lora:ink:0.1>" for prompt in p.prompts]

    scripts.scripts_txt2img.alwayson_scripts.append(Adds())
    done = webui.generate(["a <lora:ink:0.2>", "b"], batch_size=2)
    [comment] = [comment for comment in done.comments if "script" in comment]
    assert "all pictures have the LoRAs of the first one" in comment
    assert webui.job.passes[0].effective[0][1].equal(webui.job.passes[0].effective[0][0])


def test_random_block_weights_are_each_picture_s_own(webui: WebUI, ink: loras.File) -> None:
    ratios = ",".join(["R"] * 17)

    def painted(seed: int, size: int) -> list[float]:
        run = webui.generate(f"a <lora:ink:1:lbw={ratios}>", seed=seed, batch_size=size).passes[0]
        return strengths(run, ink)[0][:size]

    alone = [painted(seed, 1)[0] for seed in (5, 6)]
    assert painted(5, 2) == pytest.approx(alone, abs=1e-3)
    assert alone[0] != alone[1]


def test_one_file_of_a_folder_is_drawn_for_each_picture(webui: WebUI, ink: loras.File, wash: loras.File) -> None:
    files = {"ink": ink, "wash": wash}
    drawn = [draw_name("*", files, seed) for seed in (5, 6, 7, 8)]
    assert set(drawn) == set(files)
    [rows, *_] = webui.generate("a <lora:*:0.7>", seed=5, batch_size=4).passes[0].effective
    assert [strength_of(row, files[name]) for row, name in zip(rows[:4], drawn, strict=True)] == [0.7] * 4


# --- sides and parts ---


def test_tags_of_the_negative_prompt_act_on_its_side_where_the_settings_say_so(
    webui: WebUI, ink: loras.File, wash: loras.File
) -> None:
    webui.options.lora_runtime_negative_tags = "apply to the negative side"
    job = {"negative_prompt": "bad <lora:wash:0.4>", "enable_hr": True, "hr_negative_prompt": "worse <lora:wash:0.2>"}
    done = webui.generate("a", **job)
    for run, strength, words in zip(done.passes, (0.4, 0.2), ("bad ", "worse "), strict=True):
        assert strengths(run, wash)[0] == [0, strength]
        assert of_text(run.conditioning.weights)
        assert of_text(run.negative[0].weights, (wash, strength, 0))
        assert run.negative[0].text == words
    assert done.comments == []
    assert webui.job.all_negative_prompts == ["bad <lora:wash:0.4>"]


def test_where_tags_are_disabled_the_negative_prompts_stay_as_they_are(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_runtime_negative_tags = "apply to the negative side"
    done = webui.generate("a", negative_prompt="bad <lora:ink>", enable_hr=True, disable_extra_networks=True)
    assert [run.negative[0].text for run in done.passes] == ["bad <lora:ink>"] * 2
    assert webui.not_whole() == []


def test_other_tags_stay_in_the_negative_prompt(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_runtime_negative_tags = "apply to the negative side"
    done = webui.generate("a", negative_prompt="bad <hypernet:x:1> <lyco:ink:0.2> <LoRA:nobody>")
    assert done.passes[0].negative[0].text == "bad <hypernet:x:1>  "
    assert any('no LoRA named "nobody"' in comment for comment in done.comments)


def test_a_tag_acts_on_its_part_alone_where_the_settings_say_so(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_runtime_scope = "its part of the prompt (AND)"
    run = webui.generate(["c", "a <lora:ink:0.5> AND b"], batch_size=2).passes[0]
    assert strengths(run, ink)[0] == [0, 0.5, 0, 0, 0]
    (alone,), (first, second) = run.conditioning.batch
    assert of_text(first.weights, (ink, 0.5, 0))
    assert of_text(alone.weights)
    assert of_text(second.weights)
    assert (first.text, second.text) == ("a  ", " b")


def test_prompt_editing_takes_the_tag_along_where_the_settings_say_so(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_runtime_scope = "while its words are in the prompt"
    done = webui.generate("a [b <lora:ink:0.5>::0.5]", steps=4)
    assert [row[0] for row in strengths(done.passes[0], ink)] == [0.5, 0.5, 0, 0]


def test_by_default_a_tag_acts_on_the_whole_picture(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("[b <lora:ink:0.5>::0.5] AND c", steps=4)
    assert strengths(done.passes[0], ink) == [[0.5, 0.5, 0.5]] * 4
    assert hooks(webui.model) == 0


# --- block weights and regions ---


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({}, "INS", 1.0),
        ({}, "OUTS", 0.0),
        (
            {"extensions/sd-webui-lora-block-weight/scripts/lbwpresets.txt": "MINE:" + ",".join(["0.5"] * 17)},
            "MINE",
            0.5,
        ),
        ({"lora_runtime_presets.txt": "MINE:" + ",".join(["0.25"] * 26)}, "MINE", 0.25),
    ],
    ids=["common", "common, out", "of the other extension", "own"],
)
def test_block_weights_by_name(
    webui: WebUI, ink: loras.File, files: dict[str, str], name: str, expected: float
) -> None:
    data = webui.loras.parent.parent
    for path, text in files.items():
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_text(text, encoding="utf-8")
    done = webui.generate(f"a <lora:ink:1:lbw={name}>")
    assert strengths(done.passes[0], ink)[0] == [expected] * 2
    assert done.comments == []


def test_presets_that_cannot_be_read_are_said_in_the_console(
    webui: WebUI, ink: loras.File, capsys: pytest.CaptureFixture[str]
) -> None:
    path = webui.loras.parent.parent / "lora_runtime_presets.txt"
    path.write_text("MINE:1,2\n", encoding="utf-8")
    webui.generate("a <lora:ink>")
    webui.generate("a <lora:ink>")
    assert capsys.readouterr().out.count("lora_runtime_presets.txt: line 1") == 1


@pytest.mark.quick(2)
@pytest.mark.parametrize("mask", ["../secret.png", "/etc/secret.png", "nowhere.png", "\0", "x" * 5000])
def test_a_mask_is_a_file_among_the_loras(webui: WebUI, ink: loras.File, mask: str) -> None:
    done = webui.generate(f"a <lora:ink:0.5:mask={mask}> <lora:ink:0.25>")
    [comment] = done.comments
    assert "mask" in comment
    assert strengths(done.passes[0], ink)[0] == [0.25, 0.25]


def test_a_mask_confines_a_lora(webui: WebUI, ink: loras.File) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (8, 8), 0).save(webui.loras / "black.png")
    done = webui.generate("a <lora:ink:te=0:unet=0.5:mask=black.png>")
    assert done.comments == []
    assert strengths(done.passes[0], ink)[0] == [0, 0]


# --- what samplers say ---


def said(rows: int, parts: Any, **denoiser: Any) -> Any:
    """Return what a sampler hands over; `parts` of each picture's prompt, or None where it keeps them elsewhere."""
    from types import SimpleNamespace as Some

    arguments = None if parts is None else {"cond": Some(batch=[[None] * count for count in parts])}
    known = {"step": 0, "steps": 4, "total_steps": 4, "sampler": Some(sampler_extra_args=arguments), **denoiser}
    return Some(x=torch.zeros(rows, 4, 8, 8), sigma=torch.full((rows,), 2.0), denoiser=Some(**known))


@pytest.mark.parametrize(
    ("rows", "parts", "expected"),
    [
        (2, [1], "0+0 0-"),
        (5, [1, 2], "0+0 1+0 1+1 0- 1-"),
        (6, [1, 1], "0+0 1+0 0- 1- 0- 1-"),  # a model that edits pictures
        (4, None, "0+0 1+0 0- 1-"),
        (1, None, "0+0"),
    ],
)
def test_rows_are_named_by_picture_side_and_part(webui: WebUI, rows: int, parts: Any, expected: str) -> None:
    from lora_runtime_webui_extension.hosts.a1111 import denoiser

    found = [
        f"{row.image}+{row.part}" if row.side == "positive" else f"{row.image}-"
        for row in denoiser.rows_of(said(rows, parts))
    ]
    assert " ".join(found) == expected


@pytest.mark.parametrize(
    ("denoiser", "step", "steps"),
    [
        ({"step": 47}, 3, 4),  # DPM adaptive
        ({"step": 6, "total_steps": 8}, 3, 4),
        ({"step": 2, "steps": None}, 2, 4),
        ({"step": 2, "steps": None, "total_steps": None}, 0, 1),
    ],
)
def test_steps_are_those_that_were_asked_for(webui: WebUI, denoiser: dict[str, Any], step: int, steps: int) -> None:
    from lora_runtime_webui_extension.hosts.a1111 import denoiser as host

    moment = host.moment_of(said(2, [1], **denoiser))
    assert (moment.step, moment.steps, moment.sigma) == (step, steps, 2.0)


@pytest.mark.parametrize(
    ("alphas", "sigma"), [([0.99, 0.8, 0.2], 2.0), ([0.9, 0.5], 1.0), ([0.5, 0.5, 0.0], float("inf"))]
)
def test_a_time_step_in_place_of_the_noise_level_is_turned_into_one(
    webui: WebUI, alphas: list[float], sigma: float
) -> None:
    """σ² = (1 − ᾱ)/ᾱ at the time step, here 2 or the last that there is."""
    from lora_runtime_webui_extension.hosts.a1111 import denoiser

    moment = denoiser.moment_of(said(2, [1], alphas=torch.tensor(alphas)))
    assert moment.sigma == pytest.approx(sigma, rel=1e-6)


def test_schedules_by_noise_level(webui: WebUI, ink: loras.File) -> None:
    """The double's levels are 4, 3, 2, 1."""
    done = webui.generate("a <lora:ink:te=0:unet=0.5:stop=2sigma>", steps=4)
    assert [row[0] for row in strengths(done.passes[0], ink)] == [0.5, 0.5, 0, 0]
