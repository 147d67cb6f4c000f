"""LoKr against LyCORIS's forward pass, PEFT's merged weight and the formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from adapters.judge import KERNELS, LAYERS, STEM, agree, agree_with_peft, conv3x3, linear, made, rand, randomise, saved
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

# LyCORIS's options, and the tensors that they give: w1 and w2 whole, or of low rank.
FORMS = {
    "low rank w2": ({"lora_dim": 1, "alpha": 2}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "both of low rank": (
        {"lora_dim": 1, "alpha": 3, "decompose_both": True},
        {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
    ),
    "both whole": ({"lora_dim": 1, "alpha": 3, "full_matrix": True}, {"lokr_w1", "lokr_w2"}),
    "whole since the rank is large": ({"lora_dim": 64, "alpha": 3}, {"lokr_w1", "lokr_w2"}),
    "a factor of two": ({"lora_dim": 1, "alpha": 2, "factor": 2}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "unbalanced": (
        {"lora_dim": 1, "alpha": 2, "factor": 2, "unbalanced_factorization": True},
        {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_it_acts_as_lycoris_does(layer: Callable[[], nn.Module], form: str, tmp_path: Path) -> None:
    options, names = FORMS[form]
    base = layer()
    module = randomise(LokrModule("x", base, **options), 0.5)
    tensors = module.state_dict()
    assert set(tensors) == names | {"alpha"}
    agree(base, module, saved(tensors, tmp_path), 0.7)


@pytest.mark.parametrize("layer", KERNELS)
def test_a_tucker_core_acts_as_lycoris_does(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    base = layer()
    module = randomise(LokrModule("x", base, lora_dim=1, alpha=2, use_tucker=True), 0.7)
    tensors = module.state_dict()
    assert "lokr_t2" in tensors
    agree(base, module, saved(tensors, tmp_path))


@pytest.mark.parametrize("layer", [linear, conv3x3])
@pytest.mark.parametrize("decompose_both", [False, True])
def test_it_changes_the_weight_as_peft_does(
    layer: Callable[[], nn.Module], decompose_both: bool, tmp_path: Path
) -> None:
    # PEFT writes its alpha into a configuration file and divides it by the rank even where both factors are whole, so
    # only its alpha = rank says the same as a file without an alpha.
    config = peft.LoKrConfig(r=1, alpha=1, target_modules=["0"], decompose_both=decompose_both)
    agree_with_peft(layer(), config, tmp_path)


def whole() -> dict[str, Tensor]:
    return {"lokr_w1": rand(3, 2), "lokr_w2": rand(4, 5, seed=1)}


@pytest.mark.parametrize("alpha", [1.0, 16.0, 1e10])
def test_two_whole_factors_have_scale_one_whatever_the_alpha(alpha: float, tmp_path: Path) -> None:
    # 9999999827968 and the like are what trainers write to say "no scale".
    (adapter,) = saved(whole() | {"alpha": torch.tensor(alpha)}, tmp_path).adapters[STEM]
    w1, w2 = (tensor.double() for tensor in whole().values())
    assert adapter.scale == 1.0
    torch.testing.assert_close(adapter.delta(rand(12, 10)).double(), torch.kron(w1, w2), rtol=1e-5, atol=1e-6)


def test_a_scale_of_its_own_counts_even_for_whole_factors() -> None:
    assert made("lokr", {"w1": rand(3, 2), "w2": rand(4, 5)}, alpha=8.0, scale=0.5).scale == 0.5


def test_the_rank_is_that_of_the_second_factor() -> None:
    tensors = {"w1_a": rand(3, 2), "w1_b": rand(2, 2), "w2_a": rand(4, 5), "w2_b": rand(5, 6)}
    adapter = made("lokr", tensors, alpha=10.0)
    assert (adapter.rank, adapter.scale) == (5, 2.0)


def test_only_the_first_factor_of_low_rank_is_scaled_too() -> None:
    adapter = made("lokr", {"w1_a": rand(3, 2), "w1_b": rand(2, 2), "w2": rand(4, 6)}, alpha=1.0)
    assert (adapter.rank, adapter.scale) == (2, 0.5)


def test_a_kernel_may_be_flat() -> None:
    w1, w2 = rand(3, 2), rand(4, 5, 3, 3)
    shaped, flat = made("lokr", {"w1": w1, "w2": w2}), made("lokr", {"w1": w1, "w2": w2.flatten(1)})
    weight = rand(12, 10, 3, 3)
    assert shaped.misfit(weight.shape) is flat.misfit(weight.shape) is None
    expected = torch.kron(w1.double()[:, :, None, None], w2.double())
    torch.testing.assert_close(shaped.delta(weight).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(shaped.delta(weight), flat.delta(weight))


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_rank_zero_changes_nothing(alpha: float | None) -> None:
    adapter = made("lokr", {"w1": rand(3, 2), "w2_a": rand(4, 0), "w2_b": rand(0, 5)}, alpha=alpha)
    assert torch.equal(adapter.delta(rand(12, 10)), torch.zeros(12, 10))


def test_a_misfit_names_both_shapes() -> None:
    adapter = made("lokr", {"w1": rand(3, 2), "w2": rand(4, 5, 3, 3)})
    assert adapter.misfit(torch.Size((12, 10, 1, 1))) == "made for (12, 10, 3, 3), the weight is (12, 10, 1, 1)"


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"w1": (3, 2)}, "w1 without w2"),
        ({"w2_a": (4, 1), "w2_b": (1, 5)}, "w2_a and w2_b without w1"),
        ({"w1": (3, 2), "w2_a": (4, 1)}, "w1 and w2_a without w2_b"),
        (
            {"w1": (3, 2), "w2": (4, 5), "w2_a": (4, 1), "w2_b": (1, 5)},
            "w2 is there both whole and in factors: w1 (3, 2), w2 (4, 5), w2_a (4, 1), w2_b (1, 5)",
        ),
        (
            {"w1": (3, 2), "w2_a": (4, 1), "w2_b": (2, 5)},
            "the factors do not fit together: w1 (3, 2), w2_a (4, 1), w2_b (2, 5)",
        ),
        (
            {"w1": (3, 2), "w2_a": (1, 4), "w2_b": (1, 5), "t2": (2, 1, 3, 3)},
            "the factors do not fit together: t2 (2, 1, 3, 3), w1 (3, 2), w2_a (1, 4), w2_b (1, 5)",
        ),
        ({"w1": (3,), "w2": (4, 5)}, "the factors are neither matrices nor kernels: w1 (3,), w2 (4, 5)"),
        ({"w1": (3, 2, 3), "w2": (4, 5)}, "the factors are neither matrices nor kernels: w1 (3, 2, 3), w2 (4, 5)"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("lokr", {role: torch.zeros(shape) for role, shape in shapes.items()})
    assert str(caught.value) == reason
