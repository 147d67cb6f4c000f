"""List the LoRA files in folders: name, target model, algorithm, rank, size, alias."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import CommandError, human_size, print_json, printable, span_of, table

if TYPE_CHECKING:
    from lora_runtime.catalog import Entry, LoraCatalog

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `list`."""
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", help="default: LORA_RUNTIME_PATH, else models/Lora and loras"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the catalog of the folders; raises CatalogError for one that is not there."""
    from lora_runtime.catalog import LoraCatalog

    catalog = LoraCatalog(*arguments.folders) if arguments.folders else LoraCatalog.default()
    if not catalog.folders:
        raise CommandError("no folder to list: give one, make models/Lora or loras here, or set LORA_RUNTIME_PATH")
    if arguments.json:
        print_json(_as_json(catalog))
    else:
        print(_shown(catalog))
    return 0


def _shown(catalog: LoraCatalog) -> str:
    from lora_runtime.header import PICKLE_SUFFIXES, conversion_hint

    parts = []
    for folder in catalog.folders:
        entries = [entry for entry in catalog.entries if entry.folder == folder]
        head = f"{printable(str(folder))}: {len(entries):,} file{'' if len(entries) == 1 else 's'}"
        titles = ("name", "model", "algorithm", "rank", "size", "alias")
        parts.append(f"{head}\n{table(titles, [*map(_row, entries)])}" if entries else head)
    if catalog.refused:
        rows = [(str(path), reason) for path, reason in catalog.refused.items()]
        parts.append(f"not usable: {len(rows):,}\n{table(('file', 'reason'), rows)}")
        pickled = next((path for path in catalog.refused if path.suffix.lower() in PICKLE_SUFFIXES), None)
        if pickled:
            parts.append(printable(conversion_hint(pickled)))
    return "\n\n".join(parts)


def _row(entry: Entry) -> tuple[str, ...]:
    alias = entry.alias if entry.alias and entry.alias != entry.name else ""
    algorithms = "+".join(entry.algorithms) or "-"
    return entry.relative, entry.family, algorithms, span_of(entry.ranks), human_size(entry.size), alias


def _as_json(catalog: LoraCatalog) -> dict[str, Any]:
    loras = [
        {
            "name": entry.name,
            "relative": entry.relative,
            "alias": entry.alias,
            "path": str(entry.path),
            "folder": str(entry.folder),
            "model": entry.family,
            "algorithms": entry.algorithms,
            "ranks": entry.ranks,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
        }
        for entry in catalog.entries
    ]
    refused = [{"path": str(path), "reason": reason} for path, reason in catalog.refused.items()]
    return {"folders": [str(folder) for folder in catalog.folders], "loras": loras, "refused": refused}
