"""Emphasis: the runs of a prompt and their weights, as the WebUI's own documentation of its parser gives them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.prompt.emphasis import BREAK, has_emphasis, weighted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("unbalanced)", [("unbalanced)", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        ("(a:-1.5)", [("a", -1.5)]),
        ("(a:1.2.3)", [("a:1.2.3)", 1.1)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
        ("[less]", [("less", 1 / 1.1)]),
        ("", [("", 1.0)]),
    ],
)
def test_runs_and_weights(text: str, expected: list[tuple[str, float]]) -> None:
    found = weighted(text)
    assert [piece.text for piece in found] == [run for run, _ in expected]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in expected], rel=1e-12)


def test_break_stands_between_chunks() -> None:
    assert weighted("a\nBREAK  (b)") == [("a", 1.0), BREAK, ("", 1.0), ("b", 1.1)]
    assert weighted("a BREAKING b") == [("a BREAKING b", 1.0)]


@given(st.text(st.sampled_from("ab ()[]:\\.1,"), max_size=40))
def test_every_text_has_weights_and_no_letter_is_lost(text: str) -> None:
    found = weighted(text)
    assert "".join(piece.text for piece in found).count("a") == text.count("a")


@pytest.mark.parametrize("piece", ["(", "(a", "[", ")", "\\", "(a:", "(a:1)", ": "])
def test_hostile_text_ends(piece: str) -> None:
    began = time.perf_counter()
    weighted(piece * (20_000 // len(piece)))
    has_emphasis(piece * (20_000 // len(piece)))
    assert time.perf_counter() - began < 20  # it guards against what never ends


@pytest.mark.parametrize("text", ["a (word:1.2)", "((word))", "a BREAK b"])
def test_emphasis_that_is_meant(text: str) -> None:
    assert has_emphasis(text)


@pytest.mark.parametrize("text", ["a (word)", "Rembrandt (1606-1669)", "time: 12:30)", "[a]", "BREAKFAST"])
def test_brackets_that_may_be_words(text: str) -> None:
    assert not has_emphasis(text)
