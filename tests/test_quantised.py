"""Weights that are never rewritten, because they are quantised or elsewhere: low-rank adapters act beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import lora_runtime


class Packed(nn.Linear):
    """A linear layer whose weight is stored as bytes in one column, with a step, as those of 4 and 8 bits are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.step = 0.01
        values = (self.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(values.reshape(-1, 1), requires_grad=False)

    def values(self) -> Tensor:
        """Return the weight, (out, in)."""
        return self.weight.reshape(self.out_features, self.in_features).float() * self.step

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.values().to(inputs.dtype), self.bias.to(inputs.dtype))


class Offloaded(nn.Linear):
    """A linear layer whose weight comes for the time of a call, and is on the meta device otherwise."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.kept = self.weight.detach().clone()
        self.weight = nn.Parameter(torch.empty_like(self.kept, device="meta"), requires_grad=False)

    def values(self) -> Tensor:
        """Return the weight, (out, in)."""
        return self.kept

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.kept, self.bias)


class Model(nn.Module):
    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = kind(6, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.first(inputs)
        return result


UP, DOWN = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.randn(3, 6)


@pytest.mark.parametrize("kind", [Packed, Offloaded])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_acts_beside_a_weight_that_cannot_be_written(
    kind: type[Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    if kind is Offloaded and dtype != torch.float32:
        pytest.skip("this layer computes in float32")
    save_file({"first.lora_A.weight": DOWN, "first.lora_B.weight": UP}, tmp_path / "ink.safetensors")
    model, inputs = Model(kind), torch.randn(2, 5, 6).to(dtype)
    before = model(inputs)
    stored = model.first.weight
    with lora_runtime.apply(model, "<lora:ink:0.5>", loras=tmp_path) as applied:
        assert applied.report.loras[0].used == 2
        assert applied.report.live == 1
        assert "1 of them beside weights" in str(applied.report)
        assert applied.report.loras[0].dense_bytes == 0
        weight = model.first.values().double() + 0.5 * UP.double() @ DOWN.double()
        expected = functional.linear(inputs.double(), weight, model.first.bias.double())
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(model(inputs).double(), expected, rtol=8 * epsilon, atol=16 * epsilon)
        assert model.first.weight is stored
    assert torch.equal(model(inputs), before)
    assert not model.first._forward_hooks


@pytest.mark.parametrize(
    ("kind", "reason"), [(Packed, "stored as int8"), (Offloaded, "offloaded piece by piece (meta device)")]
)
def test_what_has_no_two_factors_acts_beside_too_and_the_report_says_why(
    kind: type[Any], reason: str, tmp_path: Path
) -> None:
    factors = {f"first.hada_w{i}_a": torch.randn(8, 2) for i in "12"}
    factors |= {f"first.hada_w{i}_b": torch.randn(2, 6) for i in "12"}
    save_file(factors, tmp_path / "loha.safetensors")
    model, inputs = Model(kind), torch.randn(5, 6)
    f = {key.removeprefix("first.hada_"): value.double() for key, value in factors.items()}
    delta = (f["w1_a"] @ f["w1_b"]) * (f["w2_a"] @ f["w2_b"])
    with lora_runtime.apply(model, "<lora:loha:0.5>", loras=tmp_path) as applied:
        weight = model.first.values().double() + 0.5 * delta
        expected = functional.linear(inputs.double(), weight, model.first.bias.double())
        torch.testing.assert_close(model(inputs).double(), expected, rtol=1e-5, atol=1e-5)
        assert applied.report.loras[0].beside == {reason: 1}
        assert applied.report.loras[0].merged == 0


def test_what_depends_on_the_weight_gets_the_dequantised_one(tmp_path: Path) -> None:
    length = torch.rand(8) + 0.5
    tensors = {"first.lora_A.weight": DOWN, "first.lora_B.weight": UP, "first.lora_magnitude_vector": length}
    save_file(tensors, tmp_path / "dora.safetensors")
    model, inputs = Model(Packed), torch.randn(5, 6)
    turned = model.first.values().double() + UP.double() @ DOWN.double()
    weight = turned * (length.double() / turned.norm(dim=1)).unsqueeze(1)
    with lora_runtime.apply(model, "<lora:dora>", loras=tmp_path):
        expected = functional.linear(inputs.double(), weight, model.first.bias.double())
        torch.testing.assert_close(model(inputs).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_lora_of_another_shape_is_told_from_the_layers_own_and_not_from_how_it_is_stored(tmp_path: Path) -> None:
    save_file({"first.lora_A.weight": DOWN[:, :5].clone(), "first.lora_B.weight": UP}, tmp_path / "ink.safetensors")
    applied = lora_runtime.apply(Model(Packed), "<lora:ink>", loras=tmp_path)
    assert "the weight is (8, 6)" in applied.report.loras[0].unused["first.lora_A.weight"]
