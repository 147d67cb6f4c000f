"""`lora-runtime parse`."""

from __future__ import annotations

import io
import json

import pytest
from commands import Command


def test_it_prints_the_clean_text_and_a_table_of_tags(command: Command) -> None:
    result = command("parse", "a red circle <lora:watercolor:0.7>, x<lora:ink:te=1:unet=0.5:dyn=8>")
    assert result == (
        0,
        "a red circle , x\n"
        "\n"
        "  lora        te   unet  dyn  characters\n"
        "  watercolor  0.7  0.7   -    14-34\n"
        "  ink         1    0.5   8    38-67\n",
        "",
    )


def test_conditions_have_a_column_where_a_tag_has_some(command: Command) -> None:
    result = command("parse", "<lora:ink:1@0,0@1:stop=10:OUT=0.5:hr=0.3> <lora:oil>")
    assert result.out.splitlines()[2:] == [
        "  lora  te       unet     dyn  characters  conditions",
        "  ink   1@0,0@1  1@0,0@1  -    1-41        hr=0.3; OUT=0.5; stop=10s",
        "  oil   1        1        -    43-52",
    ]


def test_brackets_and_parts_are_conditions_in_their_scopes(command: Command) -> None:
    assert "conditions" not in command("parse", "[<lora:ink>|<lora:oil>]").out
    edited = command("parse", "--scope", "edit", "[<lora:ink>|<lora:oil>] [<lora:wash>:5]").out.splitlines()
    assert [line.rpartition("  ")[2] for line in edited[3:]] == ["step 1 of every 2", "step 2 of every 2", "start=5s"]
    parts = command("parse", "--scope", "and", "a <lora:ink> AND b <lora:oil>").out.splitlines()
    assert [line.rpartition("  ")[2] for line in parts[3:]] == ["part 1 of AND", "part 2 of AND"]


def test_the_order_of_strengths_is_the_dialects(command: Command) -> None:
    assert "  ink   0.9  0.5  " in command("parse", "--dialect", "comfy", "<lora:ink:0.5:0.9>").out


def test_json_holds_schedules_and_conditions(command: Command) -> None:
    (tag,) = json.loads(command("parse", "--json", "<lora:ink:1@0,0@50%:box=0,0,0.5,1:*attn1*=0:stop=10>").out)["tags"]
    assert tag["unet"] == {
        "keys": [
            {"value": 1.0, "position": {"value": 0.0, "unit": "fraction"}},
            {"value": 0.0, "position": {"value": 0.5, "unit": "fraction"}},
        ],
        "shape": "linear",
    }
    conditions = tag["conditions"]
    assert conditions["region"] == {"mask": None, "box": [0.0, 0.0, 0.5, 1.0], "soft": 0.0}
    assert conditions["when"] == [{"start": None, "stop": {"value": 10.0, "unit": "step"}}]
    assert conditions["blocks"]["rules"] == [{"where": "*attn1*", "ratio": 0.0}]


def test_tags_of_other_kinds_are_listed(command: Command) -> None:
    assert "  other     body  characters\n  hypernet  x:1   3-16\n" in command("parse", "a <hypernet:x:1>").out


def test_a_plain_prompt_is_printed_as_it_is(command: Command) -> None:
    assert command("parse", "a red\ncircle").out == "a red\ncircle\n"


def test_what_is_wrong_is_shown_with_carets(command: Command) -> None:
    result = command("parse", "a <lora:ink:oops>")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[2].startswith("line 1, column 13: error: ")
    assert [line[4:] for line in lines[3:5]] == ["a <lora:ink:oops>", "            ^^^^"]


def test_strict_fails_at_the_first_error(command: Command) -> None:
    result = command("parse", "--strict", "a <lora:ink:oops>")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("lora-runtime: error: line 1, column 13: ")


def test_json_holds_the_same(command: Command) -> None:
    result = command("parse", "--json", "水 <lora:ink:0.5> <hypernet:x:1> <lora:a:b>")
    found = json.loads(result.out)
    assert result.out.isascii()
    assert found["text"] == "水   "
    assert found["tags"] == [
        {
            "name": "ink",
            "te": 0.5,
            "unet": 0.5,
            "dyn": None,
            "span": [2, 16],
            "utf16_span": [2, 16],
            "raw": "<lora:ink:0.5>",
            "conditions": dict.fromkeys(("hires_te", "hires_unet", "expert", "region", "part", "blocks"), None)
            | {"when": []},
            "was": "",
        }
    ]
    assert [other["kind"] for other in found["others"]] == ["hypernet"]
    assert "error" in {diagnostic["severity"] for diagnostic in found["diagnostics"]}


def test_a_dash_reads_standard_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a <lora:ink>\n"))
    assert command("parse", "-").out.splitlines()[-1] == "  ink   1   1     -    3-12"


def test_escape_sequences_are_not_obeyed(command: Command) -> None:
    assert "\x1b" not in command("parse", "a \x1b[2J <lora:\x1b[31m>").out
