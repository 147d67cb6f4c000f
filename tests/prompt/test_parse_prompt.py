"""What a prompt means: the WebUI's reading of good tags, and one by one what becomes of odd ones."""

import re

import pytest

from lora_runtime.errors import LoraError, TagSyntaxError
from lora_runtime.prompt import LoraTag, OtherTag, Prompt, parse_prompt

Meaning = tuple[str, float, float, int | None]


def meanings(prompt: Prompt) -> list[Meaning]:
    return [(tag.name, tag.te, tag.unet, tag.dyn) for tag in prompt.tags]


def findings(source: str) -> list[tuple[str, str]]:
    """Return the severity of each diagnostic and the text under its carets."""
    return [(d.severity, source[slice(*d.span)]) for d in parse_prompt(source).diagnostics]


@pytest.mark.parametrize(
    ("source", "meaning"),
    [
        ("<lora:x>", ("x", 1.0, 1.0, None)),
        ("<lora:x:0.7>", ("x", 0.7, 0.7, None)),
        ("<lora:x:0.5:0.9>", ("x", 0.5, 0.9, None)),
        ("<lora:x:0.5:0.9:8>", ("x", 0.5, 0.9, 8)),
        ("<lora:x:te=0.5>", ("x", 0.5, 0.5, None)),
        ("<lora:x:unet=0.5>", ("x", 1.0, 0.5, None)),
        ("<lora:x:dyn=256>", ("x", 1.0, 1.0, 256)),
        ("<lora:x:te=0:unet=1:dyn=256>", ("x", 0.0, 1.0, 256)),
        ("<lora:x:dyn=256:unet=1:te=0>", ("x", 0.0, 1.0, 256)),
        ("<lora:x:0.2:0.3:4:te=0.5>", ("x", 0.5, 0.3, 4)),
        ("<lora:x:0.2:te=0.5>", ("x", 0.5, 0.5, None)),
        ("<lora:x:0.2:unet=0.5>", ("x", 0.2, 0.5, None)),
        ("<lora:te=0.5:x>", ("x", 0.5, 0.5, None)),
        ("<lora:unet=0:x:0.2:dyn=3>", ("x", 0.2, 0.0, 3)),
        ("<lyco:x:0.7>", ("x", 0.7, 0.7, None)),
        ("<lora:x:0>", ("x", 0.0, 0.0, None)),
        ("<lora:x:.5>", ("x", 0.5, 0.5, None)),
        ("<lora:x:-1>", ("x", -1.0, -1.0, None)),
        ("<lora:x:+0.5>", ("x", 0.5, 0.5, None)),
        ("<lora:x:1e-3>", ("x", 0.001, 0.001, None)),
        ("<lora:x: 0.5 >", ("x", 0.5, 0.5, None)),
        ("<lora:x:１>", ("x", 1.0, 1.0, None)),
        ("<lora:my style, v2 (best) [x] 猫🐱/sub.dir#1:1>", ("my style, v2 (best) [x] 猫🐱/sub.dir#1", 1.0, 1.0, None)),
        ("<lora:a=b=c:0.5>", ("a=b=c", 0.5, 0.5, None)),
        ("<lora:te=1=2:0.5>", ("te=1=2", 0.5, 0.5, None)),
        ("<lora:two\nlines:0.5>", ("two\nlines", 0.5, 0.5, None)),
    ],
)
def test_a_good_tag_means_what_it_means_in_the_webui(source: str, meaning: Meaning) -> None:
    prompt = parse_prompt(f"a {source} b")
    assert meanings(prompt) == [meaning]
    assert prompt.text == "a  b"
    assert [d for d in prompt.diagnostics if d.severity != "info"] == []


