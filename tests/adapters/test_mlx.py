"""Folders that MLX-LM has saved, by its formula in float64: y = x·Wᵀ + scale · x·a·b, and DoRA around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.judge import rand
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import LoraCatalog, load_lora
from lora_runtime.errors import CorruptFileError, LoraFileError

CONFIG = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}
FACTORS = {"first.lora_a": rand(8, 2), "first.lora_b": rand(2, 12)}


class Plain(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 12)


def folder(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = CONFIG) -> Path:
    path.mkdir()
    save_file(tensors, path / "adapters.safetensors")
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def patched(tmp_path: Path) -> Tensor:
    """Return the weight with the folder "style" on it, which uses all of its keys."""
    model = Plain()
    with lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path) as applied:
        assert applied.report.loras[0].used == applied.report.loras[0].keys
        return model.first.weight.detach().double()


def adapted() -> Tensor:
    a, b = (FACTORS[f"first.lora_{role}"].double() for role in "ab")
    x = torch.eye(8, dtype=torch.float64)
    return (x @ Plain().first.weight.detach().double().T + 20.0 * (x @ a) @ b).T


def test_the_scale_is_not_divided_by_the_rank(tmp_path: Path) -> None:
    folder(tmp_path / "style", FACTORS)
    torch.testing.assert_close(patched(tmp_path), adapted(), rtol=1e-5, atol=1e-5)
    assert [entry.name for entry in LoraCatalog(tmp_path).entries] == ["style"]


def test_lengths_of_outputs_make_it_a_dora(tmp_path: Path) -> None:
    lengths = torch.rand(12) + 0.5
    folder(tmp_path / "style", FACTORS | {"first.m": lengths}, CONFIG | {"fine_tune_type": "dora"})
    expected = adapted()
    expected *= (lengths.double() / expected.norm(dim=1))[:, None]
    torch.testing.assert_close(patched(tmp_path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        (FACTORS, None, r"only the adapter_config\.json"),
        (FACTORS, CONFIG | {"lora_parameters": {}}, r"adapter_config\.json beside it cannot be read"),
        (FACTORS, CONFIG | {"lora_parameters": {"scale": "much"}}, "'much' is no number"),
        (FACTORS | {"first.lora_b": torch.ones(3, 12)}, CONFIG, "the factors are no matrices that fit together"),
        (FACTORS | {"first.lora_b": torch.ones(4, 2, 12)}, CONFIG, "the factors are no matrices that fit together"),
        (FACTORS | {"first.m": torch.ones(8)}, CONFIG, "the lengths .DoRA. are not those of the outputs"),
    ],
)
def test_what_contradicts_itself_is_named(
    tensors: dict[str, Tensor], config: dict[str, Any] | None, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(folder(tmp_path / "style", tensors, config))


def test_whole_weights_are_no_adapter(tmp_path: Path) -> None:
    path = folder(tmp_path / "style", {"first.weight": torch.ones(12, 8)}, CONFIG | {"fine_tune_type": "full"})
    with pytest.raises(LoraFileError, match="MLX's fine_tune_type full"):
        load_lora(path)
