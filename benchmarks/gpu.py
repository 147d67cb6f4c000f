"""Look at everything that matters on one GPU, in at most 8 minutes, and write gpu.json and gpu.md.

    python -m benchmarks.gpu [--device cuda|pretend|cpu] [--tiny] [--model Flux] [--minutes 8] [--out gpu.json] …

First what must hold on any device (checks.py) and what people do on a GPU (checks_pipelines.py), then for the denoisers
of SD1.5, SDXL and Flux (shapes.py) and two LoRAs of rank 32 on attention and feed-forward, in bfloat16:

    first     the first apply, files not yet in memory       change    other strengths
    apply     onto the bare model, files in memory           switch    from one file to the other
    restore   back to the bare model                         step      one call of the denoiser afterwards
    kept      bytes on the device beside the model           peak      the same while the first apply ran
    told      the peak that the plan foretold

`ours` with each place of the originals, `live` (strengths that vary from step to step), PEFT through diffusers beside
the layers (`unmerged`), merged (`fuse`) and with `hotswap`, the arithmetic alone (`floor`), and no LoRA (`bare`). Times
are minima of rounds that go on until the lowest two agree within 3 %, "!" where they do not.

No part begins that may not end in time: it is listed under "dropped". Exit status 1: a check has failed, or ours has.
`--device pretend` runs all of it on the accelerator of tests/device, `--tiny` with models of a few thousand parameters.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # imports are part of the time that somebody waits

import argparse  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, get_args  # noqa: E402

from benchmarks.cases.models import strengths  # noqa: E402
from benchmarks.checks import checks  # noqa: E402
from benchmarks.checks_pipelines import pipeline_checks  # noqa: E402
from benchmarks.contestants import CONTESTANTS, Contestant, Ours  # noqa: E402
from benchmarks.devices import Device, device_named  # noqa: E402
from benchmarks.records import Record, record_of  # noqa: E402
from benchmarks.shapes import FILES, SHAPES, Shape, build  # noqa: E402
from benchmarks.tables import time_of  # noqa: E402
from benchmarks.timing import Limits, Times, seconds  # noqa: E402
from lora_runtime.limits import Limits as WhereStrengthsVary  # noqa: E402
from lora_runtime.lookup import Lookup, clear_cache  # noqa: E402
from lora_runtime.memory import OutOfMemory  # noqa: E402
from lora_runtime.memory_policy import Room, decide  # noqa: E402
from lora_runtime.patcher import Originals  # noqa: E402
from lora_runtime.pipelines import view  # noqa: E402
from lora_runtime.plan import make_plan  # noqa: E402
from lora_runtime.problems import Problems  # noqa: E402
from lora_runtime.prompt import parse_prompt  # noqa: E402
from lora_runtime.requests import of_batch  # noqa: E402
from lora_runtime.scopes import scope_of  # noqa: E402

CASES = ("first", "apply", "change", "switch", "restore", "step")
SIZES = ("kept", "peak", "told")
PEERS = ("unmerged", "fuse", "hotswap", "floor")


@dataclass
class Found:
    """What the files say in the end."""

    device: dict[str, Any]
    checks: dict[str, str] = field(default_factory=dict)  # name → "" where it holds, else what was found
    models: dict[str, str] = field(default_factory=dict)  # name → what of it was measured
    records: list[Record] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # parts of ours that did not run
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all that was looked at holds."""
        return not self.failed and not any(self.checks.values())


class Budget:
    """The time that there is. A part begins only with a reserve left, in which it ends."""

    def __init__(self, total: float) -> None:
        """Count from the start of the program."""
        self._total = total
        self._reserve = min(40.0, total / 8)

    def left(self) -> float:
        """Return the seconds in which a part may still begin."""
        return self._total - self._reserve - (time.perf_counter() - BEGAN)

    def limits(self, share: int) -> Limits:
        """Return when the rounds of a part end, where `share` parts share what is left."""
        return Limits(rounds=20, seconds=max(0.5, min(15.0, self.left() / share)), least=2, settled=4)


QUICK = Limits(rounds=1, seconds=0, least=1)  # of tiny models no time is worth another round


def look(found: Found, device: Device, budget: Budget, folder: Path, models: Sequence[str], *, tiny: bool) -> None:
    """Run all parts, as far as there is time."""
    for check in (*checks(device), *pipeline_checks(device)):
        if budget.left() <= 0:
            found.dropped.append(f"check: {check.name}: no time left")
            continue
        try:
            check.run()
            found.checks[check.name] = ""
        except Exception as error:  # it goes into the file, and into the exit status
            found.checks[check.name] = f"{type(error).__name__}: {error}"
    gc.freeze()  # what is imported by now is most of what a collection would look through
    waiting = [(name, who, make) for name in models for who, make in ways()]
    for place, (name, who, make) in enumerate(waiting):
        if budget.left() <= 0:
            found.dropped.append(f"{name} {who}: no time left")
            continue
        print(f"  {name} {who} …", file=sys.stderr, flush=True)
        try:
            device.settle()
            shape = build(name, folder, device.device, device.free(), tiny=tiny)
            found.models[name] = shape.note
            limits = QUICK if tiny else budget.limits(len(waiting) - place)
            found.records += measured(shape, who, make(shape), device, limits, "-" if tiny else "bfloat16")
        except OutOfMemory:
            found.dropped.append(f"{name} {who}: out of memory")
        except Exception as error:  # a peer that is not installed, or not for this device; of ours it is a failure
            said = f"{name} {who}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            (found.dropped if who in PEERS else found.failed).append(said)
        finally:
            shape = None  # type: ignore[assignment]
            gc.collect()


