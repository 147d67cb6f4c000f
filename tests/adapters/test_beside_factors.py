"""What a LoRA may have beside its factors: a bias, a sparse remainder, a scale of its own."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from adapters.judge import STEM, build, linear, patched, rand, saved
from torch import Tensor, nn


def lora(**extra: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a LoRA on a weight (7, 12) and others."""
    return {"lora_up.weight": rand(7, 2), "lora_down.weight": rand(2, 12)} | extra


def remainder(indices: Tensor, values: Tensor, size: tuple[int, int] = (7, 12)) -> dict[str, Tensor]:
    return {"bias_indices": indices, "bias_values": values, "bias_size": torch.tensor(size, dtype=torch.int16)}


# ---- a bias ---------------------------------------------------------------------------------------------------------


# PEFT takes the bias for a factor that lost its shape.
@pytest.mark.filterwarnings(r"ignore:Adapter 'default'. 1 LoRA tensor.s. have invalid shape")
def test_a_bias_changes_the_layer_as_peft_does(tmp_path: Path) -> None:
    base = linear()
    model = peft.get_peft_model(
        nn.Sequential(linear()),
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"], lora_bias=True, init_lora_weights=False),
    )
    inner = model.base_model.model[0]
    inner.base_layer.load_state_dict(base.state_dict())
    inner.lora_B["default"].bias.data = rand(24)
    found = saved(peft.get_peft_model_state_dict(model), tmp_path, "")
    (adapters,) = found.adapters.values()
    assert [adapter.parameter for adapter in adapters] == ["weight", "bias"]
    mine, judged = patched(base, adapters), model.merge_and_unload()[0]
    torch.testing.assert_close(mine["weight"], judged.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine["bias"], judged.bias.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", ["lora_up.bias", "lora_B.bias", "lora_B.default.bias"])
def test_a_bias_has_the_scale_of_its_factors_and_a_key_of_its_own(key: str, tmp_path: Path) -> None:
    side = {"lora_up.bias": ("lora_up.weight", "lora_down.weight")}.get(key, ("lora_B.weight", "lora_A.weight"))
    up, down = (name.replace(".weight", ".default.weight") if "default" in key else name for name in side)
    tensors = {up: rand(7, 2), down: rand(2, 12), key: rand(7), "alpha": torch.tensor(0.5)}
    weight, bias = saved(tensors, tmp_path).adapters[STEM]
    assert (weight.scale, bias.scale, bias.algorithm) == (0.25, 0.25, "lora")
    assert bias.keys == (f"{STEM}.{key}",)
    assert f"{STEM}.{key}" not in weight.keys
    assert torch.equal(bias.delta(torch.zeros(7)), rand(7) / 4)


def test_a_bias_without_factors_or_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a bias without its factors$"):
        build("lora", {"bias": rand(7)})
    with pytest.raises(ValueError) as caught:
        build("lora", {"up": rand(7, 2), "down": rand(2, 12), "bias": rand(6)})
    assert str(caught.value) == "the bias is not as long as the up factor: bias (6,), down (2, 12), up (7, 2)"


# ---- a sparse remainder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 12), (7, 12, 1, 1), (7, 3, 2, 2)])
def test_a_remainder_is_added_to_the_product_before_its_scale(shape: tuple[int, ...], tmp_path: Path) -> None:
    # As LyCORIS writes it: what an extraction of low rank leaves, its smallest elements taken out, as int16 places.
    rest = rand(7, 12)
    rest[rest.abs() < 1] = 0
    sparse = rest.to_sparse().coalesce()
    tensors = lora(alpha=torch.tensor(1.0)) | remainder(sparse.indices().to(torch.int16), sparse.values())
    lora_file = saved(tensors, tmp_path)
    adapters = lora_file.adapters[STEM]
    assert [adapter.factors() is None for adapter in adapters] == [False, True]
    assert dict(lora_file.unused) == {}
    assert sum(len(adapter.keys) for adapter in adapters) == 6
    weight = torch.zeros(shape)
    assert [adapter.misfit(weight.shape) for adapter in adapters[1:]] == [None]
    # The remainder is stored flat, and so is a kernel; the factors here are those of a linear layer.
    exact = 0.5 * rest.double()
    torch.testing.assert_close(adapters[1].delta(weight).double(), exact.reshape(shape))


def test_values_of_the_same_place_add_up_as_in_a_sparse_tensor() -> None:
    indices, values = torch.tensor([[1, 1, 3], [2, 2, 11]]), torch.tensor([1.0, 2.0, 4.0])
    tensors = {"up": rand(7, 2), "down": rand(2, 12)} | remainder(indices, values)
    _, adapter = build("lora", tensors)
    expected = torch.sparse_coo_tensor(indices, values, (7, 12), check_invariants=True).to_dense()
    assert torch.equal(adapter.delta(torch.zeros(7, 12)), expected)


def test_places_beyond_what_int16_holds_are_read() -> None:
    # 40,000 columns: the writer's cast to int16 made 39,999 a negative number, and the size too.
    indices = torch.tensor([[0], [39_999]]).to(torch.int16)
    assert indices.min() < 0
    tensors = {"up": rand(2, 1), "down": rand(1, 40_000)} | remainder(indices, torch.tensor([3.0]))
    tensors["bias_size"] = torch.tensor([2, 40_000]).to(torch.int16)
    _, adapter = build("lora", tensors)
    delta = adapter.delta(torch.zeros(2, 40_000))
    assert (delta[0, 39_999], delta.count_nonzero()) == (3.0, 1)


def test_an_empty_remainder_changes_nothing() -> None:
    tensors = {"up": rand(7, 2), "down": rand(2, 12)}
    _, adapter = build("lora", tensors | remainder(torch.zeros(2, 0, dtype=torch.int16), torch.zeros(0)))
    assert torch.equal(adapter.delta(torch.zeros(7, 12)), torch.zeros(7, 12))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"bias_size": None}, "up and down and bias_indices and bias_values without bias_size"),
        (
            {"bias_values": torch.zeros(2)},
            "the sparse remainder is not a matrix: "
            "bias_indices (2, 1), bias_size (2,), bias_values (2,), down (2, 12), up (7, 2)",
        ),
        ({"bias_indices": torch.zeros(2, 1)}, "the places of the sparse remainder are no integers"),
        (
            {"bias_indices": torch.tensor([[7], [0]])},
            "the sparse remainder has a place outside of its own size (7, 12)",
        ),
        (
            {"bias_indices": torch.tensor([[-1], [0]])},
            "the sparse remainder has a place outside of its own size (7, 12)",
        ),
        ({"up": None, "down": None}, "a sparse remainder without its factors"),
    ],
)
def test_a_remainder_that_contradicts_itself_is_named(tensors: dict[str, Tensor | None], reason: str) -> None:
    given = {"up": rand(7, 2), "down": rand(2, 12)} | remainder(torch.tensor([[0], [0]]), torch.ones(1))
    changed = {role: tensor for role, tensor in (given | tensors).items() if tensor is not None}
    with pytest.raises(ValueError) as caught:
        build("lora", changed)
    assert str(caught.value) == reason


