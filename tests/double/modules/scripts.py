"""Scripts: how files are loaded, and how what is in them is called."""

from __future__ import annotations

import importlib.util
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

from modules import errors, script_callbacks

AlwaysVisible = object()
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data: list[ScriptClassData] = []
scripts_txt2img: Any = None
scripts_img2img: Any = None


class Script:
    """What an extension's class does at the moments of a generation: nothing, unless it says so."""

    filename = ""

    def title(self) -> str:
        """Return the name that is shown."""
        raise NotImplementedError

    def show(self, is_img2img: bool) -> Any:
        """Return whether it is in a tab's list, or AlwaysVisible."""
        return True

    def _nothing(self, p: Any, *args: Any, **kwargs: Any) -> None: ...

    before_process = process = before_process_batch = after_extra_networks_activate = process_batch = _nothing
    before_hr = process_before_every_sampling = postprocess_batch = postprocess = _nothing


class ScriptRunner:
    """The scripts of one tab."""

    def __init__(self, *, is_img2img: bool = False) -> None:
        self.infotext_fields: list[tuple[Any, str]] = []
        self.alwayson_scripts: list[Script] = []
        for data in scripts_data:
            script = data.script_class()
            script.filename = data.path
            if script.show(is_img2img) is AlwaysVisible:
                self.alwayson_scripts.append(script)

    def run(self, moment: str, p: Any, *args: Any, **kwargs: Any) -> None:
        """Call that method of every script; none stops the others."""
        for script in self.alwayson_scripts:
            try:
                getattr(script, moment)(p, *args, **kwargs)
            except Exception:
                errors.report(f"{script.filename}: {moment}", exc_info=True)


def load_scripts(folders: list[Path]) -> None:
    """Run the files in the folders' `scripts/`, in this order, each with its own folder first on sys.path."""
    global scripts_txt2img, scripts_img2img
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    before = sys.path
    for folder in folders:
        for path in sorted((folder / "scripts").glob("*.py")):
            try:
                sys.path = [str(folder), *before]
                # The module is not in sys.modules, and its name is the file's.
                spec = importlib.util.spec_from_file_location(path.name, path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                for value in list(vars(module).values()):
                    if isinstance(value, type) and issubclass(value, Script):
                        scripts_data.append(ScriptClassData(value, str(path), str(folder), module))
            except Exception:
                errors.report(f"loading {path}", exc_info=True)
            finally:
                sys.path = before
    scripts_txt2img, scripts_img2img = ScriptRunner(), ScriptRunner(is_img2img=True)
