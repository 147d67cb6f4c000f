"""Write a checkpoint with LoRAs inside."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lora_runtime.cli.console import CommandError, human_size, print_json, printable
from lora_runtime.cli.outcome import given, loras_argument, output_arguments, refusing

__all__ = ["add_arguments", "run"]

_OPTIONS = ("loras", "requantise")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `bake`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="one safetensors file")
    parser.add_argument("sources", metavar="SOURCE", nargs="*", help="files with strengths, as of merge")
    parser.add_argument("--prompt", help='tags, as in "<lora:ink:0.7>"')
    loras_argument(parser)
    parser.add_argument(
        "--requantise",
        action="store_true",
        help="round weights in fp8, nf4, fp4 and int8 to codes anew, and say how many changed",
    )
    output_arguments(parser, dtype=False)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print what was changed; raises LoraError."""
    from lora_runtime.workbench import bake

    sources = [*arguments.sources, *([] if arguments.prompt is None else [arguments.prompt])]
    if not sources:
        raise CommandError("give what to bake: --prompt with tags, or files")
    with refusing():
        baked = bake(arguments.checkpoint, sources, arguments.out, **given(arguments, *_OPTIONS))
    if arguments.json:
        print_json({**asdict(baked), "path": str(baked.path)})
        return 0
    print(printable(f"{baked.path}: {human_size(baked.size)}, #{baked.sha256[:12]}"))
    print(f"  {baked.weights:,} of {baked.tensors:,} tensors changed")
    if (coded := baked.requantised) is not None:
        kinds = ", ".join(f"{count:,} in {kind}" for kind, count in coded.kinds.items())
        print(f"  {coded.changed / coded.codes:.2%} of the codes changed ({kinds})")
        print(f"  rounding to codes cost {coded.error:.2%} of ‖Δ‖")
    for name, (used, keys) in baked.used.items():
        print(printable(f"  {name}: {used:,} of {keys:,} keys"))
    for reason, count in baked.unused.items():
        print(printable(f"  {count:,} keys unused: {reason}"))
    for note in baked.notes:
        print(printable(f"  {note}"))
    return 0
