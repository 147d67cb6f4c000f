"""ABBA against its formula in float64. No library that is at hand reads these files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters.judge import STEM, made, rand, saved


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (3.0, 9 / 4)])
def test_delta_is_the_product_of_two_loras(
    kernel: tuple[int, ...], alpha: float | None, scale: float, tmp_path: Path
) -> None:
    ones = tuple(1 for _ in kernel)
    tensors = {
        "lora_up1.weight": rand(7, 2, *ones),
        "lora_down1.weight": rand(2, 5, *kernel),
        "lora_up2.weight": rand(7, 8, *ones),
        "lora_down2.weight": rand(8, 5, *kernel),
    }
    up1, down1, up2, down2 = (tensor.double().flatten(1) for tensor in tensors.values())
    given = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    (adapter,) = saved(tensors | given, tmp_path).adapters[STEM]
    weight = rand(7, 5, *kernel)
    assert (adapter.algorithm, adapter.misfit(weight.shape)) == ("abba", None)
    exact = scale * ((up1 @ down1) * (up2 @ down2)).reshape(weight.shape)
    torch.testing.assert_close(adapter.delta(weight).double(), exact, rtol=1e-5, atol=1e-5)


def test_a_scale_of_its_own_goes_first() -> None:
    tensors = {"up1": rand(7, 2), "down1": rand(2, 5), "up2": rand(7, 2), "down2": rand(2, 5)}
    adapter = made("abba", tensors, alpha=3.0, scale=0.5)
    assert (adapter.rank, adapter.alpha, adapter.scale) == (2, 3.0, 0.5)


def test_rank_zero_changes_nothing() -> None:
    tensors = {"up1": rand(7, 0), "down1": rand(0, 5), "up2": rand(7, 2), "down2": rand(2, 5)}
    assert torch.equal(made("abba", tensors, alpha=1.0).delta(rand(7, 5)), torch.zeros(7, 5))


def test_a_misfit_names_both_shapes() -> None:
    tensors = {"up1": rand(7, 2), "down1": rand(2, 5), "up2": rand(7, 2), "down2": rand(2, 5)}
    assert made("abba", tensors).misfit(torch.Size((7, 6))) == "made for (7, 5), the weight is (7, 6)"


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"up1": (7, 2), "down1": (2, 5)}, "up1 and down1 without up2 and down2"),
        (
            {"up1": (7, 2), "down1": (3, 5), "up2": (7, 2), "down2": (2, 5)},
            "the factors do not fit together: down1 (3, 5), down2 (2, 5), up1 (7, 2), up2 (7, 2)",
        ),
        (
            {"up1": (7, 2), "down1": (2, 5), "up2": (7, 2), "down2": (2, 6)},
            "the two products differ in shape: down1 (2, 5), down2 (2, 6), up1 (7, 2), up2 (7, 2)",
        ),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("abba", {role: torch.zeros(shape) for role, shape in shapes.items()})
    assert str(caught.value) == reason
