"""Measure apply, change, restore, memory and steps against the other ways, print a table and write bench.json.

    python -m benchmarks.bench [--device cpu|cuda|mps] [--dtype float32 bfloat16] [--rounds 5] [--quick]

bench.json is a list of {case, dtype, who, seconds, bytes}. Cases: `apply` (files and buffers warm), `change` (other
strengths), `restore`, `step` (one pass of the UNet afterwards, 32 × 32 latents, batch 2), for 3 LoRAs of rank 32 on the
attention blocks of a UNet of SD1.5's size; `first` (the first apply of a process, page faults included) and `again`
(apply after restore, adapters still loaded: for diffusers without its load_lora_weights). The same cases with `-10x16`
(10 LoRAs of rank 16) and `-conv` (3 LoCons of rank 16 on the 3×3 convolutions) behind their names. `parse10k` and
`import` need no model. `live` and `batch8`: see `live_worker`; `nf4` and `linear`: see `layers_worker`.

`load200` is load_lora of a file of 200 MB, beside `read` (Path.read_bytes: into new memory, as any loader needs it)
and `sha256` (the hash alone, of bytes in memory); `keys100k` a file of 100,000 keys. The page cache is warm. `delta …`
is one layer of SDXL in float32, for each kind of adapter that LyCORIS or PEFT makes (judges.py): our Δ(W₀), of the file
that the library wrote, and the library's own merged weight. (Ours joins a sum in merge.py; PEFT adds in place.)

Seconds are minima over rounds in which the order of who goes is shuffled. Bytes are the most memory that was in use
above that of the loaded model, taken in a process of its own; null where it was not taken. The bytes of the floor are
those of the touched weights, and those of `files` the size of the LoRA files, which whoever reads them may hold too.

Each measurement runs in a process of its own, so that none inherits another's memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAIN = "3x32"


@dataclass(frozen=True)
class Variant:
    """What is put on the model: `count` files of `rank`, on the linears or on the convolutions."""

    count: int
    rank: int
    who: tuple[str, ...]
    convolutions: bool = False


VARIANTS = {
    MAIN: Variant(3, 32, ("ours", "unmerged", "fuse", "loop", "floor", "bare")),
    "10x16": Variant(10, 16, ("ours", "fuse", "loop", "floor")),
    "conv": Variant(3, 16, ("ours", "fuse", "loop", "floor"), convolutions=True),
}


@dataclass(frozen=True)
class Record:
    """One line of bench.json."""

    case: str
    dtype: str
    who: str
    seconds: float | None
    bytes: int | None


@dataclass(frozen=True)
class Options:
    """What a worker process needs to know; travels as JSON."""

    device: str
    dtype: str
    variant: str
    folder: str
    quick: bool
    rounds: int
    who: str = ""


# In a worker process


def setting_of(options: Options) -> tuple[Any, Any]:
    """Return a setting (model and files) and its step; the files are written if they are not there yet."""
    import torch

    from benchmarks import model
    from benchmarks.contestants import Setting

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


def rounds_worker(options: Options) -> Iterator[Record]:
    """Yield the minima of each case for each contestant.

    diffusers wraps the layers and leaves other bits behind, so it and the loop share one model, the rest another.
    """
    from benchmarks.contestants import CONTESTANTS, seconds

    variant = VARIANTS[options.variant]
    clean, clean_step = setting_of(options)
    worn, worn_step = setting_of(options)
    contestants = {
        who: (CONTESTANTS[who](worn), worn_step)
        if who in ("unmerged", "fuse", "loop")
        else (CONTESTANTS[who](clean), clean_step)
        for who in variant.who
    }
    best: dict[tuple[str, str], float] = {}
    fresh = strengths(variant.count)
    shuffle = random.Random(0)

    for number in range(options.rounds + 1):  # the first warms up and is not counted
        order = list(variant.who)
        shuffle.shuffle(order)
        for who in order:
            contestant, step = contestants[who]
            gc.collect()
            times = {"apply": seconds(partial(contestant.apply, next(fresh)))}
            if options.variant == MAIN and contestant.has_step:
                times["step"] = min(seconds(step), seconds(step))
            times["change"] = seconds(partial(contestant.change, next(fresh)))
            times["restore"] = seconds(contestant.restore)
            if contestant.keeps_adapters:
                times["again"] = seconds(partial(contestant.again, next(fresh)))
                contestant.restore()
            contestant.clean()
            for case, taken in times.items() if number else ():
                best[case, who] = min(taken, best.get((case, who), taken))
    for (case, who), taken in best.items():
        if (who != "bare" or case == "step") and (who != "floor" or case == "apply"):
            yield Record(named(case, options.variant), options.dtype, who, taken, None)


def first_worker(options: Options) -> Iterator[Record]:
    """Yield the time of the first apply in this process, and the peak memory of each case."""
    import torch

    from benchmarks.contestants import CONTESTANTS, seconds
    from benchmarks.memory import PeakMemory, trim, used

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


def parse_worker(options: Options) -> Iterator[Record]:
    """Yield the time to parse 10 KB of prompt with a tag in each line, each time another one."""
    import lora_runtime

    def prompt(number: int) -> str:
        line = "a lighthouse above the sea at dusk, [gulls:clouds:0.5], (film grain:1.2) "
        return "".join(f"{line}<lora:style/ink-{n}:0.{number}{n}:te=0.5>" for n in range(10_000 // 100))

    assert "torch" not in sys.modules
    text = prompt(9)
    assert 9_500 < len(text) < 11_000 and len(lora_runtime.parse_prompt(text).tags) == 100
    best = float("inf")
    for number in range(options.rounds * 4):
        text = prompt(number)
        start = time.perf_counter()
        lora_runtime.parse_prompt(text)
        best = min(best, time.perf_counter() - start)
    yield Record("parse10k", "-", "ours", best, None)


def import_worker(options: Options) -> Iterator[Record]:
    """Yield the time of `import lora_runtime` in this process."""
    start = time.perf_counter()
    import lora_runtime

    yield Record("import", "-", "ours", time.perf_counter() - start, None)
    lora_runtime.parse_prompt("a <lora:b>")
    yield Record("import+parse", "-", "ours", time.perf_counter() - start, None)
    assert "torch" not in sys.modules


def load_worker(options: Options) -> Iterator[Record]:
    """Yield the time to load a large file and one of many keys, and what reading and hashing alone take."""
    import hashlib

    from benchmarks.model import write_large_lora, write_many_keys
    from lora_runtime.lora import load_lora

    large = write_large_lora(Path(options.folder) / "large.safetensors", 2_000_000 if options.quick else 200_000_000)
    many = write_many_keys(Path(options.folder) / "many.safetensors", 999 if options.quick else 99_999)
    content = large.read_bytes()
    ways = {
        ("load200", "ours"): lambda: load_lora(large),
        ("load200", "read"): large.read_bytes,
        ("load200", "sha256"): lambda: hashlib.sha256(content),
        ("keys100k", "ours"): lambda: load_lora(many),
    }
    best = minima(ways, options.rounds)
    for (case, who), taken in best.items():
        yield Record(case, "-", who, taken, None)


def minima(ways: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Return the least seconds of each way, over rounds in a shuffled order; one more warms up."""
    best: dict[Any, float] = {}
    shuffle = random.Random(0)
    for number in range(rounds + 1):
        order = list(ways)
        shuffle.shuffle(order)
        for way in order:
            gc.collect()
            start = time.perf_counter()
            ways[way]()
            taken = time.perf_counter() - start
            if number:
                best[way] = min(taken, best.get(way, taken))
    return best


