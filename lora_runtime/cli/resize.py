"""Write a LoRA at a lower rank, and say what was kept."""

from __future__ import annotations

import argparse

from lora_runtime.cli.console import whole
from lora_runtime.cli.outcome import byte_count, device_argument, given, output_arguments, refusing, share, show

__all__ = ["add_arguments", "run"]

_OPTIONS = ("rank", "energy", "ratio", "size", "dtype", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `resize`."""
    parser.add_argument("file", metavar="FILE", help="the LoRA")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rank", metavar="N", type=whole, help="at most this rank for each module")
    how.add_argument(
        "--energy", metavar="E", type=share, help="the least rank that keeps this share of ‖Δ‖², such as 0.98"
    )
    how.add_argument("--ratio", metavar="X", type=float, help="singular values down to the greatest divided by this")
    how.add_argument("--size", metavar="BYTES", type=byte_count, help="a file of at most this size, such as 64MB")
    device_argument(parser)
    output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what was kept; raises LoraFileError."""
    from lora_runtime.workbench import resize

    with refusing():
        outcome = resize(arguments.file, arguments.out, **given(arguments, *_OPTIONS))
    show(outcome, arguments)
    return 0
