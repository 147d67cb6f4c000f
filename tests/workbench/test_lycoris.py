"""LyCORIS as a judge: a network of it on a model, its file, and the weights that its own merge makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lycoris import create_lycoris
from safetensors.torch import load_file
from torch import Tensor, nn
from workbench.files import written

from benchmarks.judges import quiet
from lora_runtime.workbench import bake, merge, to_lora

ALGORITHMS = ["lora", "loha", "lokr", "full"]


def network(algorithm: str, folder: Path, scale: float = 1.0) -> tuple[Path, Path, dict[str, Tensor]]:
    """Return a model on the disk, a file of LyCORIS for it, and its weights as LyCORIS merges the two."""
    torch.manual_seed(0)
    layers = {
        "to_q": nn.Linear(20, 12),
        "conv": nn.Conv2d(6, 8, 3),
        "proj": nn.Conv2d(6, 8, 1),
        "norm": nn.LayerNorm(8),
    }
    unet = nn.ModuleDict({"mid_block": nn.ModuleDict(layers)})
    model, file = written(folder / "model.safetensors", unet.state_dict()), folder / "a.safetensors"
    # LyCORIS multiplies alpha/rank into a LoHa twice where it merges, and once where it trains: there it is 1.
    alpha = 3 if algorithm == "loha" else 2
    sizes = {"linear_dim": 3, "linear_alpha": alpha, "conv_dim": 3, "conv_alpha": alpha}
    with quiet():
        judge = create_lycoris(unet, 1.0, algo=algorithm, **sizes)
        judge.apply_to()
        for parameter in judge.parameters():
            nn.init.normal_(parameter, std=0.3)
        judge.save_weights(str(file), torch.float32, {})
        judge.restore()
        judge.merge_to(scale)
    return model, file, unet.state_dict()


def assert_same(found: Path, judged: dict[str, Tensor], before: Path) -> None:
    weights, old = load_file(found), load_file(before)
    assert weights.keys() == judged.keys()
    for name, tensor in judged.items():
        torch.testing.assert_close(weights[name], tensor, rtol=2e-6, atol=2e-6, msg=f"{name} differs")
    changed = {name for name, tensor in judged.items() if not torch.equal(weights[name], old[name])}
    assert {f"mid_block.{name}.weight" for name in ("to_q", "conv", "proj")} <= changed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_baking_makes_what_lycoris_merges(algorithm: str, tmp_path: Path) -> None:
    model, file, judged = network(algorithm, tmp_path, 0.7)
    outcome = bake(model, [f"{file}:0.7"], tmp_path / "baked.safetensors")
    assert_same(outcome.path, judged, model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_plain_lora_of_it_does_what_lycoris_merges(algorithm: str, tmp_path: Path) -> None:
    model, file, judged = network(algorithm, tmp_path)
    plain = to_lora(file, tmp_path / "plain.safetensors", model=model)
    assert_same(bake(model, [str(plain.path)], tmp_path / "baked.safetensors").path, judged, model)
    both = merge([f"{file}:0.4", f"{file}:0.6"], tmp_path / "both.safetensors", model=model)
    assert_same(bake(model, [str(both.path)], tmp_path / "again.safetensors").path, judged, model)
