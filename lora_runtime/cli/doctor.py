"""Say what is odd about a LoRA file before it is used: NaN, alphas, norms, ranks, copies, names."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lora_runtime.cli.console import print_json, printable
from lora_runtime.cli.outcome import model_argument, shows_progress

__all__ = ["add_arguments", "run"]

_MOST_NAMES = 3  # --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `doctor`."""
    parser.add_argument("file", metavar="FILE", help="the LoRA")
    model_argument(parser, "to check names and shapes")
    parser.add_argument("--folder", metavar="DIR", help="where copies are looked for (default: the file's own)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 where there is an error or a warning. Raises LoraFileError."""
    from lora_runtime.workbench import doctor

    found = doctor(arguments.file, model=arguments.model, folder=arguments.folder, progress=shows_progress(arguments))
    if arguments.json:
        print_json({**asdict(found), "path": str(found.path), "healthy": found.healthy})
    else:
        print(printable(f"{found.path}: {found.modules:,} modules, ‖Δ‖ {found.norm:.4g}"))
        for finding in found.findings:
            names = ", ".join(finding.where[:_MOST_NAMES]) + (" …" if len(finding.where) > _MOST_NAMES else "")
            count = f"{len(finding.where):,}: " if finding.where else ""
            print(printable(f"  {finding.severity}: {finding.what}" + (f" ({count}{names})" if names else "")))
        if not found.findings:
            print("  nothing odd")
    return 0 if found.healthy else 1