def ways() -> Iterator[tuple[str, Callable[[Shape], Contestant]]]:
    """Yield what is measured on each model."""
    yield "bare", lambda shape: CONTESTANTS["bare"](shape.setting)
    for mode in get_args(Originals):
        if mode != "auto":
            yield f"ours, {mode}", partial(_ours, mode=mode)
    for who in ("live", *PEERS):
        yield who, partial(_other, who=who)


def _ours(shape: Shape, mode: str) -> Contestant:
    return Ours(shape.setting, mode)


def _other(shape: Shape, who: str) -> Contestant:
    if who in ("unmerged", "fuse", "hotswap"):
        import peft  # noqa: F401 - diffusers would say in many words that it is not there
    if who == "hotswap":
        getattr(shape.setting.pipe, shape.setting.component).enable_lora_hotswap(target_rank=32)
    return CONTESTANTS[who](shape.setting)


def measured(
    shape: Shape, who: str, contestant: Contestant, device: Device, limits: Limits, dtype: str
) -> Iterator[Record]:
    """Yield the times and sizes of one way on one model."""
    fresh = strengths(FILES)
    seconds(shape.step)  # the device's libraries choose their kernels at the first call
    if isinstance(contestant, Ours):
        told = foretold(contestant, device)
        yield Record(f"{shape.name} told", dtype, who, None, told)
    device.settle()
    before = device.used()
    with device.peak() as peak:
        first = seconds(partial(contestant.apply, next(fresh)))
    if who not in ("bare", "floor"):
        device.settle()
        yield Record(f"{shape.name} first", dtype, who, first)
        yield Record(f"{shape.name} kept", dtype, who, None, max(0, device.used() - before))
        yield Record(f"{shape.name} peak", dtype, who, None, peak())
    times: Times[str] = Times(limits)
    for number, counts in enumerate(times.rounds()):
        taken = {}
        if contestant.has_step:
            taken["step"] = seconds(shape.step)
        if who not in ("bare", "hotswap"):
            taken["change"] = seconds(partial(contestant.change, next(fresh)))
        if who not in ("bare", "floor"):
            taken["switch"] = seconds(partial(contestant.switch, number % FILES))
            taken["restore"] = seconds(contestant.restore)
            contestant.clean()
            taken["apply"] = seconds(partial(contestant.apply, next(fresh)))
        for case, duration in taken.items() if counts else ():
            times.add(case, duration)
    if who not in ("bare", "floor"):
        contestant.restore()
        contestant.clean()
    for case, timing in times.timings().items():
        yield record_of(f"{shape.name} {case}", dtype, who, timing)


def foretold(contestant: Ours, device: Device) -> int:
    """Return the peak on the device that the plan of the first apply foretells, in bytes."""
    looked_at = view(contestant.setting.pipe)
    targets = scope_of(looked_at).targets
    lookup = Lookup(contestant.setting.files[0].parent, Problems(strict=True))
    prompt = parse_prompt(contestant.tags(next(strengths(FILES))))
    plan = make_plan(of_batch([lookup.requests(prompt)]), targets, looked_at.description, WhereStrengthsVary(looked_at))
    clear_cache()  # `first` reads the files
    decision = decide(plan, targets, contestant.originals, lambda _: Room())
    return sum(forecast.peak for on, forecast in decision.forecasts().items() if on == device.device)


def page(found: Found) -> Iterator[str]:
    """Yield the lines of the table in Markdown."""
    card = ", ".join(f"{name} {value}" if name != "name" else str(value) for name, value in found.device.items())
    yield f"# {card}"
    yield ""
    good = [name for name, said in found.checks.items() if not said]
    yield f"{len(good)} of {len(found.checks)} checks hold; {found.seconds:.0f} s in all."
    for name, said in found.checks.items():
        if said:
            yield f"- **{name}**: {said}"
    cells = {(record.case, record.who): record for record in found.records}
    for name, note in found.models.items():
        yield f"\n## {name}\n\n{note}; milliseconds and MB\n"
        yield f"| | {' | '.join((*CASES, *SIZES))} |"
        yield "|---" * (len(CASES) + len(SIZES) + 1) + "|"
        for who in dict.fromkeys(record.who for record in found.records if record.case.startswith(f"{name} ")):
            row = [time_of(cells.get((f"{name} {case}", who))) for case in CASES]
            sizes = [cells.get((f"{name} {size}", who)) for size in SIZES]
            row += ["–" if record is None or record.bytes is None else f"{record.bytes / 1e6:.1f}" for record in sizes]
            yield f"| {who} | {' | '.join(row)} |"
    for title, lines in (("Failed", found.failed), ("Dropped", found.dropped)):
        if lines:
            yield f"\n## {title}\n"
            yield from (f"- {line}" for line in lines)


def main(argv: list[str]) -> int:
    """Run all parts and write the files; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, pretend or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument("--model", nargs="+", default=list(SHAPES), choices=SHAPES, help="default: all")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--table", type=Path, default=Path("gpu.md"))
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        device = device_named(arguments.device)
    except RuntimeError as error:
        parser.error(str(error))
    import torch

    tiny = arguments.tiny or arguments.device == "pretend"
    found = Found(device.card() | {"torch": torch.__version__, "models": "tiny" if tiny else "of their real size"})
    with tempfile.TemporaryDirectory(prefix="lora-gpu-") as folder:
        look(found, device, Budget(60 * arguments.minutes), Path(folder), arguments.model, tiny=tiny)
    found.seconds = round(time.perf_counter() - BEGAN, 1)
    arguments.out.write_text(json.dumps(asdict(found) | {"ok": found.ok}, indent=1) + "\n", encoding="utf-8")
    lines = "\n".join(page(found)) + "\n"
    arguments.table.write_text(lines, encoding="utf-8")
    print(lines)
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
