"""Tags and prompts back to text."""

import math
from dataclasses import replace

import pytest

from lora_runtime.prompt import LoraTag, format_tag, parse_prompt, unparse


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (LoraTag("x", 0.7, 0.7), "<lora:x:0.7>"),
        (LoraTag("x", 1.0, 1.0), "<lora:x:1>"),
        (LoraTag("x", 1, 1), "<lora:x:1>"),
        (LoraTag("x", 0.5, 0.9), "<lora:x:te=0.5:unet=0.9>"),
        (LoraTag("x", 0.7, 0.7, 8), "<lora:x:0.7:dyn=8>"),
        (LoraTag("x", 0.0, -1.0, 8), "<lora:x:te=0:unet=-1:dyn=8>"),
        (LoraTag("x", 0.1 + 0.2, 0.1 + 0.2), "<lora:x:0.30000000000000004>"),
        (LoraTag("x", 1e-7, 1e-7), "<lora:x:1e-07>"),
        (LoraTag("style/ink, v2", 1.0, 1.0), "<lora:style/ink, v2:1>"),
        (LoraTag("na=me", 1.0, 1.0), "<lora:na=me:1>"),
        (LoraTag("te=1=2", 1.0, 1.0), "<lora:te=1=2:1>"),
    ],
)
def test_a_tag_is_written_in_its_shortest_plain_form(tag: LoraTag, text: str) -> None:
    assert format_tag(tag) == text


@pytest.mark.parametrize(
    "tag",
    [
        LoraTag("", 1.0, 1.0),
        LoraTag(" x", 1.0, 1.0),
        LoraTag("a:b", 1.0, 1.0),
        LoraTag("a>b", 1.0, 1.0),
        LoraTag("te=1", 1.0, 1.0),
        LoraTag("a<lora", 1.0, 1.0),
        LoraTag("x><lora:y", 1.0, 1.0),
        LoraTag("x", math.nan, math.nan),
        LoraTag("x", math.inf, 1.0),
    ],
)
def test_what_no_text_can_say_is_refused(tag: LoraTag) -> None:
    with pytest.raises(ValueError, match="no tag can say this"):
        format_tag(tag)


def test_unparse_writes_the_tags_in_their_places() -> None:
    source = "a <lyco: x :te=0.5>, <hypernet:h:1> <lora:y:0.2:0.3:4> b"
    assert unparse(parse_prompt(source)) == "a <lora:x:0.5>, <hypernet:h:1> <lora:y:te=0.2:unet=0.3:dyn=4> b"


def test_unparse_writes_changed_strengths() -> None:
    prompt = parse_prompt("a <lora:x> cat")
    changed = replace(prompt, tags=(replace(prompt.tags[0], te=0.5, unet=0.5),))
    assert unparse(changed) == "a <lora:x:0.5> cat"


def test_unparse_leaves_a_broken_tag_where_text_would_join_without_it() -> None:
    source = "<lo<lora::1>ra:x:1>"
    assert unparse(parse_prompt(source)) == source


def test_unparse_refuses_tags_that_were_taken_out() -> None:
    prompt = parse_prompt("a <lora:x> cat")
    with pytest.raises(ValueError, match="add or take out tags in the text"):
        unparse(replace(prompt, tags=()))
