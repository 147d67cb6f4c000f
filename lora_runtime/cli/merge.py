"""Write one LoRA that does what several do together."""

from __future__ import annotations

import argparse

from lora_runtime.cli.outcome import (
    device_argument,
    given,
    limit_arguments,
    loras_argument,
    model_argument,
    output_arguments,
    refusing,
    share,
    show,
)

__all__ = ["add_arguments", "run"]

_OPTIONS = ("method", "rank", "energy", "density", "epsilon", "seed", "model", "loras", "dtype", "exact", "device")

_METHODS = ("sum", "svd", "orthogonal", "ties", "dare", "della")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `merge`."""
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help='a file with its strength and blocks, ink.safetensors:0.7@IN=0, or a prompt: "<lora:ink:0.7>"',
    )
    parser.add_argument(
        "--method", choices=_METHODS, default="sum", help="how changes of one weight become one (default: sum, exact)"
    )
    limit_arguments(parser)
    parser.add_argument("--density", metavar="D", type=share, default=0.5, help="ties, dare, della: elements that stay")
    parser.add_argument("--epsilon", metavar="X", type=float, default=0.1, help="della: the range of its chances")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="dare, della: what chance is drawn from")
    model_argument(parser, "for DoRA, OFT and others that depend on its weights, and to match names")
    loras_argument(parser)
    parser.add_argument("--exact", action="store_true", help="full SVDs where there are no factors, not sketches")
    device_argument(parser)
    output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what was kept; raises LoraFileError, TagSyntaxError and CatalogError."""
    from lora_runtime.workbench import merge

    with refusing():
        outcome = merge(arguments.sources, arguments.out, **given(arguments, *_OPTIONS))
    show(outcome, arguments)
    return 0