# The inputs of the table of odd inputs that circulate: what is left as text, what is applied, and what is said about
# which part. The text is always the WebUI's; the rest is better than there, where one bad field drops all tags.
ODD: dict[str, tuple[str, list[Meaning], list[tuple[str, str]]]] = {
    "<lora:x:1_0>": ("", [], [("error", "1_0")]),
    "<lora:x:nan>": ("", [], [("error", "nan")]),
    "<lora:x:inf>": ("", [], [("error", "inf")]),
    "<lora:x:1e999>": ("", [], [("error", "1e999")]),
    "<lora:x:1,0>": ("", [], [("error", "1,0")]),
    "<lora:x:>": ("", [], [("error", "")]),
    "<lora:x::0.5>": ("", [], [("error", "")]),
    "<lora:x:te=>": ("", [], [("error", "")]),
    "<lora:x: >": ("", [], [("error", " ")]),
    "<lora:x:abc><lora:y:0.5>": ("", [("y", 0.5, 0.5, None)], [("error", "abc")]),
    "<lora:x:abc:te=1>": ("", [], [("error", "abc")]),
    "<lora:x:abc:def:ghi>": ("", [], [("error", "abc"), ("error", "def"), ("error", "ghi")]),
    "<lora:x:1:1:8.0>": ("", [], [("error", "8.0")]),
    "<lora:x:dyn=1_0>": ("", [], [("error", "1_0")]),
    "<lora:x:dyn=>": ("", [], [("error", "")]),
    "<lora:x:dyn=inf>": ("", [], [("error", "inf")]),
    "<lora::1>": ("", [], [("error", "")]),
    "<lora: :1>": ("", [], [("error", " ")]),
    "<lora:te=1>": ("", [], [("error", "")]),
    "<lora:>": ("<lora:>", [], [("warning", "<lora:>")]),
    "<lora>": ("<lora>", [], [("warning", "<lora>")]),
    "< lora:x:1>": ("< lora:x:1>", [], [("warning", "< lora:x:1>")]),
    "<lora :x:1>": ("<lora :x:1>", [], [("warning", "<lora :x:1>")]),
    "<LyCo x:1>": ("<LyCo x:1>", [], [("warning", "<LyCo x:1>")]),
    "<Lora:x:0.5>": ("", [("x", 0.5, 0.5, None)], [("info", "Lora")]),
    "<LoRA:x:0.5>": ("", [("x", 0.5, 0.5, None)], [("info", "LoRA")]),
    "<lora:x:1 and a cat <lora:y:1> mat": (" mat", [("y", 1.0, 1.0, None)], [("error", "")]),
    "<lora:x and a cat <lora:y:1> mat": (" mat", [("y", 1.0, 1.0, None)], [("error", "")]),
    "<lora:x:1 <lora:y:1 <lyco:z:1>": ("", [("z", 1.0, 1.0, None)], [("error", ""), ("error", "")]),
    "<lora:x:1 and <b>cat</b>": ("cat</b>", [], [("error", "")]),
    "<lora:x:1 <lora:>": ("", [], [("error", ""), ("warning", "<lora:>")]),
    "<foo:bar <lora:y:1>": ("", [("y", 1.0, 1.0, None)], [("warning", "<foo:bar <lora:y:1>")]),
    "<foo:bar < lora:y>": ("", [], [("warning", "<foo:bar < lora:y>"), ("warning", "< lora:y>")]),
    "<lora:a<b:1>": ("", [("a<b", 1.0, 1.0, None)], [("warning", "a<b")]),
    "cat <lora:x:1": ("cat <lora:x:1", [], [("error", "")]),
    "cat < lora:x:1": ("cat < lora:x:1", [], [("error", "")]),
    "cat <lora": ("cat <lora", [], []),
    "<lora:a>b:1>": ("b:1>", [("a", 1.0, 1.0, None)], []),
    "<lora:a:b:1>": ("", [], [("error", "b")]),
    "<lora:na=me:0.5>": ("", [("na=me", 0.5, 0.5, None)], [("warning", "na=me")]),
    "<lora:=x:0.5>": ("", [("=x", 0.5, 0.5, None)], [("warning", "=x")]),
    "<lora: x :0.5>": ("", [("x", 0.5, 0.5, None)], [("info", " x ")]),
    "<lora:x: te =0.5>": ("", [("x", 0.5, 0.5, None)], [("info", " te =0.5")]),
    "\\<lora:x:1>": ("\\", [("x", 1.0, 1.0, None)], [("info", "\\")]),
    "<lora:x:<lora:y:1>:1>": (":1>", [("y", 1.0, 1.0, None)], [("error", "")]),
    "(cat <lora:x:0.5>:1.2)": ("(cat :1.2)", [("x", 0.5, 0.5, None)], []),
    "[<lora:x:0.5>::10]": ("[::10]", [("x", 0.5, 0.5, None)], [("info", "<lora:x:0.5>")]),
    "A BREAK <lora:x:1> B": ("A BREAK  B", [("x", 1.0, 1.0, None)], []),
    "<lora:x:1><lora:x:.5>": ("", [("x", 1.0, 1.0, None), ("x", 0.5, 0.5, None)], [("info", "<lora:x:.5>")]),
    "<lora:x:0.5:0.9>": ("", [("x", 0.5, 0.9, None)], [("info", "0.5:0.9")]),
    "<lora:x:0.5:0.50>": ("", [("x", 0.5, 0.5, None)], []),
    "<lora:x:0.5:0.9:unet=1>": ("", [("x", 0.5, 1.0, None)], []),
    "<lora:x:0.5:lbv=OUTD>": ("", [("x", 0.5, 0.5, None)], [("warning", "lbv=OUTD")]),
    "<lora:x:TE=0.5>": ("", [("x", 1.0, 1.0, None)], [("warning", "TE=0.5")]),
    "<lora:x:te=1:te=2>": ("", [("x", 2.0, 2.0, None)], [("warning", "1")]),
    "<lora:x:1:1:4:5>": ("", [("x", 1.0, 1.0, 4)], [("warning", "5")]),
    "<lora:x:1:1:4:5:six:>": ("", [("x", 1.0, 1.0, 4)], [("warning", "5:six:")]),
    "<lora:x:0@0,1@>": ("", [], [("error", "1@")]),
    "a <hypernet:h:1> b": ("a  b", [], [("info", "<hypernet:h:1>")]),
    "a <lroa:x:1> b": ("a  b", [], [("warning", "<lroa:x:1>")]),
    "a < b and b > c": ("a < b and b > c", [], []),
    "<flora of the lake>": ("<flora of the lake>", [], []),
}


