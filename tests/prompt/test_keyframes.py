"""Keyframes in a strength: what loractl reads in them, and what is said about odd ones."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.prompt import Curve, Moment, Strength, at, format_tag, parse_prompt
from lora_runtime.prompt.strength import CURVES, Key, Position


def strength(text: str) -> Strength:
    (tag,) = parse_prompt(f"<lora:x:{text}>").tags
    return tag.unet


def keys(text: str) -> list[tuple[float, float, str]]:
    curve = strength(text)
    assert isinstance(curve, Curve)
    return [(key.value, key.position.value, key.position.unit) for key in curve.keys]


def findings(source: str) -> list[tuple[str, str]]:
    return [(d.severity, source[slice(*d.span)]) for d in parse_prompt(source).diagnostics]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.2@0,1@0.5,0@1", [(0.2, 0, "fraction"), (1, 0.5, "fraction"), (0, 1, "fraction")]),
        ("1@0;0@1", [(1, 0, "fraction"), (0, 1, "fraction")]),
        ("1~0,0~1", [(1, 0, "fraction"), (0, 1, "fraction")]),
        (" 1 @ 0 , -0.5 @ 1 ", [(1, 0, "fraction"), (-0.5, 1, "fraction")]),
        ("0@5,1@10", [(0, 5, "step"), (1, 10, "step")]),
        ("0@0,1@50%", [(0, 0, "fraction"), (1, 0.5, "fraction")]),
        ("0@33.3%,1@100%", [(0, 0.333, "fraction"), (1, 1, "fraction")]),
        ("0@0s,1@10s", [(0, 0, "step"), (1, 10, "step")]),
        ("1@14.6sigma,0@2sigma", [(1, 14.6, "sigma"), (0, 2, "sigma")]),
        ("1@50%,0@10s", [(1, 0.5, "fraction"), (0, 10, "step")]),
        ("1@10s,0@50%", [(1, 10, "step"), (0, 0.5, "fraction")]),
    ],
)
def test_keyframes_are_values_at_positions(text: str, expected: list[tuple[float, float, str]]) -> None:
    assert keys(text) == expected
    assert findings(f"<lora:x:{text}>") == []


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ("1@1,0@0", [(0, 0), (1, 1)], [("info", "1@1")]),
        ("1@2sigma,0@9sigma", [(0, 9), (1, 2)], [("info", "1@2sigma")]),
        ("1,0@1", [(1, 0), (0, 1)], [("info", "1")]),
        ("1@0,0.5,0@10", [(1, 0), (0.5, 1), (0, 10)], [("warning", "0.5")]),
        ("1@0,0.5", [(1, 0), (0.5, 1)], [("warning", "0.5")]),
        ("0@0.5,1@10", [(0, 0.5), (1, 10)], [("warning", "0@0.5")]),
        ("1@-1,0@1", [(1, -1), (0, 1)], [("warning", "1@-1")]),
        ("1@0,0@150%", [(1, 0), (0, 1.5)], [("warning", "0@150%")]),
        ("0@0,0@5,1@5,1@10", [(0, 0), (0, 5), (1, 5), (1, 10)], [("info", "1@5")]),
        ("0@0,0@5,7@5,1@5", [(0, 0), (0, 5), (1, 5)], [("info", "1@5")]),
    ],
)
def test_odd_keyframes_are_read_and_remarked_on(
    text: str, expected: list[tuple[float, float]], said: list[tuple[str, str]]
) -> None:
    assert [key[:2] for key in keys(text)] == expected
    assert findings(f"<lora:x:{text}>") == said


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("1@", "1@"),
        ("@1", "@1"),
        ("1@0,,0@1", ""),
        ("1@0,0@1,", ""),
        ("1@0,x@1", "x"),
        ("1@0,0@x", "x"),
        ("1@0,0@1@2", "1@2"),
        ("1@0,0@1e1%", "1e1%"),
        ("nan@0,0@1", "nan"),
        ("1@0,inf@1", "inf"),
        ("1@0,0@inf", "inf"),
        ("1@0,0@nan%", "nan%"),
        ("1_0@0,0@1", "1_0"),
        ("1@0,0@1_0", "1_0"),
        ("1@5sigma,0@1", "0@1"),
        ("1@50%,0@1sigma", "1@50%"),
    ],
)
def test_keyframes_that_cannot_be_read_cost_their_tag(text: str, place: str) -> None:
    prompt = parse_prompt(f"<lora:y:1><lora:x:{text}>")
    assert [tag.name for tag in prompt.tags] == ["y"]
    assert ("error", place) in findings(prompt.source)


def test_a_single_keyframe_is_a_number() -> None:
    assert strength("0.5@0.3") == 0.5
    assert strength("0.5@3sigma") == 0.5


def test_a_thousand_keyframes_are_read_and_more_are_refused() -> None:
    assert len(keys(",".join(f"1@{step}" for step in range(1000)))) == 1000
    (diagnostic,) = parse_prompt("<lora:x:" + "1@0," * 9999 + "0@1>").diagnostics
    assert diagnostic.severity == "error"
    assert diagnostic.message == "the strength has 10000 keyframes; this tag is not applied"


@pytest.mark.parametrize("key", ["te", "unet", "hr", "hrte", "hrunet", "in", "mid", "out"])
def test_keyframes_may_stand_wherever_a_strength_may(key: str) -> None:
    (tag,) = parse_prompt(f"<lora:x:{key}=1@0,0@1>").tags
    blocks = tag.conditions.blocks
    found = {
        "te": tag.te,
        "unet": tag.unet,
        "hr": tag.conditions.hires_te,
        "hrte": tag.conditions.hires_te,
        "hrunet": tag.conditions.hires_unet,
        "in": blocks and blocks.inner,
        "mid": blocks and blocks.mid,
        "out": blocks and blocks.outer,
    }[key]
    assert str(found) == "1@0,0@1"


@pytest.mark.parametrize("shape", CURVES)
def test_a_curve_of_the_tag_is_that_of_all_its_keyframes(shape: str) -> None:
    source = f"<lora:x:1@0,0@1:hr=0@0,1@1:curve={shape}:IN=0@0,1@1:lbw=1@0;0@1{',1' * 11}>"
    (tag,) = parse_prompt(source).tags
    blocks = tag.conditions.blocks
    assert blocks is not None
    found = (tag.te, tag.unet, tag.conditions.hires_te, blocks.rules[0].ratio, blocks.rules[-1].ratio)
    assert [curve.shape for curve in found if isinstance(curve, Curve)] == [shape] * 5
    assert findings(source) == []


@pytest.mark.parametrize(
    ("source", "place"), [("<lora:x:curve=hold>", "hold"), ("<lora:x:1@0,0@1:curve=Hold>", "Hold")]
)
def test_a_curve_without_effect_is_said(source: str, place: str) -> None:
    assert findings(source) == [("warning", place)]


KEYS = st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 40)), min_size=2, max_size=6, unique_by=lambda k: k[1])


@given(KEYS, st.integers(2, 41), st.data())
def test_linear_keyframes_are_numpys_interpolation(
    points: list[tuple[int, int]], steps: int, data: st.DataObject
) -> None:
    """Which is loractl's too. The greatest position is put above 1, so that all are steps."""
    points = [(value, place + 2) for value, place in points]
    curve = strength(",".join(f"{value / 10}@{place}" for value, place in points))
    step = data.draw(st.integers(0, steps - 1))
    points.sort(key=lambda point: point[1])
    expected = np.interp(step, [place for _, place in points], [value / 10 for value, _ in points])
    assert at(curve, Moment(step, steps)) == pytest.approx(expected, abs=0.00051)


