"""What the workbench takes of memory, measured by the kernel: a process of its own for each verb."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workbench.files import written

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

ROWS, COLUMNS = 4096, 8192
LARGEST = ROWS * COLUMNS * 2  # bytes, in half precision
MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{}"
STEM = "lora_unet_" + MODULE.replace(".", "_")
PROGRAM = """
import torch
from lora_runtime.workbench import average, bake, extract, merge

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

torch.linalg.svd(torch.randn(256, 256, dtype=torch.float64) @ torch.randn(256, 256, dtype=torch.float64))
before = peak()
{call}
print(peak() - before)
"""


def taken(call: str) -> int:
    """Return by how many bytes a call raises the peak of a process that has loaded all it needs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM.replace("{call}", call)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout.split()[-1])


def model(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(ROWS, 64, generator=generator).half()
    return written(path, {f"{MODULE.format(name)}.weight": drawn.repeat(1, COLUMNS // 64) for name in "qk"})


@pytest.mark.slow
def test_extracting_takes_four_times_the_largest_tensor_at_most(tmp_path: Path) -> None:
    tuned, base = model(tmp_path / "tuned.safetensors", 1), model(tmp_path / "base.safetensors", 2)
    factors = 2 * 8 * (ROWS + COLUMNS) * 2
    out = tmp_path / "out.safetensors"
    assert taken(f"extract({str(tuned)!r}, {str(base)!r}, {str(out)!r}, rank=8)") < 4 * LARGEST + factors


@pytest.mark.slow
def test_baking_takes_four_times_the_largest_tensor_at_most(tmp_path: Path) -> None:
    source = model(tmp_path / "model.safetensors", 1)
    tensors = {
        f"{STEM.format('q')}.lora_up.weight": torch.ones(ROWS, 4).half(),
        f"{STEM.format('q')}.lora_down.weight": torch.ones(4, COLUMNS).half(),
        f"{STEM.format('q')}.alpha": torch.tensor(0.01),
    }
    lora = written(tmp_path / "ink.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    assert taken(f"bake({str(source)!r}, [{str(lora)!r}], {str(out)!r})") < 4 * LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["", ", rank=32"])
def test_merging_never_has_a_change_as_a_whole(cut: str, tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for stem in map(STEM.format, "qk"):
            tensors[f"{stem}.lora_up.weight"] = torch.randn(ROWS, 32, generator=generator).half()
            tensors[f"{stem}.lora_down.weight"] = torch.randn(32, COLUMNS, generator=generator).half()
        files.append(str(written(tmp_path / f"{seed}.safetensors", tensors)))
    call = f"merge({files!r}, {str(tmp_path / 'out.safetensors')!r}{cut})"
    assert taken(call) < LARGEST  # of one of the two modules, in half precision


@pytest.mark.slow
def test_averaging_takes_four_times_the_largest_tensor_at_most(tmp_path: Path) -> None:
    steps = [str(model(tmp_path / f"{seed}.safetensors", seed)) for seed in range(3)]
    assert taken(f"average({steps!r}, {str(tmp_path / 'out.safetensors')!r})") < 4 * LARGEST
