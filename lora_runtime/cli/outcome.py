"""What the subcommands that write files share: arguments, and how an outcome is printed."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import CommandError, human_size, one_line, print_json, printable, span_of, table, whole

if TYPE_CHECKING:
    from lora_runtime.workbench import Outcome

__all__ = [
    "byte_count",
    "device_argument",
    "given",
    "limit_arguments",
    "loras_argument",
    "model_argument",
    "output_arguments",
    "refusing",
    "share",
    "show",
    "shows_progress",
]

_MOST_NAMES = 3  # modules by name for each reason; --json has all


def output_arguments(parser: argparse.ArgumentParser, *, dtype: bool = True) -> None:
    """Define where a file goes and how: `-o`, `--force`, `--dtype`, `--json`."""
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    if dtype:
        parser.add_argument(
            "--dtype", choices=("float32", "float16", "bfloat16"), help="of the new tensors (default: the inputs')"
        )
    parser.add_argument("--json", action="store_true", help="print JSON")


def limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Define how large new factors may be: `--rank` and `--energy`."""
    parser.add_argument("--rank", metavar="N", type=whole, help="at most this rank for each module")
    parser.add_argument(
        "--energy", metavar="E", type=share, help="the least rank that keeps this share of ‖Δ‖², such as 0.98"
    )


def model_argument(parser: argparse.ArgumentParser, why: str) -> None:
    """Define `--model`."""
    parser.add_argument("--model", metavar="DIR|FILE", help=f"a checkpoint, or a folder as diffusers saves it: {why}")


def loras_argument(parser: argparse.ArgumentParser) -> None:
    """Define where names in tags are looked up."""
    parser.add_argument(
        "--loras",
        metavar="DIR",
        action="append",
        help="where to look for a name, may be given several times (default as for `list`)",
    )


def share(text: str) -> float:
    """Return a number above 0 and at most 1 that an argument gives, "98%" among them."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give a number above 0 and at most 1")
    return number


def byte_count(text: str) -> int:
    """Return the number of bytes that an argument gives, "64MB" among them."""
    from lora_runtime.memory_policy import read_bytes

    try:
        found = read_bytes(text, "a size")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    assert found is not None
    return found


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the workbench says of arguments that do not go together into one line."""
    try:
        yield
    except ValueError as error:
        raise CommandError(one_line(error)) from error


def device_argument(parser: argparse.ArgumentParser) -> None:
    """Define `--device`."""
    what = "where factorisations are made, in float32: cuda (default: the CPU, float64)"
    parser.add_argument("--device", metavar="DEVICE", help=what)


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return arguments by the names that the workbench's functions have for them too, with those that all have."""
    options = {name: getattr(arguments, name) for name in names}
    return {**options, "force": arguments.force, "progress": shows_progress(arguments)}


def shows_progress(arguments: argparse.Namespace) -> bool:
    """Return whether a person is watching."""
    return bool(sys.stderr.isatty() and not arguments.json)


def show(outcome: Outcome, arguments: argparse.Namespace, **more: Any) -> None:
    """Print what was written, as JSON where that is asked for."""
    if arguments.json:
        print_json({**asdict(outcome), "path": str(outcome.path), "error": outcome.error, **more})
    else:
        print("\n".join(_lines(outcome)))


def _lines(outcome: Outcome) -> Iterator[str]:
    yield printable(f"{outcome.path}: {human_size(outcome.size)}, #{outcome.sha256[:12]}")
    ranks = f", rank {span_of(outcome.ranks)}" if outcome.ranks else ""
    yield f"  {outcome.modules:,} modules{ranks}"
    if outcome.kept < 1:
        yield f"  kept {outcome.kept:.2%} of ‖Δ‖², an error of {outcome.error:.2%} of ‖Δ‖"
        rows = [(block, f"{kept:.2%}") for block, kept in outcome.blocks.items()]
        yield table(("block", "kept"), rows)
    if outcome.rounding:
        yield f"  rounding to the file's dtype: {outcome.rounding:.2g} of ‖Δ‖"
    for reason, count in outcome.unchanged.items():
        yield f"  {count:,} unchanged: {printable(reason)}"
    reasons = Counter(outcome.left_out.values())
    for reason, count in reasons.items():
        names = [name for name, why in outcome.left_out.items() if why == reason]
        listed = ", ".join(names[:_MOST_NAMES]) + (" …" if count > _MOST_NAMES else "")
        yield f"  {count:,} left out: {printable(reason)}: {printable(listed)}"
    for note in outcome.notes:
        yield f"  {printable(note)}"