@pytest.mark.parametrize(
    ("text", "moment", "value"),
    [
        ("0@0,1@1", Moment(0, 11), 0),
        ("0@0,1@1", Moment(5, 11), 0.5),
        ("0@0,1@1", Moment(10, 11), 1),
        ("0@0,1@1", Moment(0, 1), 0),
        ("0@25%,1@75%", Moment(0, 9), 0),
        ("0@25%,1@75%", Moment(4, 9), 0.5),
        ("1@50%,0@10s", Moment(5, 11), 1),  # by then the half is the fifth of ten steps done
        ("1@50%,0@10s", Moment(15, 31), 1),  # the half is the fifteenth, after the tenth
        ("1@50%,0@10s", Moment(9, 31), 0),
        ("0@0,0@5,1@5,1@10", Moment(4, 11), 0),
        ("0@0,0@5,1@5,1@10", Moment(5, 11), 1),
        ("1@14sigma,0@4sigma", Moment(0, 9, 20.0), 1),
        ("1@14sigma,0@4sigma", Moment(3, 9, 9.0), 0.5),
        ("1@14sigma,0@4sigma", Moment(8, 9, 0.03), 0),
        ("1@14sigma,0@4sigma", Moment(8, 9), 1),
        ("0@0,1@1:curve=hold", Moment(9, 11), 0),
        ("0@0,1@1:curve=hold", Moment(10, 11), 1),
        ("0@0,1@1:curve=ease", Moment(2, 9), 3 * 0.25**2 - 2 * 0.25**3),
        ("0@0,1@1:curve=ease-in", Moment(2, 9), 0.25**2),
        ("0@0,1@1:curve=ease-out", Moment(2, 9), 1 - 0.75**2),
    ],
)
def test_a_curve_has_a_value_at_a_moment(text: str, moment: Moment, value: float) -> None:
    assert at(strength(text), moment) == pytest.approx(value, abs=0.00051)


