"""Show how a prompt is read: the clean text, its tags, and what is wrong with them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_runtime.cli.console import print_json, printable, reading_arguments, table

if TYPE_CHECKING:
    from lora_runtime.prompt import LoraTag, Prompt

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `parse`."""
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt, in quotes; - reads it from standard input")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--strict", action="store_true", help="fail at the first error")
    reading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the parsed prompt; raises TagSyntaxError with --strict."""
    from lora_runtime.catalog import LoraCatalog
    from lora_runtime.sets import parse_with_sets, read_sets

    def sets() -> dict[str, str]:
        return read_sets(*LoraCatalog.default_folders())

    source = sys.stdin.read().rstrip("\r\n") if arguments.prompt == "-" else arguments.prompt
    how = {"strict": arguments.strict, "dialect": arguments.dialect, "scope": arguments.scope}
    prompt = parse_with_sets(source, sets, **how)
    if arguments.json:
        print_json(asdict(prompt))
    else:
        print(_shown(prompt))
    return 0


def _shown(prompt: Prompt) -> str:
    parts = ["\n".join(map(printable, prompt.text.split("\n")))]
    if prompt.tags:
        titles = ["lora", "te", "unet", "dyn", "characters"]
        rows = [
            [tag.name, f"{tag.te:g}", f"{tag.unet:g}", "-" if tag.dyn is None else str(tag.dyn), _place(tag.span)]
            for tag in prompt.tags
        ]
        conditions = [_conditions(tag) for tag in prompt.tags]
        if any(conditions):
            titles.append("conditions")
            rows = [[*row, said] for row, said in zip(rows, conditions, strict=True)]
        parts.append(table(titles, rows))
    if prompt.others:
        parts.append(table(("other", "body", "characters"), [(t.kind, t.body, _place(t.span)) for t in prompt.others]))
    parts += [diagnostic.format(prompt.source) for diagnostic in prompt.diagnostics]
    return "\n\n".join(parts)


def _conditions(tag: LoraTag) -> str:
    """Return what the strengths of a tag depend on, as its fields say it or as the text around it does."""
    from lora_runtime.prompt import Turn
    from lora_runtime.prompt.writer import condition_fields

    turns = [f"step {when.index + 1} of every {when.count}" for when in tag.conditions.when if isinstance(when, Turn)]
    parts = [] if tag.conditions.part is None else [f"part {tag.conditions.part + 1} of AND"]
    return "; ".join([*condition_fields(tag), *turns, *parts])


def _place(span: tuple[int, int]) -> str:
    """Return a span as people count: from 1, both ends included."""
    return f"{span[0] + 1}-{span[1]}"
