"""One cell: paint with the LoRA in the prompt, and hold it against the judge."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import lora_runtime
from matrix.files import Written, write
from matrix.judge import judged, picture_of
from matrix.paint import Paint, Record, quiet
from matrix.states import STATES, State
from matrix.strengths import NAME, STRENGTHS, Strength


@dataclass(frozen=True)
class Cell:
    """What was measured: `error` is how far the picture is from the judge's, in parts of the LoRA's own effect."""

    kind: str  # "equal", "refused", "wrong", or "none" where there is no such thing
    error: float = 0.0
    reason: str = ""
    detail: str = ""


def measure(record: Record, state: str, strength: str, algorithm: str) -> Cell:
    """Measure one cell."""
    wish, way = STRENGTHS[strength], STATES[state]
    lack = _lacking(record, wish) or way.lacks(record)
    if lack:
        return Cell("none", reason=lack)
    with tempfile.TemporaryDirectory() as folder:
        pipe = quiet(record.make())
        original = {name: copy.deepcopy(getattr(pipe, name)) for name in record.denoisers}
        layers = {name: _layers(model, record.layers) for name, model in original.items()}
        file = write(Path(folder), NAME, algorithm, layers)
        try:
            with way.prepared(pipe, record):
                return _compare(record, wish, way, file, folder, pipe, original)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            return Cell("wrong", float("inf"), detail=f"{type(error).__name__}: {first[:300]}")


def timed(spot: tuple[str, str, str, str]) -> tuple[tuple[str, str, str, str], Cell, float]:
    """Measure a cell in a process of its own; return the seconds it took as well."""
    import diffusers
    import torch

    from matrix.pipelines import RECORDS

    warnings.filterwarnings("ignore")
    logging.getLogger("lora_runtime").setLevel(logging.CRITICAL)
    diffusers.logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    begun = time.perf_counter()
    return spot, measure(RECORDS[spot[0]], *spot[1:]), time.perf_counter() - begun


def _lacking(record: Record, wish: Strength) -> str:
    if wish.negative and not record.negative:
        return "it has no negative side"
    if wish.images > 1 and not record.batch:
        return "it paints one picture at a time"
    if wish.left_half and record.grid is None:
        return "the judge does not know its grid"
    return ""


def _compare(
    record: Record,
    wish: Strength,
    way: State,
    file: Written,
    folder: str,
    pipe: Any,
    original: Mapping[str, nn.Module],
) -> Cell:
    prompts = list(wish.prompts) if wish.images > 1 else wish.prompts[0]
    more: Any = {"negative_prompt": wish.negative, "negative_tags": "apply"} if wish.negative else {}
    with lora_runtime.apply(pipe, prompts, loras=folder, **more) as applied, way.amid(record, pipe, folder):
        got = picture_of(record.call(pipe, Paint(wish.images)))
    after = picture_of(record.call(pipe, Paint(wish.images)))
    said = [diagnostic.message for diagnostic in applied.diagnostics]
    unused = {key for line in applied.report.loras for key in line.unused}
    everything = {place: change for place, (_, change) in file.changes.items()}
    kept = {
        place: change
        for place, (stem, change) in file.changes.items()
        if not any(key.startswith(f"{stem}.") for key in unused)
    }
    weights = {name: way.weights(original[name]) for name in record.denoisers}
    plain, whole = (judged(record, wish, weights, changes) for changes in ({}, everything))
    want = whole if len(kept) == len(everything) else judged(record, wish, weights, kept)
    effect = (whole - plain).norm()
    if not effect > 5e-3 * plain.norm():
        raise AssertionError(f"the LoRA changes the picture by no more than {float(effect / plain.norm()):.1g}")
    error, left, rest = (float((a - b).norm() / effect) for a, b in ((got, want), (got, plain), (after, plain)))
    detail = f"off by {error:.2g}, from the picture without it by {left:.2g}, afterwards by {rest:.2g}; said {said}"
    refused = next((message for message in said if f'"{NAME}"' in message), "")
    if not rest <= way.tolerance:
        return Cell("wrong", error, detail=f"not restored: {detail}")
    if left <= way.tolerance and refused:
        return Cell("refused", left, refused, detail)
    if error <= way.tolerance and kept:
        partly = f"{len(everything) - len(kept)} of {len(everything)} layers: {refused}"
        return Cell("equal", error, partly if len(kept) < len(everything) else "", detail)
    return Cell("wrong", error, detail=detail)


def _layers(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, path)
    }
    if not found:
        raise AssertionError(f"no layer of {type(model).__name__} fits {pattern}")
    return found
