"""Write the mean of the steps of one training run, of checkpoints or of LoRAs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lora_runtime.cli.console import human_size, print_json, printable
from lora_runtime.cli.outcome import given, limit_arguments, output_arguments, refusing, show

__all__ = ["add_arguments", "run"]

_OPTIONS = ("ema", "rank", "energy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `average`."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="the steps, the oldest first")
    parser.add_argument(
        "--ema", metavar="DECAY", type=float, help="an exponential moving average, such as 0.9 (default: the mean)"
    )
    limit_arguments(parser)
    output_arguments(parser, dtype=False)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what it is; raises LoraFileError."""
    from lora_runtime.workbench import average

    with refusing():
        found = average(arguments.files, arguments.out, **given(arguments, *_OPTIONS))
    if found.outcome is not None:
        show(found.outcome, arguments, weights=found.weights)
        return 0
    if arguments.json:
        print_json({**asdict(found), "path": str(found.path)})
        return 0
    print(printable(f"{found.path}: {human_size(found.size)}, #{found.sha256[:12]}"))
    print(f"  {found.tensors:,} tensors")
    for name, weight in found.weights:
        print(printable(f"  {weight:.3f}  {name}"))
    return 0
