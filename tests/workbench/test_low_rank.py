"""The algebra of factors, against dense float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lora_runtime.workbench.low_rank import (
    Product,
    Spectrum,
    concatenated,
    energy_of,
    error_of,
    significant,
    spectrum_of,
    taken_apart,
)
from lora_runtime.workbench.sizes import Limit, limit_of, shared_out, spectrum_within


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def dense(product: Product) -> Tensor:
    return product.up @ product.down


def whole(spectrum: Spectrum) -> Tensor:
    return dense(spectrum.cut(spectrum.values.numel()))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_a_sum_of_products_is_a_product_of_the_ranks_together(out: int, columns: int, first: int, second: int) -> None:
    a, b = Product(rand(out, first), rand(first, columns)), Product(rand(out, second, seed=9), rand(second, columns))
    both = concatenated([(0.7, a), (-0.4, b)])
    assert both.rank == first + second
    torch.testing.assert_close(dense(both), 0.7 * dense(a) - 0.4 * dense(b), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_a_core_has_the_singular_values_of_the_whole_matrix(out: int, columns: int, rank: int) -> None:
    product = Product(rand(out, rank), rand(rank, columns))
    found, judged = spectrum_of(product), torch.linalg.svdvals(dense(product))
    count = found.values.numel()
    torch.testing.assert_close(found.values, judged[:count], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole(found), dense(product), rtol=1e-10, atol=1e-10)
    assert found.energy == pytest.approx(float(dense(product).square().sum()), rel=1e-10)
    assert significant(found) == int(torch.linalg.matrix_rank(dense(product)))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_cut_is_the_best_of_its_rank(rank: int) -> None:
    product = Product(rand(20, 8), rand(8, 30))
    values = torch.linalg.svdvals(dense(product))
    error = (dense(spectrum_of(product).cut(rank)) - dense(product)).square().sum()
    torch.testing.assert_close(error, values[rank:].square().sum(), rtol=1e-9, atol=1e-12)


def test_a_sketch_finds_what_the_whole_decomposition_has_first() -> None:
    # Values that fall as slowly as those of noise, beside some that stand out: the hard case of a sketch.
    matrix = rand(200, 160) + 40 * rand(200, 4, seed=3) @ rand(4, 160, seed=4) / 13
    found, judged = taken_apart(matrix, 12), torch.linalg.svdvals(matrix)
    assert found.values.numel() == 12
    assert found.energy == pytest.approx(float(judged.square().sum()), rel=1e-12)
    best = float(judged[:12].square().sum())
    kept = float((found.left.mT @ matrix).square().sum())
    assert found.kept(12) == pytest.approx(kept, rel=1e-9)  # what it says of itself is measured
    assert best * 0.995 < kept <= best * (1 + 1e-12)
    exact = taken_apart(matrix, 12, exact=True)
    torch.testing.assert_close(exact.values, judged)
    assert torch.equal(taken_apart(matrix, 12).values, found.values)


def test_norms_are_those_of_the_dense_matrices() -> None:
    product = Product(rand(20, 5), rand(5, 30))
    rounded = Product(product.up.half().double(), product.down.half().double())
    assert energy_of(product) == pytest.approx(float(dense(product).square().sum()), rel=1e-12)
    lost = float((dense(rounded) - dense(product)).square().sum())
    assert lost > 0
    assert error_of(product, rounded) == pytest.approx(lost, rel=1e-9)
    assert error_of(product, product) == 0


def test_limits_choose_ranks_by_singular_values() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    energy = float(values.square().sum())  # 21.25
    assert Limit().of(values, energy) == 4
    assert Limit(rank=2).of(values, energy) == 2
    assert Limit(rank=9).of(values, energy) == 4
    assert [Limit(energy=e).of(values, energy) for e in (0.5, 16 / 21.25, 0.76, 0.95, 1.0)] == [1, 1, 2, 3, 4]
    assert [Limit(ratio=r).of(values, energy) for r in (1, 2, 3, 8)] == [1, 2, 2, 4]
    assert limit_of(3, 0.5, several=True) == Limit(3, 0.5)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"rank": 0}, "rank 0: give a whole number from 1"),
        ({"energy": 1.5}, "energy 1.5: give the share of ‖Δ‖² to keep, above 0 and at most 1"),
        ({"ratio": 0.5}, "ratio 0.5: give a number from 1, the greatest singular value by the least to keep"),
        ({"rank": 1, "energy": 0.5}, "rank and energy exclude each other: give one"),
    ],
)
def test_limits_out_of_range_are_refused(given_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        limit_of(**given_)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_sketches_grow_until_they_have_the_energy(energy: float) -> None:
    left, right = torch.linalg.qr(rand(300, 220))[0], torch.linalg.qr(rand(220, 220))[0]
    values = torch.logspace(0, -3, 220, dtype=torch.float64)
    matrix = left * values @ right
    limit = Limit(energy=energy)
    found = spectrum_within(matrix, limit)
    total = float(values.square().sum())
    wanted = limit.of(values, total) if energy < 1 else 220
    assert abs(limit.of(found.values, found.energy) - wanted) <= (0 if energy < 0.999 else 1)


def test_bytes_go_where_they_keep_most() -> None:
    spectra = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 1.9]), "c": torch.tensor([0.1, 0.0])}
    costs = {"a": 10, "b": 20, "c": 1}
    # Energy a byte: a 0.9 and 0.1, b 0.2 and 0.18, c 0.01 and nothing.
    assert shared_out(spectra, costs, 9) == {"a": 0, "b": 0, "c": 1}
    assert shared_out(spectra, costs, 31) == {"a": 1, "b": 1, "c": 1}
    assert shared_out(spectra, costs, 1000) == {"a": 2, "b": 2, "c": 1}
