"""Scripts: what marks this program, and how a file of an extension is loaded: its print goes to the log."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

from modules import errors, script_callbacks
from modules.logger import log


class Script:
    """The base of what an extension may show."""


AlwaysVisible = object()
scripts_data: list[type[Script]] = []


def load_scripts(extensions: list[Path]) -> None:
    """Load the scripts of all extensions anew."""
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    for extension in extensions:
        for path in sorted((extension / "scripts").glob("*.py")):
            before = sys.path
            sys.path = [str(extension), *sys.path]
            try:
                for kind in vars(_load(path)).values():
                    if type(kind) is type and issubclass(kind, Script):
                        scripts_data.append(kind)
            finally:
                sys.path = before


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            spec.loader.exec_module(module)
        for line in printed.getvalue().splitlines():
            log.info("Extension: script='%s' %s", path.name, line)
    except Exception as error:
        errors.display(error, f"Module load: {path}")
    return module
