"""Show how a prompt is read: the clean text, its tags, and what is wrong with them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_runtime.cli.console import print_json, printable, table

if TYPE_CHECKING:
    from lora_runtime.prompt import Prompt

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `parse`."""
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt, in quotes; - reads it from standard input")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--strict", action="store_true", help="fail at the first error")


def run(arguments: argparse.Namespace) -> int:
    """Print the parsed prompt; raises TagSyntaxError with --strict."""
    from lora_runtime.prompt import parse_prompt

    source = sys.stdin.read().rstrip("\r\n") if arguments.prompt == "-" else arguments.prompt
    prompt = parse_prompt(source, strict=arguments.strict)
    if arguments.json:
        print_json(asdict(prompt))
    else:
        print(_shown(prompt))
    return 0


def _shown(prompt: Prompt) -> str:
    parts = ["\n".join(map(printable, prompt.text.split("\n")))]
    if prompt.tags:
        rows = [
            (tag.name, f"{tag.te:g}", f"{tag.unet:g}", "-" if tag.dyn is None else str(tag.dyn), _place(tag.span))
            for tag in prompt.tags
        ]
        parts.append(table(("lora", "te", "unet", "dyn", "characters"), rows))
    if prompt.others:
        parts.append(table(("other", "body", "characters"), [(t.kind, t.body, _place(t.span)) for t in prompt.others]))
    parts += [diagnostic.format(prompt.source) for diagnostic in prompt.diagnostics]
    return "\n\n".join(parts)


def _place(span: tuple[int, int]) -> str:
    """Return a span as people count: from 1, both ends included."""
    return f"{span[0] + 1}-{span[1]}"
