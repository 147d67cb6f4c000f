"""average: the mean of the steps of one training run, of checkpoints or of LoRAs.

A checkpoint's weights are averaged as they are, tensor by tensor, in float64 with one rounding. Of LoRAs ΔW is: the
mean of factors would be another change, with the products of one step's outputs and another's inputs in it. As the
steps of a run lie close together, the mean is cut to the rank that they have, and what that keeps is told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_runtime import __version__
from lora_runtime.errors import LoraFileError
from lora_runtime.header import Header, hashes, read_header
from lora_runtime.lora import load_lora, outline
from lora_runtime.requests import Request
from lora_runtime.tensors import DTYPES, read_one
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.merge import merge
from lora_runtime.workbench.notes import MADE_FROM
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.writing import Blank, check_free, write_stream

__all__ = ["Averaged", "average"]

_ELEMENTS = 1 << 18  # of a piece: 2 MB in float64


@dataclass(frozen=True)
class Averaged:
    """What was written. `weights`: what each file counts, by name, 1 together; `outcome`: of LoRAs, what was kept."""

    path: Path
    size: int  # bytes
    sha256: str
    tensors: int
    weights: tuple[tuple[str, float], ...]
    outcome: Outcome | None = None


def average(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    ema: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    force: bool = False,
    progress: bool = False,
) -> Averaged:
    """Write the mean of checkpoints, or of LoRAs, to `out`.

    `files`: the steps of one run, the oldest first. Each counts the same, or with `ema` (from 0 to 1) as in an
    exponential moving average of that decay, mᵢ = ema·mᵢ₋₁ + (1 − ema)·xᵢ from m₀ = x₀. `rank` and `energy` cut the
    mean of LoRAs, as in `merge`; without them it has the greatest rank of the files.

    Raises ValueError where arguments do not go together; LoraFileError where a file cannot be read or written, or the
    files have other tensors.
    """
    path = check_free(out, force=force)
    if len(files) < 2:
        raise ValueError("give at least two files, the oldest step first")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema {ema:g}: give the decay, from 0 and below 1")
    shares = _shares(len(files), ema)
    paths = [Path(file) for file in files]
    named = tuple(zip((each.name for each in paths), shares, strict=True))
    if _is_lora(paths[0]):
        requests = [Request(load_lora(each), share, share) for each, share in zip(paths, shares, strict=True)]
        made = merge(requests, path, method="svd", rank=rank, energy=energy, force=force, progress=progress)
        return Averaged(made.path, made.size, made.sha256, len(read_header(made.path).tensors), named, made)
    if rank is not None or energy is not None:
        raise ValueError("a rank and an energy are for LoRAs, and these are checkpoints")
    headers = [read_header(each) for each in paths]
    blanks = _common(headers)
    turns = steps([*blanks], "average", show=progress)

    def tensor_of(key: str) -> Tensor:
        next(turns, None)
        return _mean(key, headers, shares)

    note = {"version": __version__, "verb": "average", "files": _noted(headers, shares)}
    metadata = {k: v for k, v in headers[-1].metadata.items() if k != "modelspec.hash_sha256"}
    file = write_stream(path, blanks, tensor_of, {**metadata, MADE_FROM: json.dumps(note)})
    return Averaged(file.path, file.size, file.sha256, len(blanks), named)


def _shares(count: int, ema: float | None) -> list[float]:
    """Return what each of so many steps counts."""
    if ema is None:
        return [1 / count] * count
    return [ema ** (count - 1), *((1 - ema) * ema ** (count - 1 - index) for index in range(1, count))]


def _is_lora(path: Path) -> bool:
    try:
        return bool(outline(path).adapters)
    except LoraFileError:
        read_header(path)  # what cannot be read at all is told so
        return False


def _common(headers: Sequence[Header]) -> dict[str, Blank]:
    """Return the tensors of the files, which must be the same by name, shape and dtype."""
    first = headers[0]
    for header in headers[1:]:
        if header.tensors.keys() != first.tensors.keys():
            odd = min(header.tensors.keys() ^ first.tensors.keys())
            raise LoraFileError(f"{header.path}: {first.path} has other tensors ({odd}): they are not of one run")
        for key, info in header.tensors.items():
            if info[:2] != first.tensors[key][:2]:
                own, other = ((each.dtype, each.shape) for each in (info, first.tensors[key]))
                raise LoraFileError(f"{header.path}: {key} is {own}, and {other} in {first.path}: not of one run")
    blanks = {}
    for key, info in first.tensors.items():
        dtype = DTYPES.get(info.dtype)
        if dtype is None or (dtype.is_floating_point and dtype.itemsize == 1):
            raise LoraFileError(f"{first.path}: {key} is stored as {info.dtype}, of which no mean can be taken")
        blanks[key] = Blank(dtype, info.shape)
    return blanks


def _mean(key: str, headers: Sequence[Header], shares: Sequence[float]) -> Tensor:
    """Return the mean of one tensor, summed in float64 a few elements at a time."""
    info = headers[0].tensors[key]
    dtype = DTYPES[info.dtype]
    if not dtype.is_floating_point:
        first = read_one(headers[0].path, info)
        for header in headers[1:]:
            if not torch.equal(read_one(header.path, header.tensors[key]), first):
                raise LoraFileError(f"{header.path}: {key} holds whole numbers that differ from {headers[0].path}'s")
        return first
    found = torch.empty(info.shape, dtype=dtype)
    for start in range(0, found.numel(), _ELEMENTS):
        piece = slice(start, start + _ELEMENTS)
        terms = (_piece(header, key, piece).double().mul_(share) for header, share in zip(headers, shares, strict=True))
        found.view(-1)[piece] = sum(terms, torch.zeros((), dtype=torch.float64))
    return found


def _piece(header: Header, key: str, piece: slice) -> Tensor:
    """Return some elements of a tensor, of which no more is read."""
    info = header.tensors[key]
    size = DTYPES[info.dtype].itemsize
    begin, end = (min(info.begin + place * size, info.end) for place in (piece.start, piece.stop))
    return read_one(header.path, info._replace(shape=((end - begin) // size,), begin=begin, end=end))


def _noted(headers: Sequence[Header], shares: Sequence[float]) -> list[Mapping[str, object]]:
    return [
        {"name": header.path.name, "sha256": hashes(header.path).sha256, "weight": share}
        for header, share in zip(headers, shares, strict=True)
    ]
