"""Models that are moved, cast and made anew while they are patched."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from device.pretend import Pretend

import lora_runtime
from lora_runtime import patcher
from lora_runtime.scopes import PATCHER

MOVES = ["cpu", "cpu again", "cpu device", "half", "half cpu", "again cpu", "channels_last cpu"]


def bits(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of all parameters, in host memory."""
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def act(model: Any, moves: str, loras: Path, mode: str) -> None:
    """Move, cast or patch a model, one word after another."""
    for move in moves.split():
        if move == "ink":
            lora_runtime.apply(model, "<lora:ink:0.7>", loras=loras, originals=mode)
        elif move == "again":
            lora_runtime.apply(model, "<lora:ink:0.5><lora:wash>", loras=loras, originals=mode)
        elif move == "half":
            model.half()
        elif move == "channels_last":
            model.to(memory_format=torch.channels_last)
        else:
            model.to("pretend" if move == "device" else move)


@contextmanager
def conversion(flag: str) -> Iterator[None]:
    """Let `.to()` make new Parameters in one of torch's two ways, or in neither."""
    if flag == "data":
        yield
        return
    setting = getattr(torch.__future__, f"set_{flag}_module_params_on_conversion")
    setting(True)
    try:
        yield
    finally:
        setting(False)


@pytest.mark.quick
@pytest.mark.parametrize("fixed", [False, True], ids=["data moves", "data stays"])
@pytest.mark.parametrize("mode", ["device", "host", "inplace"])
@pytest.mark.parametrize("moves", MOVES)
def test_each_weight_has_its_original_after_a_move(
    pretend: Pretend, unet: Any, tmp_path: Path, moves: str, mode: str, fixed: bool
) -> None:
    pretend.fix_data(fixed)
    before = bits(unet)
    act(unet, f"device ink {moves}", tmp_path, mode)
    lora_runtime.restore(unet)
    after = bits(unet)
    for name, original in before.items():
        assert torch.equal(after[name], original.half() if "half" in moves else original), name


@pytest.mark.parametrize("flag", ["overwrite", "swap"])
@pytest.mark.parametrize("moves", ["device ink cpu", "ink half", "ink device"])
def test_new_parameters_get_their_originals(pretend: Pretend, unet: Any, tmp_path: Path, flag: str, moves: str) -> None:
    before = bits(unet)
    with conversion(flag):
        act(unet, moves, tmp_path, "auto")
        lora_runtime.restore(unet)
    after = bits(unet)
    for name, original in before.items():
        assert torch.equal(after[name], original.half() if "half" in moves else original), name


@pytest.mark.parametrize("flag", ["data", "swap", "overwrite"])
@pytest.mark.parametrize("mode", ["device", "host", "inplace"])
def test_a_model_that_leaves_the_device_leaves_nothing_there(
    pretend: Pretend, unet: Any, tmp_path: Path, flag: str, mode: str
) -> None:
    gc.collect()
    before = pretend.used
    with conversion(flag):
        act(unet, "device ink again cpu", tmp_path, mode)
    gc.collect()
    assert pretend.used == before


def test_a_round_trip_with_the_same_tags_computes_nothing(pretend: Pretend, unet: Any, tmp_path: Path) -> None:
    act(unet, "device ink cpu device", tmp_path, "device")
    with pretend.logged() as log:
        act(unet, "ink", tmp_path, "device")
    assert log.ours["kernel"] == 0


@pytest.mark.parametrize("mode", ["device", "host"])
def test_a_weight_bound_to_other_values_is_seen_in_both_modes(
    pretend: Pretend, unet: Any, tmp_path: Path, mode: str
) -> None:
    act(unet, "device ink", tmp_path, mode)
    shown = bits(unet)["conv_in.weight"]
    unet.conv_in.weight.data = torch.zeros_like(unet.conv_in.weight)
    act(unet, "ink", tmp_path, mode)
    # The new values are W₀ now, and ink acts on them.
    assert not torch.equal(bits(unet)["conv_in.weight"], torch.zeros_like(shown))
    lora_runtime.restore(unet)
    assert torch.equal(bits(unet)["conv_in.weight"], torch.zeros_like(shown))


@pytest.mark.parametrize("mode", ["auto", "host"])
def test_rounds_under_model_offload_compute_nothing_anew_and_hold_one_copy_more(
    pretend: Pretend, tmp_path: Path, mode: Any
) -> None:
    pipe = tiny.pipeline("sd1")
    tiny.write_kohya_lora(tmp_path / "pen.safetensors", pipe, seed=3)
    pipe.enable_model_cpu_offload(device="pretend")

    def paint(prompt: str) -> Any:
        applied = lora_runtime.apply(pipe, prompt, loras=tmp_path, originals=mode)
        pipe(applied.prompt, height=32, width=32, output_type="latent", num_inference_steps=2)
        pipe.maybe_free_model_hooks()
        gc.collect()
        return applied

    paint("a")
    used, held = pretend.used, PATCHER.nbytes  # the scheduler keeps something of its own
    first = paint("a <lora:pen>")
    with mock.patch.object(patcher, "merge_into", side_effect=AssertionError("computed anew")):
        again = paint("a <lora:pen>")
    assert first.report.weights == again.report.weights > 0
    assert pretend.used == used
    assert PATCHER.nbytes - held == again.report.bytes  # W₀ beside the W′ that the model has
    lora_runtime.restore(pipe)
