"""Say how two LoRAs meet, block by block: norms, angles, shared directions, and what they do together."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_runtime.cli.console import print_json, printable, table
from lora_runtime.cli.outcome import loras_argument, model_argument, refusing, shows_progress

if TYPE_CHECKING:
    from lora_runtime.workbench import Meeting

__all__ = ["add_arguments", "run"]

_TITLES = (
    "block",
    "both",
    "‖Δ₁‖",
    "‖Δ₂‖",
    "together",
    "cosine",
    "outputs",
    "inputs",
    "signs",
    "rank₁",
    "rank₂",
    "‖W₀‖",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `compare`."""
    parser.add_argument("first", metavar="A", help="a file with its strength, ink.safetensors:0.7, or a tag")
    parser.add_argument("second", metavar="B", help="another")
    model_argument(parser, "for norms beside those of the weights, and to match names")
    loras_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and the suggestions; raises LoraFileError."""
    from lora_runtime.workbench import compare

    with refusing():
        found = compare(
            arguments.first,
            arguments.second,
            model=arguments.model,
            loras=arguments.loras,
            progress=shows_progress(arguments),
        )
    if arguments.json:
        print_json(asdict(found))
        return 0
    rows = [_row(block, meeting) for block, meeting in (*found.blocks.items(), ("all", found.total))]
    print(printable(f"1: {found.names[0]}, 2: {found.names[1]}"))
    print(table(_TITLES, rows))
    for suggestion in found.suggestions:
        print(printable(f"  {suggestion}"))
    return 0


def _row(block: str, meeting: Meeting) -> tuple[str, ...]:
    shares = (meeting.outputs, meeting.inputs, meeting.conflicts)
    return (
        block,
        str(meeting.modules[2]),
        *(f"{norm:.3g}" for norm in (*meeting.norms, meeting.together)),
        "-" if meeting.cosine is None else f"{meeting.cosine:+.2f}",
        *("-" if share is None else f"{share:.0%}" for share in shares),
        *(f"{rank:.1f}" for rank in meeting.ranks),
        "-" if meeting.base is None else f"{meeting.base:.3g}",
    )
