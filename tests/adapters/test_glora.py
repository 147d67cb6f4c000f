"""GLoRA against LyCORIS's forward pass and the formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.judge import LAYERS, agree, conv3x3, linear, made, rand, randomise, saved, square
from lycoris.functional import tucker_weight_from_conv
from lycoris.modules.glora import GLoRAModule
from torch import Tensor, nn


def lycoris(layer: nn.Module, rank: int = 4, alpha: float = 2.0) -> nn.Module:
    return randomise(GLoRAModule("x", layer, lora_dim=rank, alpha=alpha))


def old_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same adapter as LyCORIS before 3.0 stored it: W₀·a2·a1 + b2·b1."""
    turned = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1", "alpha": "alpha"}
    return {key.replace(key[:2], turned[key[:2]], 1) if key != "alpha" else key: t for key, t in tensors.items()}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_it_acts_as_lycoris_does(layer: Callable[[], nn.Module], strength: float, tmp_path: Path) -> None:
    base = layer()
    module = lycoris(base)
    agree(base, module, saved(module.state_dict(), tmp_path), strength)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_old_layout_is_the_same_adapter(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    base = layer()
    module = lycoris(base)
    agree(base, module, saved(old_layout(module.state_dict()), tmp_path))


@pytest.mark.parametrize("old", [False, True])
def test_in_a_square_weight_the_rank_is_the_smaller_side(old: bool, tmp_path: Path) -> None:
    # (16, 4) and (4, 16) could be read both ways: rank 4 of a 16 × 16 weight, or rank 16 of a 4 × 4 one.
    base = square()
    module = lycoris(base)
    tensors = module.state_dict()
    lora = saved(old_layout(tensors) if old else tensors, tmp_path)
    ((adapter,),) = lora.adapters.values()
    assert adapter.rank == 4
    assert adapter.misfit(torch.Size((16, 16))) is None
    agree(base, module, lora)


def test_where_nothing_decides_the_layout_is_the_new_one(tmp_path: Path) -> None:
    base = square()
    module = lycoris(base, rank=16)
    agree(base, module, saved(module.state_dict(), tmp_path))


def test_a_core_acts_as_the_formula_says() -> None:
    # LyCORIS reads such files and has no module that makes them: its Tucker option is off for every kernel.
    a1, a2, b1, b2, bm = rand(5, 3), rand(3, 5), rand(7, 3, 1, 1), rand(3, 5, 1, 1), rand(3, 3, 3, 3)
    adapter = made("glora", {"a1": a1, "a2": a2, "b1": b1, "b2": b2, "bm": bm}, alpha=1.5)
    weight = rand(7, 5, 3, 3)
    assert adapter.misfit(weight.shape) is None
    added = tucker_weight_from_conv(b1.double(), b2.double(), bm.double())
    turned = torch.einsum("oihw,ij->ojhw", weight.double(), a1.double() @ a2.double())
    torch.testing.assert_close(adapter.delta(weight).double(), 0.5 * (turned + added), rtol=1e-5, atol=1e-5)


def test_the_whole_sum_is_scaled_by_alpha_over_rank() -> None:
    tensors = {"a1": rand(5, 2), "a2": rand(2, 5), "b1": rand(7, 2), "b2": rand(2, 5)}
    weight = rand(7, 5)
    one, half = made("glora", tensors), made("glora", tensors, alpha=1.0)
    assert (one.scale, half.scale) == (1.0, 0.5)
    torch.testing.assert_close(half.delta(weight), one.delta(weight) / 2)
    assert one.base_dependent


def test_it_is_given_the_weight_in_any_dtype() -> None:
    tensors = {"a1": rand(5, 2), "a2": rand(2, 5), "b1": rand(7, 2), "b2": rand(2, 5)}
    weight = rand(7, 5, dtype=torch.bfloat16)
    a1, a2, b1, b2 = (tensor.double() for tensor in tensors.values())
    exact = weight.double() @ a1 @ a2 + b1 @ b2
    with torch.autocast("cpu", torch.bfloat16):
        delta = made("glora", tensors).delta(weight)
    torch.testing.assert_close(delta.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_rank_zero_changes_nothing(alpha: float | None) -> None:
    tensors = {"a1": rand(5, 0), "a2": rand(0, 5), "b1": rand(7, 0), "b2": rand(0, 5)}
    assert torch.equal(made("glora", tensors, alpha=alpha).delta(rand(7, 5)), torch.zeros(7, 5))


def test_a_misfit_names_both_shapes() -> None:
    base = linear()
    adapter = made("glora", {key[:2]: tensor for key, tensor in lycoris(base).state_dict().items() if key != "alpha"})
    assert adapter.misfit(torch.Size((24, 13))) == "made for (24, 12), the weight is (24, 13)"
    flat = made("glora", {"a1": rand(108, 3), "a2": rand(3, 108), "b1": rand(24, 3), "b2": rand(3, 108)})
    reason = "made for (24, 108), the weight is (24, 12, 3, 3)"
    assert flat.misfit(conv3x3().weight.shape) == reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"a1": (5, 2), "a2": (2, 5)}, "a1 and a2 without b1 and b2"),
        ({"bm": (2, 2, 3, 3)}, "bm without a1 and a2 and b1 and b2"),
        (
            {"a1": (5, 2), "a2": (2, 5), "b1": (7, 3), "b2": (2, 5)},
            "the factors do not fit together: a1 (5, 2), a2 (2, 5), b1 (7, 3), b2 (2, 5)",
        ),
        (
            {"a1": (5,), "a2": (2, 5), "b1": (7, 2), "b2": (2, 5)},
            "the factors do not fit together: a1 (5,), a2 (2, 5), b1 (7, 2), b2 (2, 5)",
        ),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("glora", {role: torch.zeros(shape) for role, shape in shapes.items()})
    assert str(caught.value) == reason
