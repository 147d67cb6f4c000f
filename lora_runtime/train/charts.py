"""What is looked at after a run: the loss of its steps as a curve, and the samples on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["loss_curve", "running_mean", "sheet"]

_GAP, _LABEL, _LEAST = 4, 16, 96  # pixels


def running_mean(losses: Sequence[float], memory: float = 0.95) -> list[float]:
    """Return the exponential mean of the losses up to each step, which single steps hide."""
    found: list[float] = []
    mean, weight = 0.0, 0.0
    for loss in losses:
        mean, weight = memory * mean + (1 - memory) * loss, memory * weight + (1 - memory)
        found.append(mean / weight)
    return found


def loss_curve(losses: Sequence[float], path: Path) -> bool:
    """Draw the curve, PNG; return whether matplotlib is there to do so."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="each step")
    axes.plot(steps, running_mean(losses), label="running mean")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(path)
    return True


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image | None]]], titles: Sequence[str]) -> Image.Image:
    """Return one picture of labelled rows, each with a picture for each title; None leaves a place empty."""
    from PIL import Image, ImageDraw, ImageFont

    there = [picture for _, pictures in rows for picture in pictures if picture is not None]
    larger = max(1, _LEAST // min(picture.width for picture in there))  # times, so that labels have room
    width, height = (larger * max(picture.size[side] for picture in there) for side in (0, 1))
    font = ImageFont.load_default()
    made = Image.new(
        "RGB",
        (_GAP + len(titles) * (width + _GAP), _LABEL + len(rows) * (height + _LABEL + _GAP)),
        "white",
    )
    draw = ImageDraw.Draw(made)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (width + _GAP), 2), title, fill="black", font=font)
    for row, (label, pictures) in enumerate(rows):
        top = _LABEL + row * (height + _LABEL + _GAP)
        draw.text((_GAP, top), label, fill="black", font=font)
        for column, picture in enumerate(pictures):
            if picture is not None:
                enlarged = picture.resize((larger * picture.width, larger * picture.height))
                made.paste(enlarged, (_GAP + column * (width + _GAP), top + _LABEL))
    return made
