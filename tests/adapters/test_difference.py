"""Whole differences of weights, biases and norms, against LyCORIS's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.judge import LAYERS, STEM, agree, build, linear, made, patched, rand, randomise, saved, seen
from lycoris.modules.full import FullModule
from lycoris.modules.norms import NormModule
from safetensors.torch import save_file
from torch import nn

import lora_runtime


@pytest.mark.parametrize("layer", LAYERS)
def test_a_full_difference_acts_as_lycoris_does(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    base = layer()
    trained = layer()
    trained.load_state_dict(base.state_dict())
    module = FullModule("x", trained)
    module.apply_to()
    randomise(module)
    tensors = module.state_dict()
    assert set(tensors) == ({"diff", "diff_b"} if base.bias is not None else {"diff"})
    lora = saved(tensors, tmp_path)
    x = seen(base)
    mine = torch.func.functional_call(base, patched(base, lora.adapters[STEM]), (x,))
    torch.testing.assert_close(mine, module(x), rtol=1e-5, atol=1e-5)


def test_a_full_difference_is_a_straight_line_in_its_strength(tmp_path: Path) -> None:
    base = linear()
    module = randomise(FullModule("x", base))
    # Before it takes the layer over, the module holds the differences themselves.
    agree(base, module, saved({"diff": module.weight, "diff_b": module.bias}, tmp_path), -0.7)


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(12), lambda: nn.GroupNorm(4, 12)])
@pytest.mark.parametrize("strength", [1.0, 0.3])
@torch.no_grad()
def test_a_norm_acts_as_lycoris_does(norm: Callable[[], nn.Module], strength: float, tmp_path: Path) -> None:
    base = randomise(norm())
    module = randomise(NormModule("x", base, strength))
    tensors = module.state_dict()
    assert set(tensors) == {"w_norm", "b_norm"}
    lora = saved(tensors, tmp_path)
    assert [adapter.algorithm for adapter in lora.adapters[STEM]] == ["norm", "norm"]
    x = rand(5, 12)
    mine = torch.func.functional_call(base, patched(base, lora.adapters[STEM], strength), (x,))
    torch.testing.assert_close(mine, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "kind", "parameter"),
    [("diff", "full", "weight"), ("diff_b", "full", "bias"), ("w_norm", "norm", "weight"), ("b_norm", "norm", "bias")],
)
def test_either_of_a_pair_comes_alone(key: str, kind: str, parameter: str, tmp_path: Path) -> None:
    (adapter,) = saved({key: rand(6)}, tmp_path).adapters[STEM]
    assert (adapter.algorithm, adapter.parameter, adapter.keys) == (kind, parameter, (f"{STEM}.{key}",))
    assert torch.equal(adapter.delta(torch.zeros(6)), rand(6))


def test_each_has_its_own_keys() -> None:
    adapters = build("full", {"weight": rand(6, 4), "bias": rand(6)})
    assert [(adapter.parameter, adapter.keys) for adapter in adapters] == [
        ("weight", ("weight",)),
        ("bias", ("bias",)),
    ]


def test_an_alpha_says_nothing_about_a_difference(tmp_path: Path) -> None:
    lora = saved({"diff": rand(6, 4), "alpha": torch.tensor(0.5)}, tmp_path)
    (adapter,) = lora.adapters[STEM]
    assert torch.equal(adapter.delta(torch.zeros(6, 4)), rand(6, 4))
    assert dict(lora.unused) == {f"{STEM}.alpha": "an alpha without factors"}


@pytest.mark.parametrize("strength", [1.0, 0.25, -0.5])
def test_a_replacement_is_a_straight_line_from_the_old_weight_to_the_new(strength: float, tmp_path: Path) -> None:
    base = linear()
    assert isinstance(base.weight, torch.Tensor)
    (adapter,) = found = saved({"set_weight": rand(24, 12)}, tmp_path).adapters[STEM]
    assert (adapter.algorithm, adapter.base_dependent) == ("replaced", True)
    exact = (1 - strength) * base.weight.double() + strength * rand(24, 12).double()
    torch.testing.assert_close(patched(base, found, strength)["weight"].double(), exact, rtol=1e-5, atol=1e-6)
    assert adapter.misfit(torch.Size((24, 13))) == "made for (24, 12), the weight is (24, 13)"


class Block(nn.Module):
    """What of a block of Wan, and of a block of Flux in diffusers' names, is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(rand(1, 6, 8))
        self.key_norm = nn.LayerNorm(8, bias=False)
        self.proj = nn.Linear(8, 8)


def test_a_bare_parameter_and_the_scale_of_a_norm_are_found_in_a_model(tmp_path: Path) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([Block()])})
    change, scale = rand(1, 6, 8, seed=1), rand(8, seed=2)
    save_file(
        {"diffusion_model.blocks.0.diff_m": change, "blocks.0.key_norm.scale": scale}, tmp_path / "style.safetensors"
    )
    with lora_runtime.apply(model, "<lora:style:0.5>", loras=tmp_path) as applied:
        block: Any = model["blocks"][0]  # type: ignore[index]
        assert applied.report.loras[0].used == 2
        torch.testing.assert_close(block.modulation.data, rand(1, 6, 8) + change / 2)
        torch.testing.assert_close(block.key_norm.weight.data, (1 + scale) / 2)
    assert torch.equal(block.modulation.data, rand(1, 6, 8))


def test_the_delta_is_a_tensor_of_its_own() -> None:
    values = rand(6, 4)
    delta = made("full", {"weight": values}).delta(torch.zeros(6, 4))
    delta.zero_()
    assert torch.equal(values, rand(6, 4))


def test_a_misfit_names_both_shapes_and_the_parameter() -> None:
    weight, bias = build("full", {"weight": rand(6, 4), "bias": rand(6)})
    assert weight.misfit(torch.Size((6, 4, 1, 1))) is None
    assert weight.misfit(torch.Size((4, 6))) == "made for (6, 4), the weight is (4, 6)"
    assert bias.misfit(torch.Size((6,))) is None
    assert bias.misfit(torch.Size((5,))) == "made for (6,), the bias is (5,)"
    assert bias.misfit(torch.Size(())) == "made for (6,), the bias is ()"
