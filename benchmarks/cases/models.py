"""A UNet of SD1.5's size: putting LoRAs on it, taking them off, and steps with them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import lora_runtime
from benchmarks import model
from benchmarks.contestants import CONTESTANTS, Ours, Setting, Unmerged
from benchmarks.memory import PeakMemory, trim, used
from benchmarks.records import MAIN, VARIANTS, Options, Record, named, record_of
from benchmarks.timing import Times, seconds

__all__ = ["first", "live", "rounds", "strengths"]


def setting_of(options: Options) -> tuple[Setting, Callable[[], Any]]:
    """Return a setting (model and files) and its step; the files are written if they are not there yet."""
    variant = VARIANTS[options.variant]
    config = model.SMALL if options.quick else model.SD15
    unet = model.make_unet(config, getattr(torch, options.dtype), torch.device(options.device))
    modules = model.convolutions(unet) if variant.convolutions else model.linears(unet)
    folder = Path(options.folder) / options.variant
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        files = model.write_loras(folder, modules, variant.count, 4 if options.quick else variant.rank)
    return Setting(model.make_pipeline(unet), modules, files), model.step(unet, 8 if options.quick else 32)


def strengths(count: int) -> Iterator[list[float]]:
    """Yield strengths that were not there before, so that nobody can answer from memory."""
    number = 0
    while True:
        number += 1
        yield [round(0.3 + 0.1 * index + 0.001 * number, 4) for index in range(count)]


def rounds(options: Options) -> Iterator[Record]:
    """Yield the time of each case for each contestant.

    diffusers wraps the layers and leaves other bits behind, so it and the loop share one model, the rest another.
    """
    variant = VARIANTS[options.variant]
    clean, clean_step = setting_of(options)
    worn, worn_step = setting_of(options)
    contestants = {
        who: (CONTESTANTS[who](worn), worn_step)
        if who in ("unmerged", "fuse", "loop")
        else (CONTESTANTS[who](clean), clean_step)
        for who in variant.who
    }
    times: Times[tuple[str, str]] = Times(options.limits)
    fresh = strengths(variant.count)
    for counts in times.rounds():
        for who in times.shuffled(variant.who):
            contestant, step = contestants[who]
            gc.collect()
            taken = {"apply": seconds(partial(contestant.apply, next(fresh)))}
            if options.variant == MAIN and contestant.has_step:
                taken["step"] = min(seconds(step), seconds(step))
            taken["change"] = seconds(partial(contestant.change, next(fresh)))
            taken["restore"] = seconds(contestant.restore)
            if contestant.keeps_adapters:
                taken["again"] = seconds(partial(contestant.again, next(fresh)))
                contestant.restore()
            contestant.clean()
            for case, duration in taken.items() if counts else ():
                if (who != "bare" or case == "step") and (who != "floor" or case == "apply"):
                    times.add((case, who), duration)
    for (case, who), timing in times.timings().items():
        yield record_of(named(case, options.variant), options.dtype, who, timing)


def first(options: Options) -> Iterator[Record]:
    """Yield the time of the first apply in this process, and the peak memory of each case."""
    setting, step = setting_of(options)
    for name in ("lora_runtime.runtime", "peft"):
        import_module(name)  # imports are not part of an apply
    device = torch.device(options.device)
    contestant = CONTESTANTS[options.who](setting)
    fresh = strengths(len(setting.files))
    if options.who == "floor":
        size = sum(module.weight.nbytes for module in setting.modules.values())
        yield Record(named("apply", options.variant), options.dtype, "floor", None, size)
        size = sum(file.stat().st_size for file in setting.files)
        yield Record(named("files", options.variant), options.dtype, "floor", None, size)
        return
    trim()
    baseline = used(device)

    def peak(case: str, run: Any) -> Record:
        with PeakMemory(device, baseline) as memory:
            taken = seconds(run)
        return Record(named(case, options.variant), options.dtype, options.who, taken, memory.extra)

    applied = peak("first", lambda: contestant.apply(next(fresh)))
    if options.who != "bare":
        yield applied
        yield Record(named("apply", options.variant), options.dtype, options.who, None, applied.bytes)
        change = peak("change", lambda: contestant.change(next(fresh)))
        yield Record(change.case, change.dtype, change.who, None, change.bytes)
    if options.variant == MAIN:
        stepped = peak("step", step)
        yield Record(stepped.case, stepped.dtype, stepped.who, None, stepped.bytes)
    if options.who != "bare":
        restored = peak("restore", contestant.restore)
        yield Record(restored.case, restored.dtype, restored.who, None, restored.bytes)


def live(options: Options) -> Iterator[Record]:
    """Yield the time of a step with strengths that vary, and that of the other ways to the same picture.

    `live`: three files under schedules, for guidance's batch of 2; `remerge` puts the next strengths into the weights
    before the step. `batch8`: eight images with a file each in one batch of 8, and eight runs of one (`separate`).
    """
    config, size = (model.SMALL, 8) if options.quick else (model.SD15, 32)
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    unet, worn = (model.make_unet(config, dtype, device) for _ in range(2))
    modules, folder = model.linears(unet), Path(options.folder) / "live"
    files = sorted(folder.glob("*.safetensors")) or model.write_loras(folder, modules, 8, 4 if options.quick else 32)
    pipe = model.make_pipeline(unet)
    ours = Ours(Setting(pipe, modules, files[:3]))
    unmerged = Unmerged(Setting(model.make_pipeline(worn), model.linears(worn), files[:3]))
    unmerged.apply([0.3, 0.4, 0.5])
    step, worn_step = model.step(unet, size), model.step(worn, size)
    fresh = strengths(3)

    def remerge() -> None:
        ours.apply(next(fresh))
        step()

    schedules = " ".join(f"<lora:{file.stem}:0.{index + 3}@0,0.9@1>" for index, file in enumerate(files[:3]))
    single, batch = model.step(unet, size, 1), model.step(unet, size, len(files))
    tags = [f"<lora:{file.stem}:0.7>" for file in files]

    def separate() -> None:
        for tag in tags:
            lora_runtime.apply(pipe, tag, loras=folder)
            single()

    ways: dict[tuple[str, str], tuple[str | list[str] | None, Callable[[], object]]] = {
        ("live", "bare"): ("", step),
        ("live", "ours"): (schedules, step),
        ("live", "unmerged"): (None, worn_step),
        ("live", "remerge"): (None, remerge),
        ("batch8", "bare"): ("", batch),
        ("batch8", "ours"): (tags, batch),
        ("batch8", "separate"): (None, separate),
    }
    times: Times[tuple[str, str]] = Times(options.limits)
    for counts in times.rounds():
        for way in times.shuffled(ways):
            prompt, run = ways[way]
            if prompt is not None:
                lora_runtime.apply(pipe, prompt, loras=folder, strict=True)
                run()  # factors go to where the model computes
            taken = seconds(run)
            if counts:
                times.add(way, taken)
    for (case, who), timing in times.timings().items():
        yield record_of(case, options.dtype, who, timing)
