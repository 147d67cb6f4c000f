"""When, where and on what a tag acts, by its own fields."""

import pytest

from lora_runtime.prompt import ALWAYS, Conditions, Moment, Region, Window, format_tag, parse_prompt
from lora_runtime.prompt.strength import Position


def conditions(fields: str) -> Conditions:
    (tag,) = parse_prompt(f"<lora:x:{fields}>").tags
    return tag.conditions


def findings(source: str) -> list[tuple[str, str, str, str]]:
    return [(d.severity, source[slice(*d.span)], d.message, d.hint) for d in parse_prompt(source).diagnostics]


def test_a_plain_tag_depends_on_nothing() -> None:
    assert conditions("te=0.5:unet=1:dyn=3") is ALWAYS


@pytest.mark.parametrize(
    ("fields", "start", "stop"),
    [
        ("stop=10", None, Position(10, "step")),
        ("start=10", Position(10, "step"), None),
        ("start=2:stop=10", Position(2, "step"), Position(10, "step")),
        ("step=2-10", Position(2, "step"), Position(10, "step")),
        ("step= 2 - 10 ", Position(2, "step"), Position(10, "step")),
        ("start=0.25:stop=50%", Position(0.25, "fraction"), Position(0.5, "fraction")),
        ("step=25%-0.5", Position(0.25, "fraction"), Position(0.5, "fraction")),
        ("start=10s", Position(10, "step"), None),
        ("step=10s-20s", Position(10, "step"), Position(20, "step")),
        ("step=20s-50%", Position(20, "step"), Position(0.5, "fraction")),
        ("start=7.5sigma", Position(7.5, "sigma"), None),
        ("step=7.5sigma-2sigma", Position(7.5, "sigma"), Position(2, "sigma")),
    ],
)
def test_a_window_starts_and_stops(fields: str, start: Position | None, stop: Position | None) -> None:
    assert conditions(fields).when == (Window(start, stop),)
    assert findings(f"<lora:x:{fields}>") == []


@pytest.mark.parametrize(
    "fields",
    [
        *("start=10:stop=5", "stop=5:start=10", "start=3:stop=3", "start=50%:stop=20%", "start=0.5:stop=50%"),
        *("start=2sigma:stop=10sigma", "start=2sigma:stop=2sigma", "start=6:step=2-6", "stop=2:step=2-6"),
        *("stop=0", "stop=0%", "start=100%", "start=1.5"),
    ],
)
def test_a_tag_whose_windows_hold_at_no_step_is_warned_of(fields: str) -> None:
    for steps in (1, 2, 20, 1000):
        moments = [Moment(step, steps, 15.0 * (1 - step / steps)) for step in range(steps)]
        assert not any(all(one.holds(moment) for one in conditions(fields).when) for moment in moments)
    ((severity, where, message, _),) = findings(f"<lora:x:0.7:{fields}:IN=0>")
    assert (severity, where) == ("warning", fields.partition("=")[2])  # from the first value to the last
    assert message.startswith("no step lies within ")
    assert message.endswith(": the denoiser never has this tag")


@pytest.mark.parametrize(
    "fields",
    [
        *("start=5:stop=10", "start=20%:stop=50%", "start=10:stop=20%", "start=10sigma:stop=2sigma", "start=0"),
        *("stop=0sigma", "start=0sigma", "start=99%", "start=1", "start=3:step=2-6"),
    ],
)
def test_a_tag_that_acts_at_some_step_is_not(fields: str) -> None:
    assert findings(f"<lora:x:0.7:{fields}>") == []


def test_both_of_two_windows_have_to_hold() -> None:
    found = conditions("start=3:step=2-6").when
    assert [step for step in range(10) if all(one.holds(Moment(step, 10)) for one in found)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("fields", "steps", "on"),
    [
        ("stop=3", 6, [0, 1, 2]),  # on for the first three
        ("start=3", 6, [3, 4, 5]),  # off for the first three
        ("stop=1", 3, [0]),
        ("start=1", 3, [1, 2]),
        ("stop=0", 3, []),
        ("start=0", 3, [0, 1, 2]),
        ("step=2-4", 6, [2, 3]),
        ("stop=50%", 10, [0, 1, 2, 3, 4]),
        ("stop=0.5", 5, [0, 1]),  # 2.5 steps are 2 whole ones
        ("start=0.5", 5, [2, 3, 4]),
    ],
)
def test_a_window_is_on_for_the_steps_between_its_ends(fields: str, steps: int, on: list[int]) -> None:
    (window,) = conditions(fields).when
    assert [step for step in range(steps) if window.holds(Moment(step, steps))] == on