# SDXL's layers: (out, in) or (out, in, kernel), and a small one for a quick run.
LAYERS = {"attention": (1280, 1280), "cross": (1280, 2048), "ff": (10240, 1280), "conv": (640, 640, 3)}
SMALL_LAYERS = {"attention": (128, 128)}


def delta_worker(options: Options) -> Iterator[Record]:
    """Yield the time of our Δ(W₀), and of the library's own merge, for each judge and layer."""
    import torch

    from benchmarks.judges import JUDGES, judged, quiet

    for layer, (out, columns, *kernel) in (SMALL_LAYERS if options.quick else LAYERS).items():
        for judge in JUDGES:
            if kernel and not judge.convolutions:
                continue
            torch.manual_seed(0)
            made = (
                torch.nn.Conv2d(columns, out, kernel[0], bias=False)
                if kernel
                else torch.nn.Linear(columns, out, bias=False)
            )
            with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
                found = judged(judge, made, Path(folder))
                if found is None:
                    continue
                times: dict[str, float] = {}
                for number in range(options.rounds + 1):
                    found.reset()
                    for who, run in (("ours", found.delta), (judge.library, found.merged)):
                        start = time.perf_counter()
                        run()
                        taken = time.perf_counter() - start
                        if number:
                            times[who] = min(taken, times.get(who, taken))
            for who, taken in times.items():
                yield Record(f"delta {judge.name} {layer}", "-", who, taken, None)