def test_a_remainder_of_another_weight_does_not_fit() -> None:
    tensors = {"up": rand(7, 2), "down": rand(2, 12)} | remainder(torch.tensor([[0], [0]]), torch.ones(1))
    _, adapter = build("lora", tensors)
    assert adapter.misfit(torch.Size((7, 11))) == "made for (7, 12), the weight is (7, 11)"


# ---- a scale of its own ---------------------------------------------------------------------------------------------


def test_a_scale_goes_before_alpha_over_rank(tmp_path: Path) -> None:
    lora_file = saved(lora(alpha=torch.tensor(8.0), scale=torch.tensor(0.25)), tmp_path)
    (adapter,) = lora_file.adapters[STEM]
    assert (adapter.alpha, adapter.scale) == (8.0, 0.25)
    assert set(adapter.keys) == {f"{STEM}.{key}" for key in lora(alpha=rand(1), scale=rand(1))}
    assert dict(lora_file.unused) == {}
    exact = 0.25 * (rand(7, 2).double() @ rand(2, 12).double())
    torch.testing.assert_close(adapter.delta(torch.zeros(7, 12)).double(), exact, rtol=1e-5, atol=1e-6)


def test_a_scale_must_be_one_number_beside_factors(tmp_path: Path) -> None:
    good = {"diff": rand(7, 12)}
    lora_file = saved(lora(scale=torch.ones(2)) | good, tmp_path)
    reason = "scale should be one number and has the shape (2,)"
    assert lora_file.unused == {
        f"{STEM}.lora_up.weight": reason,
        f"{STEM}.lora_down.weight": reason,
        f"{STEM}.scale": "a scale without factors",
    }
    assert [adapter.algorithm for adapter in lora_file.adapters[STEM]] == ["full"]
