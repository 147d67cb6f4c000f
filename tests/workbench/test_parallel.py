"""Modules side by side: in order, with what goes wrong, and the threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from workbench.files import CONV_IN, TEXT, TO_K, TO_Q, delta, factors, written

from lora_runtime.lora import load_lora
from lora_runtime.workbench import merge
from lora_runtime.workbench.parallel import in_order


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items_while_two_are_made() -> None:
    met = threading.Barrier(2, timeout=30)
    inside: list[int] = []

    def work(item: int) -> tuple[int, int]:
        met.wait()  # passes only where two are at it
        inside.append(torch.get_num_threads())
        return item, threading.get_ident()

    found = [*in_order(work, range(6))]
    assert [item for item, _ in found] == [*range(6)]
    assert len({thread for _, thread in found}) == 2
    assert inside == [1] * 6


def test_what_one_raises_is_raised_and_the_rest_is_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError, match="1"):
        [*in_order(work, range(100))]
    assert len(begun) < 5


def test_alone_all_is_done_by_the_one_who_asks() -> None:
    assert {*in_order(lambda _: threading.get_ident(), range(3), alone=True)} == {threading.get_ident()}


def test_a_merge_is_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    stems = (TO_Q, TO_K, TEXT, CONV_IN)
    files = [
        written(tmp_path / f"{seed}.safetensors", {k: v for s in stems for k, v in factors(s, 3, seed=seed).items()})
        for seed in (1, 2)
    ]
    two = merge(files, tmp_path / "two.safetensors", rank=2, dtype="float32")
    torch.set_num_threads(1)
    one = merge(files, tmp_path / "one.safetensors", rank=2, dtype="float32")
    torch.set_num_threads(2)
    assert list(two.blocks) == list(one.blocks)
    a, b = load_lora(two.path), load_lora(one.path)
    assert list(a.adapters) == list(b.adapters)
    for stem in stems:
        torch.testing.assert_close(delta(a, stem), delta(b, stem), rtol=1e-6, atol=1e-7)
