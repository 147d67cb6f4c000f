"""Where programs read the same text differently: which reading counts here, and that it is said.

The numbers C1-C15 are those of the table in docs/syntax.md. What is decided after the text is read (C6, a negative
prompt; C7, a batch; sums of C2) is tested where it is decided.
"""

import pytest

from lora_runtime.prompt import ALWAYS, Moment, parse_prompt
from lora_runtime.prompt.block_weights import Draw
from lora_runtime.prompt.strength import Curve


def findings(source: str, **how: str) -> list[tuple[str, str]]:
    return [(d.severity, source[slice(*d.span)]) for d in parse_prompt(source, **how).diagnostics]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "dialect", "te", "unet"),
    [
        ("<lora:x:0.5:0.9>", "a1111", 0.5, 0.9),
        ("<lora:x:0.5:0.9>", "native", 0.5, 0.9),
        ("<lora:x:0.5:0.9>", "comfy", 0.9, 0.5),
        ("<lora:x:0.5>", "comfy", 0.5, 0.5),
        ("<lora:x:0.5:te=0.2>", "comfy", 0.2, 0.5),
        ("<lora:x:0.5:te=0.2>", "a1111", 0.2, 0.2),
        ("<lora:x:unet=0.5>", "comfy", 0.5, 0.5),
        ("<lora:x:te=0.5>", "comfy", 0.5, 1.0),
        ("<lora:x:te=0.5:unet=0.9>", "comfy", 0.5, 0.9),
    ],
)
def test_c1_the_order_of_two_strengths_is_the_dialects(source: str, dialect: str, te: float, unet: float) -> None:
    prompt = parse_prompt(source, dialect=dialect)  # type: ignore[arg-type]
    assert [(tag.te, tag.unet) for tag in prompt.tags] == [(te, unet)]
    said = [(d.severity, d.hint) for d in prompt.diagnostics]
    if source == "<lora:x:0.5:0.9>":
        assert said == [("info", f"te={te}:unet={unet} says the same in plain sight")]
    else:
        assert said == []


def test_c2_a_lora_named_twice_is_two_tags_and_is_said() -> None:
    source = "<lora:x:1><lora:x:0.5>"
    assert [tag.unet for tag in parse_prompt(source).tags] == [1, 0.5]
    assert findings(source) == [("info", "<lora:x:0.5>")]


def test_c3_a_bad_argument_costs_its_own_tag() -> None:
    prompt = parse_prompt("a <lora:x:abc> b <lora:y:0.5>")
    assert (prompt.text, [tag.name for tag in prompt.tags]) == ("a  b ", ["y"])
    assert findings(prompt.source) == [("error", "abc")]


def test_c4_the_text_of_any_tag_is_taken_out() -> None:
    assert parse_prompt("a <lora:there is no such file:0.5>").text == "a "


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "1_0", "nan@0,1@1", "1@0,1@nan"])
def test_c5_neither_nan_nor_infinity_nor_digit_separators_are_numbers(number: str) -> None:
    prompt = parse_prompt(f"<lora:x:{number}>")
    assert prompt.tags == ()
    assert [d.severity for d in prompt.diagnostics] == ["error"]


@pytest.mark.parametrize("scope", ["all", "edit", "and"])
def test_c8_the_text_around_a_tag_matters_on_request(scope: str) -> None:
    (tag,) = parse_prompt("a AND [<lora:x:1>::0.5]", scope=scope).tags  # type: ignore[arg-type]
    assert (bool(tag.conditions.when), tag.conditions.part) == (scope == "edit", 1 if scope == "and" else None)


@pytest.mark.parametrize(
    ("keyframes", "unit"),
    [("0@0,1@1", "fraction"), ("0@0,1@1.5", "step"), ("1@10,0@0.5", "step"), ("0@0,1@100%", "fraction")],
)
def test_c9_positions_are_fractions_if_the_last_is_at_most_1_and_steps_otherwise(keyframes: str, unit: str) -> None:
    (tag,) = parse_prompt(f"<lora:x:{keyframes}>").tags
    assert isinstance(tag.unet, Curve)
    assert {key.position.unit for key in tag.unet.keys} == {unit}


@pytest.mark.parametrize("count", range(2, 64))
def test_c10_a_bare_list_is_block_weights_if_one_layout_has_as_many(count: int) -> None:
    source = "<lora:x:" + ",".join("10"[index % 2] for index in range(count)) + ">"
    prompt = parse_prompt(source)
    if count in (12, 17, 20, 26, 61):
        (tag,) = prompt.tags
        assert (tag.te, tag.conditions.blocks is not None) == (1, True)
        assert [d.severity for d in prompt.diagnostics] == ["info"]
    else:
        assert prompt.tags == ()
        assert [d.severity for d in prompt.diagnostics] == ["error"]
        keyframes = "block weights are 12, 17, 20, 26 or 61 numbers; keyframes are written as in 1@0,0@1"
        assert prompt.diagnostics[0].hint == ("write 1.0" if count == 2 else keyframes)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_c11_stop_is_on_for_the_first_steps_and_start_off_for_them(n: int) -> None:
    for field, on in ((f"stop={n}", [*range(n)]), (f"start={n}", [*range(n, 9)])):
        (tag,) = parse_prompt(f"<lora:x:{field}>").tags
        assert [step for step in range(9) if tag.conditions.when[0].holds(Moment(step, 9))] == on


def test_c12_u_is_drawn_from_minus_a_half_to_one_and_a_half() -> None:
    drawn = [Draw("U").value(seed, "") for seed in range(1000)]
    assert -0.5 <= min(drawn) < -0.48 < 1.48 < max(drawn) <= 1.5
    assert sum(drawn) / 1000 == pytest.approx(0.5, abs=0.06)  # three standard deviations of the mean


@pytest.mark.parametrize("fields", ["0", "te=0:unet=0", "-0"])
def test_c13_zero_stays_zero(fields: str) -> None:
    (tag,) = parse_prompt(f"<lora:x:{fields}>").tags
    assert (tag.te, tag.unet, tag.conditions) == (0, 0, ALWAYS)


@pytest.mark.parametrize("kind", ["LoRA", "LYCO", "LoraCtl"])
def test_c14_capital_letters_are_read_and_said(kind: str) -> None:
    assert [tag.name for tag in parse_prompt(f"<{kind}:x:1>").tags] == ["x"]
    assert findings(f"<{kind}:x:1>") == [("info", kind)]


@pytest.mark.parametrize("count", [18, 21, 27, 55, 16])
def test_c15_a_list_of_another_layout_is_not_guessed_at(count: int) -> None:
    numbers = ",".join("1" * count)
    (tag,) = parse_prompt(f"<lora:x:lbw={numbers}>").tags
    assert tag.conditions.blocks is None
    assert findings(f"<lora:x:lbw={numbers}>") == [("warning", numbers)]