def live_worker(options: Options) -> Iterator[Record]:
    """Yield the time of a step with strengths that vary, and that of the other ways to the same picture.

    `live`: three files under schedules, for guidance's batch of 2; `remerge` puts the next strengths into the weights
    before the step. `batch8`: eight images with a file each in one batch of 8, and eight runs of one (`separate`).
    """
    import torch

    import lora_runtime
    from benchmarks import model
    from benchmarks.contestants import Ours, Setting, Unmerged

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
    best: dict[tuple[str, str], float] = {}
    shuffle = random.Random(0)
    for number in range(options.rounds + 1):
        for way in shuffle.sample(list(ways), len(ways)):
            prompt, run = ways[way]
            if prompt is not None:
                lora_runtime.apply(pipe, prompt, loras=folder, strict=True)
                run()  # factors go to where the model computes
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            if number:
                best[way] = min(taken, best.get(way, taken))
    for (case, who), taken in best.items():
        yield Record(case, options.dtype, who, taken, None)


def layers_worker(options: Options) -> Iterator[Record]:
    """Yield the time of a call of linear layers with a LoRA beside each: ours, PEFT's unmerged, and none.

    `linear`: plain layers in bfloat16, at a strength that varies; `nf4`: layers of bitsandbytes, where that is.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    import lora_runtime

    size, tokens = (64, 8) if options.quick else (1280, 512)
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator) * 0.1 for shape in ((size, 16), (16, size)))
    inputs = torch.randn(tokens, size, generator=generator).to(options.device, torch.bfloat16)

    def model(quantised: bool) -> Any:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(4))).bfloat16()
        if quantised:
            bnb = import_module("bitsandbytes").nn
            for number, plain in enumerate(list(layers)):
                assert isinstance(plain, torch.nn.Linear)
                layer = bnb.Linear4bit(size, size, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
                layer.weight = bnb.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
                layers[number] = layer
        return layers.to(options.device).eval().requires_grad_(False)

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        keys = {f"{n}.lora_{side}.weight": t.clone() for n in range(4) for side, t in (("A", down), ("B", up))}
        save_file(keys, Path(folder) / "x.safetensors")
        for case, quantised in (("linear", False), ("nf4", True)):
            try:
                bare, ours, peft = model(quantised), model(quantised), model(quantised)
            except ImportError:
                continue
            lora_runtime.apply(ours, "<lora:x:0.7@0,0.9@1>", loras=folder, strict=True)
            config = LoraConfig(r=16, lora_alpha=16, target_modules=list("0123"))
            unmerged = get_peft_model(peft, config, autocast_adapter_dtype=False)
            ways = {who: partial(m, inputs) for who, m in (("bare", bare), ("ours", ours), ("unmerged", unmerged))}
            for who, taken in minima(ways, options.rounds * 4).items():
                yield Record(case, "bfloat16", who, taken, None)


WORKERS = {
    "rounds": rounds_worker,
    "live": live_worker,
    "first": first_worker,
    "parse": parse_worker,
    "import": import_worker,
    "load": load_worker,
    "delta": delta_worker,
    "layers": layers_worker,
}


def named(case: str, variant: str) -> str:
    """Return the name of a case in bench.json: the main variant's has nothing behind it."""
    return case if variant == MAIN else f"{case}-{variant}"


# In the parent process


Job = tuple[str, Options]