def test_a_number_has_its_value_at_every_moment() -> None:
    assert at(0.123456, Moment(3, 9)) == 0.123456


@pytest.mark.parametrize(
    "text", ["0.2@0,1@0.5,0@1", "0@5,1@10", "1@50%,0@10s", "1@14.6sigma,0@2sigma", "0@0%,1@150%", "0@0.5s,1@2s"]
)
def test_the_text_of_a_curve_is_its_keyframes(text: str) -> None:
    assert str(strength(text)) == f"{strength(text)}" == text


def test_a_curve_is_formatted_number_by_number() -> None:
    curve = Curve((Key(1 / 3, Position(0.0)), Key(1.0, Position(1 / 3))))
    assert f"{curve:g}" == "0.333333@0,1@0.333333"
    assert f"{curve:.1f}" == "0.3@0.0,1.0@0.3"


@given(st.lists(st.floats(0, 3), min_size=2, max_size=5, unique=True), st.sampled_from(["fraction", "step", "sigma"]))
def test_a_curve_reads_back_from_its_text(places: list[float], unit: str) -> None:
    places.sort(reverse=unit == "sigma")
    curve = Curve(tuple(Key(index / 3, Position(place, unit)) for index, place in enumerate(places)))  # type: ignore[arg-type]
    assert strength(str(curve)) == curve
    assert math.isfinite(at(curve, Moment(3, 9, 1.0)))


# --- in brackets, as in Forge Neo ---


def of_neo(schedule: list[tuple[float, float]], step: int, steps: int) -> float:
    """Return what Forge Neo's LoRA Control makes of a list that begins at 0: linear over step / steps."""
    return float(np.interp(step / steps, [place for _, place in schedule], [value for value, _ in schedule]))


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
@pytest.mark.parametrize(
    "schedule", [[(1.0, 0.0), (0.0, 0.25)], [(0.0, 0.0), (1.0, 1.0)], [(0.2, 0.0), (1.0, 0.5), (0.4, 0.75)]]
)
def test_keyframes_in_brackets_are_by_the_share_of_steps_done(schedule: list[tuple[float, float]], steps: int) -> None:
    curve = strength(f"[{', '.join(f'{value}@{place}' for value, place in schedule)}]")
    for step in range(steps):
        assert at(curve, Moment(step, steps)) == pytest.approx(of_neo(schedule, step, steps), abs=5e-4)


def test_keyframes_in_brackets_are_the_denoiser_s_alone_unless_the_text_encoder_s_are_given() -> None:
    for text, te in (("[0@0,1@1]", 0), ("[0@0,1@1]:te=0.5", 0.5), ("unet=[0@0,1@1]", 0), ("0.3:[0@0,1@1]", 0.3)):
        prompt = parse_prompt(f"<lora:x:{text}>")
        assert [(tag.te, str(tag.unet)) for tag in prompt.tags] == [(te, "[0@0,1@1]")]
        assert [d for d in prompt.diagnostics if d.severity != "info"] == []
        assert parse_prompt(format_tag(prompt.tags[0])).tags[0].unet == prompt.tags[0].unet
    (tag,) = parse_prompt("<lora:x:[0@0,1@1]:8>", dialect="comfy").tags
    assert (tag.te, str(tag.unet), tag.dyn) == (0, "[0@0,1@1]", 8)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[0@0]", "[0@0]"),
        ("[0@0,1@50%]", "1@50%]"),
        ("[0@0,1]", "1]"),
        ("[0.5,1@1]", "[0.5"),
        ("[0@0,1@1", ""),
        ("[0@0,1@1]x", ""),
        ("[0@0,x@1]", "x"),
    ],
)
def test_what_is_no_list_in_brackets_is_said_at_its_place(text: str, place: str) -> None:
    assert parse_prompt(f"<lora:x:{text}>").tags == ()
    assert findings(f"<lora:x:{text}>") == [("error", place)]


def test_keyframes_in_brackets_that_no_step_reaches_are_said() -> None:
    assert findings("<lora:x:[0@-1,1@2]>") == [("warning", "[0@-1"), ("warning", "1@2]")]
