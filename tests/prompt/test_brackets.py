"""Tags inside prompt editing, alternation and AND, where the scope is that of the text."""

import pytest

from lora_runtime.prompt import Moment, Turn, Window, parse_prompt
from lora_runtime.prompt.brackets import without_edits
from lora_runtime.prompt.strength import Position


def on(source: str, steps: int = 10) -> dict[str, list[int]]:
    """Return at which steps each tag acts."""
    return {
        tag.name: [
            step for step in range(steps) if all(when.holds(Moment(step, steps)) for when in tag.conditions.when)
        ]
        for tag in parse_prompt(source, scope="edit").tags
    }


EARLY, LATE, ALL = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [*range(10)]


# What the WebUI does with text in the place of the tags; steps are counted from 0.
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[<lora:a:1>::0.5]", {"a": EARLY}),
        ("[<lora:a:1>::5]", {"a": EARLY}),
        ("[<lora:a>:0.5]", {"a": LATE}),
        ("[:<lora:a>:0.5]", {"a": LATE}),
        ("[<lora:a>:5]", {"a": LATE}),
        ("[<lora:a>:<lora:b>:0.5]", {"a": EARLY, "b": LATE}),
        ("[cat <lora:a>: dog <lora:b> : 5 ]", {"a": EARLY, "b": LATE}),
        ("[<lora:a>:<lora:b>:0.5] <lora:c>", {"a": EARLY, "b": LATE, "c": ALL}),
        ("[<lora:a>:[<lora:b>::8]:0.5]", {"a": EARLY, "b": [5, 6, 7]}),
        ("[[<lora:a>:2]:<lora:b>:0.5]", {"a": [2, 3, 4], "b": LATE}),
        ("[<lora:a>|<lora:b>]", {"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9]}),
        ("[<lora:a>|x|<lora:b>|]", {"a": [0, 4, 8], "b": [2, 6]}),
        ("[<lora:a>|[<lora:b>:5]]", {"a": [0, 2, 4, 6, 8], "b": [5, 7, 9]}),
        ("[(<lora:a>:1.2):0.5]", {"a": LATE}),
        ("([<lora:a>:0.5]:1.2)", {"a": LATE}),
        ("[<lora:a>:+5.0e-1]", {"a": LATE}),
        ("[<lora:a>:0]", {"a": ALL}),
        ("[<lora:a>:-1]", {"a": ALL}),
        ("[<lora:a>:20]", {"a": []}),
        ("[x:0.5<lora:a>]", {"a": ALL}),
        # Not prompt editing, in the WebUI either.
        ("[<lora:a>]", {"a": ALL}),
        ("[<lora:a>:b]", {"a": ALL}),
        ("[<lora:a>:b:c:d:0.5]", {"a": ALL}),
        ("[<lora:a>:0.1,0.5,0.7]", {"a": ALL}),
        ("[<lora:a>:b,0.5]", {"a": ALL}),
        ("[SEQ:<lora:a>:0.5:<lora:b>]", {"a": ALL, "b": ALL}),
        ("[SEQ:<lora:a>:0.1,0.5]", {"a": ALL}),
        ("[<lora:a>:b|c]", {"a": ALL}),
        ("[<lora:a>:0.5", {"a": ALL}),
        ("<lora:a>:0.5]", {"a": ALL}),
        ("[(<lora:a>:0.5]", {"a": ALL}),
        ("[<lora:a>):0.5]", {"a": ALL}),
        ("\\[<lora:a>:0.5]", {"a": ALL}),
        ("[<lora:a>\\:0.5]", {"a": ALL}),
        ("[<lora:a>:0.5\\]", {"a": ALL}),
        ("(<lora:a>:0.5)", {"a": ALL}),
    ],
)
def test_a_tag_acts_when_its_text_would(source: str, expected: dict[str, list[int]]) -> None:
    assert on(source) == expected


# What comfyui-prompt-control's documentation says of its ranges and sequences.
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[<lora:a>:0.1,0.5]", {"a": [1, 2, 3, 4]}),
        ("[<lora:a> : 0.1 , 0.5 ]", {"a": [1, 2, 3, 4]}),
        ("[<lora:a>:2,4]", {"a": [2, 3]}),
        ("[<lora:a>:<lora:b>:0.1,0.4]", {"a": [1, 2, 3], "b": [4, 5, 6, 7, 8, 9]}),
        ("[<lora:a>:<lora:b>:<lora:c>:0.3,0.7]", {"a": [0, 1, 2], "b": [3, 4, 5, 6], "c": [7, 8, 9]}),
        ("[:<lora:b>::0.3,0.7]", {"b": [3, 4, 5, 6]}),
        ("[<lora:a>:<lora:b>:<lora:c>:0.3]", {"a": [0, 1, 2], "b": [3, 4, 5, 6, 7, 8, 9], "c": []}),
        ("[SEQ:<lora:a>:0.2:<lora:b>:0.6]", {"a": [0, 1], "b": [2, 3, 4, 5]}),
        ("[SEQ:<lora:a>:0.2::0.4:<lora:b>:1.0]", {"a": [0, 1], "b": [4, 5, 6, 7, 8, 9]}),
        ("[SEQ:<lora:a>:0.2]", {"a": [0, 1]}),
        ("[x:[SEQ:<lora:a>:0.8:<lora:b>:1.0]:0.5]", {"a": [5, 6, 7], "b": [8, 9]}),
    ],
)
def test_ranges_and_sequences_act_as_in_prompt_control(source: str, expected: dict[str, list[int]]) -> None:
    assert on(source) == expected
    # Otherwise each acts in every step, and that is said.
    assert [d.hint for d in parse_prompt(source).diagnostics] == [
        'scope="edit" reads such tags with their brackets'
    ] * len(expected)


