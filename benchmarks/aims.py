"""The figures that the project set itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.records import VARIANTS, Record, named

__all__ = ["Aim", "aims"]


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
            yield f"{label}: apply / floor", ratio(apply, "ours", apply, "floor", dtype), 1.2, False
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
    for case, limit, text in (
        ("planned", 0.005, "seconds to plan tags that are there already (Flux)"),
        ("unchanged", 0.010, "seconds to apply tags that are there already (Flux)"),
    ):
        if value := seconds.get((case, "-", "ours")):
            yield Aim(text, value, limit)
    for case, dtype, who in seconds:
        if case.startswith("restore") and case[7:].isdecimal() and dtype == "-":
            yield Aim("µs to restore a weight", seconds[case, dtype, who] * 1e6 / int(case[7:]), 3)
    if (value := ratio("train", "loop", "train", "ours", "-")) is not None:
        yield Aim("training: a step of diffusers' example / ours", value, 1.0, True)
    if value := seconds.get(("keys100k", "-", "ours")):
        yield Aim("seconds for 100,000 keys", value, 2)
    for case, dtype, who in seconds:
        if case.startswith("delta ") and who != "ours" and (value := ratio(case, "ours", case, who, dtype)) is not None:
            yield Aim(f"{case.removeprefix('delta ')}: ours / theirs", value, 1.1)
