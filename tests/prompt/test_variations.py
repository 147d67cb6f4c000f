"""The values and prompts of XYZ plots."""

from __future__ import annotations

import pytest

from lora_runtime.prompt import variations


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("ink: 0-1(+0.25)", ["0", "0.25", "0.5", "0.75", "1"]),
        ("ink: 0-1(+0.1)", ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        ("ink:1-0(-0.5)", ["1", "0.5", "0"]),
        ("ink: 0-1[3]", ["0", "0.5", "1"]),
        ("ink: 0-1[1]", ["0"]),
        ("ink: 0-2", ["0", "1", "2"]),
        ("ink: -1-1", ["-1", "0", "1"]),
        ("ink: 0.2, 0.5", ["0.2", "0.5"]),
        ("ink: -0.5", ["-0.5"]),
    ],
)
def test_a_range_is_counted_out(text: str, numbers: list[str]) -> None:
    assert variations.strengths(text) == [f"ink: {number}" for number in numbers]


def test_a_name_goes_on_until_the_next() -> None:
    assert variations.strengths("ink: 0.2, 0.5, style/wash: 1") == ["ink: 0.2", "ink: 0.5", "style/wash: 1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (": 0-1", "has no name"),
        ("ink: much", "neither a number nor a range"),
        ("ink: 0-1(-0.5)", "never arrives"),
        ("ink: 0-1(0)", "never arrives"),
        ("ink: 0-1(0.00001)", "more than 1000"),
    ],
)
def test_what_is_no_range_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        variations.strengths(text)


def same(name: str, other: str) -> bool:
    return {name, other} == {"ink", "alias of ink"}


def test_a_strength_takes_the_place_of_the_one_in_the_prompt() -> None:
    assert (
        variations.with_strength("a <lora:ink:0.5> b <lora:wash:1>", "ink: 0.75", same)
        == "a <lora:ink:0.75> b <lora:wash:1>"
    )


def test_a_strength_finds_the_lora_under_another_name() -> None:
    assert (
        variations.with_strength("a <lora:alias of ink:te=1:unet=0>", "ink: 0.5", same) == "a <lora:alias of ink:0.5>"
    )


def test_a_strength_of_the_value_that_is_there_changes_nothing() -> None:
    assert variations.with_strength("a <lora:ink:0.5>", "ink: 0.5", same) == "a <lora:ink:0.5>"


def test_a_lora_that_is_not_in_the_prompt_is_added() -> None:
    assert variations.with_strength("a", "ink: 0.5", same) == "a<lora:ink:0.5>"


def test_another_lora_takes_the_place_of_the_first() -> None:
    assert variations.with_lora("a <lora:ink:0.5> <lora:wash:1>", "oil", 1.0) == "a <lora:oil:0.5> <lora:wash:1>"
    assert variations.with_lora("a <lora:ink:0.5> b", "None", 1.0) == "a  b"
    assert variations.with_lora("a", "oil", 0.8) == "a<lora:oil:0.8>"


def test_numbers_without_a_name_are_for_all() -> None:
    assert variations.strengths("0, 0.5-1(+0.25), ink: 2") == ["0", "0.5", "0.75", "1", "ink: 2"]
    same = lambda one, other: one == other  # noqa: E731 - what a test needs
    assert variations.with_strength("a <lora:ink:1> b <lora:wash:te=1:unet=2>", "0.5", same) == (
        "a <lora:ink:0.5> b <lora:wash:0.5>"
    )
    assert variations.with_strength("a", "0.5", same) == "a"
