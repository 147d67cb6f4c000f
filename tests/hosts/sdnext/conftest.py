"""The installed SD.Next that SDNEXT_DIR names; without one, these tests are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import sdnext_program as program

WITH_TEXT = ["a red heart", "a red heart <lora:heart:1>", "a red heart <lora:heart:te=0.5:unet=0.8>"]
UNET_ALONE = ["a red circle", "a red circle <lora:watercolor:0.7>", "a red circle <lora:outline:0.5>"]
UNET_ALONE += ["a red circle <lora:watercolor:unet=0.9>", "a red circle <lora:watercolor:0.7> <lora:outline:0.5>"]


@pytest.fixture(scope="session")
def sdnext() -> Path:
    """Return the folder of SD.Next."""
    found = program.sdnext_folder()
    if found is None:
        pytest.skip("SDNEXT_DIR names no installed SD.Next (see docs/hosts-compat.md)")
    return found


@pytest.fixture(scope="session")
def data(sdnext: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder for it: two small checkpoints, and LoRAs for them."""
    folder = tmp_path_factory.mktemp("sdnext-data")
    program.make_data(folder)
    return folder


@pytest.fixture(scope="session")
def builtin(sdnext: Path, data: Path) -> dict[str, program.Picture]:
    """Return pictures that the program paints by itself, by their prompts, each on weights that were just loaded."""
    found = {}
    with program.SDNext(sdnext, data, ours=False) as run:
        for text, prompts in ((False, UNET_ALONE), (True, WITH_TEXT)):
            run.post("/sdapi/v1/options", lora_apply_te=text)
            for prompt in prompts:
                run.get("/probe/checkpoint", name=program.CHECKPOINTS[0])
                found[prompt] = run.paint(prompt)
    return found


@pytest.fixture(scope="session")
def run(builtin: dict[str, program.Picture], sdnext: Path, data: Path) -> Iterator[program.SDNext]:
    """Run the program with the extension, as a user has it who drops the folder in."""
    with program.SDNext(sdnext, data) as running:
        yield running
