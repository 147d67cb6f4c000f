"""Key lists of real files against models of the real size: every key finds a place, or is left over for a known reason.

tests/keys/ has the lists: names and shapes, `{0-18}` or `{0,4-6}` for the numbers of blocks.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import handmade
import layouts
import pytest
import tiny_dit
import torch
from torch import nn

from lora_runtime import targets
from lora_runtime.lora import outline
from lora_runtime.plan import make_plan
from lora_runtime.report import LoraReport
from lora_runtime.requests import Request
from lora_runtime.routes import Route

LISTS = sorted((Path(__file__).parent.parent / "keys").glob("*.json"))
_NUMBERS = re.compile(r"\{([\d,-]+)\}")


def flux(**config: Any) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True, **config)


def default(name: str, **config: Any) -> Callable[[], nn.Module]:
    """Return what makes a model of diffusers in its default configuration, but for `config`."""
    return lambda: tiny_dit.meta_model(name, **config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "flux": flux,
    # The latent beside that of the picture that controls.
    "flux control": lambda: flux(in_channels=128, out_channels=64),
    "wan": default("WanTransformer3DModel"),
    "wan i2v": default("WanTransformer3DModel", in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
    "qwen-image": default("QwenImageTransformer2DModel"),
    "hunyuan video": default("HunyuanVideoTransformer3DModel"),
    "hunyuan dit": default(
        "HunyuanDiT2DModel", in_channels=4, patch_size=2, hidden_size=1408, num_layers=40, mlp_ratio=4.3637
    ),
    "pixart": default("PixArtTransformer2DModel", caption_channels=4096),
    "ltx": default("LTXVideoTransformer3DModel"),
    "mochi": default("MochiTransformer3DModel"),
    "lumina 2": default("Lumina2Transformer2DModel"),
    "z-image": default("ZImageTransformer2DModel"),
    "anima": default("CosmosTransformer3DModel", in_channels=16, num_attention_heads=16, extra_pos_embed_type=None),
    "hidream": default(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=16,
        caption_channels=[4096, 4096],
        llama_layers=list(range(48)),
    ),
    "krea 2": default("Krea2Transformer2DModel"),
}


@cache
def model(name: str) -> nn.Module:
    """Return a model of the real size, without values."""
    with torch.device("meta"):
        return MODELS[name]()


def expanded(keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each key that a shortened one stands for."""
    for key, value in keys.items():
        numbers = _NUMBERS.search(key)
        if numbers is None:
            yield key, value
            continue
        for run in numbers[1].split(","):
            first, _, last = run.partition("-")
            for number in range(int(first), int(last or first) + 1):
                yield key[: numbers.start()] + str(number) + key[numbers.end() :], value


def write(path: Path, keys: Mapping[str, list[int]]) -> None:
    """Write a file with the header of these tensors and a hole for their values."""
    header, size = {}, 0
    for key, shape in keys.items():
        header[key] = handmade.tensor("BF16", shape, size)
        size += 2 * math.prod(shape)
    path.write_bytes(handmade.frame(header))
    os.truncate(path, path.stat().st_size + size)


def report_on(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> LoraReport:
    """Return what a plan says of a file on a model without values, which no patch could change."""
    monkeypatch.setattr(targets, "route_of", lambda *args: Route("merged"))
    made = make_plan([Request(outline(path), 1.0, 1.0)], layouts.targets_of(model(name)))
    return made.report.loras[0]


@pytest.mark.quick(8)
@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_the_keys_of_a_real_file_find_their_places(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(path.read_text(encoding="utf-8"))
    keys = dict(expanded(listed["keys"]))
    write(tmp_path / "a.safetensors", keys)
    report = report_on(listed["model"], tmp_path / "a.safetensors", monkeypatch)
    assert dict(report.unused) == dict(expanded(listed["unused"]))
    assert report.used == len(keys) - len(report.unused)
