"""Factorisations on a device in float32, judged by those on the CPU in float64; here the device is the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from torch import Tensor
from workbench.files import CONV_IN, TO_Q, delta, factors, written

from lora_runtime.lora import load_lora
from lora_runtime.workbench import Outcome, extract, merge, resize, to_lora

VERBS: dict[str, Callable[..., Outcome]] = {"resize": resize, "merge": merge, "to_lora": to_lora, "extract": extract}


def sources(folder: Path) -> dict[str, list[Any]]:
    """Return what each verb is asked for."""
    ink = written(folder / "ink.safetensors", factors(TO_Q, 6) | factors(CONV_IN, 5))
    wash = written(folder / "wash.safetensors", factors(TO_Q, 4, seed=7) | factors(CONV_IN, 2, seed=8))
    generator = torch.Generator().manual_seed(3)
    base = {"a.weight": torch.randn(90, 120, generator=generator), "b.weight": torch.randn(80, 4, 3, 3)}
    tuned = {key: value + torch.randn(value.shape, generator=generator) * 0.1 for key, value in base.items()}
    models = [written(folder / f"{n}.safetensors", each) for n, each in (("tuned", tuned), ("base", base))]
    return {"resize": [ink], "merge": [[f"{ink}:0.7", f"{wash}:0.4"]], "to_lora": [ink], "extract": models}


def matrices(path: Path) -> dict[str, Tensor]:
    lora = load_lora(path)
    return {stem: delta(lora, stem, each[0].weight_shape) for stem, each in lora.adapters.items()}


@pytest.mark.parametrize("verb", VERBS)
def test_a_device_gives_what_the_cpu_gives_up_to_float32(verb: str, tmp_path: Path) -> None:
    asked = sources(tmp_path)[verb]
    run = VERBS[verb]
    exact = run(*asked, tmp_path / "cpu.safetensors", rank=3, dtype="float32")
    other = run(*asked, tmp_path / "device.safetensors", rank=3, dtype="float32", device="cpu")
    assert other.kept == pytest.approx(exact.kept, rel=1e-5)
    judged, found = matrices(exact.path), matrices(other.path)
    assert judged.keys() == found.keys()
    for stem, matrix in judged.items():
        assert float((found[stem] - matrix).norm()) < 1e-4 * float(matrix.norm()), stem
    assert exact.sha256 != other.sha256  # it was float32 there


@pytest.mark.parametrize("verb", VERBS)
def test_a_device_that_is_not_there_is_told_in_one_line(verb: str, command: Command, tmp_path: Path) -> None:
    flat = [each for part in sources(tmp_path)[verb] for each in (part if isinstance(part, list) else [part])]
    name = verb.replace("_", "-")
    for device in ("nonsense", "xpu"):
        result = command(name, *flat, "-o", tmp_path / "x.safetensors", "--rank", "2", "--device", device)
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert f"device {device}: cannot be used here" in result.err
    assert not (tmp_path / "x.safetensors").exists()
