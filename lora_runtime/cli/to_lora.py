"""Write any adapter (LoHa, LoKr, DoRA, OFT …) as a plain LoRA, and say what was kept."""

from __future__ import annotations

import argparse

from lora_runtime.cli.outcome import (
    device_argument,
    given,
    limit_arguments,
    model_argument,
    output_arguments,
    refusing,
    show,
)

__all__ = ["add_arguments", "run"]

_OPTIONS = ("rank", "energy", "model", "dtype", "exact", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `to-lora`."""
    parser.add_argument("file", metavar="FILE", help="the adapter")
    limit_arguments(parser)
    model_argument(parser, "for what depends on its weights, such as DoRA, OFT and IA³")
    parser.add_argument("--exact", action="store_true", help="full SVDs, not sketches")
    device_argument(parser)
    output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what was kept; raises LoraFileError."""
    from lora_runtime.workbench import to_lora

    with refusing():
        outcome = to_lora(arguments.file, arguments.out, **given(arguments, *_OPTIONS))
    show(outcome, arguments)
    return 0
