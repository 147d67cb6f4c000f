"""docs/memory.md is what the policy says, for models of the sizes that are released."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

ROOT = Path(__file__).resolve().parent.parent
AGAIN = "run: python tools/memory_table.py --write"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    found = importlib.util.spec_from_file_location("memory_table", ROOT / "tools" / "memory_table.py")
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    sys.modules[found.name] = made  # where its dataclasses look for themselves
    found.loader.exec_module(made)
    yield made
    del sys.modules[found.name]


# As the model cards and the files on the hub have them.
PARAMETERS = {
    "SD1.5": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "SDXL": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863},
    "Flux": {
        "transformer": 11_901_408_320,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
        "vae": 83_819_683,
    },
    "Qwen-Image": {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531},
}


def test_the_models_have_the_sizes_of_the_released_ones(script: Any) -> None:
    for model in script.MODELS:
        found = {name: sum(p.numel() for p in root.parameters()) for name, root in script.built(model).items()}
        assert found == PARAMETERS[model.name]


@pytest.mark.slow
def test_the_page_has_what_the_script_prints_for_one_model(script: Any) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert text.startswith(script._HEAD), AGAIN
    for model in script.MODELS:
        assert f"\n### {model.name}\n" in text, AGAIN
    assert "\n".join(script.section(script.MODELS[0])) in text, AGAIN


def test_the_files_change_attention_and_feed_forward(script: Any) -> None:
    # By block: 8 of attention and 2 of feed-forward in the UNets' 16 and 70; 12 in Flux's 19 and 5 in its 38; 12 in 60.
    expected = {"SD1.5": 16 * 10, "SDXL": 70 * 10, "Flux": 19 * 12 + 38 * 5, "Qwen-Image": 60 * 12}
    found = {model.name: len(script.changed_layers(script.built(model)[model.denoiser])) for model in script.MODELS}
    assert found == expected
