"""Where the LoRA files are: the built-in extension's own command line options, `--lora-dir` also several times.

Forge Neo has a list of further folders, those of another program that its user refers to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from modules import paths, shared


def lora_folders() -> list[Path]:
    """Return the folders that are there, each once; the first is made if it is not."""
    # argparse keeps only the last of an option that is given twice, and a second definition of --lora-dir would stop
    # the built-in extension, which shares the command line; so all of them are read from there again.
    again = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    again.add_argument("--lora-dir", action="append", default=[])
    given, _ = again.parse_known_args(sys.argv[1:])
    usual = getattr(shared.cmd_opts, "lora_dir", None) or str(Path(paths.models_path) / "Lora")
    first, *more = [Path(folder).expanduser() for folder in given.lora_dir] or [Path(usual)]
    first.mkdir(parents=True, exist_ok=True)
    lyco = getattr(shared.cmd_opts, "lyco_dir_backcompat", None)
    others = [*([lyco] if lyco else []), *(getattr(shared.cmd_opts, "lora_dirs", None) or [])]
    found = dict.fromkeys(folder.absolute() for folder in [first, *more, *map(Path, others)])
    return [folder for folder in found if folder.is_dir()]
