"""The device, as it is after a start, for each test."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from device import pretend as source
from device.pretend import Pretend

import lora_runtime


@cache
def _started() -> Pretend:
    tiny.unet("sd1")  # what is imported for it stays: each test's collection has nothing to look for there
    gc.collect()
    gc.freeze()
    return source.start()


@pytest.fixture
def pretend() -> Iterator[Pretend]:
    """Give the device; float64 is refused, as by MPS, and what a test sets ends with it."""
    import torch

    reason = source.why_not()
    if reason is not None:
        pytest.skip(reason)
    device = _started()
    device.reset()
    device.forbid(torch.float64, torch.complex128)
    yield device
    device.reset()
    gc.collect()


@pytest.fixture
def unet(pretend: Pretend, tmp_path: Path) -> Iterator[Any]:
    """Give a tiny UNet in host memory, with the files ink and wash for it in `tmp_path`."""
    model = tiny.unet("sd1")
    for seed, name in enumerate(("ink", "wash")):
        tiny.write_kohya_lora(tmp_path / f"{name}.safetensors", model, components=("unet",), seed=seed)
    yield model
    lora_runtime.restore(model)
