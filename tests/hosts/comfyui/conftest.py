"""The installed ComfyUI that COMFYUI_DIR names; without one, these tests are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "forge_neo"))  # its LoRAs fit this small checkpoint too

import comfy_program as program


@pytest.fixture(scope="session")
def comfy() -> Path:
    """Return the folder of ComfyUI."""
    found = program.comfy_folder()
    if found is None:
        pytest.skip("COMFYUI_DIR names no installed ComfyUI (see docs/hosts-compat.md)")
    return found


@pytest.fixture(scope="session")
def run(comfy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[program.Comfy]:
    """Run the program with our folder among its custom nodes, on a folder with a small checkpoint and LoRAs for it."""
    data = tmp_path_factory.mktemp("comfyui-data")
    program.make_data(comfy, data)
    with program.Comfy(comfy, data) as running:
        yield running
