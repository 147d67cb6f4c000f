"""The installed WebUI that SD_WEBUI_DIR names; without one, these tests are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import loras
import program


@pytest.fixture(scope="session")
def webui() -> Path:
    """Return the folder of the WebUI."""
    found = program.webui_folder()
    if found is None:
        pytest.skip("SD_WEBUI_DIR names no installed WebUI (see docs/webui-compat.md)")
    return found


@pytest.fixture(scope="session")
def data(webui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder for the WebUI: tiny checkpoints, and LoRAs for them."""
    folder = tmp_path_factory.mktemp("webui-data")
    program.make_checkpoints(webui, folder)
    checkpoints, files = folder / "models" / "Stable-diffusion", folder / "models" / "Lora"
    for kind, name in (("sd1", "sd1-a"), ("sd2", "sd2"), ("sdxl", "sdxl")):
        loras.write(files / f"{kind}.safetensors", checkpoints / f"{name}.safetensors", kind)
    loras.write(files / "style" / "second.safetensors", checkpoints / "sd1-a.safetensors", seed=1, only="attn")
    return folder


@pytest.fixture(scope="module")
def run(webui: Path, data: Path) -> Iterator[program.WebUI]:
    """Run the WebUI with the extension and the built-in one, as a user has it who drops the folder in."""
    with program.WebUI(webui, data) as running:
        yield running
