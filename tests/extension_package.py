"""The package `extension/` as the WebUI's shim loads it: under a private name, its modules imported relatively."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = "lora_runtime_extension_under_test"
REPOSITORY = Path(__file__).resolve().parent.parent


def module(name: str = "") -> ModuleType:
    """Return the package, or its module of that name ("library.shelf", "hosts.a1111.tags")."""
    if NAME not in sys.modules:
        folder = REPOSITORY / "extension"
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{name}" if name else NAME)
