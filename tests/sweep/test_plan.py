"""Rows to batches and batches to workers: what may be in one, how often files change, and who paints what."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.sweep.dispatch import Dispatch
from lora_runtime.sweep.plan import Batch, make_batches, shares
from lora_runtime.sweep.rows import Row, read_row


def names(row: Row) -> list[str]:
    return [tag.name for tag in row.tags]


def row(key: str, prompt: str = "a", **columns: object) -> Row:
    return read_row({"name": key, "prompt": prompt, **columns})


def loads(batches: list[Batch], most: int) -> int:
    """Return how many files are read by whoever keeps the `most` files that were used last."""
    kept: list[str] = []
    read = 0
    for batch in batches:
        for name in sorted(batch.files):
            read += name not in kept
            kept = [name, *(other for other in kept if other != name)][: max(most, len(batch.files))]
    return read


rows_strategy = st.lists(
    st.tuples(
        st.sampled_from(["", "<lora:a:1>", "<lora:a:0.5>", "<lora:b:1>", "<lora:a:1><lora:c:1>", "<lora:c:1>"]),
        st.sampled_from([None, 32, 64]),
        st.sampled_from([None, 4]),
        st.sampled_from(["", "bad"]),
    ),
    max_size=40,
)


@given(rows_strategy, st.integers(1, 5))
def test_each_row_is_in_one_batch_with_rows_of_its_kind(
    given: list[tuple[str, int | None, int | None, str]], size: int
) -> None:
    rows = [
        row(f"r{index}", f"x {tags}", width=width, steps=steps, negative=negative)
        for index, (tags, width, steps, negative) in enumerate(given)
    ]
    batches = make_batches(rows, size, names)
    assert Counter(each.key for batch in batches for each in batch.rows) == Counter(each.key for each in rows)
    for batch in batches:
        assert 1 <= len(batch.rows) <= size
        assert len({(each.width, each.height, each.steps, each.guidance_scale) for each in batch.rows}) == 1
        assert len({bool(each.negative) for each in batch.rows}) == 1
        assert batch.files == {name for each in batch.rows for name in names(each)}
    # No more batches than the rows of a kind need.
    kinds = Counter((each.width, each.steps, bool(each.negative)) for each in rows)
    assert len(batches) == sum(-(-count // size) for count in kinds.values())


def test_a_batch_of_one_kind_of_tags_comes_before_a_mixed_one() -> None:
    rows = [row(f"{tag}{index}", f"x <lora:{tag}:1>") for index in range(5) for tag in "ab"]
    sets = [sorted(each.key[0] for each in batch.rows) for batch in make_batches(rows, 4, names)]
    assert sorted(sets) == [["a", "a", "a", "a"], ["a", "b"], ["b", "b", "b", "b"]]


def test_each_file_is_read_once_where_only_the_last_ones_are_kept() -> None:
    random.seed(0)
    rows = [row(f"r{index}", f"x <lora:{random.randrange(20)}:{random.random():.2f}>") for index in range(200)]
    assert loads(make_batches(rows, 1, names), 1) == 20
    assert loads(make_batches(rows, 4, names), 4) == 20


def test_rows_that_share_a_file_follow_each_other() -> None:
    pairs = [("ink", other) for other in "abcdef"] + [("wash", other) for other in "abc"]
    random.seed(1)
    random.shuffle(pairs)
    rows = [row(f"r{index}", f"x <lora:{one}:1><lora:{other}:1>") for index, (one, other) in enumerate(pairs)]
    firsts = ["ink" if "ink" in batch.files else "wash" for batch in make_batches(rows, 1, names)]
    assert firsts == ["ink"] * 6 + ["wash"] * 3


def test_workers_get_stretches_of_the_same_cost() -> None:
    rows = [row(f"r{index}", f"x <lora:{index // 5}:1>", steps=10) for index in range(20)]
    batches = make_batches(rows, 1, names)
    found = shares(batches, 4)
    assert [len(share) for share in found] == [5, 5, 5, 5]
    assert [batch for share in found for batch in share] == batches
    assert all(len({name for batch in share for name in batch.files}) == 1 for share in found)
    dear = [*batches[:1], *(Batch((row(f"d{index}", steps=190),), frozenset()) for index in range(1))]
    assert [len(share) for share in shares(dear, 2)] == [1, 1]


def test_more_workers_than_batches_leave_some_without() -> None:
    found = shares(make_batches([row("a")], 1, names), 3)
    assert sorted(map(len, found)) == [0, 0, 1]


def batch(*keys: str) -> Batch:
    return Batch(tuple(map(row, keys)), frozenset())


def keys(found: Batch | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(each.key for each in found.rows)


def test_a_worker_paints_its_own_and_then_the_last_of_whoever_has_most() -> None:
    dispatch = Dispatch([[batch("a")], [batch("b"), batch("c"), batch("d")]])
    assert [keys(dispatch.next(worker)) for worker in (0, 0, 1, 0, 1)] == [("a",), ("d",), ("b",), ("c",), None]
    assert dispatch.empty


def test_rows_of_a_worker_that_died_are_tried_once_more_each_alone_on_another() -> None:
    dispatch = Dispatch([[batch("a", "b")], [batch("c")]])
    lost = dispatch.next(0)
    assert lost is not None
    assert dispatch.lost(0, lost) == []
    assert [keys(dispatch.next(1)) for _ in range(3)] == [("a",), ("b",), ("c",)]
    assert [each.key for each in dispatch.lost(1, batch("a"))] == ["a"]
    assert dispatch.empty


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_row_is_tried_more_than_twice_whatever_dies(workers: int) -> None:
    dispatch = Dispatch(shares([batch(f"a{n}", f"b{n}") for n in range(7)], workers))
    tried: Counter[str] = Counter()
    failed: list[str] = []
    turn = 0
    while not dispatch.empty:
        turn += 1
        found = dispatch.next(turn % workers)
        assert found is not None
        tried.update(each.key for each in found.rows)
        failed += [each.key for each in dispatch.lost(turn % workers, found)]
    assert set(tried.values()) == {2}
    assert sorted(failed) == sorted(tried)


def test_the_batches_of_a_model_follow_each_other_and_are_its_own() -> None:
    rows = [row(f"{model}{n}", f"x <lora:{n % 3}:1>", model=model) for n in range(9) for model in "abc"]
    models = [{each.model for each in batch.rows} for batch in make_batches(rows, 4, names)]
    assert models == [{"a"}] * 3 + [{"b"}] * 3 + [{"c"}] * 3


def test_a_worker_without_batches_takes_over_those_of_the_model_that_it_has() -> None:
    a, b = (Batch((row(f"{model}{n}", model=model),), frozenset()) for model, n in (("a", 0), ("b", 0)))
    rest = [Batch((row(f"{model}{n}", model=model),), frozenset()) for model, n in (("a", 1), ("b", 1), ("b", 2))]
    dispatch = Dispatch([[a], [rest[0], rest[0]], [b, rest[1], rest[2]]])
    assert dispatch.next(0) == a
    assert dispatch.next(0) == rest[0], "the longest queue has another model"
