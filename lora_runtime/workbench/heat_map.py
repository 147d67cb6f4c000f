"""The heat map of a report: blocks of the model by LoRAs, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lora_runtime.workbench.report import Block, Reported

__all__ = ["heat_map"]

_MIDDLE = 0.179  # the luminance on which black and white can be read equally well


def heat_map(found: Reported) -> Any:
    """Return matplotlib's Figure: norms of blocks by LoRAs, and beside it, where there are several, their cosines.

    ImportError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    blocks, pairs = [*found.blocks], found.total.pairs
    several = len(found.names) > 1
    columns = [*found.names, *(["together"] if several else [])]
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
            dark = not math.isnan(value) and _luminance(image.cmap(image.norm(value))) < _MIDDLE
            shown = "–" if math.isnan(value) else form.format(value)
            panel.text(x, y, shown, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    figure.colorbar(image, ax=panel)


def _luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of a colour in sRGB, 0 to 1, as WCAG 2 defines it."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _name(panel: Any, title: str, columns: list[str], blocks: list[str]) -> None:
    panel.set_title(title)
    # "$" would begin a formula.
    panel.set_xticks(
        range(len(columns)), [column.replace("$", r"\$") for column in columns], fontsize=8, rotation=30, ha="right"
    )
    panel.set_yticks(range(len(blocks)), blocks, fontsize=8)