def test_brackets_and_the_tags_own_window_both_count() -> None:
    (tag,) = parse_prompt("[<lora:a:stop=5>:2]", scope="edit").tags
    assert tag.conditions.when == (Window(start=Position(2, "step")), Window(stop=Position(5, "step")))


def test_alternation_is_a_turn() -> None:
    first, second = parse_prompt("[<lora:a>|<lora:b>]", scope="edit").tags
    assert (first.conditions.when, second.conditions.when) == ((Turn(0, 2),), (Turn(1, 2),))


def test_brackets_nested_too_deep_are_said() -> None:
    source = "[" * 40 + "<lora:a>" + ":5]" * 40
    prompt = parse_prompt(source, scope="edit")
    (tag,), (diagnostic,) = prompt.tags, prompt.diagnostics
    assert len(tag.conditions.when) == 32
    assert (diagnostic.severity, diagnostic.span) == ("warning", tag.span)
    assert diagnostic.message == '"a" stands in more than 32 brackets; the inner ones count'


@pytest.mark.parametrize("scope", ["all", "and"])
def test_brackets_mean_nothing_in_other_scopes(scope: str) -> None:
    (tag,) = parse_prompt("[<lora:a>:0.5]", scope=scope).tags  # type: ignore[arg-type]
    assert tag.conditions.when == ()


def test_brackets_that_are_not_read_are_said() -> None:
    prompt = parse_prompt("[<lora:a>:0.5] [<lora:b>] (<lora:c>:1.2)")
    (diagnostic,) = prompt.diagnostics
    assert (diagnostic.severity, diagnostic.span) == ("info", prompt.tags[0].span)
    assert diagnostic.hint == 'scope="edit" reads such tags with their brackets'


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("cat <lora:a> AND dog <lora:b> :1.2 AND <lora:c>", [0, 1, 2]),
        ("<lora:a> AND", [0]),
        ("AND <lora:a>", [1]),
        ("SAND <lora:a> ANDES and", [None]),
        ("<lora:a>", [None]),
    ],
)
def test_a_tag_belongs_to_its_part_between_ands(source: str, parts: list[int | None]) -> None:
    assert [tag.conditions.part for tag in parse_prompt(source, scope="and").tags] == parts
    assert [tag.conditions.part for tag in parse_prompt(source).tags] == [None] * len(parts)


@pytest.mark.parametrize(
    ("source", "text", "left"),
    [
        ("a boat [<lora:a>:<lora:b>:0.5]", "a boat ", []),
        ("a [<lora:a>::0.5] boat", "a  boat", []),
        ("a [<lora:a>|<lora:b>|]", "a ", []),
        ("[<lora:a>:[<lora:b>::8]:0.5] x", " x", []),
        ("[(<lora:a>:1.2):0.5] x", " x", []),
        ("[ <lora:a> : 5 ]x[<lora:b>:5]", "x", []),
        ("[cat <lora:a>:dog:0.5]", "[cat :dog:0.5]", ["[cat :dog:0.5]"]),
        ("[cat:[<lora:a>:4]:0.5]", "[cat::0.5]", ["[cat:[:4]:0.5]"]),
        ("[cat|dog] <lora:a>", "[cat|dog] ", ["[cat|dog]"]),
        ("[::0.5] <lora:a>", "[::0.5] ", ["[::0.5]"]),
        ("x[<lora:a>:0.1,0.5] [<lora:a>:<lora:b>:<lora:c>:0.3,0.7]", "x ", []),
        ("x [SEQ:<lora:a>:0.2:<lora:b>:0.6]", "x ", []),
        ("x [SEQ:cat <lora:a>:0.2:<lora:b>:0.6]", "x [SEQ:cat :0.2::0.6]", ["[SEQ:cat :0.2::0.6]"]),
        ("[a] (b:1.2) [<lora:a>] [x:y", "[a] (b:1.2) [] [x:y", []),
    ],
)
def test_brackets_that_only_switch_tags_leave_the_text_of_a_pipeline(source: str, text: str, left: list[str]) -> None:
    prompt = parse_prompt(source, scope="edit")
    found, others = without_edits(prompt.text, prompt.tag_places)
    assert found == text
    assert [prompt.text[edit.start : edit.end] for edit in others] == left


def test_thousands_of_brackets_take_no_time_to_leave() -> None:
    prompt = parse_prompt("[<lora:a>:0.5]" * 3000, scope="edit")
    assert without_edits(prompt.text, prompt.tag_places) == ("", [])
