"""Paint a sheet of pictures with the built-in pipeline and LoRAs."""

from __future__ import annotations

import argparse

from lora_runtime.cli.console import needs_extra

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `demo`."""
    parser.add_argument("--out", metavar="PNG", help="where to write the sheet")


def run(arguments: argparse.Namespace) -> int:
    """Paint the sheet; return 0."""
    with needs_extra():
        from lora_runtime.demo.sheet import main

        main(out=arguments.out)
    return 0
