"""How a diagnostic reads: the words, the place, the carets, the hint."""

import pytest

from lora_runtime.prompt import Diagnostic, parse_prompt

KEYS = (
    "arguments are te=, unet=, dyn=, hr=, hrte=, hrunet=, in=, mid=, out=, x=, lbw=, lbwe=, start=, stop=, step=, "
    "curve=, module=, mask=, box=, soft="
)


def said(source: str) -> tuple[str, str]:
    """Return message and hint of the only diagnostic."""
    (diagnostic,) = parse_prompt(source).diagnostics
    return diagnostic.message, diagnostic.hint


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("<lora:x:1,0>", 'the strength "1,0" is not a number; this tag is not applied', "write 1.0"),
        ("<lora:x:1_0>", 'the strength "1_0" is not a number; this tag is not applied', "write 10"),
        ("<lora:x:50%>", 'the strength "50%" is not a number; this tag is not applied', "write 0.5"),
        ("<lora:x:0.5 )>", 'the strength "0.5 )" is not a number; this tag is not applied', "write 0.5"),
        (
            "<lora:x:1:O.5>",
            'the unet strength "O.5" is not a number; this tag is not applied',
            "write a number such as 0.7",
        ),
        (
            "<lora:x:1 a cat>",
            'the strength "1 a cat" is not a number; this tag is not applied',
            'if the tag ends after "1", write ">" there',
        ),
        (
            "<lora:x:nan>",
            'the strength "nan" is not a finite number; this tag is not applied',
            "write a number such as 0.7",
        ),
        (
            "<lora:x:inf%>",
            'the strength "inf%" is not a number; this tag is not applied',
            "write a number such as 0.7",
        ),
        (
            "<lora:x:>",
            "the strength is empty; this tag is not applied",
            'write a number such as 0.7, or leave out the ":"',
        ),
        ("<lora:x:dyn=8.0>", 'the rank "8.0" is not a whole number; this tag is not applied', "write 8"),
        ("<lora:x:dyn=1_6>", 'the rank "1_6" is not a whole number; this tag is not applied', "write 16"),
        (
            "<lora:x:dyn=1e99>",
            'the rank "1e99" is not a whole number; this tag is not applied',
            "write a whole number such as 8",
        ),
        *[
            (
                f"<lora:x:dyn={rank}>",
                f'the rank "{rank}" is less than 1; this tag is not applied',
                "write dyn=1 or more, or leave the rank out for all ranks",
            )
            for rank in ("0", "-1", "-99")
        ],
        (
            "<lora:x:dyn=>",
            "the rank is empty; this tag is not applied",
            'write a whole number such as 8, or leave out the ":"',
        ),
        ("<lora::1>", "the name is empty; this tag is not applied", "write <lora:NAME:0.7>"),
        ("<lora>", '"<lora>" is not a tag: it has no name', "write <lora:NAME:0.7>"),
        ("< Lora : x:1>", '"< Lora : x:1>" is not a tag: there is a blank after "<"', "write <lora:x:1>"),
        ("<lora :x:1>", '"<lora :x:1>" is not a tag: there is a blank after "lora"', "write <lora:x:1>"),
        ("<lora x:1>", '"<lora x:1>" is not a tag: a ":" is missing after "lora"', "write <lora:x:1>"),
        ("<lora:x:1", '">" is missing: "<lora:x:1" is not closed, so it is not a tag', "write <lora:x:1>"),
        (
            "<lora:x:1 cat <lora:y:1>",
            '">" is missing: "<lora:x:1" is not closed, and the text up to the next ">" is lost with it',
            "write <lora:x:1>",
        ),
        ("<lora:x:Unet=1>", 'there is no argument "Unet="; it is ignored', "did you mean unet=?"),
        (
            "<lora:x:multiplier_of_it=1>",
            'there is no argument "multiplier_of_it="; it is ignored',
            KEYS,
        ),
        ("<lora:a=b:1>", '"a=b" is read as the name, not as an argument', KEYS),
        ("<lora:x:1:1:1:1>", "1 field too many; it is ignored", "the order is name:te:unet:dyn"),
        ("<lora:x:1:1:1:1:1>", "2 fields too many; they are ignored", "the order is name:te:unet:dyn"),
        (
            "<lora:x:0.5:0.9>",
            '"0.5" is for the text encoder and "0.9" for the denoiser',
            "te=0.5:unet=0.9 says the same in plain sight",
        ),
        (
            "<LORA:x:1>",
            '"<LORA:" is read as "<lora:"; the WebUI would not apply it',
            "write <lora:",
        ),
        ("<lroa:x:1>", '"<lroa:" is not a kind of tag that is read here', "did you mean <lora:?"),
    ],
)
def test_a_message_says_what_and_why_and_the_hint_what_to_do(source: str, message: str, hint: str) -> None:
    assert said(source) == (message, hint)


