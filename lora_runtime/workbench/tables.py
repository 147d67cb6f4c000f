"""The figures of a report as tables of texts, for whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass

from lora_runtime.workbench.report import Block, Reported

__all__ = ["Table", "tables_of"]

_OF_PAIRS = ("block", "both", "cosine", "outputs", "inputs", "signs")


@dataclass(frozen=True)
class Table:
    """A table: what it is of, and its cells, row by row, under their heads."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(found: Reported) -> list[Table]:
    """Return one table of norms and ranks, and one for each two files."""
    blocks = [*found.blocks.items(), ("all", found.total)]
    has_base = found.total.base is not None
    title = ", ".join(f"{number}: {name}" for number, name in enumerate(found.names, 1))
    tables = [Table(title, _titles(found), tuple(_row(name, block, has_base) for name, block in blocks))]
    for place, pair in enumerate(found.total.pairs):
        both = f"{found.names[pair.files[0]]} and {found.names[pair.files[1]]}"
        tables.append(Table(both, _OF_PAIRS, tuple(_pair_row(name, block, place) for name, block in blocks)))
    return tables


def _titles(found: Reported) -> tuple[str, ...]:
    numbers = range(1, len(found.names) + 1)
    with_base = [] if found.total.base is None else ["‖W₀‖", "of W₀"]
    return ("block", *(f"‖Δ{n}‖" for n in numbers), "together", *with_base, *(f"rank {n}" for n in numbers))


def _row(name: str, block: Block, with_base: bool) -> tuple[str, ...]:
    # Of a block that the model has nothing of.
    base = ("-", "-") if block.base is None else (f"{block.base:.3g}", f"{block.together / block.base:.1%}")
    return (
        name,
        *(f"{norm:.3g}" for norm in block.norms),
        f"{block.together:.3g}",
        *(base if with_base else ()),
        *(f"{rank:.1f}" for rank in block.ranks),
    )


def _pair_row(name: str, block: Block, place: int) -> tuple[str, ...]:
    pair = block.pairs[place]
    cosine = "-" if pair.cosine is None else f"{pair.cosine:+.2f}"
    shares = (pair.outputs, pair.inputs, pair.conflicts)
    return (name, str(pair.modules), cosine, *("-" if share is None else f"{share:.0%}" for share in shares))
