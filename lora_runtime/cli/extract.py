"""Write what a tuned model changed in its base as a LoRA."""

from __future__ import annotations

import argparse

from lora_runtime.cli.console import whole
from lora_runtime.cli.outcome import (
    byte_count,
    device_argument,
    given,
    limit_arguments,
    output_arguments,
    refusing,
    show,
)

__all__ = ["add_arguments", "run"]

_OPTIONS = (
    "rank",
    "energy",
    "conv_rank",
    "size",
    "textual_inversion",
    "include",
    "exclude",
    "dtype",
    "exact",
    "device",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `extract`."""
    parser.add_argument("tuned", metavar="TUNED", help="a checkpoint, or a folder as diffusers saves it")
    parser.add_argument("base", metavar="BASE", help="what it was tuned from, of the same layout")
    limit_arguments(parser)
    parser.add_argument("--conv-rank", metavar="N", type=whole, help="at most this rank for kernels larger than 1")
    parser.add_argument(
        "--size", metavar="BYTES", type=byte_count, help="a file of at most this size, such as 64MB, at most rank 128"
    )
    parser.add_argument(
        "--textual-inversion",
        metavar="WORD",
        nargs="?",
        const=True,
        default=False,
        help="take new tokens of the text encoders along, under the tokenizer's names or as this word",
    )
    parser.add_argument(
        "--include", metavar="PATTERN", action="append", default=[], help='modules by name, such as "*attn*"'
    )
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="modules that are left out")
    parser.add_argument("--exact", action="store_true", help="full SVDs, not sketches")
    device_argument(parser)
    output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what was kept; raises LoraFileError."""
    from lora_runtime.workbench import extract

    with refusing():
        outcome = extract(arguments.tuned, arguments.base, arguments.out, **given(arguments, *_OPTIONS))
    show(outcome, arguments)
    return 0
