"""The grammar files themselves: total, without collisions, loaded late."""

import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lark import Lark

from lora_runtime.prompt.grammar import split_fields, split_prompt

BODIES = st.text(st.sampled_from([*":=aé 1\n<\0🐱", "\ud800"]), max_size=30)


def test_importing_the_prompt_package_loads_neither_torch_nor_lark() -> None:
    code = "import sys, lora_runtime.prompt; sys.exit(bool({'torch', 'lark'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("text", "loads"), [("a (cat:1.2) > b < c> <b>", False), ("a <b:c> d", True)])
def test_a_prompt_loads_lark_only_where_a_tag_can_begin(text: str, loads: bool) -> None:
    code = f"import sys, lora_runtime.prompt as p; p.parse_prompt({text!r}); sys.exit('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == loads


def test_the_pieces_of_a_prompt_are_texts_and_tags_in_order() -> None:
    assert [*split_prompt("a <lora:x:1>b<c")] == [(False, 0, 2), (True, 2, 12), (False, 12, 15)]


def test_the_empty_prompt_has_no_pieces() -> None:
    assert [*split_prompt("")] == []


@given(BODIES)
def test_a_tag_splits_at_every_colon_and_nowhere_else(body: str) -> None:
    fields = split_fields(":" + body)
    assert [(":" + body)[field.start : field.end] for field in fields] == body.split(":")


@given(BODIES)
def test_a_field_has_a_key_when_it_has_exactly_one_equals_sign(body: str) -> None:
    for field, text in zip(split_fields(":" + body), body.split(":"), strict=True):
        if text.count("=") == 1:
            assert [field.key, (":" + body)[field.value_start : field.end]] == text.split("=")
        else:
            assert (field.key, field.value_start) == (None, field.start)


def test_a_long_tag_splits_like_a_short_one() -> None:
    fields = split_fields(":a=b" * 100)
    assert len(fields) == 100
    assert fields[-1] == ("a", 397, 399, 400)


@pytest.mark.skipif(find_spec("interegular") is None, reason="lark needs interegular to look for collisions")
@pytest.mark.parametrize("name", ["prompt.lark", "tag.lark", "native_prompt.lark"])
def test_lark_finds_no_collisions(name: str) -> None:
    Lark(files("lora_runtime.prompt").joinpath(name).read_text("utf-8"), parser="lalr", lexer="basic", strict=True)
