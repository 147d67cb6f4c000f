"""What holds for every prompt."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.prompt import Conditions, LoraTag, OtherTag, Prompt, Strength, format_tag, parse_prompt, unparse
from lora_runtime.prompt.tags import Dialect, Scope

WORDS = """
    < > : = <lora: <lyco: <LoRA: lora <hypernet: <_: <é: <1: te= unet= dyn= foo= x 1 0.5 -.5e1 nan 1_0 1,0 8 １
    , \\ [ ](| 🐱 猫 <lora:x:1> <lyco:y> AND
    <loractl: @ ~ ; % s sigma - 0@0,1@1 1@50%,0@9s 1@9sigma,0@1sigma curve= ease hr= hrte= hrunet= in= mid= out=
    lbw= w= lbwe= OUTALL ATTNDEEPOFF IN04;attn;0 IN04-08= OUT= *attn*= NOT R U X X+1 x= start= stop= step= 1-5 25%-0.5
    was= module= high low mask= box= 0,0,.5,1 soft= ::0.5] :0.5] 1,1,1,1,1,1,1,1,1,1,1,1 [0@0,1@0.5]
"""
CODES = [" ", "\n", "\r\n", "\t", "\0", "\x1c", "\x85", "\u2028", "\ufeff", "\ud83d", "\udc31", "e\u0301", "< lora"]
FRAGMENTS = st.sampled_from([*WORDS.split(), *CODES])
CHARACTERS = st.characters(exclude_categories=())
PROMPTS = st.one_of(
    st.lists(FRAGMENTS, max_size=25).map("".join),
    st.lists(st.one_of(FRAGMENTS, CHARACTERS), max_size=25).map("".join),
    st.text(CHARACTERS),
)

NAMES = st.text(st.sampled_from("abc XYZ_-./()[],#猫🐱é0123"), min_size=1).filter(lambda name: name == name.strip())
NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(repr)


@st.composite
def good_tags(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(["lora", "lyco"]))
    positional = draw(st.lists(NUMBERS, max_size=2))
    keys = draw(st.permutations(["te", "unet", "dyn"]))[: draw(st.integers(0, 3))]
    named = [f"{key}={draw(st.integers(1, 512) if key == 'dyn' else NUMBERS)}" for key in keys]
    return f"<{kind}:{':'.join([draw(NAMES), *positional, *named])}>"


TEXTS = st.text(st.sampled_from("abc ,()[]:|\n猫🐱"))
BROKEN_WORDS = """
    <lora:x:> <lora:x:1,0> <lora::1> <lora:x:nan:2> <lora:te=1> <lora:x:1:1:x> <lora:x::::::::::> <lora:> <lora>
    <Lora::> <lora:x:1<lyco::> <_:1<lora:> <lora:x:1<b> <foo:bar>
"""
BROKEN = st.sampled_from([*BROKEN_WORDS.split(), "< lora:x>", "<lora:x:1 and <lyco: >"])


@st.composite
def full_tags(draw: st.DrawFn) -> str:
    """Return a tag with any of the fields that can be written, each as it should be."""
    number = st.sampled_from(["0", "1", "-0.5", "0.25", "1e-3"])
    place = st.sampled_from(["0", "0.5", "1", "10", "50%", "10s"])
    keys = st.lists(st.tuples(number, place).map("@".join), min_size=2, max_size=4).map(",".join)
    share = st.sampled_from(["0", "0.25", "0.5", "1"])
    shares = st.lists(st.tuples(number, share).map("@".join), min_size=2, max_size=4).map(",".join)
    strength = number | keys | shares.map("[{}]".format)
    edge = st.sampled_from(["3", "0.25", "50%", "10s", "7.5sigma"])
    ratio = strength | st.sampled_from(["R", "U", "X", "X-0.5"])
    numbers = st.sampled_from([12, 17, 20, 26, 61]).flatmap(
        lambda count: st.lists(ratio.map(lambda text: text.replace(",", ";")), min_size=count, max_size=count)
    )
    words = st.sampled_from(["IN04", "IN04-08", "OUT", "BASE", "M00", "D00-18", "S12", "IN05-OUT05", "*attn1*", "mid*"])
    fields = {
        **dict.fromkeys(["te", "unet", "hr", "hrte", "hrunet", "in", "mid", "out"], strength),
        **dict.fromkeys(["start", "stop"], edge),
        "x": number,
        "dyn": st.integers(1, 512).map(str),
        "step": st.sampled_from(["2-5", "10%-0.5", "3s-9s", "9sigma-2sigma"]),
        "lbw": st.sampled_from(["OUTALL", "FLUXALL"]) | numbers.map(",".join),
        "lbwe": st.sampled_from(["ATTNDEEPOFF", "NOT IN01;attn1 attn2;0.5", ";;R"]),
        "curve": st.sampled_from(["linear", "hold", "ease", "ease-in", "ease-out"]),
        "module": st.sampled_from(["high", "low", "unet"]),
        "mask": st.sampled_from(["a.png", "a dir/b.png"]),
        "box": st.sampled_from(["0,0,0.5,1", ".1,.2,.3,.4"]),
        "soft": st.sampled_from(["0", "0.1", "1"]),
        "was": st.sampled_from(["0.7", "te 0.5 unet 1@0,0@1"]),
        draw(st.lists(words, min_size=1, max_size=2).map(" ".join)): ratio,
    }
    named = [f"{key}={draw(fields[key])}" for key in draw(st.lists(st.sampled_from([*fields]), unique=True))]
    return f"<lora:{draw(NAMES)}:{':'.join(named) or 1}>"


def meanings(prompt: Prompt) -> list[tuple[str, Strength, Strength, int | None]]:
    return [(tag.name, tag.te, tag.unet, tag.dyn) for tag in prompt.tags]


def conditions(prompt: Prompt) -> list[Conditions]:
    return [tag.conditions for tag in prompt.tags]


def all_tags(prompt: Prompt) -> list[LoraTag | OtherTag]:
    return [*prompt.tags, *prompt.others]


def webui_meanings(source: str) -> list[tuple[str, float, float, int | None]]:
    """Return what the WebUI's documented rules make of good tags."""
    found = []
    for _, body in re.findall(r"<(\w+):([^>]+)>", source):
        items = body.split(":")
        named = dict(item.split("=") for item in items if item.count("=") == 1)
        positional = [item for item in items if item.count("=") != 1]
        te = float(named.get("te", positional[1] if len(positional) > 1 else "1.0"))
        unet = float(named.get("unet", positional[2] if len(positional) > 2 else te))
        found.append((positional[0], te, unet, int(named["dyn"]) if "dyn" in named else None))
    return found


