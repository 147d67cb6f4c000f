"""python -m matrix: measure cells; 1 where one is wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "where-it-acts.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m matrix", description="Measure where a LoRA acts.")
    parser.add_argument("--only", action="append", metavar="PIPELINE")
    parser.add_argument("--state", action="append")
    parser.add_argument("--strength", action="append")
    parser.add_argument("--algorithm", action="append")
    parser.add_argument("--all", action="store_true", help="all that can be measured, which takes hours")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}; only without a choice of cells")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or pretend (default: cpu)")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    chosen = parser.parse_args(arguments)
    os.environ["LORA_RUNTIME_MATRIX_DEVICE"] = chosen.device
    from matrix import page
    from matrix.cell import timed

    wanted = (chosen.only, chosen.state, chosen.strength, chosen.algorithm)
    spots = [
        spot
        for spot in (page.everything() if chosen.all or any(wanted) else page.spots())
        if all(names is None or field in names for field, names in zip(spot, wanted, strict=True))
    ]
    cells, wrong, began = {}, 0, time.perf_counter()
    with get_context("spawn").Pool(chosen.jobs, maxtasksperchild=200) as pool:
        for spot, cell, seconds in pool.imap(timed, spots, chunksize=4):
            cells[page.Spot(*spot)] = cell
            wrong += cell.kind == "wrong"
            why = cell.detail if cell.kind == "wrong" else cell.reason
            print(f"{', '.join(spot)}: {page.word(cell)} ({seconds:.1f} s) {why}", flush=True)
            if chosen.minutes and time.perf_counter() - began > 60 * chosen.minutes:
                break
    print(f"{len(cells)} of {len(spots)} cells measured, {wrong} wrong")
    if chosen.write and not any(wanted):
        PAGE.write_text(page.text(cells), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