def test_a_window_by_sigma_goes_from_much_noise_to_little() -> None:
    (window,) = conditions("step=10sigma-2sigma").when
    sigmas = [14.0, 10.0, 5.0, 2.0, 0.1]
    assert [window.holds(Moment(step, 5, sigma)) for step, sigma in enumerate(sigmas)] == [0, 1, 1, 0, 0]
    assert not window.holds(Moment(0, 5))


@pytest.mark.parametrize(
    ("fields", "expert"),
    [
        ("high", "transformer"),
        ("low", "transformer_2"),
        ("0.5: low ", "transformer_2"),
        ("low:0.5", "transformer_2"),
        ("module=high", "transformer"),
        ("module=low", "transformer_2"),
        ("module=unet", "unet"),
        ("high:module=low", "transformer_2"),
    ],
)
def test_a_tag_may_mean_one_of_several_denoisers(fields: str, expert: str) -> None:
    assert conditions(fields) == Conditions(expert=expert)


def test_the_word_for_a_denoiser_takes_no_place_of_a_strength() -> None:
    (tag,) = parse_prompt("<lora:x:low:0.5:0.5:8>").tags
    assert (tag.te, tag.unet, tag.dyn, tag.conditions.expert) == (0.5, 0.5, 8, "transformer_2")


@pytest.mark.parametrize(
    ("fields", "region"),
    [
        ("mask=left.png", Region(mask="left.png")),
        ("mask= a dir/left.png :soft=0.1", Region(mask="a dir/left.png", soft=0.1)),
        ("box=0,0,0.5,1", Region(box=(0, 0, 0.5, 1))),
        ("soft=0.25:box=.1, .2, .3, .4", Region(box=(0.1, 0.2, 0.3, 0.4), soft=0.25)),
        ("box=0,0,0.5,1:mask=a.png", Region("a.png", (0, 0, 0.5, 1))),
    ],
)
def test_a_tag_may_have_a_region(fields: str, region: Region) -> None:
    assert conditions(fields) == Conditions(region=region)


@pytest.mark.parametrize(
    ("fields", "te", "unet"),
    [
        ("hr=0.5", 0.5, 0.5),
        ("hrte=0.5", 0.5, None),
        ("hrunet=0", None, 0),
        ("hr=0.5:hrte=1", 1, 0.5),
        ("hrunet=0.25:hr=0.5", 0.5, 0.25),
    ],
)
def test_a_tag_may_have_strengths_for_the_second_pass(fields: str, te: float | None, unet: float | None) -> None:
    assert conditions(fields) == Conditions(hires_te=te, hires_unet=unet)


EDGE = "write a number of steps such as 5, or a part of the run such as 0.25 or 25%"
BOX = "write box=x0,y0,x1,y1 in fractions of the picture, as in box=0,0,0.5,1 for its left half"
STEP = "write step=5-10, or start=5"
SOFT = "write soft=0.1"


