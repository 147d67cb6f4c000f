"""LoHa against LyCORIS's forward pass, PEFT's merged weight and the formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from adapters.judge import KERNELS, LAYERS, agree, agree_with_peft, conv3x3, linear, made, rand, randomise, saved
from lycoris.modules.loha import LohaModule
from torch import Tensor, nn


def factors(rank: int = 3, shape: tuple[int, int] = (7, 5)) -> dict[str, Tensor]:
    out, inner = shape
    return {
        name: rand(*extents, seed=seed)
        for seed, (name, extents) in enumerate(
            {"w1_a": (out, rank), "w1_b": (rank, inner), "w2_a": (out, rank), "w2_b": (rank, inner)}.items()
        )
    }


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("alpha", "strength"), [(1.5, 1.0), (4.0, -0.6)])
def test_it_acts_as_lycoris_does(layer: Callable[[], nn.Module], alpha: float, strength: float, tmp_path: Path) -> None:
    base = layer()
    module = randomise(LohaModule("x", base, lora_dim=4, alpha=alpha))
    agree(base, module, saved(module.state_dict(), tmp_path), strength)


@pytest.mark.parametrize("layer", KERNELS)
def test_a_tucker_core_acts_as_lycoris_does(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    base = layer()
    module = randomise(LohaModule("x", base, lora_dim=4, alpha=2, use_tucker=True))
    tensors = module.state_dict()
    assert "hada_t1" in tensors
    agree(base, module, saved(tensors, tmp_path))


def test_a_rank_stabilised_scale_is_in_the_alpha_that_lycoris_saves(tmp_path: Path) -> None:
    base = linear()
    module = randomise(LohaModule("x", base, lora_dim=4, alpha=2, rs_lora=True))
    agree(base, module, saved(module.state_dict(), tmp_path))


@pytest.mark.parametrize("effective_conv", [False, True])
@pytest.mark.parametrize("layer", [linear, conv3x3])
def test_it_changes_the_weight_as_peft_does(
    layer: Callable[[], nn.Module], effective_conv: bool, tmp_path: Path
) -> None:
    config = peft.LoHaConfig(r=4, alpha=4, target_modules=["0"], use_effective_conv2d=effective_conv)
    agree_with_peft(layer(), config, tmp_path)


def test_a_scale_of_its_own_goes_before_alpha_over_rank() -> None:
    adapter = made("loha", factors(), alpha=6.0, scale=0.25)
    assert (adapter.rank, adapter.alpha, adapter.scale) == (3, 6.0, 0.25)
    assert made("loha", factors(), alpha=6.0).scale == 2.0


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_rank_zero_changes_nothing(alpha: float | None) -> None:
    adapter = made("loha", factors(rank=0), alpha=alpha)
    assert torch.equal(adapter.delta(rand(7, 5)), torch.zeros(7, 5))


def test_a_kernel_stored_flat_fits_the_convolution() -> None:
    adapter = made("loha", factors(shape=(6, 36)))
    assert adapter.misfit(torch.Size((6, 4, 3, 3))) is None
    assert adapter.misfit(torch.Size((6, 36))) is None
    assert adapter.misfit(torch.Size((6, 35))) == "made for (6, 36), the weight is (6, 35)"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_computed_in_the_precision_of_the_sum(dtype: torch.dtype) -> None:
    tensors = factors()
    adapter = made("loha", tensors)
    w1a, w1b, w2a, w2b = (tensor.double() for tensor in tensors.values())
    exact = (w1a @ w1b) * (w2a @ w2b)
    delta = adapter.delta(rand(7, 5, dtype=dtype))
    assert delta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (delta - exact).abs().max() < (1e-14 if dtype == torch.float64 else 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter.delta(rand(7, 5, dtype=dtype)), delta)
    assert adapter.factors() is None
    assert not adapter.base_dependent


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"w2_b": None}, "w1_a and w1_b and w2_a without w2_b"),
        ({"t1": (3, 3, 3, 3)}, "w1_a and w1_b and w2_a and w2_b and t1 without t2"),
        ({"w1_b": (4, 5)}, "the factors do not fit together: w1_a (7, 3), w1_b (4, 5), w2_a (7, 3), w2_b (3, 5)"),
        ({"w1_b": (3,)}, "the factors do not fit together: w1_a (7, 3), w1_b (3,), w2_a (7, 3), w2_b (3, 5)"),
        ({"w2_b": (3, 6)}, "the two products differ in shape: w1_a (7, 3), w1_b (3, 5), w2_a (7, 3), w2_b (3, 6)"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(changes: dict[str, tuple[int, ...] | None], reason: str) -> None:
    tensors = factors()
    for role, shape in changes.items():
        if shape is None:
            del tensors[role]
        else:
            tensors[role] = torch.zeros(shape)
    with pytest.raises(ValueError) as caught:
        made("loha", tensors)
    assert str(caught.value) == reason
