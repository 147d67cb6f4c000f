"""Readers that several families share: latents as planes, in patches, or packed into tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from math import prod
from typing import Any, Literal

from lora_runtime.families.base import Given, Grid, Reader, Reading, Span

__all__ = [
    "packed",
    "patch_of",
    "patched",
    "picture",
    "planes",
    "planes_of_frames",
    "shape_of",
    "tokens_of",
    "with_ids",
]

_LATENTS = ("sample", "hidden_states", "x", "latent_model_input")
_TEXT = ("encoder_hidden_states", "context", "clip_text_pooled", "proj_embedding", "class_labels")
Joint = Literal["text first", "picture first"]


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, () of anything else."""
    return tuple(getattr(value, "shape", ()))


def picture(grid: Grid) -> Span:
    """Return the span of a picture's or a video's tokens."""
    return Span("picture", prod(grid))


def planes(given: Given) -> Reading | None:
    """Read the call of a UNet: (b, c, h, w) or (b, c, frames, h, w), in layers that halve height and width."""
    latents = given.get(*_LATENTS)
    shape = shape_of(latents)
    if len(shape) not in (4, 5):
        return None
    grid = Grid(shape[-2], shape[-1], shape[2] if len(shape) == 5 else 1)
    return Reading(shape[0], latents, given.get(*_TEXT), grid)


def planes_of_frames(given: Given) -> Reading | None:
    """Read the call of a UNet that is given frames before channels: (b, frames, c, h, w)."""
    latents = given.get(*_LATENTS)
    shape = shape_of(latents)
    if len(shape) != 5:
        return None
    return Reading(shape[0], None, given.get(*_TEXT), Grid(shape[-2], shape[-1], shape[1]))


def patched(joint: Joint | None = None, *, frames: int = 2, extra: int = 0, alone: bool = False) -> Reader:
    """Return a reader of latents that the model cuts into patches: (b, c, h, w) or (b, c, frames, h, w).

    `joint`: where the text stands in the layers that see both, which come beside those that see the picture alone;
    None: no layer sees both. `extra`: tokens of the model's own beside the text. `alone`: the same layers see the text
    by itself too. `frames`: the dimension of the frames.
    """

    def read(given: Given) -> Reading | None:
        latents = given.get(*_LATENTS)
        shape = shape_of(latents)
        if len(shape) not in (4, 5):
            return None
        deep, high, wide = patch_of(given)
        grid = Grid(shape[-2] // high, shape[-1] // wide, max(1, shape[frames] // deep) if len(shape) == 5 else 1)
        text = given.get(*_TEXT)
        sequences: list[tuple[Span, ...]] = [(picture(grid),)]
        if joint is not None:
            words = Span("text", tokens_of(text) + extra)
            sequences.append((words, picture(grid)) if joint == "text first" else (picture(grid), words))
            if alone:
                sequences.append((words,))
        return Reading(shape[0], latents if frames == 2 or len(shape) == 4 else None, text, grid, tuple(sequences))

    return read


def patch_of(given: Given) -> tuple[int, int, int]:
    """Return frames, height and width of a patch."""
    size = given.setting("patch_size", 1)
    if isinstance(size, Iterable):
        sizes = tuple(size)
        return (1, sizes[0], sizes[1]) if len(sizes) == 2 else (sizes[0], sizes[1], sizes[2])
    return given.setting("patch_size_t", given.setting("temporal_patch_size", 1)), size, size


def tokens_of(text: Any) -> int:
    """Return how many tokens a text embedding, (b, tokens, c), has."""
    shape = shape_of(text)
    return shape[1] if len(shape) > 2 else 0


def packed(given: Given, grid: Grid | None) -> Reading | None:
    """Read latents that come as tokens, (b, tokens, c), in layers that see pictures alone, the painted one first.

    What follows its tokens is a reference picture. `grid`: None where it cannot be told; then no place is known.
    """
    latents, text = given.get(*_LATENTS), given.get(*_TEXT)
    shape = shape_of(latents)
    if len(shape) != 3:
        return None
    if grid is None or shape[1] < prod(grid):
        return Reading(shape[0], latents, text, None, ())
    behind = shape[1] - prod(grid)
    references = (Span("reference", behind),) if behind else ()
    return Reading(shape[0], latents, text, grid, ((picture(grid), *references),))


def with_ids(given: Given) -> Reading | None:
    """Read the call of a model of Flux's kind: packed latents, and beside them the place of each token.

    `img_ids`, (tokens, 3 or 4): which picture, row, column; the picture that is painted is number 0. Double blocks see
    pictures alone, single blocks text and pictures.
    """
    latents, ids, text = given.get(*_LATENTS), given.get("img_ids"), given.get(*_TEXT)
    if ids is None or len(shape_of(latents)) != 3:
        return None
    spans, grid = given.once(ids, _spans)
    if grid is None:
        return Reading(latents.shape[0], latents, text, None, ())
    words = Span("text", tokens_of(text))
    return Reading(latents.shape[0], latents, text, grid, (spans, (words, *spans)))


def _spans(ids: Any) -> tuple[tuple[Span, ...], Grid | None]:
    """Return the spans of the tokens whose places are given, and the grid of the picture that is painted."""
    table: Sequence[Sequence[float]] = (ids if ids.ndim == 2 else ids[0]).tolist()
    spans = tuple(
        Span("reference" if other else "picture", len(list(tokens)))
        for other, tokens in groupby(bool(r[0]) for r in table)
    )
    own = [row for row in table if not row[0]]
    rows, columns = {row[1] for row in own}, {row[2] for row in own}
    grid = Grid(len(rows), len(columns))
    whole = sum(span.kind == "picture" for span in spans) == 1 and prod(grid) == len(own)
    in_order = [(row[1], row[2]) for row in own] == [(r, c) for r in sorted(rows) for c in sorted(columns)]
    return spans, grid if whole and in_order else None
