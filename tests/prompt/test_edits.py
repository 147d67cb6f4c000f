"""One thing of a tag changed, the rest as it was written; and tags that are off for a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.prompt import parse_prompt
from lora_runtime.prompt.edits import STRENGTHS, EditError, is_muted, muted, renamed, unmuted, with_arguments
from lora_runtime.prompt.presets import common_presets

PRESETS = common_presets()


@pytest.mark.parametrize(
    ("tag", "changes", "made"),
    [
        ("<lora:ink>", {"te": "0.5", "unet": "0.5"}, "<lora:ink:0.5>"),
        ("<lora:ink:0.7>", {"te": "0.5"}, "<lora:ink:te=0.5:unet=0.7>"),
        ("<lora:ink:0.5:0.9>", {"te": "0.9"}, "<lora:ink:0.9>"),
        ("<lora:ink:0.7:0.7:8>", {"unet": "0.3"}, "<lora:ink:te=0.7:unet=0.3:dyn=8>"),
        ("<lyco:ink: 0.7 :lbw=MIDD:*attn*=0>", {"IN04": "0.2"}, "<lyco:ink: 0.7 :lbw=MIDD:*attn*=0:IN04=0.2>"),
        ("<lora:ink:1:MIDD:x=3>", {"lbw": "OUTALL"}, "<lora:ink:1:lbw=OUTALL:x=3>"),
        ("<lora:ink:high>", {"module": "low"}, "<lora:ink:module=low>"),
        ("<lora:ink:high:1>", {"module": None}, "<lora:ink:1>"),
        ("<lora:ink:[1@0,0@1]>", {"te": "0.5"}, "<lora:ink:te=0.5:unet=[1@0,0@1]>"),
        ("<lora:ink:1:IN04=0.5:IN=1>", {"IN04": "0.3"}, "<lora:ink:1:IN=1:IN04=0.3>"),
        ("<lora:ink:1:start=3:start=4>", {"start": "5"}, "<lora:ink:1:start=5>"),
        ("<lora:a=b:1>", {"stop": "0.5"}, "<lora:a=b:1:stop=0.5>"),
        ("<lora:te=1:ink:foo=2>", {"unet": "1"}, "<lora:ink:1:foo=2>"),
        (
            "<lora:ink:1:mask=C:/a.png>",
            {"te": "0.5", "unet": "0.5"},
            "<lora:ink:0.5:mask=C:/a.png>",
        ),
    ],
)
def test_one_thing_changes_and_the_rest_stays_as_written(tag: str, changes: dict[str, str | None], made: str) -> None:
    assert with_arguments(tag, changes, PRESETS) == made


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"te": "abc"}, 'the strength "abc" is not a number'),
        ({"te": "1:2"}, "a sign that ends a field"),
        ({"te": "1>"}, "a sign that ends a field"),
        ({"start": "-1"}, 'the start "-1" lies before the run'),
        ({"IN99": "1"}, 'there is no block "IN99"'),
        ({"foo": "1"}, 'there is no argument "foo="'),
        ({"lbw": "MIDDD"}, "did you mean MIDD?"),
    ],
)
def test_what_cannot_be_read_is_not_written(changes: dict[str, str | None], why: str) -> None:
    with pytest.raises(EditError) as raised:
        with_arguments("<lora:ink:1:foo=2>" if "foo" not in changes else "<lora:ink:1>", changes, PRESETS)
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("tag", "off", "on"),
    [
        ("<lora:ink:0.7>", "<lora:ink:0:was=0.7>", "<lora:ink:0.7>"),
        ("<lora:ink>", "<lora:ink:0:was=1>", "<lora:ink:1>"),
        ("<lora:ink:0.5:1:8>", "<lora:ink:0:dyn=8:was=te 0.5 unet 1>", "<lora:ink:te=0.5:unet=1:dyn=8>"),
        ("<lora:ink:0@0, 1@1:curve=ease>", "<lora:ink:0:curve=ease:was=0@0,1@1>", "<lora:ink:0@0,1@1:curve=ease>"),
        ("<lora:ink:1:hr=0.3:MIDD>", "<lora:ink:0:MIDD:was=te 1 unet 1 hr 0.3>", "<lora:ink:1:MIDD:hr=0.3>"),
        ("<lora:ink:1:in=0.5>", "<lora:ink:0:was=te 1 unet 1 in 0.5>", "<lora:ink:1:in=0.5>"),
    ],
)
def test_a_muted_tag_is_off_and_comes_back(tag: str, off: str, on: str) -> None:
    assert muted(tag, PRESETS) == off
    assert unmuted(off, PRESETS) == on
    prompt = parse_prompt(f"a {off} boat")
    assert prompt.text == "a  boat"
    [read] = prompt.tags
    assert is_muted(read)
    assert (read.te, read.unet, read.conditions.hires_te, read.conditions.hires_unet) == (0, 0, None, None)
    assert [said for said in prompt.diagnostics if said.severity != "info"] == []


def test_a_muted_tag_has_two_numbers_as_the_webuis_own_parser_reads_it() -> None:
    # The WebUI splits at colons; what has one "=" is by name, the rest by position, and must be numbers.
    positional = [item for item in muted("<lora:ink:0.5:0.9:hr=1>", PRESETS)[6:-1].split(":") if "=" not in item]
    assert positional == ["ink", "0"]


@pytest.mark.parametrize("was", ["te", "te 0.5 unet", "foo 1", "te x"])
def test_what_a_tag_was_is_read_or_refused(was: str) -> None:
    with pytest.raises(EditError):
        unmuted(f"<lora:ink:0:was={was}>", PRESETS)


def test_a_strength_beside_what_it_was_counts_and_is_said() -> None:
    prompt = parse_prompt("<lora:ink:0.5:was=0.7>")
    assert not is_muted(prompt.tags[0])
    assert [said.message for said in prompt.diagnostics] == ['"was=" has no effect: the strength of this tag is not 0']


def test_a_name_is_replaced_as_a_whole() -> None:
    assert renamed("<lora:inkk:0.7:foo=1>", "style/ink, v2", PRESETS) == "<lora:style/ink, v2:0.7:foo=1>"
    for name in ("a:b", "a>b", "te=1", " a", ""):
        with pytest.raises(EditError):
            renamed("<lora:inkk:0.7>", name, PRESETS)


NUMBERS = st.floats(-5, 5).map(lambda value: f"{value:.2f}")
CURVES = st.lists(st.tuples(NUMBERS, st.integers(0, 100)), min_size=2, max_size=4, unique_by=lambda key: key[1]).map(
    lambda keys: ",".join(f"{value}@{place}%" for value, place in keys)
)


@given(st.dictionaries(st.sampled_from(STRENGTHS), NUMBERS | CURVES), st.sampled_from(["", ":dyn=4", ":lbw=MIDD"]))
def test_muting_loses_nothing(fields: dict[str, str], more: str) -> None:
    tag = f"<lora:ink{''.join(f':{key}={text}' for key, text in fields.items())}{more}>"
    [before] = parse_prompt(tag).tags
    [after] = parse_prompt(unmuted(muted(tag, PRESETS), PRESETS)).tags
    assert (after.te, after.unet, after.dyn, after.conditions, after.was) == (
        before.te,
        before.unet,
        before.dyn,
        before.conditions,
        "",
    )
