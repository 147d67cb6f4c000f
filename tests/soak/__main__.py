"""python -m soak: many sequences, in several processes; the seed of each that fails, shortened."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context

from soak.sequence import drawn, fault, faults, shortened

_BATCH = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 1 where a sequence failed."""
    parser = argparse.ArgumentParser(
        prog="python -m soak", description="Random sequences of what people do with a model."
    )
    parser.add_argument("--sequences", type=int, default=100_000, help="how many (default 100000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--seed", type=int, help="run the sequence of this seed alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--failures", type=int, default=10, help="stop after so many")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        faults(range(0))
        return _explain(chosen.seed)
    end = chosen.first + chosen.sequences
    batches = [range(start, min(start + _BATCH, end)) for start in range(chosen.first, end, _BATCH)]
    failed: list[int] = []
    begun = time.perf_counter()
    done = 0
    with get_context("spawn").Pool(chosen.jobs) as pool:
        for batch, found in zip(batches, pool.imap(faults, batches), strict=False):
            done += len(batch)
            for seed, fault_ in found:
                print(f"seed {seed}: {fault_}", flush=True)
                failed.append(seed)
            if len(failed) >= chosen.failures:
                pool.terminate()
                break
    print(f"{done} sequences in {time.perf_counter() - begun:.0f} s, {len(failed)} wrong")
    for seed in failed[:1]:
        _explain(seed)
    return 1 if failed else 0


def _explain(seed: int) -> int:
    steps = drawn(seed)
    found = fault(steps)
    print(f"seed {seed}: {found or 'nothing wrong'}")
    if found is None:
        return 0
    short = shortened(steps)
    print(f"  shortest: {fault(short)}")
    print(f"  steps = {short!r}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