def work(jobs: Sequence[Job]) -> list[Record]:
    """Run jobs one after another in a process of their own and return their records."""
    for worker, options in jobs:
        what = " ".join(filter(None, [worker, options.dtype, options.variant, options.who]))
        print(f"  {what} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "LORA_RUNTIME_CACHE": cache}
        travelling = json.dumps([[worker, asdict(options)] for worker, options in jobs])
        command = [sys.executable, "-m", "benchmarks.bench", "--worker", travelling]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"bench: a worker failed (exit status {done.returncode})")
    return [Record(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def jobs_of(arguments: argparse.Namespace, folder: str) -> Iterator[Job]:
    """Yield what is to be measured on models."""
    for dtype in arguments.dtype:
        if arguments.only != "models":
            yield "live", Options(arguments.device, dtype, MAIN, folder, arguments.quick, arguments.rounds)
        for name in arguments.variant if arguments.only != "live" else ():
            options = Options(arguments.device, dtype, name, folder, arguments.quick, arguments.rounds)
            yield "rounds", options
            for _ in range(1 if arguments.quick else (arguments.rounds + 1) // 2):
                for who in VARIANTS[name].who:
                    if name == MAIN or who in ("ours", "loop", "floor"):
                        yield "first", replace(options, who=who)


def measure(arguments: argparse.Namespace, folder: str) -> list[Record]:
    """Return all records, one for each case, dtype and who."""
    if arguments.only in ("load", "delta", "layers"):
        device = arguments.device if arguments.only == "layers" else "cpu"
        options = Options(device, "-", "", folder, arguments.quick, arguments.rounds)
        return merged(work([(arguments.only, options)]))
    options = Options("cpu", "-", "", folder, arguments.quick, arguments.rounds)
    jobs = list(jobs_of(arguments, folder))
    if arguments.only is None:
        jobs += [("load", options), ("delta", options), ("layers", replace(options, device=arguments.device))]
    # Most of a quick run would be imports: there all jobs share one process.
    processes = [jobs] if arguments.quick else [[job] for job in jobs]
    processes += [[("parse", options)]] + [[("import", options)]] * arguments.rounds
    return merged(record for process in processes for record in work(process))


def merged(records: Iterable[Record]) -> list[Record]:
    """Return one record for each case, dtype and who: the least seconds and the least bytes of its measurements."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.case, record.dtype, record.who), []).append(record)

    def least(values: Iterable[Any]) -> Any:
        return min((value for value in values if value is not None), default=None)

    return [
        Record(*key, least(r.seconds for r in group), least(r.bytes for r in group)) for key, group in found.items()
    ]


@dataclass(frozen=True)
class Aim:
    """A figure that the project set itself: `value` should be at most (or at least) `bound`."""

    text: str
    value: float
    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        """Return the aim as a line of the table."""
        met = self.value >= self.bound if self.at_least else self.value <= self.bound
        sign = "≥" if self.at_least else "≤"
        return f"  {'met ' if met else 'MISSED'.ljust(4)}  {self.value:9.3f} {sign} {self.bound:<6g} {self.text}"


def aims(records: list[Record]) -> Iterator[Aim]:
    """Yield what was aimed at, for what was measured."""
    seconds = {(r.case, r.dtype, r.who): r.seconds for r in records if r.seconds}
    memory = {(r.case, r.dtype, r.who): r.bytes for r in records if r.bytes}

    def ratio(case: str, who: str, other_case: str, other: str, dtype: str) -> float | None:
        top, bottom = seconds.get((case, dtype, who)), seconds.get((other_case, dtype, other))
        return top / bottom if top and bottom else None

    def each(dtype: str) -> Iterator[tuple[str, float | None, float, bool]]:
        for name in VARIANTS:
            label, apply = f"{dtype} {name}", named("apply", name)
            yield f"{label}: apply / floor", ratio(apply, "ours", apply, "floor", dtype), 1.35, False
            yield f"{label}: fuse's load, set and fuse / apply", ratio(apply, "fuse", apply, "ours", dtype), 4, True
            again = named("again", name)
            yield f"{label}: fuse's set and fuse alone / apply", ratio(again, "fuse", apply, "ours", dtype), 4, True
            least = 2.5 if dtype == "bfloat16" else 8
            yield f"{label}: loop's apply / apply", ratio(apply, "loop", apply, "ours", dtype), least, True
            first = named("first", name)
            yield f"{label}: first apply / loop's first", ratio(first, "ours", first, "loop", dtype), 1.2, False
            yield f"{label}: change / apply", ratio(named("change", name), "ours", apply, "ours", dtype), 1.05, False
            restore = named("restore", name)
            yield f"{label}: fuse's restore / restore", ratio(restore, "fuse", restore, "ours", dtype), 50, True
            extra, touched = memory.get((apply, dtype, "ours")), memory.get((apply, dtype, "floor"))
            files = memory.get((named("files", name), dtype, "floor"))
            if extra and touched and files:
                yield (
                    f"{label}: extra memory without the files themselves / touched",
                    (extra - files) / touched,
                    1.05,
                    False,
                )
                yield f"{label}: extra memory / touched weights", extra / touched, 1.05, False
        yield f"{dtype}: a step / a bare step", ratio("step", "ours", "step", "bare", dtype), 1.02, False
        yield f"{dtype}: a step with live strengths / bare", ratio("live", "ours", "live", "bare", dtype), 1.10, False
        for other in ("unmerged", "remerge"):
            yield f"{dtype}: a live step / {other}", ratio("live", "ours", "live", other, dtype), 1.0, False
        yield f"{dtype}: a live linear layer / bare", ratio("linear", "ours", "linear", "bare", dtype), 1.10, False
        yield f"{dtype}: a live nf4 layer / unmerged", ratio("nf4", "ours", "nf4", "unmerged", dtype), 1.0, False
        yield f"{dtype}: 8 images, a file each / none", ratio("batch8", "ours", "batch8", "bare", dtype), 1.25, False
        yield f"{dtype}: 8 images / 8 runs", ratio("batch8", "ours", "batch8", "separate", dtype), 1.0, False

    for dtype in dict.fromkeys(record.dtype for record in records if record.dtype != "-"):
        for text, value, bound, at_least in each(dtype):
            if value is not None:
                yield Aim(text, value, bound, at_least)
    for case, limit, text in (("parse10k", 0.015, "seconds to parse 10 KB"), ("import", 0.1, "seconds to import")):
        if value := seconds.get((case, "-", "ours")):
            yield Aim(text, value, limit)
    for case, who, other, limit, text in (
        ("load200", "ours", "read", 1.3, "200 MB: load / read"),
        ("load200", "ours", "sha256", 1.3, "200 MB: load / SHA-256 alone"),
    ):
        if (value := ratio(case, who, case, other, "-")) is not None:
            yield Aim(text, value, limit)
    if value := seconds.get(("keys100k", "-", "ours")):
        yield Aim("seconds for 100,000 keys", value, 2)
    for case, dtype, who in seconds:
        if case.startswith("delta ") and who != "ours" and (value := ratio(case, "ours", case, who, dtype)) is not None:
            yield Aim(f"{case.removeprefix('delta ')}: ours / theirs", value, 1.1)


def table(records: list[Record]) -> Iterator[str]:
    """Yield the lines of the table: milliseconds, and MB above the loaded model at the peak of an apply."""
    cell = {(r.case, r.dtype, r.who): r for r in records}
    cases = ("apply", "again", "change", "restore", "step", "first")
    for dtype in dict.fromkeys(record.dtype for record in records if record.dtype != "-"):
        for name, variant in VARIANTS.items():
            if (named("apply", name), dtype, "ours") not in cell:
                continue
            yield ""
            yield f"{dtype}, {name}".ljust(18) + "".join(f"{case:>12}" for case in cases) + f"{'memory':>12}"
            for who in variant.who:
                row = [cell.get((named(case, name), dtype, who)) for case in cases]
                times = [f"{r.seconds * 1000:12.1f}" if r and r.seconds is not None else f"{'–':>12}" for r in row]
                size = row[0].bytes if row[0] else None
                yield f"  {who:16}" + "".join(times) + (f"{size / 1e6:12.1f}" if size is not None else f"{'–':>12}")
    for (case, dtype, who), found in cell.items():
        if case in ("live", "batch8", "linear", "nf4") and found.seconds is not None:
            yield f"{dtype} {case} {who}".ljust(30) + f"{found.seconds * 1000:9.1f} ms"
    yield ""
    yield f"Δ{'ours':>63}{'theirs':>12}{'ratio':>8}"
    for (case, dtype, who), theirs in cell.items():
        mine = cell.get((case, dtype, "ours"))
        if case.startswith("delta ") and who != "ours" and mine and mine.seconds and theirs.seconds:
            name, ratio = case.removeprefix("delta "), mine.seconds / theirs.seconds
            yield f"  {name:50}{mine.seconds * 1000:12.2f}{theirs.seconds * 1000:12.2f}{ratio:8.2f}"
    yield ""
    for case, who in (
        *((case, "ours") for case in ("parse10k", "import", "import+parse", "keys100k", "load200")),
        ("load200", "read"),
        ("load200", "sha256"),
    ):
        if (found := cell.get((case, "-", who))) and found.seconds is not None:
            yield f"{case if who == 'ours' else f'{case} {who}':16}{found.seconds * 1000:9.1f} ms"


def heading(arguments: argparse.Namespace) -> str:
    """Return what was measured on, for whoever compares figures."""
    import torch

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    line = f"torch {torch.__version__}, {arguments.device} ({name}), {arguments.rounds} rounds"
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        line += f"; load {os.getloadavg()[0]:.1f}: other programs are running, take no figure for exact"
    return line


def main(argv: list[str]) -> None:
    """Run the benchmark, or with `--worker` one part of it."""
    if argv[:1] == ["--worker"]:
        quieten()
        for worker, options in json.loads(argv[1]):
            for record in WORKERS[worker](Options(**options)):
                print(json.dumps(asdict(record)), flush=True)
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument(
        "--only", choices=("models", "live", "load", "delta", "layers"), help="one part of the measurements"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    print(heading(arguments))
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        records = measure(arguments, folder)
    lines = ",\n".join(json.dumps(asdict(record)) for record in records)
    arguments.out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print("\n".join(table(records)))
    if not arguments.quick:
        print("\nAims (milliseconds above; ratios below)")
        print("\n".join(map(str, aims(records))))
    print(f"\nWrote {arguments.out}")


def quieten() -> None:
    """Keep the advice that diffusers logs for each file off the screen."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main(sys.argv[1:])
