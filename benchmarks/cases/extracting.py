"""The workbench's extract at rank 32, beside a plain loop with full SVDs in float32: time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.memory import peak_of
from benchmarks.plain_svd import RANK, extract_plainly, layers
from benchmarks.records import Options, Record, record_of
from benchmarks.timing import timed
from lora_runtime.workbench import extract

__all__ = ["extracting"]


def extracting(options: Options) -> Iterator[Record]:
    """Yield time and memory from two checkpoints to a file, of four layers each of 320, 640 and 1280.

    The change is what a spectrum of a tuned model looks like: a few large directions, and noise in all.
    """
    folder = Path(options.folder) / "extracting"
    folder.mkdir(parents=True, exist_ok=True)
    rank = 4 if options.quick else RANK
    base, tuned = folder / "base.safetensors", folder / "tuned.safetensors"
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in layers(quick=options.quick).items()}
    save_file(weights, base)
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        large = torch.randn(weight.shape[0], rank, generator=generator) @ torch.randn(
            rank, weight.shape[1], generator=generator
        )
        weights[name] = weight + 1e-3 * large + 1e-3 * torch.randn(weight.shape, generator=generator)
    save_file(weights, tuned)
    ours, loop = folder / "ours.safetensors", folder / "loop.safetensors"
    ways = {
        "ours": lambda: extract(tuned, base, ours, rank=rank, dtype="float16", force=True),
        "loop": lambda: extract_plainly(tuned, base, loop, rank),
    }
    for who, timing in timed(ways, options.limits).items():
        yield replace(record_of("extract", "-", who, timing), bytes=peak_of(ways[who]))