def test_a_very_long_field_is_shortened_and_escaped() -> None:
    message, hint = said("<lora:x:" + "é\n\ud800" * 40 + ">")
    assert message.startswith('the strength "é\\n\\ud800é\\n')
    assert message.endswith('…" is not a number; this tag is not applied')
    assert hint == "write a number such as 0.7"
    assert len(message) < 200


def picture(source: str, span: tuple[int, int], hint: str = "") -> list[str]:
    return Diagnostic("error", span, "wrong", hint).format(source).split("\n")


def test_a_diagnostic_shows_the_place_with_carets_and_the_hint() -> None:
    source = "a red circle <lora:x:1,0>"
    (diagnostic,) = parse_prompt(source).diagnostics
    assert diagnostic.format(source).split("\n") == [
        'line 1, column 22: error: the strength "1,0" is not a number; this tag is not applied',
        "    a red circle <lora:x:1,0>",
        "                         ^^^",
        "    hint: write 1.0",
    ]


def test_only_the_line_of_the_place_is_shown() -> None:
    assert picture("one\r\ntwo three\r\nfour", (9, 14)) == [
        "line 2, column 5: error: wrong",
        "    two three",
        "        ^^^^^",
    ]


def test_an_empty_span_gets_one_caret() -> None:
    assert picture("ab", (2, 2)) == ["line 1, column 3: error: wrong", "    ab", "      ^"]


def test_a_place_in_an_empty_prompt_gets_one_caret() -> None:
    assert picture("", (0, 0), "write something") == [
        "line 1, column 1: error: wrong",
        "    ",
        "    ^",
        "    hint: write something",
    ]


def test_a_span_over_several_lines_is_marked_in_the_first() -> None:
    assert picture("one\ntwo\nthree", (2, 9)) == ["line 1, column 3: error: wrong", "    one", "      ^"]


def test_wide_and_combining_characters_move_the_carets() -> None:
    # The wide, the emoji and the fullwidth character take two columns each, "e" with its combining accent takes one.
    assert picture("猫🐱１e\u0301x猫", (5, 7)) == [
        "line 1, column 6: error: wrong",
        "    猫🐱１e\u0301x猫",
        "           ^^^",
    ]


def test_tabs_and_what_cannot_be_printed_take_one_column() -> None:
    assert picture("\t\0\ud800\u202ex\u2028y", (4, 5)) == [
        "line 1, column 5: error: wrong",
        "     \ufffd\ufffd\ufffdx y",
        "        ^",
    ]


def test_a_long_line_is_cut_around_the_place() -> None:
    _, line, carets = picture("a" * 500 + "bad" + "c" * 500, (500, 503))
    assert line == "    …" + "a" * 30 + "bad" + "c" * 42 + "…"
    assert carets == " " * 35 + "^^^"


