"""The kernels that multiply two factors: each against the product in float64, whatever this processor would choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_runtime import products
from lora_runtime.merge import Workspace
from lora_runtime.precision import full_precision
from lora_runtime.products import block_bytes, onednn_is_faster, product

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Choose a kernel anew in each test and after it."""
    products._onednn.cache_clear()
    yield
    products._onednn.cache_clear()


def choose(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    """Let a processor be one on which oneDNN is faster, or not."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: onednn)
    if onednn and products._onednn() is None:
        pytest.skip("this torch has no oneDNN for linear layers")


def factors(rows: int, rank: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, rank, generator=generator).to(dtype),
        torch.randn(rank, columns, generator=generator).to(dtype),
    )


def multiplied(up: Tensor, down: Tensor) -> Tensor:
    workspace = Workspace()
    return product(up, down, lambda: workspace.take("it", up.shape[0], down.shape[1], up.dtype, up.device))


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 0, 7), (1, 96, 640), (48, 1, 31), (320, 96, 768), (130, 512, 67)])
def test_it_is_the_product_to_the_last_digits(
    sizes: tuple[int, int, int], onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, onednn)
    up, down = factors(*sizes)
    exact = up.double() @ down.double()
    most = (up.double().abs() @ down.double().abs()) * sizes[1] ** 0.5 * torch.finfo(torch.float32).eps
    found = multiplied(up, down)
    assert found.dtype == torch.float32
    assert bool(((found.double() - exact).abs() <= most + 1e-30).all())
    # A block of rows, and factors that are views of larger ones.
    wide = torch.zeros(sizes[0] + 3, sizes[1] + 5)
    wide[3:, 5:] = up
    assert bool(((multiplied(wide[3:, 5:], down).double() - exact).abs() <= most + 1e-30).all())


@pytest.mark.parametrize("onednn", [False, True])
def test_the_speed_that_a_host_allows_in_float32_costs_no_digit(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, onednn)
    up, down = factors(320, 96, 768)
    plain = multiplied(up, down)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.equal(multiplied(up, down), plain)
    finally:
        torch.set_float32_matmul_precision(before)


def test_double_precision_stays_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, True)
    up, down = factors(20, 8, 30, torch.float64)
    assert torch.equal(multiplied(up, down), up @ down)


def otherwise(*given: object) -> Tensor:
    """Be another function of this name."""
    raise TypeError("another signature")


def roughly(up: Tensor, down: Tensor, *given: object) -> Tensor:
    """Multiply in half precision."""
    return (up.bfloat16() @ down.bfloat16().mT).float()


@pytest.mark.parametrize("linear", [otherwise, roughly])
def test_a_torch_whose_onednn_is_another_multiplies_as_ever(linear: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, True)
    products._onednn.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=linear))
    up, down = factors(20, 8, 30)
    assert torch.equal(multiplied(up, down), up @ down)
    assert products._onednn() is None


@pytest.mark.parametrize(
    ("capability", "text", "expected"),
    [
        ("AVX512", "vendor_id\t: AuthenticAMD\n", True),
        ("AVX512", "vendor_id\t: GenuineIntel\n", False),
        ("AVX2", "vendor_id\t: AuthenticAMD\n", False),
        ("DEFAULT", "", False),
    ],
)
def test_onednn_is_for_processors_whose_avx512_mkl_leaves_unused(
    capability: str, text: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert onednn_is_faster() is expected


def test_elsewhere_than_on_linux_the_system_tells_the_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(Path, "read_text", lambda self, **_: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    assert onednn_is_faster()


def test_blocks_are_smaller_for_onednn_and_larger_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, False)
    plain = block_bytes(CPU)
    products._onednn.cache_clear()
    choose(monkeypatch, True)
    assert block_bytes(CPU) < plain < block_bytes(torch.device("cuda"))
