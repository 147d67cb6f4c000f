"""Write what a tuned model changed in its base as a LoRA."""

from __future__ import annotations

import argparse

from lora_runtime.cli.console import whole
from lora_runtime.cli.outcome import byte_count, limit_arguments, output_arguments, refusing, show, shows_progress

__all__ = ["add_arguments", "run"]


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
    output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what was kept; raises LoraFileError."""
    from lora_runtime.workbench import extract

    with refusing():
        outcome = extract(
            arguments.tuned,
            arguments.base,
            arguments.out,
            rank=arguments.rank,
            energy=arguments.energy,
            conv_rank=arguments.conv_rank,
            size=arguments.size,
            textual_inversion=arguments.textual_inversion,
            include=arguments.include,
            exclude=arguments.exclude,
            dtype=arguments.dtype,
            exact=arguments.exact,
            force=arguments.force,
            progress=shows_progress(arguments),
        )
    show(outcome, arguments)
    return 0