@given(PROMPTS)
def test_the_clean_text_is_what_the_webui_leaves(source: str) -> None:
    assert parse_prompt(source).text == re.sub(r"<(\w+):([^>]+)>", "", source)


@given(PROMPTS)
def test_every_tag_stands_where_its_span_says(source: str) -> None:
    prompt = parse_prompt(source)
    for tag in all_tags(prompt):
        assert source[slice(*tag.span)] == tag.raw
        assert re.fullmatch(r"<\w+:[^>]+>", tag.raw)


@given(PROMPTS)
def test_utf16_spans_count_code_units(source: str) -> None:
    prompt = parse_prompt(source)
    for tag in all_tags(prompt):
        units = tuple(len(source[:end].encode("utf-16-le", "surrogatepass")) // 2 for end in tag.span)
        assert tag.utf16_span == units


@given(PROMPTS)
def test_every_diagnostic_lies_in_the_source_and_can_be_shown(source: str) -> None:
    for diagnostic in parse_prompt(source).diagnostics:
        start, end = diagnostic.span
        assert 0 <= start <= end <= len(source)
        for line in (diagnostic.message, diagnostic.hint):
            assert line.isprintable()
        shown = diagnostic.format(source)
        assert shown.encode("utf-8")
        assert len(shown.split("\n")) == 3 + bool(diagnostic.hint)


@given(PROMPTS)
def test_every_token_is_a_tag_or_has_a_diagnostic(source: str) -> None:
    prompt = parse_prompt(source)
    places = [tag.span for tag in all_tags(prompt)] + [d.span for d in prompt.diagnostics]
    for match in re.finditer(r"<(\w+):([^>]+)>", source):
        assert any(match.start() <= start and end <= match.end() for start, end in places)


@given(PROMPTS)
def test_unparse_gives_text_that_reads_the_same(source: str) -> None:
    prompt = parse_prompt(source)
    again = parse_prompt(unparse(prompt))
    assert again.text == prompt.text
    assert meanings(again) == meanings(prompt)
    assert conditions(again) == conditions(prompt)
    assert [other.kind for other in again.others] == [other.kind for other in prompt.others]


@given(st.lists(full_tags() | PROMPTS, max_size=3).map("".join), st.sampled_from(["edit", "and"]))
def test_unparse_keeps_every_field_and_what_the_text_around_says(source: str, scope: Scope) -> None:
    prompt = parse_prompt(source, scope=scope)
    again = parse_prompt(unparse(prompt), scope=scope)
    assert meanings(again) == meanings(prompt)
    assert conditions(again) == conditions(prompt)


@given(full_tags(), st.sampled_from(["a1111", "comfy", "native"]))
def test_a_tag_of_any_fields_reads_back_in_any_dialect(source: str, dialect: Dialect) -> None:
    prompt = parse_prompt(source, dialect=dialect)
    assert all(d.severity != "error" for d in prompt.diagnostics)
    (tag,) = prompt.tags
    again = parse_prompt(format_tag(tag, dialect=dialect), dialect=dialect)
    assert (meanings(again), conditions(again)) == (meanings(prompt), conditions(prompt))


@given(PROMPTS)
def test_unparse_changes_nothing_the_second_time(source: str) -> None:
    once = unparse(parse_prompt(source))
    assert unparse(parse_prompt(once)) == once


@given(st.lists(st.one_of(good_tags(), TEXTS)).map("".join))
def test_good_tags_mean_what_they_mean_in_the_webui(source: str) -> None:
    prompt = parse_prompt(source)
    assert meanings(prompt) == webui_meanings(source)
    assert [d for d in prompt.diagnostics if d.severity != "info"] == []


@given(st.lists(st.tuples(TEXTS, good_tags())), TEXTS, BROKEN, st.data())
def test_a_broken_tag_never_changes_the_others(
    parts: list[tuple[str, str]], last: str, broken: str, data: st.DataObject
) -> None:
    pieces = [piece for part in parts for piece in part] + [last]
    place = data.draw(st.integers(0, len(pieces)))
    source = "".join([*pieces[:place], broken, *pieces[place:]])
    assert meanings(parse_prompt(source)) == webui_meanings("".join(pieces))


@given(
    NAMES,
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(1),
)
def test_a_formatted_tag_reads_back(name: str, te: float, unet: float, dyn: int | None) -> None:
    prompt = parse_prompt(format_tag(LoraTag(name, te, unet, dyn)))
    assert meanings(prompt) == [(name, te, unet, dyn)]
    assert prompt.diagnostics == ()
