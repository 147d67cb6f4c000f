"""Write a LoRA under other names, as another program or another layout of the model has them."""

from __future__ import annotations

import argparse

from lora_runtime.cli.outcome import given, output_arguments, refusing, show

__all__ = ["add_arguments", "run"]

_OPTIONS = ("to", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `convert`."""
    parser.add_argument("file", metavar="FILE", help="the LoRA")
    parser.add_argument(
        "--to", choices=("kohya", "diffusers", "peft", "comfy", "original"), required=True, help="how names are spelled"
    )
    parser.add_argument(
        "--model",
        metavar="DIR|FILE",
        help="what the names are of: a folder of diffusers, or a checkpoint for original names (default: what files of "
        "this family have, for SD 1, SD 2, SDXL and Flux)",
    )
    output_arguments(parser, dtype=False)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what it is; raises LoraFileError."""
    from lora_runtime.workbench import convert

    with refusing():
        outcome = convert(arguments.file, arguments.out, **given(arguments, *_OPTIONS))
    show(outcome, arguments)
    return 0
