"""Writes docs/formats.md: what is read here, what judges it, and what other programs make of it.

    python tools/formats_table.py            print the page
    python tools/formats_table.py --write    write docs/formats.md

What is read comes from the code (ALGORITHMS, PENDING, DIALECTS), the accuracy from running the judges that are
installed. Only what other programs do is written down here, with the version in which it was found.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "formats.md"
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.judges import JUDGES, judged, quiet  # noqa: E402
from lora_runtime.adapters import ALGORITHMS, Algorithm  # noqa: E402
from lora_runtime.adapters.pending import PENDING  # noqa: E402
from lora_runtime.dialects import DIALECTS, Dialect  # noqa: E402
from lora_runtime.families import FAMILIES  # noqa: E402
from lora_runtime.families import UNKNOWN as UNKNOWN_FAMILY  # noqa: E402

PROGRAMS = ("WebUI built-in 1.10.1", "ComfyUI 0.3.64", "diffusers 0.40", "InvokeAI 2026")
UNKNOWN = "–"
# By our name of the algorithm, in the order of PROGRAMS. What is not here shows as unknown.
ELSEWHERE: dict[str, tuple[str, str, str, str]] = {
    "lora": ("wrong (drops the alpha of files with `lora_A` and `lora_B`)", "yes", "yes", "yes"),
    "loha": ("yes", "yes", "no", "yes"),
    "lokr": ("yes", "yes", "no", "yes"),
    "ia3": (
        "wrong (scales another axis of convolutions, and stops at files that have any key `.weight`)",
        "no",
        "no",
        "wrong (scales another axis of convolutions)",
    ),
    "glora": ("wrong (only the order of factors before LyCORIS 3, and no alpha / rank)", "yes", "no", UNKNOWN),
    "oft": (
        "yes; BOFT is wrong at strengths other than 1",
        "wrong (the strength counts twice, `.rescale` not at all; BOFT stops without an alpha)",
        "no",
        UNKNOWN,
    ),
    "dora": (
        "wrong (always takes the norm of the inputs)",
        "wrong (divides by the norm of W₀ where the lengths are those of the outputs)",
        "wrong (most loaders drop `.dora_scale`, with a warning)",
        "wrong (always takes the norm of the inputs)",
    ),
    "full": ("yes", "wrong (replaces a LoRA on the same module)", "no", "yes"),
    "norm": ("yes, where weight and bias are both there", "yes", "no", UNKNOWN),
}
STABLE = 1e-5  # below this the last digits are those of the machine's float32


def page() -> str:
    """Return docs/formats.md."""
    return "\n".join(_lines()) + "\n"


_HEAD = """\
# Formats

Made by `python tools/formats_table.py --write`; a test holds it to the code.

A LoRA file says for each module of a model what to change in its weight. Files differ in two ways: the *algorithm*,
which is the formula and shows in how a key ends, and the *names* that a key has for the module. Any algorithm may come
with any names.

## Algorithms that are read

*Judge*: the library that writes the file and computes the weight which ours is held against. The deviation is the
largest of all its files, on a linear layer and where it can on a convolution, relative to the largest change of the
weight: in float32, rounded up to a power of ten, at least 1e-05. Where no library has the algorithm, the tests hold it
against the formula in float64.
"""
_PENDING = """
`.alpha` and `.scale` go with each of them that has a rank.

## Known, and refused by name

Keys of these are reported as not supported yet. Whatever else the file has for the same module is left out too, since
alone it would be wrong.
"""
_ELSEWHERE = """
## In other programs

*wrong* means that the file is applied and the picture is another than the one that was trained for; – that it is not
known here. Found by reading their sources in November 2026; what was run in the WebUI is in
[webui-compat.md](webui-compat.md).
"""
_NAMES = """
## Names

A name is a prefix for the part of the pipeline, and a path; `.` and `_` count as the same. Paths come from the live
model, so a family without prefixes of its own goes with those of all others.
"""


def _lines() -> Iterator[str]:
    accuracy = measured()
    yield _HEAD
    rows = []
    for algorithm in ALGORITHMS:
        judges, deviation = accuracy.get(algorithm.name, ((), None))
        shown = UNKNOWN if deviation is None else f"{rounded_up(deviation):.0e}"
        rows.append((algorithm.name, _endings(algorithm), ", ".join(judges) or "the formula", shown))
    yield from table(("algorithm", "key endings", "judge", "deviation"), rows)
    yield _PENDING
    names = dict.fromkeys(pending.algorithm for pending in PENDING.values())
    owned = ((name, [e for e, pending in PENDING.items() if pending.algorithm == name]) for name in names)
    yield from table(("algorithm", "key endings"), [(name, _code(endings)) for name, endings in owned])
    yield _ELSEWHERE
    others = [(a.name, "yes", *ELSEWHERE.get(a.name, (UNKNOWN,) * len(PROGRAMS))) for a in ALGORITHMS]
    yield from table(("algorithm", "lora_runtime", *PROGRAMS), others)
    yield _NAMES
    families = []
    for dialect in DIALECTS:
        prefixes = dict.fromkeys(prefix for found in dialect.prefixes.values() for prefix in found)
        families.append((dialect.name, _said_of(dialect), _code(prefixes) or UNKNOWN))
    yield from table(("names", "whose they are", "prefixes"), families)


def measured() -> dict[str, tuple[tuple[str, ...], float]]:
    """Return for each algorithm the judges that have it, and the largest relative deviation from any of them."""
    found: dict[str, tuple[tuple[str, ...], float]] = {}
    for judge in JUDGES:
        layers: list[nn.Module] = [nn.Linear(256, 128, bias=False)]
        if judge.convolutions:
            layers.append(nn.Conv2d(64, 128, 3, bias=False))
        for layer in layers:
            with tempfile.TemporaryDirectory() as folder, torch.no_grad(), quiet():
                torch.manual_seed(0)
                nn.init.normal_(layer.weight, std=0.05)  # type: ignore[arg-type]
                one = judged(judge, layer, Path(folder))
                if one is None:
                    continue
                one.reset()
                change = one.merged().double() - one.weight
                deviation = float((one.delta() - change).abs().max() / change.abs().max())
            judges, worst = found.get(one.algorithm, ((), 0.0))
            found[one.algorithm] = tuple(dict.fromkeys((*judges, judge.library))), max(worst, deviation)
    return found


def rounded_up(deviation: float) -> float:
    """Return the next power of ten, `STABLE` at least."""
    return max(STABLE, 10.0 ** math.ceil(math.log10(max(deviation, 1e-30))))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _endings(algorithm: Algorithm) -> str:
    text = _code(algorithm.endings)
    return f"{text}, and beside them {_code(algorithm.companions)}" if algorithm.companions else text


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _said_of(dialect: Dialect) -> str:
    """Return the names of the families whose files have these names, else the first line of the dialect's file."""
    families = [family.name for family in FAMILIES if dialect in family.dialects]
    if families:
        return ", ".join(dict.fromkeys(name for name in families if name != UNKNOWN_FAMILY))
    homes = (
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith("lora_runtime.dialects.") and any(value is dialect for value in vars(module).values())
    )
    return (next(homes).__doc__ or "").partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
