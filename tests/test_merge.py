"""The merged weight against the formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from formula import DTYPES, Dense, LowRank, assert_rounded_once, random_terms, reference, ulp
from torch import Tensor

from lora_runtime.adapters import ALGORITHMS, Group, no_autocast
from lora_runtime.dialects import Part
from lora_runtime.merge import Term, merge_into


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("shape", [(320, 768), (77, 33), (64, 32, 3, 3), (5, 1), (48, 24, 1, 1), (12, 6, 3), (1, 4000)])
def test_a_merged_weight_is_the_float64_sum_rounded_once(
    dtype: torch.dtype, count: int, shape: tuple[int, ...]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    terms = random_terms(count, shape)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms)
    assert_rounded_once(merged, weight, terms)


def test_rounding_after_each_adapter_would_fail_the_accuracy_check() -> None:
    weight = torch.randn(320, 768, generator=torch.Generator().manual_seed(0)).bfloat16()
    terms = random_terms(3, weight.shape)
    one_by_one = weight
    for term in terms:
        exact, _ = reference(one_by_one, [term])
        one_by_one = exact.to(weight.dtype)
    with pytest.raises(AssertionError, match="of the allowed error"):
        assert_rounded_once(one_by_one, weight, terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_several_blocks_is_summed_without_seams(dtype: torch.dtype) -> None:
    weight = torch.randn(2000, 1280, generator=torch.Generator().manual_seed(1)).to(dtype)
    terms = random_terms(3, weight.shape)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms)
    assert_rounded_once(merged, weight, terms)


def test_float64_weights_are_summed_in_float64() -> None:
    weight = torch.randn(40, 50, dtype=torch.float64)
    terms = random_terms(2, weight.shape)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms)
    assert torch.allclose(merged, reference(weight, terms)[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channels_last_weight_gets_the_bits_of_the_contiguous_one_and_keeps_its_layout(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    terms = random_terms(2, weight.shape)
    last = weight.to(memory_format=torch.channels_last)
    merged = torch.empty_like(last)
    merge_into(merged, last, terms)
    assert merged.is_contiguous(memory_format=torch.channels_last)
    assert_rounded_once(merged, weight, terms)


def test_a_weight_with_gaps_between_its_elements_is_merged() -> None:
    weight = torch.randn(20, 60, generator=torch.Generator().manual_seed(3))[:, ::2]
    out = torch.zeros(30, 20).t()
    terms = random_terms(2, weight.shape)
    merge_into(out, weight, terms)
    assert_rounded_once(out, weight, terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_into_the_weight_itself_gives_the_same_bits(dtype: torch.dtype) -> None:
    weight = torch.randn(700, 1280, generator=torch.Generator().manual_seed(4)).to(dtype)
    terms = random_terms(3, weight.shape)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms)
    merge_into(weight, weight, terms)
    assert torch.equal(weight, merged)


def test_dense_and_low_rank_adapters_add_up() -> None:
    weight = torch.randn(48, 30, generator=torch.Generator().manual_seed(5)).bfloat16()
    terms = random_terms(3, weight.shape)
    as_dense = [Term(Dense(t.adapter._factors.up, t.adapter._factors.down, t.adapter.scale), t.strength) for t in terms]  # type: ignore[attr-defined]
    merged = torch.empty_like(weight)
    merge_into(merged, weight, [terms[0], *as_dense[1:]])
    assert_rounded_once(merged, weight, terms)


def test_dyn_uses_only_the_first_ranks() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(6))
    terms = [Term(t.adapter, t.strength, dyn=3) for t in random_terms(2, weight.shape)]
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms)
    assert_rounded_once(merged, weight, terms)


def test_an_adapter_of_rank_zero_changes_nothing() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(7))
    merged = torch.empty_like(weight)
    merge_into(merged, weight, [Term(LowRank(torch.zeros(40, 0), torch.zeros(0, 30)), 1.0)])
    assert torch.equal(merged, weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_caller_s_autocast_and_precision_settings_do_not_reach_the_sum(dtype: torch.dtype) -> None:
    weight = torch.randn(320, 768, generator=torch.Generator().manual_seed(8)).to(dtype)
    terms = random_terms(3, weight.shape)
    plain, inside = torch.empty_like(weight), torch.empty_like(weight)
    merge_into(plain, weight, terms)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            merge_into(inside, weight, terms)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(plain, inside)


def test_fp8_weights_are_rounded_once() -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(9)).to(torch.float8_e4m3fn)
    terms = random_terms(2, weight.shape)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms)
    total = weight.float()
    for t in terms:
        f = t.adapter._factors  # type: ignore[attr-defined]
        total = total + (t.strength * f.scale) * (f.up.float() @ f.down.float())
    assert torch.equal(merged.float(), total.to(torch.float8_e4m3fn).float())


def test_the_same_terms_give_the_same_bits_again() -> None:
    weight = torch.randn(320, 768, generator=torch.Generator().manual_seed(10)).bfloat16()
    terms = random_terms(4, weight.shape)
    first, again = torch.empty_like(weight), torch.full_like(weight, math.nan)
    merge_into(first, weight, terms)
    merge_into(again, weight, terms)
    assert torch.equal(first, again)


def test_a_device_without_autocast_needs_none() -> None:
    with no_autocast(torch.device("meta")):
        pass


# (shape of the weight, part, shape that files have, how a person adds a delta of that shape to the whole)
PARTS: list[tuple[tuple[int, ...], Part, tuple[int, ...], Callable[[Tensor, Tensor], object]]] = [
    ((36, 20), Part(0, 3), (12, 20), lambda total, delta: total[:12].add_(delta)),
    ((36, 20), Part(1, 3), (12, 20), lambda total, delta: total[12:24].add_(delta)),
    ((36, 20), Part(2, 3), (12, 20), lambda total, delta: total[24:].add_(delta)),
    ((36,), Part(1, 3), (12,), lambda total, delta: total[12:24].add_(delta)),
    ((16, 9, 3, 3), Part(inputs=4), (16, 4, 3, 3), lambda total, delta: total[:, :4].add_(delta)),
    ((20, 14), Part(transposed=True), (14, 20), lambda total, delta: total.add_(delta.t())),
    ((10, 7), Part(swapped=True), (10, 7), lambda total, delta: total.add_(torch.cat([delta[5:], delta[:5]]))),
    ((10,), Part(swapped=True), (10,), lambda total, delta: total.add_(torch.cat([delta[5:], delta[:5]]))),
]


def terms_for(part: Part, shape: tuple[int, ...], dense: bool) -> list[Term]:
    """Return two terms for a part of that shape."""
    terms = [replace(term, part=part) for term in random_terms(2, shape if len(shape) > 1 else (*shape, 1))]
    if not dense:
        return terms
    return [replace(t, adapter=Dense(*_factors(t), t.adapter.scale)) for t in terms]


def _factors(term: Term) -> tuple[Tensor, Tensor]:
    factors = term.adapter._factors  # type: ignore[attr-defined]
    return factors.up, factors.down


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("shape", "part", "seen", "add"), PARTS)
def test_a_delta_for_a_part_of_a_weight_is_added_there_with_one_rounding(
    shape: tuple[int, ...],
    part: Part,
    seen: tuple[int, ...],
    add: Callable[[Tensor, Tensor], object],
    dense: bool,
    dtype: torch.dtype,
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(11)).to(dtype)
    whole = random_terms(1, shape) if len(shape) > 1 else []
    terms = terms_for(part, seen, dense)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, [*terms[:1], *whole, *terms[1:]])
    exact, size = reference(weight, whole)
    for term in terms:
        up, down = _factors(term)
        delta = (term.strength * term.adapter.scale * (up.double() @ down.double())).reshape(seen)
        add(exact, delta)
        add(size, delta.abs())
    error = (merged.double() - exact).abs()
    assert not (error > 0.51 * ulp(exact, dtype) + 2e-6 * size).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_outside_of_a_part_keep_their_bits(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 9, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, terms_for(Part(inputs=4), (16, 4, 3, 3), dense=False))
    assert torch.equal(merged[:, 4:], weight[:, 4:])
    assert not torch.equal(merged[:, :4], weight[:, :4])


def test_dyn_uses_only_the_first_ranks_in_a_part_too() -> None:
    weight = torch.zeros(12, 5)
    term = replace(random_terms(1, (4, 5))[0], dyn=2, part=Part(2, 3))
    merged = torch.empty_like(weight)
    merge_into(merged, weight, [term])
    up, down = _factors(term)
    expected = term.strength * term.adapter.scale * (up.double()[:, :2] @ down.double()[:2])
    torch.testing.assert_close(merged[8:].double(), expected, rtol=1e-6, atol=1e-8)


def test_an_adapter_for_a_part_is_given_that_part_of_the_original_weight() -> None:
    class Doubled(LowRank):
        def factors(self) -> None:
            return None

        def delta(self, weight: Tensor) -> Tensor:
            return weight.float()

    weight = torch.randn(6, 4)
    adapter = Doubled(torch.zeros(2, 1), torch.zeros(1, 4))
    merged = torch.empty_like(weight)
    merge_into(merged, weight, [Term(adapter, 1.0, part=Part(1, 3)), Term(adapter, -0.5, part=Part(2, 3))])
    assert torch.equal(merged, torch.cat([weight[:2], 2 * weight[2:4], 0.5 * weight[4:]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_merged_like_a_weight(dtype: torch.dtype) -> None:
    bias = torch.randn(5000, generator=torch.Generator().manual_seed(12)).to(dtype)
    terms = terms_for(Part(), (5000,), dense=True)
    merged = torch.empty_like(bias)
    merge_into(merged, bias, terms)
    assert_rounded_once(merged[:, None], bias[:, None], terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [2, 6, 7])  # by one product up to 6 · 6
@pytest.mark.parametrize("shape", [(64, 48), (16, 12, 3, 3)])
def test_a_merged_hadamard_product_is_the_formula_in_float64(
    shape: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    generator, columns = torch.Generator().manual_seed(0), math.prod(shape[1:])
    # In float16 the products of these factors alone would overflow.
    sizes = {"w1_a": (shape[0], rank), "w1_b": (rank, columns), "w2_a": (shape[0], rank), "w2_b": (rank, columns)}
    tensors = {name: (torch.randn(size, generator=generator) * 300).half() for name, size in sizes.items()}
    (build,) = (algorithm.build for algorithm in ALGORITHMS if algorithm.name == "loha")
    (adapter,) = build(Group("x", tensors, ("x",), scale=1e-10))
    weight = torch.randn(shape, generator=generator).to(dtype)
    one, two = (tensors[f"w{n}_a"].double() @ tensors[f"w{n}_b"].double() for n in (1, 2))
    exact = weight.double() + 0.7e-10 * (one * two).reshape(shape)
    merged = torch.empty_like(weight)
    merge_into(merged, weight, [Term(adapter, 0.7, dyn=1)])  # whose ranks are no ranks that could be left out
    assert (merged.double() - exact).abs().max() <= 0.51 * ulp(exact.abs().max(), dtype) + 1e-5
