"""Want of memory: at any allocation, at a restore, and what "auto" does before it comes to that."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from device.pretend import Pretend
from safetensors.torch import save_file
from torch import nn

import lora_runtime

WIDTH, LAYERS = 512, 8
SIZE = 4 * WIDTH * WIDTH * LAYERS


@pytest.fixture
def layers(pretend: Pretend, tmp_path: Path) -> Iterator[nn.Module]:
    """Give eight linear layers of 1 MB each on the device, with the files ink and wash for them."""
    for seed, name in enumerate(("ink", "wash")):
        generator = torch.Generator().manual_seed(seed)
        file = {}
        for layer in range(LAYERS):
            file[f"{layer}.lora_A.weight"] = torch.randn(4, WIDTH, generator=generator)
            file[f"{layer}.lora_B.weight"] = torch.randn(WIDTH, 4, generator=generator)
        save_file(file, tmp_path / f"{name}.safetensors")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).requires_grad_(False)
    yield model.to(pretend.device)
    pretend.reset()
    lora_runtime.restore(model)


def bits(model: nn.Module) -> list[torch.Tensor]:
    """Return copies of all parameters, in host memory."""
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


BEGINNINGS = [("", "device"), ("", "host"), ("<lora:wash>", "device"), ("<lora:wash>", "host")]
TEXTS = ["<lora:ink:0.7>", "<lora:ink:0@0,1@1><lora:wash>"]


@pytest.mark.quick
@pytest.mark.parametrize("text", TEXTS, ids=["constant", "live"])
@pytest.mark.parametrize(
    ("first", "mode"), [pytest.param(*each, marks=pytest.mark.slow if each[0] else []) for each in BEGINNINGS]
)
def test_out_of_memory_at_any_allocation_leaves_the_model_whole(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, first: str, mode: str, text: str
) -> None:
    before = bits(layers)

    def begin() -> int:
        lora_runtime.restore(layers)
        gc.collect()
        used = pretend.used
        if first:
            lora_runtime.apply(layers, first, loras=tmp_path, originals=mode)
        return used

    begin()
    allocations = pretend.allocations
    lora_runtime.apply(layers, text, loras=tmp_path, originals=mode)
    total = pretend.allocations - allocations
    for place in range(0, total, max(1, total // 6)):
        used = begin()
        pretend.fail_in(place, times=2)  # the second where the factors that stayed were given up
        with pytest.raises(torch.OutOfMemoryError):
            lora_runtime.apply(layers, text, loras=tmp_path, originals=mode)
        pretend.fail_in(-1)
        assert equal(bits(layers), before)
        lora_runtime.restore(layers)
        gc.collect()
        assert pretend.used == used


def test_a_device_that_just_fits_the_model_gets_the_originals_back(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    before = bits(layers)
    layers.to("cpu")
    gc.collect()
    lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    layers.to(pretend.device)
    gc.collect()
    pretend.limit(pretend.used)
    lora_runtime.restore(layers)
    pretend.reset()
    assert equal(bits(layers), before)


def test_a_restore_that_fails_can_be_tried_again(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    before = bits(layers)
    layers.to("cpu")
    lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    layers.to(pretend.device)
    kept = layers.state_dict()  # W′ is somebody's, so each original needs memory of its own
    gc.collect()
    pretend.limit(pretend.used + SIZE // LAYERS)
    with pytest.raises(torch.OutOfMemoryError):
        lora_runtime.restore(layers)
    del kept
    pretend.limit(8 << 30)
    lora_runtime.restore(layers)
    assert equal(bits(layers), before)


@pytest.mark.parametrize(("room", "held"), [(3.0, 1.0), (0.9, 0.0), (0.4, 0.0)])
def test_auto_takes_the_memory_that_there_is(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, room: float, held: float
) -> None:
    before = bits(layers)
    gc.collect()
    used = pretend.used
    pretend.limit(int(used + room * SIZE))
    with lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path) as applied:
        gc.collect()
        (kept,) = applied.report.memory
        assert (pretend.used - used - kept.factor_bytes) / SIZE == pytest.approx(held, abs=0.01)
        assert kept.factor_bytes == LAYERS * 2 * 4 * 4 * WIDTH  # they take less than a quarter of the rest
        shown = bits(layers)
    assert equal(bits(layers), before)
    pretend.reset()
    layers.to("cpu")
    with lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path):
        assert equal(bits(layers), shown)
