"""One sequence: drawn from a seed, run, judged after each operation, and shortened where it fails."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from random import Random

import torch

import lora_runtime
from soak.operations import OPERATIONS, Stage
from soak.owners import Wrong

LENGTH = 12

Step = tuple[str, int]  # the operation, and the seed of what it chooses


def drawn(seed: int) -> list[Step]:
    """Return the sequence of this seed."""
    random = Random(seed)
    names, often = zip(*((name, weight) for name, (_, weight) in OPERATIONS.items()), strict=True)
    count = random.randint(3, LENGTH)
    return [(name, random.randrange(10**9)) for name in random.choices(names, often, k=count)]


def fault(steps: Sequence[Step]) -> str | None:
    """Run a sequence on new networks; return what is wrong after which step, or None."""
    stage = Stage()
    done: list[str] = []
    try:
        for name, seed in steps:
            if OPERATIONS[name][0](stage, Random(seed)) is False:
                continue
            done.append(name)
            stage.check()
        done.append("the end")
        _end(stage)
        stage.check()
    except Wrong as wrong:
        return f"after {', '.join(done)}: {wrong}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"in or after {', '.join(done)}: {type(error).__name__}: {error} ({place.name}:{place.lineno})"
    finally:
        _end(stage)
    return None


def faults(seeds: range) -> list[tuple[int, str]]:
    """Run the sequences of these seeds, in a process of its own; return what is wrong by seed."""
    torch.set_num_threads(1)
    logging.getLogger("lora_runtime").setLevel(logging.CRITICAL)
    return [(seed, found) for seed in seeds if (found := fault(drawn(seed))) is not None]


def _end(stage: Stage) -> None:
    """Have every owner leave, the topmost first."""
    owners = stage.expected.owners
    while owners:
        owner = owners.pop()
        if owner.block:
            owner.applied.__exit__(None, None, None)
        else:
            owner.applied.restore()
    for root in stage.roots.values():
        lora_runtime.restore(root)


def shortened(steps: Sequence[Step]) -> list[Step]:
    """Return a part of a sequence that fails which fails as well, without any step that it can do without."""
    kept = list(steps)
    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + size :]
            if fault(fewer) is not None:
                kept = fewer
            else:
                start += size
        size //= 2
    return kept
