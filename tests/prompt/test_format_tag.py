"""Tags and prompts back to text."""

import math
from dataclasses import replace

import pytest

from lora_runtime.prompt import (
    BlockWeights,
    Conditions,
    Curve,
    LoraTag,
    Region,
    Turn,
    Window,
    format_tag,
    parse_prompt,
    unparse,
)
from lora_runtime.prompt.block_weights import Rule
from lora_runtime.prompt.strength import Key, Position
from lora_runtime.prompt.tags import Dialect, Scope


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


CURVE = "1@0,0@1"
FIELDS = [
    CURVE,
    f"te={CURVE}:unet=0.5",
    "0.5@50%,1@10s",
    "1@14sigma,0@2sigma",
    f"{CURVE}:curve=ease-in",
    "1:hr=0.5",
    "1:hrte=0.5",
    f"1:hrunet={CURVE}",
    "1:hrte=0.25:hrunet=0.5",
    f"1:in=0.1:mid=0.2:out={CURVE}",
    "1:lbw=1,0,0.5,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,R",
    f"1:lbw=1@0;0@1{',1' * 60}",
    "1:lbw=1,0,0.5,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0:IN04-08=0.5:*attn1*=U",
    "1:NOT IN05-OUT05 *attn*=0",
    "1:start=5s",
    "1:stop=50%",
    "1:start=5s:stop=50%",
    "1:start=5s:stop=50%:step=7sigma-2sigma",
    "1:module=high",
    "1:module=low",
    "1:module=transformer_3",
    "1:mask=a dir/left.png:box=0,0,0.5,1:soft=0.1",
]


@pytest.mark.parametrize("fields", FIELDS)
def test_every_field_is_written_as_it_is_read(fields: str) -> None:
    source = f"<lora:x:{fields}>"
    (tag,) = parse_prompt(source).tags
    assert format_tag(tag) == source


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "native"])
@pytest.mark.parametrize("fields", FIELDS)
def test_a_tag_reads_the_same_in_the_dialect_that_it_is_written_in(fields: str, dialect: Dialect) -> None:
    (tag,) = parse_prompt(f"<lora:x:{fields}>").tags
    (read,) = parse_prompt(format_tag(tag, dialect=dialect), dialect=dialect).tags
    assert (read.te, read.unet, read.conditions) == (tag.te, tag.unet, tag.conditions)


def test_random_block_weights_move_to_another_name() -> None:
    (tag,) = parse_prompt("<lora:x:1:IN=R>").tags
    assert format_tag(replace(tag, name="y")) == "<lora:y:1:IN=R>"


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(when=(Turn(0, 2),)),
        Conditions(when=(Window(Position(1)), Window(Position(2)))),
        Conditions(when=(Window(None, Position(1)), Window(None, Position(2)))),
        Conditions(when=(Window(Position(0)), Window(Position(0), Position(1)), Window(Position(0), Position(1)))),
        Conditions(part=1),
        Conditions(region=Region(soft=0.5)),
        Conditions(region=Region(mask='a:"b.png')),
        Conditions(region=Region(box=(0, 0, 2, 1))),
        Conditions(expert="two words"),
        Conditions(blocks=BlockWeights((Rule("IN99", 0.5),))),
        Conditions(blocks=BlockWeights((Rule("IN04", Curve((Key(1, Position(0)), Key(0, Position(1))), "hold")),))),
    ],
)
def test_conditions_that_no_tag_can_say_are_refused(conditions: Conditions) -> None:
    curve = Curve((Key(1, Position(0)), Key(0, Position(1))), "ease")
    with pytest.raises(ValueError, match="no tag can say this"):
        format_tag(LoraTag("x", curve, curve, conditions=conditions))


def test_unparse_leaves_to_the_text_what_the_text_says() -> None:
    source = "[cat <lora:x>:0.5] [<lora:y:stop=3>|b] <lora:z>"
    prompt = parse_prompt(source, scope="edit")
    assert unparse(prompt) == "[cat <lora:x:1>:0.5] [<lora:y:1:stop=3s>|b] <lora:z:1>"
    prompt = parse_prompt("a <lora:x> AND b <lora:y>", scope="and")
    assert unparse(prompt) == "a <lora:x:1> AND b <lora:y:1>"


@pytest.mark.parametrize("scope", ["edit", "and"])
def test_unparse_refuses_a_tag_that_acts_otherwise_than_the_text_says(scope: Scope) -> None:
    prompt = parse_prompt("a AND [<lora:x>:0.5]", scope=scope)
    moved = replace(prompt.tags[0], conditions=Conditions(when=(Window(Position(3, "step")),)))
    with pytest.raises(ValueError, match='the text around "<lora:x>" says when it acts'):
        unparse(replace(prompt, tags=(moved,)))


def test_unparse_keeps_the_dialect() -> None:
    source = '<lora:"a: b":0.5:0.9>'
    assert unparse(parse_prompt(source, dialect="native")) == '<lora:"a: b":te=0.5:unet=0.9>'
    assert unparse(parse_prompt("<lora:x:0.5:0.9>", dialect="comfy")) == "<lora:x:te=0.9:unet=0.5>"
