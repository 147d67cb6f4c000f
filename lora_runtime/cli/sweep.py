"""Paint many rows of prompts, LoRAs and seeds into a folder."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from lora_runtime.cli.console import (
    checked_out,
    device_arguments,
    lora_places_argument,
    needs_extra,
    printable,
    say_by_oneself,
    whole,
)

__all__ = ["add_arguments", "run"]

_PAUSE = 5.0  # seconds between two plain lines
_MOST_SHOWN = 10  # rows that failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `sweep`."""
    parser.add_argument("jobs", metavar="FILE", help="the rows: .csv, .jsonl or .toml; a grid is .toml")
    parser.add_argument(
        "--model",
        metavar="[NAME=]DIR|FILE",
        action="append",
        required=True,
        help="a folder as diffusers saves it, or a checkpoint file; given several times, rows say which by its name "
        "(default: the first)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder of the pictures")
    lora_places_argument(parser)
    parser.add_argument(
        "--batch", metavar="N", type=whole, default=1, help="pictures in one call (default: 1, bit-equal to one by one)"
    )
    parser.add_argument("--resume", action="store_true", help="paint what the folder lacks")
    parser.add_argument("--grid", metavar="PNG", help="a contact sheet: tags across, prompts and seeds down")
    parser.add_argument("--workers", metavar="N", type=whole, default=1, help="with Ray: pipelines at once")
    parser.add_argument("--ray", metavar="ADDRESS", help="a cluster of Ray (default: one on this machine, if needed)")
    parser.add_argument("--gpus", metavar="X", type=float, help="of each worker (default: 1 where the cluster has any)")
    parser.add_argument("--max-pixels", metavar="N", type=whole, help="rows with more fail (default: 2048 × 2048)")
    device_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Paint the rows; print how many, and where. Returns 1 where rows failed."""
    from lora_runtime.sweep import loaders, read_jobs

    grid = None if arguments.grid is None else checked_out(arguments.grid, (".png", ".jpg", ".webp"), option="--grid")
    rows = read_jobs(arguments.jobs, arguments.loras)
    models = loaders(arguments.model, arguments.device, arguments.dtype)
    say_by_oneself()
    with needs_extra():
        import diffusers
        import PIL  # noqa: F401
        import transformers

    for logs in (diffusers.utils.logging, transformers.utils.logging):
        logs.disable_progress_bar()
    from lora_runtime.sweep.run import MAX_PIXELS, sweep

    progress = _Progress()
    try:
        swept = sweep(
            rows,
            models,
            arguments.out,
            loras=arguments.loras,
            batch=arguments.batch,
            workers=arguments.workers,
            ray=arguments.ray,
            gpus=arguments.gpus,
            resume=arguments.resume,
            grid=grid,
            max_pixels=arguments.max_pixels or MAX_PIXELS,
            on_line=progress,
        )
    except KeyboardInterrupt:
        progress.close()
        print(printable(f"what is painted is in {arguments.out}: --resume goes on"), file=sys.stderr)
        raise
    finally:
        progress.close()
    for note in (*progress.failures, *swept.notes):
        print(printable(note), file=sys.stderr)
    kept = f", {swept.kept} were there" if swept.kept else ""
    read = f"{swept.read} LoRA file{'' if swept.read == 1 else 's'} read"
    print(f"{swept.painted} painted{kept}, {swept.failed} failed, {swept.seconds:.1f} s, {read}")
    print(printable(str(swept.index)))
    return 1 if swept.failed else 0


class _Progress:
    """A bar with rows a second and the time left, by tqdm where that is installed, else lines; and who failed."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done, self._due = 0, time.monotonic() + _PAUSE
        self._failed: list[str] = []

    def __call__(self, line: dict[str, Any], total: int) -> None:
        """Take note of a row that is done."""
        self._done += 1
        if line["error"]:
            self._failed.append(f"{line['key']}: {line['error']}")
        if self._done == 1:
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self._bar = tqdm(total=total, unit="row", file=sys.stderr, dynamic_ncols=True)
        if self._bar is not None:
            self._bar.set_postfix(failed=len(self._failed), refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._due:
            print(f"{self._done:,} of {total:,} rows, {len(self._failed)} failed", file=sys.stderr, flush=True)
            self._due = time.monotonic() + _PAUSE

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    @property
    def failures(self) -> list[str]:
        """The first rows that failed, with the reasons, and how many more."""
        more = len(self._failed) - _MOST_SHOWN
        return self._failed[:_MOST_SHOWN] + ([f"and {more} more: manifest.jsonl has the reasons"] if more > 0 else [])
