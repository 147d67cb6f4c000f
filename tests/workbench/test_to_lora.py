"""`to-lora`: any adapter as factors, the nearest there are of their rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters.judge import rand
from commands import Command
from safetensors.torch import load_file
from torch import Tensor, nn
from workbench.files import TO_Q, delta, factors, written

from benchmarks.judges import JUDGES, Judge, quiet
from lora_runtime.errors import LoraFileError
from lora_runtime.lora import load_lora
from lora_runtime.workbench import to_lora

SIZE = 128


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.name)
def test_any_algorithm_becomes_factors_that_do_the_same(judge: Judge, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(SIZE, SIZE, bias=False)
    (tmp_path / "a").mkdir()
    weight = layer.weight.detach().clone()
    with quiet():
        made = judge.make(layer, tmp_path / "a")
    if made is None:
        pytest.skip(f"this version of {judge.library} has no {judge.kind}")
    lora = load_lora(made[0])
    (stem,) = lora.adapters
    base = written(tmp_path / "base.safetensors", {("x" if stem == "lora_unet_x" else "0") + ".weight": weight})
    exact = delta(lora, stem, weight)
    outcome = to_lora(made[0], tmp_path / "all.safetensors", model=base, dtype="float32")
    found = load_lora(outcome.path)
    assert {key.rpartition(".lora_")[2] for key in load_file(outcome.path)} <= {
        "up.weight", "down.weight", "A.weight", "B.weight", f"{stem}.alpha"
    }  # fmt: skip
    assert [adapter.algorithm for adapter in found.adapters[stem]] == ["lora"]
    torch.testing.assert_close(
        delta(found, stem, weight), exact, rtol=1e-4, atol=2e-6 * float(exact.abs().max()) + 1e-7
    )
    assert outcome.kept > 1 - 1e-12
    cut = to_lora(made[0], tmp_path / "cut.safetensors", model=base, dtype="float32", rank=8, exact=True)
    values = torch.linalg.svdvals(exact).square()
    error = float((delta(load_lora(cut.path), stem, weight) - exact).square().sum())
    assert error == pytest.approx(float(values[8:].sum()), rel=1e-3, abs=1e-9 * float(values.sum()))
    assert cut.kept == pytest.approx(float(values[:8].sum() / values.sum()), rel=1e-6)


def test_a_plain_lora_stays_bit_for_bit(tmp_path: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in factors(TO_Q).items()}
    outcome = to_lora(written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors")
    found = load_file(outcome.path)
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert dict(outcome.unchanged) == {"a product of two factors already": 1}


def test_a_sketch_is_nearly_as_good_and_measured(tmp_path: Path) -> None:
    left, right = torch.linalg.qr(rand(400, 300))[0], torch.linalg.qr(rand(300, 300))[0]
    exact = left * torch.logspace(0, -2, 300) @ right
    path = written(tmp_path / "a.safetensors", {"lora_unet_x.diff": exact})
    sketch = to_lora(path, tmp_path / "b.safetensors", rank=12)
    best = to_lora(path, tmp_path / "c.safetensors", rank=12, exact=True)
    assert best.kept * 0.998 < sketch.kept <= best.kept
    error = (delta(load_lora(sketch.path), "lora_unet_x", exact.shape) - exact.double()).square().sum()
    assert 1 - sketch.kept == pytest.approx(float(error / exact.double().square().sum()), rel=1e-4)
    energy = to_lora(path, tmp_path / "d.safetensors", energy=0.9)
    shares = torch.logspace(0, -2, 300).square().cumsum(0) / torch.logspace(0, -2, 300).square().sum()
    assert energy.ranks == (int((shares < 0.9).sum()) + 1,)


def test_what_has_no_rank_stays_a_difference_and_zeros_are_left_out(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {
        f"{TO_Q}.diff": rand(12, 20),
        f"{TO_Q}.diff_b": rand(12),
        "lora_unet_norm.w_norm": rand(6),
        "lora_unet_zero.diff": torch.zeros(4, 4),
        "odd": rand(2),
    }
    outcome = to_lora(written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors")
    found = load_file(outcome.path)
    for key in (f"{TO_Q}.diff_b", "lora_unet_norm.w_norm"):
        assert torch.equal(found[key], tensors[key])
    assert set(found) == {
        f"{TO_Q}.lora_up.weight", f"{TO_Q}.lora_down.weight", f"{TO_Q}.alpha", f"{TO_Q}.diff_b", "lora_unet_norm.w_norm"
    }  # fmt: skip
    assert outcome.left_out["lora_unet_zero"] == "its change is exactly zero"
    assert outcome.left_out["odd"] == "no adapter has keys with this ending"
    assert outcome.notes == (
        "2 biases, norms and bare parameters are kept as differences, which diffusers and PEFT do not read",
    )


def test_peft_converts_its_loha_to_the_same(tmp_path: Path) -> None:
    if not hasattr(peft, "convert_to_lora"):
        pytest.skip("this version of PEFT converts nothing")
    torch.manual_seed(0)
    config = peft.LoHaConfig(r=4, alpha=2, target_modules=["0"], init_weights=False)
    model: Any = peft.get_peft_model(nn.Sequential(nn.Linear(40, 30)), config)
    model.save_pretrained(str(tmp_path / "a"))
    _, judged = peft.convert_to_lora(model, rank=5)
    up, down = (next(tensor for key, tensor in judged.items() if f"lora_{side}" in key) for side in "BA")
    outcome = to_lora(tmp_path / "a", tmp_path / "b.safetensors", rank=5)
    found = load_lora(outcome.path)
    (stem,) = found.adapters
    expected = (up.double() @ down.double()).detach()
    torch.testing.assert_close(delta(found, stem, torch.Size((30, 40))), expected, rtol=1e-3, atol=1e-4)


def test_a_size_that_only_a_model_tells_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"x.ia3_l": rand(6, 1)})
    with pytest.raises(LoraFileError, match=r"give the model that it was trained on: --model DIR or FILE \(model=…\)"):
        to_lora(path, tmp_path / "b.safetensors")


def test_the_command_prints_what_it_did(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {f"{TO_Q}.diff": rand(12, 20)})
    result = command("to-lora", path, "-o", tmp_path / "b.safetensors", "--rank", 3)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[1] == "  1 modules, rank 3"
    assert command("to-lora", path, "-o", tmp_path / "c.safetensors", "--rank", 3, "--energy", 0.5).status == 2
    found = json.loads(command("to-lora", path, "-o", tmp_path / "c.safetensors", "--json").out)
    assert (found["kept"], found["ranks"]) == (1.0, [12])