def test_carets_end_where_a_cut_line_ends() -> None:
    _, line, carets = picture("a" * 500, (0, 500))
    assert line == "    " + "a" * 45 + "…"
    assert carets == "    " + "^" * 45


# What people write and mean as <lora:a:0.7>.
MEANT = [
    *(
        "<lora：a：0.7>",
        "<lora=a:0.7>",
        "<lora;a;0.7>",
        "<lora a:0.7>",
        "< lora:a:0.7>",
        "<lora :a:0.7>",
        "<lora:a:0.7",
    ),
    *("＜lora:a:0.7＞", "＜lora：a：0.7＞", "&lt;lora:a:0.7&gt;", "{lora:a:0.7}", "lora:a:0.7>", "withLora(a,0.7)"),
    *(
        "＜lora：a：０．７＞",
        "&#60;lora:a:0.7&#62;",
        "＜lora:a:0.7>",
        "&lt; lora : a : 0.7 &gt;",
        "<lora:a:0.7＞",
        "<lora:a:0.7&gt;",
    ),
    *(
        "<lora:a:0,7>",
        "<lora:a:70%>",
        "<lora:a:(0.7)>",
        "<lora:a:0.7,>",
        "<lora:a:[0.7]>",
        "<lora:a:7/10>",
        "<lora:a:0，7>",
    ),
]


@pytest.mark.parametrize("source", MEANT)
def test_a_hint_can_be_typed_and_is_read_as_it_says(source: str) -> None:
    prompt = parse_prompt(source)
    assert prompt.tags == ()
    (told,) = prompt.diagnostics
    assert told.hint.startswith("write ")
    proposed = told.hint.removeprefix("write ")
    mended = proposed if proposed.startswith("<") else f"<lora:a:{proposed}>"
    (tag,) = parse_prompt(mended).tags
    assert (tag.name, tag.te, tag.unet) == ("a", 0.7, 0.7)
    assert parse_prompt(mended).diagnostics == ()


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("&lt;lora:ink&gt;", "write <lora:ink>"),
        ("a cat ＜lora：my ink：0.5：0.9＞", "write <lora:my ink:0.5:0.9>"),
        ("＜lyco：ink：unet＝1@0；0@1＞", "write <lyco:ink:unet=1@0;0@1>"),
        ("&lt;lora:ink:1:IN04-08=0.5:stop=10&gt;", "write <lora:ink:1:IN04-08=0.5:stop=10>"),
    ],
)
def test_other_brackets_get_a_whole_tag_as_their_hint(source: str, hint: str) -> None:
    (told,) = parse_prompt(source).diagnostics
    assert (told.severity, told.hint) == ("warning", hint)
    assert [d for d in parse_prompt(hint.removeprefix("write ")).diagnostics if d.severity != "info"] == []


def test_several_tags_in_other_brackets_are_each_said() -> None:
    source = "＜lora:a:1＞ and &lt;lora:b&gt; and lora:c:0.5>"
    assert [d.hint for d in parse_prompt(source).diagnostics] == [f"write <lora:{x}>" for x in ("a:1", "b", "c:0.5")]


@pytest.mark.parametrize(
    "text", ["(lora:1.2)", "lora: a thing", "a {b|c}", "lora:a", "5 > 3", "exploration:a:1>", "＜b＞", "&lt;b&gt;"]
)
def test_words_that_look_like_a_tag_only_a_little_stay_words(text: str) -> None:
    assert parse_prompt(text).diagnostics == ()


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("clip=0.5", "did you mean te=?"),
        ("model=0.5", "did you mean unet=?"),
        ("weight=0.5", "a strength stands without a key, as in <lora:NAME:0.7>"),
        ("strength=0.5", "a strength stands without a key, as in <lora:NAME:0.7>"),
    ],
)
def test_the_words_of_other_programs_are_understood_in_hints(written: str, hint: str) -> None:
    (told,) = parse_prompt(f"<lora:a:{written}>").diagnostics
    assert told.hint == hint