@pytest.mark.parametrize(
    ("field", "message", "hint"),
    [
        ("step=5", 'the step "5" has no end', STEP),
        ("step=", 'the step "" has no end', STEP),
        ("step=5-", "the step is empty", EDGE),
        ("step=-5", 'the step "-5" has no end', STEP),
        ("step=a-b", 'the step "a" is not a number', EDGE),
        ("step=10-5", 'the step "10-5" ends before it starts', "write the smaller number first"),
        ("step=5-5", 'the step "5-5" ends before it starts', "write the smaller number first"),
        (
            "step=2sigma-10sigma",
            'the step "2sigma-10sigma" ends before it starts',
            "write the greater noise level first",
        ),
        ("step=2sigma-2sigma", 'the step "2sigma-2sigma" ends before it starts', "write the greater noise level first"),
        ("start=", "the start is empty", EDGE),
        ("start=x", 'the start "x" is not a number', EDGE),
        ("start=-5", 'the start "-5" lies before the run', EDGE),
        ("stop=nan", 'the stop "nan" is not a number', EDGE),
        ("stop=inf", 'the stop "inf" is not a number', EDGE),
        ("module=", 'the module "" is not a name', "write high, low or the name of a component"),
        ("module=a b", 'the module "a b" is not a name', "write high, low or the name of a component"),
        ("mask=", "the mask is empty", "write mask=FILE"),
        ("box=0,0,1", 'the box "0,0,1" is not four numbers', BOX),
        ("box=0,0,1,1,1", 'the box "0,0,1,1,1" is not four numbers', BOX),
        ("box=0,0,1,a", 'the box "0,0,1,a" is not four numbers', BOX),
        ("box=0,0,2,1", 'the box "0,0,2,1" is not inside the picture', BOX),
        ("box=0.5,0,0.5,1", 'the box "0.5,0,0.5,1" is not inside the picture', BOX),
        ("box=0,1,1,0", 'the box "0,1,1,0" is not inside the picture', BOX),
        ("box=-0.1,0,1,1", 'the box "-0.1,0,1,1" is not inside the picture', BOX),
        ("box=0,0,nan,1", 'the box "0,0,nan,1" is not inside the picture', BOX),
        ("soft=2", 'the width of the edge "2" is not a number from 0 to 1', SOFT),
        ("soft=nan", 'the width of the edge "nan" is not a number from 0 to 1', SOFT),
        ("soft=x", 'the width of the edge "x" is not a number from 0 to 1', SOFT),
    ],
)
def test_a_field_that_cannot_be_read_is_left_out_and_said(field: str, message: str, hint: str) -> None:
    source = f"a <lora:x:0.7:{field}>"
    (tag,) = parse_prompt(source).tags
    assert (tag.unet, tag.conditions) == (0.7, ALWAYS)
    value = field.partition("=")[2]
    assert findings(source) == [("warning", value, f"{message}; this field is ignored", hint)]


def test_an_edge_without_a_region_is_said() -> None:
    message = '"soft=" has no effect: this tag has neither mask= nor box='
    assert findings("<lora:x:soft=0.1>") == [("warning", "0.1", message, "")]


@pytest.mark.parametrize("key", ["hr", "hrte", "hrunet", "in", "mid", "out"])
def test_a_strength_that_cannot_be_read_costs_the_tag(key: str) -> None:
    prompt = parse_prompt(f"<lora:x:{key}=a><lora:y>")
    assert [tag.name for tag in prompt.tags] == ["y"]
    assert prompt.diagnostics[0].severity == "error"


@pytest.mark.parametrize(("option", "value"), [("dialect", "swarm"), ("scope", "none")])
def test_an_unknown_way_of_reading_is_refused(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is one of .*, not '{value}'"):
        parse_prompt("a", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "mask"),
    [
        ("mask=C:\\pictures\\x.png", "C:\\pictures\\x.png"),
        ("mask=d:/x.png", "d:/x.png"),
        ('mask="C:\\x.png"', "C:\\x.png"),
        ('mask="a:b:c.png"', "a:b:c.png"),
        ("mask=x.png", "x.png"),
    ],
)
def test_a_mask_may_lie_on_a_drive(written: str, mask: str) -> None:
    (tag,) = parse_prompt(f"<lora:a:0.7:{written}:soft=0.1>").tags
    assert tag.conditions.region == Region(mask=mask, soft=0.1)
    assert (tag.te, tag.unet) == (0.7, 0.7)
    assert parse_prompt(format_tag(tag)).tags[0].conditions == tag.conditions


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("start=0.25:end=0.75", "start=0.25:stop=0.75"),
        ("end=10", "stop=10"),
        ("end=1.0", "stop=1.0"),
        ("step_start=5:step_end=10", "start=5:stop=10"),
        ("step_start=20%", "start=20%"),
    ],
)
def test_start_and_end_have_the_names_of_other_programs(written: str, same: str) -> None:
    first, second = (parse_prompt(f"<lora:x:1:{fields}>") for fields in (written, same))
    assert first.tags[0].conditions == second.tags[0].conditions
    assert first.diagnostics == ()


def test_an_end_of_1_is_one_step_and_said_to_be() -> None:
    prompt = parse_prompt("<lora:x:1:start=0:end=1>")
    assert prompt.tags[0].conditions == parse_prompt("<lora:x:1:start=0:stop=1>").tags[0].conditions
    (told,) = prompt.diagnostics
    assert (told.severity, told.span) == ("warning", (18, 23))
    assert told.hint == "write end=100% for the whole run, or stop=1 for one step"
