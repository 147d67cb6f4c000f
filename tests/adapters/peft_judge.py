"""What the tests of PEFT's tuners share: tiny models, folders as PEFT saves them, and a comparison with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

WRAPPER = "base_model.model."
LINEAR = ["first", "second"]
CONVOLUTIONS = ["enter", "first", "leave"]


class Plain(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


class Pictures(nn.Module):
    """A linear layer between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.first = nn.Conv2d(6, 6, 3), nn.Linear(6, 6)
        self.leave = nn.Conv2d(6, 4, 1)


class Turned(nn.Module):
    """A linear layer as GPT-2 has it: its weight is (in, out)."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        torch.manual_seed(0)
        self.first = Conv1D(12, 8)
        nn.init.normal_(self.first.bias)


def wrapped(model: nn.Module, config: Any) -> Any:
    """Return the model with an adapter of random values."""
    result: Any = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in result.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.5
    return result


def check(model: nn.Module, expected: dict[str, Tensor], loras: Path, changed: set[str] | None = None) -> None:
    """Apply the "style" in a folder, compare all weights, and take it off again; `changed`: weights unless given."""
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    applied = lora_runtime.apply(model, "<lora:style:1>", loras=loras)
    assert not applied.diagnostics
    assert applied.report.loras[0].used == applied.report.loras[0].keys
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6)
        if key in (changed or {key for key in before if not key.endswith("bias")}):
            assert not torch.allclose(weight, before[key], atol=1e-3), key
    applied.restore()
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, before[key])


def folder(
    path: Path, config: dict[str, Any] | None, tensors: dict[str, Tensor], stem: str = f"{WRAPPER}first"
) -> Path:
    """Write a folder like PEFT's by hand; the keys are the stem and a role."""
    path.mkdir()
    save_file({f"{stem}.{role}": tensor for role, tensor in tensors.items()}, path / "adapter_model.safetensors")
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
