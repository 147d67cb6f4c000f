"""`average`: of weights the mean, of LoRAs the mean of ΔW."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapters.judge import rand
from commands import Command
from safetensors.torch import load_file
from torch import Tensor
from workbench.files import TO_K, TO_Q, delta, factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.header import read_header
from lora_runtime.lora import load_lora
from lora_runtime.workbench import average


@pytest.fixture
def steps(tmp_path: Path) -> list[Path]:
    """Three checkpoints of a run."""
    return [
        written(
            tmp_path / f"step-{n}.safetensors",
            {"a.weight": rand(6, 4, seed=n).half(), "a.bias": rand(6, seed=n), "ids": torch.arange(3)},
        )
        for n in range(3)
    ]


def test_the_mean_is_rounded_once(steps: list[Path], tmp_path: Path) -> None:
    found = average(steps, tmp_path / "mean.safetensors")
    tensors = load_file(found.path)
    for key in ("a.weight", "a.bias"):
        own = [load_file(step)[key] for step in steps]
        exact = torch.stack([tensor.double() for tensor in own]).mean(0)
        half = exact.to(own[0].dtype)
        assert tensors[key].dtype == own[0].dtype
        # The order of three numbers in float64 is a matter of its last bit.
        torch.testing.assert_close(tensors[key], half, rtol=torch.finfo(half.dtype).eps, atol=0)
    assert torch.equal(tensors["ids"], torch.arange(3))
    assert [weight for _, weight in found.weights] == [1 / 3] * 3


def test_a_moving_average_is_that_of_its_recursion(steps: list[Path], tmp_path: Path) -> None:
    found = average(steps, tmp_path / "ema.safetensors", ema=0.8)
    mean = load_file(steps[0])["a.bias"].double()
    for step in steps[1:]:
        mean = 0.8 * mean + 0.2 * load_file(step)["a.bias"].double()
    torch.testing.assert_close(load_file(found.path)["a.bias"].double(), mean, rtol=1e-6, atol=1e-7)
    assert sum(weight for _, weight in found.weights) == pytest.approx(1)
    note = json.loads(read_header(found.path).metadata["lora_runtime.made_from"])
    assert [file["name"] for file in note["files"]] == [step.name for step in steps]


def test_of_loras_the_change_is_averaged_and_not_the_factors(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{n}.safetensors", factors(TO_Q, 4, seed=9 * n) | factors(TO_K, 2, seed=9 * n))
        for n in (1, 2)
    ]
    exact = torch.stack([delta(load_lora(path), TO_Q) for path in paths]).mean(0)
    found = average(paths, tmp_path / "mean.safetensors", rank=8)
    torch.testing.assert_close(delta(load_lora(found.path), TO_Q), exact, rtol=1e-5, atol=1e-6)
    cut = average(paths, tmp_path / "cut.safetensors")
    assert cut.outcome is not None
    assert cut.outcome.ranks == (2, 4)
    error = float((delta(load_lora(cut.path), TO_Q) - exact).square().sum())
    assert error == pytest.approx(float(torch.linalg.svdvals(exact)[4:].square().sum()), rel=1e-4)
    apart: dict[str, Tensor] = {
        side: torch.stack([load_file(path)[f"{TO_Q}.lora_{side}.weight"].double() for path in paths]).mean(0)
        for side in ("up", "down")
    }
    wrong = apart["up"] @ apart["down"] * 3 / 4
    assert float((wrong - exact).square().sum()) > 2 * error


def test_steps_of_another_run_are_told(steps: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    for tensors, reason in [
        ({"b.weight": rand(2, 2)}, "has other tensors"),
        ({"a.weight": rand(6, 5).half(), "a.bias": rand(6), "ids": torch.arange(3)}, "not of one run"),
        ({"a.weight": rand(6, 4).half(), "a.bias": rand(6), "ids": torch.arange(1, 4)}, "whole numbers that differ"),
    ]:
        with pytest.raises(LoraFileError, match=reason):
            average([steps[0], written(tmp_path / "other.safetensors", tensors)], out)
    eight = [written(tmp_path / f"8-{n}.safetensors", {"a": rand(4, 4).to(torch.float8_e4m3fn)}) for n in range(2)]
    with pytest.raises(LoraFileError, match="is stored as F8_E4M3, of which no mean can be taken"):
        average(eight, out)
    with pytest.raises(ValueError, match="at least two files"):
        average(steps[:1], out)
    with pytest.raises(ValueError, match="ema 1: give the decay"):
        average(steps, out, ema=1)
    with pytest.raises(ValueError, match="are for LoRAs"):
        average(steps, out, rank=2)
    assert not out.exists()


def test_the_command_prints_what_each_step_counts(command: Command, steps: list[Path], tmp_path: Path) -> None:
    result = command("average", *steps, "-o", tmp_path / "x.safetensors", "--ema", 0.5)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[2:] == [f"  {w:.3f}  step-{n}.safetensors" for n, w in enumerate((0.25, 0.25, 0.5))]
    found = json.loads(command("average", *steps, "-o", tmp_path / "x.safetensors", "--force", "--json").out)
    assert found["tensors"] == 3
    loras = [written(tmp_path / f"l{n}.safetensors", factors(TO_Q, seed=n)) for n in range(2)]
    assert "kept" in command("average", *loras, "-o", tmp_path / "y.safetensors").out
