"""The workbench's merge of three LoRAs to the rank of one, beside a plain loop with full SVDs: time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import model
from benchmarks.memory import peak_of
from benchmarks.plain_svd import RANK, layers, merge_plainly
from benchmarks.records import Options, Record, record_of
from benchmarks.timing import timed
from lora_runtime.workbench import merge

__all__ = ["merging"]

_STRENGTHS = (0.7, 0.5, 0.4)


def merging(options: Options) -> Iterator[Record]:
    """Yield time and memory from files to file, of LoRAs of rank 32 on four layers each of 320, 640 and 1280."""
    folder = Path(options.folder) / "merging"
    rank = 4 if options.quick else RANK
    files = model.write_loras(folder, {**layers(quick=options.quick)}, count=len(_STRENGTHS), rank=rank)
    sources = [f"{file}:{strength}" for file, strength in zip(files, _STRENGTHS, strict=True)]
    ours, loop = folder / "ours.safetensors", folder / "loop.safetensors"
    ways = {
        "ours": lambda: merge(sources, ours, rank=rank, force=True),
        "loop": lambda: merge_plainly(files, _STRENGTHS, loop, rank),
    }
    for who, timing in timed(ways, options.limits).items():
        yield replace(record_of("merge", "-", who, timing), bytes=peak_of(ways[who]))
