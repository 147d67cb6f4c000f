"""Captions: which tags may change places, and how often there is none."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.train.captions import vary

TAGS = st.lists(st.text("abc xyz", min_size=1, max_size=6).map(str.strip).filter(bool), max_size=8)


@given(caption=st.text(max_size=40), seed=st.integers())
def test_a_caption_stays_as_it_is_to_the_character_where_nothing_is_asked(caption: str, seed: int) -> None:
    assert vary(caption, random.Random(seed), shuffle=False, keep_tokens=2, dropout=0.0) == caption


@given(tags=TAGS, keep=st.integers(0, 9), seed=st.integers())
def test_the_first_tags_keep_their_places_and_none_is_lost(tags: list[str], keep: int, seed: int) -> None:
    varied = vary(", ".join(tags), random.Random(seed), shuffle=True, keep_tokens=keep, dropout=0.0)
    found = varied.split(", ") if varied else []
    assert found[:keep] == tags[:keep]
    assert sorted(found) == sorted(tags)


def test_every_order_of_the_tags_comes_up() -> None:
    rng = random.Random(1)
    seen = {vary("robot, a,b ,, c", rng, shuffle=True, keep_tokens=1, dropout=0.0) for _ in range(200)}
    assert seen == {f"robot, {order}" for order in ("a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a")}


def test_captions_are_dropped_as_often_as_asked() -> None:
    rng = random.Random(2)
    said = [vary("a robot", rng, shuffle=False, keep_tokens=0, dropout=0.25) for _ in range(4000)]
    assert set(said) == {"", "a robot"}
    # Four standard deviations of 4000 draws are 110.
    assert abs(said.count("") - 1000) < 110
    assert {vary("a", rng, shuffle=True, keep_tokens=0, dropout=1.0) for _ in range(50)} == {""}
