"""What the subcommands share: tables, sizes, and text that is safe to print."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from lora_runtime.prompt.tags import Dialect, Scope

__all__ = [
    "PROGRAM",
    "CommandError",
    "checked_out",
    "device_arguments",
    "human_size",
    "lora_places_argument",
    "model_config_argument",
    "needs_extra",
    "one_line",
    "print_json",
    "printable",
    "reading_arguments",
    "say_by_oneself",
    "span_of",
    "table",
    "whole",
]

PROGRAM = "lora-runtime"
DIALECTS, SCOPES = get_args(Dialect), get_args(Scope)
_GAP = "  "
_NARROWEST = 8


class CommandError(Exception):
    """What the command line itself has to say: one line, without the program's name."""


@contextmanager
def needs_extra(extra: str = "demo") -> Iterator[None]:
    """Turn the absence of an optional package, or one that does not fit the others, into the command that mends it."""
    mend = f'run, in a copy of the project: python -m pip install ".[{extra}]"'
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "lora_runtime":
            raise
        raise CommandError(f"{error.name} is not installed; {mend}") from error
    except (ImportError, RuntimeError) as error:
        # diffusers and transformers import lazily, and turn what their imports raise into a RuntimeError.
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, ImportError):
            raise
        raise CommandError(f"the installed packages do not fit together: {one_line(error)}; {mend}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; an OSError as "reason: file"."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename is not None else ""
        return printable(f"{error.strerror}{name}")
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Return `text` with what a terminal would obey or not show (escape sequences, line ends) spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def print_json(value: Any) -> None:
    """Print `value` as JSON in ASCII, which every console's encoding can write."""
    print(json.dumps(value, indent=2))


def checked_out(name: str, endings: Sequence[str], *, option: str = "--out") -> Path:
    """Return the path of a picture to be written, checked before it is made, or raise CommandError."""
    out = Path(name)
    if out.suffix.lower() not in endings:
        raise CommandError(f"{option} {name}: give a name that ends in {', '.join(endings[:-1])} or {endings[-1]}")
    if out.is_dir():
        raise CommandError(f"{option} {name}: this is a folder")
    if not out.parent.is_dir():
        raise CommandError(f"{option} {name}: the folder {out.parent} does not exist")
    return out


def reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Define how prompts are read: `--dialect` and `--scope`."""
    parser.add_argument("--dialect", choices=DIALECTS, default="a1111", help="the tags' spelling (default: a1111)")
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="all",
        help="edit: brackets around a tag switch it; and: AND does (default: all)",
    )


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Define where a model runs, and in which dtype."""
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the first that is there)")
    dtypes = ("float32", "float16", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, help="default: float16 on a GPU, else float32")


def say_by_oneself() -> None:
    """Keep what the library logs off the console: the command says it, and without any handler Python would too."""
    logger = logging.getLogger("lora_runtime")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def model_config_argument(parser: argparse.ArgumentParser) -> None:
    """Define where the configuration of a single checkpoint file is taken from: `--model-config`."""
    parser.add_argument(
        "--model-config",
        metavar="DIR|REPO",
        help="of a single file: a folder or a repository of diffusers' with its configuration (default: that of the "
        "model it is of, from huggingface_hub)",
    )


def lora_places_argument(parser: argparse.ArgumentParser) -> None:
    """Define where names are looked for: `--loras`, folders and files with names of their own."""
    parser.add_argument(
        "--loras",
        metavar="DIR|NAME=FILE",
        action="append",
        type=_lora_place,
        help="a folder, or a file with a name for it; may be given several times (default: LORA_RUNTIME_PATH, else "
        "models/Lora and loras)",
    )


def _lora_place(text: str) -> str | dict[str, str]:
    name, equals, file = text.partition("=")
    return {name: file} if equals and name and not Path(text).exists() else text


def whole(text: str) -> int:
    """Return a number from 1 that an argument gives."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def human_size(count: int) -> str:
    """Return a number of bytes for people, in decimal units: "144.2 MB"."""
    if count < 1000:
        return f"{count} B"
    power = 3 if count >= 10**9 else 2 if count >= 10**6 else 1
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def span_of(values: Sequence[float]) -> str:
    """Return sorted numbers as "8", "4..32", or "-" for none."""
    ends = dict.fromkeys(f"{value:g}" for value in (*values[:1], *values[-1:]))
    return "..".join(ends) or "-"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, limit: int | None = None) -> str:
    """Return the rows below their titles in columns, indented; the widest ones are cut until a line fits `limit`.

    Without a limit the terminal's width is taken, and where the output is no terminal nothing is cut.
    """
    if limit is None and sys.stdout.isatty():
        limit = shutil.get_terminal_size().columns
    cells = [list(titles), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    while limit is not None and len(_GAP) * len(widths) + sum(widths) > limit and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return "\n".join(
        "".join(_GAP + _fit(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _fit(text: str, width: int) -> str:
    """Return `text` cut or padded to `width` columns."""
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return how many columns a terminal gives to `text`."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
