"""What people do with a pipeline, done on a GPU: painted, trained, compiled, merged. Checks as those of checks.py.

The embedded pipeline is small enough to be painted with there and on the CPU. The tests of the project hold all of it
on the CPU; on the pretend accelerator each operation of a picture is a detour.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

import lora_runtime
from benchmarks.checks import Check
from benchmarks.devices import Cuda, Device
from lora_runtime.demo.scene_pipeline import LORAS, load_pipeline, paint

__all__ = ["pipeline_checks"]

PICTURES = Path(__file__).resolve().parent.parent / "training" / "pictures" / "10_robot"
TAGGED = ("a red circle <lora:night:0.9>", "a boat on the sea <lora:outline:0.8>")
SEEDS = (4, 5)
LEVELS = 3.0  # of 255, in the mean: a few pixels at an edge fall the other way where sums differ in their last digits


def pipeline_checks(device: Device) -> Iterator[Check]:
    """Yield what can be looked at on this device with what is installed."""
    if not isinstance(device, Cuda) or not all(map(find_spec, ("diffusers", "transformers"))):
        return
    yield Check("pictures of a batch as on the CPU, and the old ones afterwards", partial(_pictures, device))
    yield Check("a weighted prompt encoded as on the CPU", partial(_weighted, device))
    yield Check("files merged as on the CPU", partial(_merged, device))
    yield Check("live strengths in a compiled model", partial(_compiled, device))
    if all(map(find_spec, ("peft", "accelerate"))):
        kinds: list[dict[str, str]] = [{"mixed_precision": kind} for kind in ("no", "bf16", "fp16")]
        if find_spec("bitsandbytes"):
            kinds += [{"mixed_precision": "bf16", "quantize": kind} for kind in ("nf4", "int8")]
            kinds.append({"mixed_precision": "bf16", "optimizer_type": "bitsandbytes.optim.AdamW8bit"})
        for told in kinds:
            yield Check(f"a LoRA trained, {', '.join(told.values())}", partial(_trained, device, told))


def _painted(pipe: Any, prompts: list[str]) -> Any:
    with lora_runtime.apply(pipe, prompts, loras=LORAS, strict=True) as applied:
        pictures = paint(pipe, applied.prompt, seeds=SEEDS[: len(prompts)], steps=8)
    return numpy.stack([numpy.asarray(picture, dtype=numpy.float64) for picture in pictures])


def _pictures(device: Device) -> None:
    torch.backends.cudnn.allow_tf32 = False  # as the CPU computes
    here, there = load_pipeline(device.device), load_pipeline()
    plain = [prompt.partition(" <")[0] for prompt in TAGGED]
    before = _painted(here, plain)
    tagged = _painted(here, list(TAGGED))
    assert (_painted(here, plain) == before).all(), "other pictures afterwards"
    assert abs(tagged - before).mean() > 4 * LEVELS, "the LoRAs change nothing"
    found = abs(tagged - _painted(there, list(TAGGED))).mean()
    assert found < LEVELS, f"differ by {found:.2g} levels in the mean"
    alone = numpy.concatenate([_painted(here, [TAGGED[0]])])
    found = abs(alone - tagged[:1]).mean()
    assert found < LEVELS, f"the first picture alone differs from that in the batch by {found:.2g} levels"


def _weighted(device: Device) -> None:
    found = []
    for where in (device.device, torch.device("cpu")):
        pipe = load_pipeline(where)
        with lora_runtime.apply(pipe, "a (red:1.4) [circle] <lora:night:0.8>", loras=LORAS, weights="a1111") as applied:
            found.append({name: tensor.cpu().double() for name, tensor in applied.embeds.items()})
    here, there = found
    assert here.keys() == there.keys()
    off = max(float((here[name] - there[name]).abs().max() / there[name].abs().max()) for name in here)
    assert off < 1e-3, f"differs by {off:.2g} of the largest value"


def _merged(device: Device) -> None:
    from lora_runtime.workbench import compare, merge

    with tempfile.TemporaryDirectory() as name:
        files = []
        for where in (device.device, torch.device("cpu")):
            files.append(Path(name) / f"{where.type}-{len(files)}.safetensors")
            sources = [f"{LORAS / 'night.safetensors'}:0.7", f"{LORAS / 'outline.safetensors'}:0.4"]
            merge(sources, files[-1], rank=4, device=where)
        alike = compare(*files)
        assert alike.total.cosine > 0.9999, f"ΔW of both have a cosine of {alike.total.cosine:.6f}"


def _compiled(device: Device) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)).to(device.device).eval()
    inputs = torch.randn(64, 256, device=device.device)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        from benchmarks import model

        model.write_lora(Path(name) / "ink.safetensors", model.all_linears(layers), rank=8, prefix="")
        wanted = []
        with lora_runtime.apply(layers, "<lora:ink:0@0,1@1>", loras=name, strict=True) as applied:
            for step in range(4):
                applied.at(step, 4)
                wanted.append(layers(inputs))
        layers.compile(fullgraph=True)
        layers(inputs)
        with lora_runtime.apply(layers, "<lora:ink:0@0,1@1>", loras=name, strict=True) as applied:
            applied.at(0, 4)
            layers(inputs)  # once compiled anew, with what acts beside
            with torch.compiler.set_stance("fail_on_recompile"):
                for step, expected in enumerate(wanted):
                    applied.at(step, 4)
                    found = layers(inputs)
                    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4), f"step {step} differs"
    assert not torch.allclose(wanted[0], wanted[-1]), "the strength changes nothing"


def _trained(device: Device, told: dict[str, str]) -> None:
    from lora_runtime.train import Config, train

    pipe = load_pipeline()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data" / "1_robot"
        data.mkdir(parents=True)
        for picture in sorted(PICTURES.iterdir())[:8]:
            shutil.copy(picture, data)
        config = Config(
            train_data_dir=data.parent,
            output_dir=folder / "out",
            output_name="robot",
            resolution=(48, 48),
            min_bucket_reso=48,
            max_bucket_reso=48,
            bucket_reso_steps=8,
            train_batch_size=4,
            max_train_steps=6,
            network_dim=4,
            learning_rate=1e-3,
            sample_prompts=("a robot <lora:robot:1> --s 2",),
            **told,  # type: ignore[arg-type]
        )
        done = train(pipe, config)
        assert all(map(numpy.isfinite, done.losses)), f"losses {done.losses}"
        painter = load_pipeline(device.device)
        with lora_runtime.apply(painter, "a robot", loras=done.path.parent) as applied:
            without = paint(painter, [applied.prompt], seeds=[1], steps=4)[0]
        with lora_runtime.apply(painter, "a robot <lora:robot:1>", loras=done.path.parent, strict=True) as applied:
            with_it = paint(painter, [applied.prompt], seeds=[1], steps=4)[0]
        assert without.tobytes() != with_it.tobytes(), "the file changes nothing"
