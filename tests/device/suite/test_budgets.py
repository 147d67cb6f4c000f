"""Copies and waits: what a switch and a step may cost. A wait lets a GPU run dry, which costs more than arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from device.pretend import Log, Pretend
from safetensors.torch import save_file

import lora_runtime

PROMPTS = {
    "constant": "a <lora:ink>",
    "schedules": "a <lora:ink:0@0,1@1><lora:wash:1@0,0@1>",
    "stop": "a <lora:ink:1:stop=2>",
    "box and schedule": "a <lora:ink:0@0,1@1:box=0,0,0.5,1>",
    "dense schedule": "a <lora:full:0@0,1@1>",
    "batch": ["a <lora:ink>", "b <lora:wash>"],
}
STEPS = [("DDIMScheduler", kind) for kind in ("constant", "box and schedule", "dense schedule", "batch")]
STEPS += [("EulerDiscreteScheduler", "schedules"), ("DPMSolverMultistepScheduler", "stop")]
QUICK = [("DDIMScheduler", "box and schedule"), ("EulerDiscreteScheduler", "schedules")]


# What schedulers of diffusers do with numpy is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files ink, wash and full."""
    folder = tmp_path_factory.mktemp("files")
    pipe = tiny.pipeline("sd1")
    for seed, name in enumerate(("ink", "wash")):
        tiny.write_kohya_lora(folder / f"{name}.safetensors", pipe, seed=seed)
    generator = torch.Generator().manual_seed(3)
    save_file(
        {
            f"lora_unet_{path.replace('.', '_')}.diff": torch.randn(module.weight.shape, generator=generator) * 0.1
            for path, module in pipe.unet.named_modules()
            if isinstance(module, torch.nn.Linear)
        },
        folder / "full.safetensors",
    )
    return folder


def paint(pipe: Any, prompt: str | list[str], steps: int) -> torch.Tensor:
    """Return the latents of a tiny picture."""
    generator = torch.Generator().manual_seed(0)
    size: dict[str, Any] = {"height": 32, "width": 32, "output_type": "latent", "generator": generator}
    latents: torch.Tensor = pipe(prompt, num_inference_steps=steps, **size).images
    return latents.cpu()


@pytest.mark.parametrize(
    ("scheduler", "kind"), [pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow) for each in STEPS]
)
def test_a_step_waits_for_nothing_and_copies_nothing(pretend: Pretend, files: Path, kind: str, scheduler: str) -> None:
    import diffusers

    pipe = tiny.pipeline("sd1")
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.to("pretend")
    logs: list[Log] = []
    for steps in (2, 5):
        with lora_runtime.apply(pipe, PROMPTS[kind], loras=files) as applied, pretend.logged() as log:
            paint(pipe, applied.prompt, steps)
        logs.append(log)
    few, many = logs
    assert many.lines == few.lines  # three steps more, and nothing more
    assert few.ours["d2h"] + few.ours["sync"] <= 1  # the scheduler's time steps, read once a run


@pytest.mark.parametrize("mode", ["device", "host", "inplace"])
def test_a_switch_of_strength_reads_nothing_back(pretend: Pretend, files: Path, mode: Any) -> None:
    pipe = tiny.pipeline("sd1").to("pretend")
    report = lora_runtime.apply(pipe, "a <lora:ink>", loras=files, originals=mode).report
    with pretend.logged() as log:
        lora_runtime.apply(pipe, "a <lora:ink:0.5>", loras=files, originals=mode)
    assert log.kinds["d2h"] + log.kinds["d2h async"] == log.kinds["sync"] == 0
    assert log.kinds["h2d"] == 0
    assert log.kinds["h2d async"] == (report.weights if mode == "host" else 0)  # W₀, of which the device has no copy
    lora_runtime.restore(pipe)


def test_the_first_switch_reads_each_original_where_it_is(pretend: Pretend, files: Path) -> None:
    pipe = tiny.pipeline("sd1").to("pretend")
    with pretend.logged() as log:
        report = lora_runtime.apply(pipe, "a <lora:ink>", loras=files, originals="host").report
    # One copy of W₀ goes down, without a wait, and only the factors of each weight come up, together.
    assert (log.kinds["d2h"], log.kinds["d2h async"]) == (0, report.weights)
    assert (log.kinds["h2d"], log.kinds["h2d async"]) == (0, report.weights)
    lora_runtime.restore(pipe)


def test_a_restore_copies_nothing_where_the_originals_are_on_the_device(pretend: Pretend, files: Path) -> None:
    pipe = tiny.pipeline("sd1").to("pretend")
    applied = lora_runtime.apply(pipe, "a <lora:ink>", loras=files, originals="device")
    with pretend.logged() as log:
        applied.restore()
    assert not log.kinds


@pytest.mark.parametrize("kind", ["constant", "box and schedule"])
@pytest.mark.parametrize(
    "offload", ["none", *(pytest.param(each, marks=pytest.mark.slow) for each in ("model", "sequential")), "group"]
)
def test_a_picture_is_the_cpus_however_weights_come_to_the_device(
    pretend: Pretend, files: Path, kind: str, offload: str
) -> None:
    pipe = tiny.pipeline("sd1")
    plain = paint(pipe, ["a", "b"] if kind == "batch" else "a", 3)
    with lora_runtime.apply(pipe, PROMPTS[kind], loras=files) as applied:
        expected = paint(pipe, applied.prompt, 3)
    assert not torch.allclose(plain, expected, atol=1e-3)
    if offload == "none":
        pipe.to("pretend")
    elif offload == "model":
        pipe.enable_model_cpu_offload(device="pretend")
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device="pretend")
    else:
        pipe.to("pretend")
        onto = {"onload_device": pretend.device, "offload_device": torch.device("cpu")}
        pipe.unet.enable_group_offload(offload_type="leaf_level", **onto)
    with lora_runtime.apply(pipe, PROMPTS[kind], loras=files) as applied:
        assert torch.allclose(paint(pipe, applied.prompt, 3), expected, atol=1e-4)
    assert torch.allclose(paint(pipe, ["a", "b"] if kind == "batch" else "a", 3), plain, atol=1e-4)
