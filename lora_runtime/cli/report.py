"""Say what the LoRAs of a prompt do together, block by block, in figures, in words and as a picture."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lora_runtime.cli.console import checked_out, needs_extra, print_json, printable, table
from lora_runtime.cli.outcome import loras_argument, model_argument, refusing, shows_progress

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `report`."""
    parser.add_argument(
        "sources",
        metavar="PROMPT",
        nargs="+",
        help="a prompt with tags, in quotes, or files with strengths as of merge",
    )
    model_argument(parser, "for norms beside those of the weights, and to match names")
    loras_argument(parser)
    parser.add_argument("--picture", metavar="PNG", help="write a heat map of blocks and LoRAs; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables and the suggestions, and write the picture; raises LoraError."""
    from lora_runtime.workbench import heat_map, report
    from lora_runtime.workbench.balance import scaled
    from lora_runtime.workbench.tables import tables_of

    endings = (".png", ".svg", ".pdf")
    out = None if arguments.picture is None else checked_out(arguments.picture, endings, option="--picture")
    with refusing():
        found = report(
            arguments.sources, model=arguments.model, loras=arguments.loras, progress=shows_progress(arguments)
        )
    if out is not None:
        with needs_extra("plot"):
            heat_map(found).savefig(out)
    if arguments.json:
        print_json(asdict(found))
        return 0
    for each in tables_of(found):
        print(printable(each.title))
        print(table(each.heads, each.rows))
    for suggestion in found.suggestions:
        print(printable(f"  {suggestion}"))
    if found.balance < 1:
        for source in arguments.sources:
            if "<" in source:
                print(printable(f"  {scaled(source, found.balance)}"))
    if out is not None:
        print(out)
    return 0
