"""The merged weight against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from formula import DTYPES, Dense, LowRank, assert_rounded_once, random_terms, reference

from lora_runtime.adapters import no_autocast
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