@pytest.mark.parametrize("source", ODD)
def test_an_odd_input_costs_no_more_than_it_must(source: str) -> None:
    text, tags, said = ODD[source]
    prompt = parse_prompt(source)
    assert prompt.text == text == re.sub(r"<(\w+):([^>]+)>", "", source)
    assert meanings(prompt) == tags
    assert findings(source) == said


@pytest.mark.parametrize(
    ("source", "before"),
    [
        ("<lora:x:1 and a cat <lora:y:1> mat", "<lora:x:1"),
        ("<lora:my style:0.5 and a cat <lora:y:1>", "<lora:my style:0.5"),
        ("<lora:x and a cat <lora:y:1>", "<lora:x"),
        ("<lora:x:1, a cat <lora:y:1>", "<lora:x:1"),
        ("<lora:x:te=1:unet=2 cat <lora:y:1>", "<lora:x:te=1:unet=2"),
        ("<lora:x:1 and <b>", "<lora:x:1"),
        ("a cat <lora:x:1", "a cat <lora:x:1"),
        ("a cat <lora:x:1 on a mat", "a cat <lora:x:1"),
    ],
)
def test_a_missing_bracket_is_reported_where_it_belongs(source: str, before: str) -> None:
    assert parse_prompt(source).diagnostics[0].span == (len(before), len(before))


def test_a_tag_knows_its_place_in_code_points_and_in_utf16() -> None:
    (tag,) = parse_prompt("猫🐱<lora:🐱:1> 🐱").tags
    assert tag == LoraTag("🐱", 1.0, 1.0, None, span=(2, 12), utf16_span=(3, 14), raw="<lora:🐱:1>")


def test_a_tag_of_another_kind_is_listed() -> None:
    prompt = parse_prompt("é <hypernet:h:1:a=b>")
    assert prompt.others == (OtherTag("hypernet", "h:1:a=b", (2, 20), (2, 20), "<hypernet:h:1:a=b>"),)


def test_str_of_a_prompt_is_its_clean_text() -> None:
    assert str(parse_prompt("a <lora:x:1>cat")) == "a cat"


def test_nothing_of_the_text_is_trimmed() -> None:
    assert parse_prompt("a cat, <lora:x:1>, dog\n<lora:y:1>\n").text == "a cat, , dog\n\n"


def test_text_that_becomes_a_tag_by_taking_another_out_stays_text() -> None:
    prompt = parse_prompt("<lo<a:b>ra:x:1>")
    assert prompt.text == "<lora:x:1>"
    assert prompt.tags == ()


def test_diagnostics_stand_in_the_order_of_their_places() -> None:
    spans = [d.span for d in parse_prompt("<lora:x:a:1:b:foo=1:te=c>, < lora:y>, <lora:z").diagnostics]
    assert len(spans) == 6
    assert spans == sorted(spans)


def test_a_prompt_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        parse_prompt("a").text = "b"  # type: ignore[misc]


@pytest.mark.parametrize("thing", [None, b"a <lora:x>", ["a cat"], 3])
def test_only_a_str_is_a_prompt(thing: object) -> None:
    with pytest.raises(TypeError, match=f"a prompt is a str, not {type(thing).__name__}"):
        parse_prompt(thing)  # type: ignore[arg-type]


def test_strict_raises_at_the_first_error() -> None:
    source = "a\n<lora:w:foo=1> <lora:x:1,0> <lora:y:>"
    with pytest.raises(TagSyntaxError) as caught:
        parse_prompt(source, strict=True)
    assert isinstance(caught.value, LoraError)
    assert source[slice(*caught.value.diagnostic.span)] == "1,0"
    assert str(caught.value) == (
        'line 2, column 24: the strength "1,0" is not a number; this tag is not applied (write 1.0)'
    )


def test_strict_lets_warnings_pass() -> None:
    source = "< lora:x> <Lora:x:1:foo=1>"
    assert parse_prompt(source, strict=True) == parse_prompt(source)
