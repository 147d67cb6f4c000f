"""What was measured, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.records import VARIANTS, Record, named
from benchmarks.timing import AGREE

__all__ = ["table", "time_of"]


def table(records: list[Record]) -> Iterator[str]:
    """Yield the lines of the table: milliseconds with their spread, and MB above the loaded model while applying."""
    cell = {(r.case, r.dtype, r.who): r for r in records}
    cases = ("apply", "again", "change", "restore", "step", "first")
    for dtype in dict.fromkeys(record.dtype for record in records if record.dtype != "-"):
        for name, variant in VARIANTS.items():
            if (named("apply", name), dtype, "ours") not in cell:
                continue
            yield ""
            yield f"{dtype}, {name}".ljust(18) + "".join(f"{case:>16}" for case in cases) + f"{'memory':>12}"
            for who in variant.who:
                row = [cell.get((named(case, name), dtype, who)) for case in cases]
                times = [f"{time_of(record):>16}" for record in row]
                size = row[0].bytes if row[0] else None
                yield f"  {who:16}" + "".join(times) + (f"{size / 1e6:12.1f}" if size is not None else f"{'–':>12}")
    for (case, dtype, who), found in cell.items():
        if case in ("live", "batch8", "linear", "nf4") and found.seconds is not None:
            yield f"{dtype} {case} {who}".ljust(30) + f"{time_of(found):>16}"
    yield ""
    yield f"Δ{'ours':>67}{'theirs':>16}{'ratio':>8}"
    for (case, dtype, who), theirs in cell.items():
        mine = cell.get((case, dtype, "ours"))
        if case.startswith("delta ") and who != "ours" and mine and mine.seconds and theirs.seconds:
            name, ratio = case.removeprefix("delta "), mine.seconds / theirs.seconds
            yield f"  {name:50}{time_of(mine):>16}{time_of(theirs):>16}{ratio:8.2f}"
    yield ""
    for (case, dtype, who), found in cell.items():
        if dtype == "-" and not case.startswith("delta ") and found.seconds is not None:
            size = "" if found.bytes is None else f"{found.bytes / 1e6:12.1f} MB"
            yield f"{case if who == 'ours' else f'{case} {who}':16}{time_of(found):>16}{size}"


def time_of(record: Record | None) -> str:
    """Return milliseconds and how far above the second lowest time was; "!" where the two do not agree."""
    if record is None or record.seconds is None:
        return "–"
    digits = 1 if record.seconds > 0.01 else 3
    text = f"{record.seconds * 1000:.{digits}f}"
    if record.spread is None:
        return text
    return f"{text} +{record.spread:.0%}" + ("!" if record.spread > AGREE else "")
