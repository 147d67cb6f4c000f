"""Layers with a forward pass of their own: what they do with their weight is measured, not told by their class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import lora_runtime
from lora_runtime.beside import reason_against


class Equalised(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight * 3, self.bias)


class Normalised(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, functional.normalize(self.weight, dim=1), self.bias)


class Activated(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.gelu(super().forward(inputs))


class Router(nn.Linear):
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(inputs)
        return logits, logits.topk(1)[1]


class Causal(nn.Conv1d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(functional.pad(inputs, (2, 0)))


class Residual(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


class Half(nn.Conv2d):
    """It computes in 16 bits, and is a plain convolution else."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.weight.bfloat16(), None if self.bias is None else self.bias.bfloat16()
        return self._conv_forward(inputs.bfloat16(), weight, bias).to(inputs.dtype)


def patched() -> nn.Module:
    made = nn.Linear(6, 6)
    own = made.forward
    made.forward = lambda inputs: torch.tanh(own(inputs))  # type: ignore[method-assign]
    return made


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.proj = layer

    def forward(self, inputs: Tensor) -> Tensor:
        made = self.proj(inputs)
        result: Tensor = made[0] if isinstance(made, tuple) else made
        return result


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "equalised": lambda: Equalised(6, 6),
    "normalised": lambda: Normalised(6, 6),
    "activated": lambda: Activated(6, 6),
    "router": lambda: Router(6, 6),
    "causal": lambda: Causal(6, 6, 3),
    "patched": patched,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_layer_that_does_something_else_with_its_weight_is_merged(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(OTHERS[kind]()).requires_grad_(False)
    inputs = torch.randn(2, 6, 6)
    down, up = torch.randn(2, *model.proj.weight.shape[1:]), torch.randn(6, 2, *model.proj.weight.shape[2:])
    if kind == "causal":
        up = up[..., :1].clone()
    save_file({"proj.lora_A.weight": down, "proj.lora_B.weight": up}, tmp_path / "x.safetensors")
    weight, own = model.proj.weight.data, model(inputs)
    change = (up.double().flatten(1) @ down.double().flatten(1)).view(weight.shape)
    model.proj.weight.data = (weight.double() + change).float()
    expected = model(inputs)
    model.proj.weight.data = weight
    assert not torch.allclose(expected, own, atol=1e-2)
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path, originals="beside"):
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(inputs), own)
    with lora_runtime.apply(model, "<lora:x:1@0,0.99999@1>", loras=tmp_path) as applied:
        assert "forward pass of its own" in " ".join(found.message for found in applied.diagnostics)
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)  # the first value, throughout


def test_an_offloaded_router_is_refused_with_the_reason(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, inputs = Net(Router(6, 6)).requires_grad_(False), torch.randn(2, 6)
    save_file({"proj.diff": torch.ones(6, 6)}, tmp_path / "x.safetensors")
    own = model(inputs)
    accelerate.cpu_offload(model, torch.device("cpu"))
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
        assert torch.equal(model(inputs), own)
        assert "forward pass of its own" in str(applied.report)


@pytest.mark.parametrize("layer", [Residual(6, 6), Half(4, 6, 3, stride=2, dilation=2)])
def test_a_layer_that_is_linear_in_its_weight_acts_with_what_is_beside_it(layer: nn.Module) -> None:
    assert reason_against(layer, "weight") is None


class Scaled(nn.Linear):
    gain = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.gain


def test_what_is_measured_of_one_layer_is_not_taken_for_another_with_other_settings() -> None:
    plain, scaled = Scaled(4, 4), Scaled(4, 4)
    scaled.gain = 0.5
    assert [reason_against(layer, "weight", ()) is None for layer in (plain, scaled, plain)] == [True, False, True]
