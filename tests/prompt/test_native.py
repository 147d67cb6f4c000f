"""The native dialect: quoted names and escapes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.prompt import LoraTag, Prompt, Region, format_tag, parse_prompt, unparse
from lora_runtime.prompt.grammar import split_fields, split_prompt
from lora_runtime.prompt.quotes import quoted, unquoted
from lora_runtime.prompt.tags import Conditions


def native(source: str) -> Prompt:
    return parse_prompt(source, dialect="native")


@pytest.mark.parametrize(
    ("source", "name", "unet", "text"),
    [
        ('a <lora:"my: lora":0.5> b', "my: lora", 0.5, "a  b"),
        (r"a <lora:my\: lora:0.5> b", "my: lora", 0.5, "a  b"),
        (r'<lora:a "b\"c\>" d>', 'a b"c> d', 1, ""),
        (r"<lora:a\>b:0.5>", "a>b", 0.5, ""),
        ('<lora:"a>b":0.5>', "a>b", 0.5, ""),
        (r"<lora:a\\:0.5>", "a\\", 0.5, ""),
        ('<lora:"te=1":0.5>', "te=1", 0.5, ""),
        (r"<lora:a\=b:0.5>", "a=b", 0.5, ""),
        (r"<lora:a\<lora\:b:0.5>", "a<lora:b", 0.5, ""),
        (r"\\<lora:x:0.5>", "x", 0.5, "\\\\"),
        ("<lora:x:te=0.2:unet=0.5>", "x", 0.5, ""),
    ],
)
def test_names_may_be_quoted_and_escaped(source: str, name: str, unet: float, text: str) -> None:
    prompt = native(source)
    assert [(tag.name, tag.unet) for tag in prompt.tags] == [(name, unet)]
    assert prompt.text == text
    assert [d for d in prompt.diagnostics if d.severity != "info"] == []


def test_files_may_be_quoted() -> None:
    (tag,) = native(r'<lora:x:mask="C:\\a.png":soft=0.1>').tags
    assert tag.conditions.region == Region("C:\\a.png", soft=0.1)


@pytest.mark.parametrize("source", [r"a \<lora:x:1> b", r"\<b", "a < b", r"\<lora:x", "\\"])
def test_an_escaped_tag_is_text(source: str) -> None:
    prompt = native(source)
    assert (prompt.tags, prompt.text, prompt.diagnostics) == ((), source, ())


@pytest.mark.parametrize("source", ['<lora:"x:1>', '<lora:"x:1> and "more', "<lora:x:1 and <lora:"])
def test_what_is_not_closed_is_text_and_said(source: str) -> None:
    prompt = native(source)
    assert (prompt.tags, prompt.text) == ((), source)
    assert prompt.diagnostics[0].severity in ("warning", "error")


def test_a_quote_that_is_not_closed_is_said() -> None:
    (diagnostic,) = native('a <lora:"x:1>').diagnostics
    assert diagnostic.message == r'"<lora:"x:1>" is not a tag: a quote or an escape in it is not closed'


def test_a_tag_that_is_not_closed_costs_only_itself() -> None:
    prompt = native("<lora:x:1 and a cat <lora:y:1> mat")
    assert prompt.text == "<lora:x:1 and a cat  mat"
    assert [tag.name for tag in prompt.tags] == ["y"]


CHARACTERS = st.sampled_from([*'<lora:x">\\=1 \n🐱'])
PROMPTS = st.lists(CHARACTERS | st.sampled_from(["<lora:", '":', '">', "\\<"]), max_size=30).map("".join)
# Written out anew: outside of tags an escape is two characters of text.
TAG = re.compile(r'(\\.)|<(\w+):((?:\\.|"(?:[^"\\<]|\\.)*"|[^<>"\\])+)>', re.DOTALL)


@given(PROMPTS)
def test_any_text_is_split_into_tags_and_the_rest(source: str) -> None:
    pieces = [*split_prompt(source, "native")]
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces)][: len(pieces)]
    assert "".join(source[piece.start : piece.end] for piece in pieces) == source
    tags = [source[piece.start : piece.end] for piece in pieces if piece.is_tag]
    assert tags == [match[0] for match in TAG.finditer(source) if match[1] is None]


@given(st.lists(st.sampled_from([*':="a\\1 ']), max_size=20).map("".join))
def test_fields_part_at_colons_outside_of_quotes(body: str) -> None:
    fields = split_fields(":" + body, "native")
    outside = re.sub(r'\\.|"(?:[^"\\]|\\.)*"', lambda match: "x" * len(match[0]), body, flags=re.DOTALL)
    assert [field.end - field.start for field in fields] == [len(part) for part in outside.split(":")]


@given(PROMPTS)
def test_unparse_gives_text_that_reads_the_same(source: str) -> None:
    prompt = native(source)
    again = native(unparse(prompt))
    assert again.text == prompt.text
    assert [(tag.name, tag.te, tag.unet) for tag in again.tags] == [(tag.name, tag.te, tag.unet) for tag in prompt.tags]


@given(st.text(min_size=1).filter(lambda name: name.strip() != ""))
def test_every_name_can_be_written(name: str) -> None:
    tag = LoraTag(name, 0.5, 1.0, conditions=Conditions(region=Region(mask=name)))
    (read,) = native(format_tag(tag, dialect="native")).tags
    assert (read.name, read.conditions) == (name, tag.conditions)
    assert unquoted(quoted(name)) == name
