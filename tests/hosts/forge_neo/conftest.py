"""The installed Forge Neo that FORGE_NEO_DIR names; without one, these tests are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import neo_program as program


@pytest.fixture(scope="session")
def forge() -> Path:
    """Return the folder of Forge Neo."""
    found = program.forge_folder()
    if found is None:
        pytest.skip("FORGE_NEO_DIR names no installed Forge Neo (see docs/hosts-compat.md)")
    return found


@pytest.fixture(scope="session")
def data(forge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder for it: small checkpoints, and LoRAs for them."""
    folder = tmp_path_factory.mktemp("forge-neo-data")
    program.make_data(forge, folder)
    return folder


@pytest.fixture(scope="session")
def builtin(forge: Path, data: Path) -> dict[str, program.Picture]:
    """Return pictures that the program paints by itself, by their prompts."""
    prompts = ["a cat", "a cat <lora:A:0.7>", "a cat <lora:A:te=0.3:unet=0.9>", "a cat <lora:A:0.7> <lora:B:0.5>"]
    prompts += ["a cat <lora:B:0.5> <lora:A:0.7>"]
    with program.Forge(forge, data, ours=False) as run:
        return {prompt: run.paint(prompt) for prompt in prompts}


@pytest.fixture(scope="session")
def run(builtin: dict[str, program.Picture], forge: Path, data: Path) -> Iterator[program.Forge]:
    """Run the program with the extension and the built-in one, as a user has it who drops the folder in."""
    with program.Forge(forge, data) as running:
        yield running
