"""Say what the LoRAs of a prompt do together, block by block, in figures, in words and as a picture."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import checked_out, needs_extra, print_json, printable, table
from lora_runtime.cli.outcome import loras_argument, model_argument, refusing, shows_progress
from lora_runtime.cli.plot import label

if TYPE_CHECKING:
    from lora_runtime.workbench import Block, Reported

__all__ = ["add_arguments", "run"]

_TOGETHER = "together"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `report`."""
    parser.add_argument(
        "sources",
        metavar="PROMPT",
        nargs="+",
        help="a prompt with tags, in quotes, or files with strengths as of merge",
    )
    model_argument(parser, "for norms beside those of the weights, and to match names")
    loras_argument(parser)
    parser.add_argument("--picture", metavar="PNG", help="write a heat map of blocks and LoRAs; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables and the suggestions, and write the picture; raises LoraError."""
    from lora_runtime.workbench import report

    endings = (".png", ".svg", ".pdf")
    out = None if arguments.picture is None else checked_out(arguments.picture, endings, option="--picture")
    with refusing():
        found = report(
            arguments.sources, model=arguments.model, loras=arguments.loras, progress=shows_progress(arguments)
        )
    if out is not None:
        with needs_extra("plot"):
            _figure(found).savefig(out)
    if arguments.json:
        print_json(asdict(found))
        return 0
    print(printable(", ".join(f"{number}: {name}" for number, name in enumerate(found.names, 1))))
    print(table(_titles(found), [_row(block, figures) for block, figures in _all(found)]))
    for place, pair in enumerate(found.total.pairs):
        print(printable(f"{found.names[pair.files[0]]} and {found.names[pair.files[1]]}"))
        rows = [_pair_row(block, figures, place) for block, figures in _all(found)]
        print(table(("block", "both", "cosine", "outputs", "inputs", "signs"), rows))
    for suggestion in found.suggestions:
        print(printable(f"  {suggestion}"))
    if out is not None:
        print(out)
    return 0


def _all(found: Reported) -> list[tuple[str, Block]]:
    return [*found.blocks.items(), ("all", found.total)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def _titles(found: Reported) -> list[str]:
    numbers = range(1, len(found.names) + 1)
    with_base = [] if found.total.base is None else ["‖W₀‖", "of W₀"]
    return ["block", *(f"‖Δ{n}‖" for n in numbers), _TOGETHER, *with_base, *(f"rank {n}" for n in numbers)]


def _row(name: str, block: Block) -> list[str]:
    base = [] if block.base is None else [f"{block.base:.3g}", f"{block.together / block.base:.1%}"]
    return [
        name,
        *(f"{norm:.3g}" for norm in block.norms),
        f"{block.together:.3g}",
        *base,
        *(f"{rank:.1f}" for rank in block.ranks),
    ]


def _pair_row(name: str, block: Block, place: int) -> list[str]:
    pair = block.pairs[place]
    cosine = "-" if pair.cosine is None else f"{pair.cosine:+.2f}"
    shares = (pair.outputs, pair.inputs, pair.conflicts)
    return [name, str(pair.modules), cosine, *("-" if share is None else f"{share:.0%}" for share in shares)]


# ---- the picture ----------------------------------------------------------------------------------------------------


def _figure(found: Reported) -> Any:
    """Return matplotlib's Figure: norms of blocks by LoRAs, and beside it, where there are several, their cosines."""
    from matplotlib.figure import Figure

    blocks, pairs = [*found.blocks], found.total.pairs
    several = len(found.names) > 1
    columns = [*found.names, *([_TOGETHER] if several else [])]
    relative = all(block.base for block in found.blocks.values())
    norms = [_norms(block, several, relative) for block in found.blocks.values()]
    widths = [len(columns), *([len(pairs)] if several else [])]
    figure = Figure(
        figsize=(2.5 + 2.0 * len(widths) + 0.9 * sum(widths), 2.2 + 0.36 * len(blocks)), layout="constrained"
    )
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=[width + 1.0 for width in widths])[0]
    highest = max(map(max, norms))
    form = "{:.1%}" if relative else "{:.3g}"
    _heat(figure, panels[0], norms, (0.0, highest), "viridis", form)
    _name(panels[0], "‖Δ‖ / ‖W₀‖" if relative else "‖Δ‖", columns, blocks)
    if several:
        cosines = [
            [math.nan if pair.cosine is None else pair.cosine for pair in block.pairs]
            for block in found.blocks.values()
        ]
        _heat(figure, panels[1], cosines, (-1.0, 1.0), "RdBu", "{:+.2f}")
        names = [f"{found.names[one]}\n{found.names[other]}" for one, other in (pair.files for pair in pairs)]
        _name(panels[1], "cosine", names, blocks)
    return figure


def _norms(block: Block, several: bool, relative: bool) -> list[float]:
    unit = block.base if relative and block.base else 1.0
    return [norm / unit for norm in (*block.norms, *([block.together] if several else []))]


def _heat(figure: Any, panel: Any, rows: list[list[float]], ends: tuple[float, float], colours: str, form: str) -> None:
    """Draw cells with their values in them, in black or white as can be read on the colour."""
    image = panel.imshow(rows, aspect="auto", cmap=colours, vmin=ends[0], vmax=ends[1])
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 and not math.isnan(value)
            shown = "–" if math.isnan(value) else form.format(value)
            panel.text(x, y, shown, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    figure.colorbar(image, ax=panel)


def _name(panel: Any, title: str, columns: list[str], blocks: list[str]) -> None:
    panel.set_title(title)
    panel.set_xticks(range(len(columns)), [label(column) for column in columns], fontsize=8, rotation=30, ha="right")
    panel.set_yticks(range(len(blocks)), blocks, fontsize=8)
