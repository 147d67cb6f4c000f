"""The command line. Each subcommand is one file, and imports what it needs when it runs: `parse` needs no torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lora_runtime import __version__
from lora_runtime.cli import (
    average,
    bake,
    compare,
    convert,
    demo,
    doctor,
    env,
    extract,
    inspect,
    list,
    merge,
    parse,
    plan,
    plot,
    report,
    resize,
    run,
    serve,
    studio,
    sweep,
    to_lora,
    train,
)
from lora_runtime.cli.console import PROGRAM, CommandError, one_line
from lora_runtime.errors import LoraError

__all__ = ["main"]

_COMMANDS = (
    parse,
    plot,
    list,
    inspect,
    plan,
    run,
    sweep,
    serve,
    studio,
    demo,
    resize,
    merge,
    to_lora,
    extract,
    bake,
    doctor,
    average,
    compare,
    report,
    convert,
    train,
    env,
)
_FAILED = 2  # as argparse
_INTERRUPTED = 130
_PIPE_CLOSED = 141  # as the shell reports a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (without the program's name; None: the process's own); return the exit status.

    What goes wrong with the user's files, prompts and models is one line on stderr and status 2.
    """
    # A name in a file may not fit the console's encoding; it is escaped then, and no error.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # `lora-runtime list | head`: Python flushes once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (LoraError, CommandError, OSError) as error:
        print(f"{PROGRAM}: error: {one_line(error)}", file=sys.stderr)
        return _FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="LoRA tags in a prompt: read them, find them, use them.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        summary = (command.__doc__ or "").rstrip(".")
        subparser = commands.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
