"""Say what one LoRA file is: algorithm, rank, alpha, target model, trigger words, keys and what is not read, hashes."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from lora_runtime.cli.console import CommandError, human_size, print_json, printable, span_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `inspect`."""
    parser.add_argument("file", metavar="FILE", help="a file, a folder as PEFT saves it, or a name as in a prompt")
    parser.add_argument("--loras", metavar="DIR", help="where to look for a name (default as for `list`)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what the file is; raises CatalogError or LoraFileError."""
    from lora_runtime.metadata import describe, hashes, read_header

    path = _find(arguments.file, arguments.loras)
    header = read_header(path)
    facts: dict[str, Any] = {"path": str(path), **vars(describe(header)), **vars(hashes(path))}
    facts["keys"] = len(header.tensors)
    facts["unused"] = _unused(path)
    if arguments.json:
        print_json({**facts, "metadata": dict(header.metadata)})
    else:
        print(_shown(facts))
    return 0


def _find(name: str, folder: str | None) -> Path:
    from lora_runtime.catalog import LoraCatalog

    path = Path(name)
    if folder is None and path.is_dir():
        found = LoraCatalog(path).entries
        if len(found) != 1:
            raise CommandError(f"{name} has {len(found)} files that are LoRAs in it: name one")
        return found[0].path
    if folder is None and path.exists():
        return path
    if path.is_absolute():
        raise CommandError(f"no such file: {name}")
    catalog = LoraCatalog(folder) if folder else LoraCatalog.default()
    return catalog.resolve(name).path


def _unused(path: Path) -> dict[str, int]:
    """Return the reasons why keys would be used on no model, with how many each is about; -1 where all are."""
    from lora_runtime.errors import LoraFileError
    from lora_runtime.lora import outline

    try:
        return dict(Counter(outline(path).unused.values()).most_common())
    except LoraFileError as error:
        return {str(error).removeprefix(f"{path}: "): -1}


def _shown(facts: dict[str, Any]) -> str:
    algorithms = ", ".join(f"{name} ({_count(count, 'module')})" for name, count in facts["algorithms"].items())
    lines = {
        "file": facts["path"],
        "title": facts["title"],
        "alias": facts["alias"],
        "model": facts["family"],
        "algorithm": algorithms or "unknown",
        "rank": span_of(facts["ranks"]),
        "alpha": span_of(facts["alphas"]),
        "trigger words": ", ".join(facts["trigger_words"]),
        "note": "; ".join(facts["notes"]),
        "keys": _count(facts["keys"], "key"),
        **{f"  {name}": _count(count, "key") for name, count in facts["components"].items()},
        "  not used": "; ".join(
            reason if count < 0 else f"{count:,}: {reason}" for reason, count in facts["unused"].items()
        ),
        "size": f"{human_size(facts['size'])} ({facts['size']:,} bytes)",
        "sha256": facts["sha256"],
        "  of tensors": facts["sha256_of_tensors"],
        "name by hash": f"#{facts['sha256_of_tensors'][:12]}",
    }
    shown = {label: printable(value) for label, value in lines.items() if value}
    width = max(map(len, shown))
    return "\n".join(f"{label:{width}}  {value}" for label, value in shown.items())


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
