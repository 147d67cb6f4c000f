"""What a click on a card does to the prompts: javascript/lora_runtime.js, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from extension_package import REPOSITORY

NODE = shutil.which("node")
SCRIPT = REPOSITORY / "javascript" / "lora_runtime.js"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed; the script runs in browsers")

INK = {"tag": "ink", "names": ["ink", "style/ink", "wash"], "weight": "", "activation": "", "negative": ""}
FULL = {**INK, "weight": "0.8", "activation": "ink wash, sea", "negative": "photo (real)"}


def call(function: str, arguments: list[list[Any]], script: Path = SCRIPT) -> list[Any]:
    """Return what a function of the script gives for each list of arguments."""
    program = (
        f"const script = require({json.dumps(str(script))});"
        "const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        f"process.stdout.write(JSON.stringify(given.map((each) => script.{function}(...each))));"
    )
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-e", program], input=json.dumps(arguments), capture_output=True, check=True, text=True
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def click(positive: str, card: dict[str, Any], negative: str = "", separator: str = " ") -> tuple[str, str]:
    options = {"separator": separator, "weight": 1}
    [after] = call("toggle", [[{"positive": positive, "negative": negative}, card, options]])
    return after["positive"], after["negative"]


def test_a_click_adds_the_tag_with_the_default_weight() -> None:
    assert click("a boat", INK) == ("a boat <lora:ink:1>", "")


def test_an_empty_prompt_gets_no_separator() -> None:
    assert click("", INK) == ("<lora:ink:1>", "")


def test_preferred_weight_activation_and_negative_text_come_along() -> None:
    assert click("a boat", FULL, "blurry", ", ") == (
        "a boat, <lora:ink:0.8> ink wash, sea",
        "blurry, (photo (real):1)",
    )


TEXTS = [
    "",
    " ",
    "a boat",
    "a boat ",
    "a, b, ",
    "x <lora:other:1> y",
    "ink",
    "<lora:inky:1>",
    "(photo (real):1)",
    "a\nb\n",
]


@pytest.mark.parametrize("separator", [" ", ", ", "", "\n", "$&", "|"])
def test_clicking_twice_gives_back_both_prompts_exactly(separator: str) -> None:
    options = {"separator": separator, "weight": 0.7}
    cases = [
        ({"positive": positive, "negative": negative}, card)
        for card in (INK, FULL)
        for positive in TEXTS
        for negative in TEXTS
    ]
    once = call("toggle", [[prompts, card, options] for prompts, card in cases])
    assert all(after["positive"] != before["positive"] for after, (before, _) in zip(once, cases, strict=True))
    twice = call("toggle", [[after, card, options] for after, (_, card) in zip(once, cases, strict=True)])
    assert twice == [prompts for prompts, _ in cases]


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:ink:1>",
        "<lora:ink:-0.8>",
        "<lora:ink>",
        "<lora:ink:0.5:1:8>",
        "<lora:ink:te=0.5:unet=1:dyn=8>",
        "<lora: ink :1>",
        "<lyco:ink:1>",
        "<lora:style/ink:1>",
        "<lora:style\\ink:1>",
        "<lora:ink.safetensors:1>",
        "<lora:wash:.5>",
    ],
)
def test_every_way_to_write_the_tag_is_taken_out(tag: str) -> None:
    assert click(f"a {tag} b", INK) == ("a b", "")
    assert click(f"{tag} b", INK) == ("b", "")
    assert click(f"a {tag}", INK) == ("a", "")


def test_all_tags_of_the_file_go_and_no_others() -> None:
    text = "a <lora:ink:1> b <lora:inky:1> <lora:photo/ink:1> <hypernet:ink:1> <lyco:wash:2> c"
    assert click(text, INK) == ("a b <lora:inky:1> <lora:photo/ink:1> <hypernet:ink:1> c", "")


def test_a_hash_is_known_by_its_first_digits() -> None:
    card = {**INK, "names": ["ink", "#0123456789ab"]}
    assert click("a <lora:#01234567:1>", card) == ("a", "")
    assert click("a <lora:#0123456789ABcdef:1>", card) == ("a", "")
    assert click("a <lora:01234567:1> <lora:0123456789AB>", card) == ("a", "")
    assert click("a <lora:#0123:1>", card) == ("a <lora:#0123:1> <lora:ink:1>", "")


def test_accents_are_one_letter() -> None:
    assert click("a <lora:cafe\u0301:1>", {**INK, "names": ["caf\u00e9"]}) == ("a", "")


def test_activation_text_goes_only_where_it_follows_the_tag() -> None:
    assert click("ink wash, sea, a <lora:ink:0.8> ink wash, sea, b", FULL) == ("ink wash, sea, a, b", "")
    assert click("<lora:ink:0.8> ink wash and sea", FULL) == ("ink wash and sea", "")


def test_the_negative_text_goes_whatever_its_weight_is_now() -> None:
    assert click("<lora:ink:1>", FULL, "a, (photo (real):1.3), b", ", ") == ("", "a, b")
    assert click("<lora:ink:1>", FULL, "photo (real)") == ("", "photo (real)")


def test_signs_of_regular_expressions_are_only_signs() -> None:
    card = {**INK, "names": ["a.b(c)*[d]$"], "tag": "a.b(c)*[d]$", "activation": "$& $1", "negative": "x|y (z"}
    once = click("t", card)
    assert once == ("t <lora:a.b(c)*[d]$:1> $& $1", "(x|y (z:1)")
    assert click(once[0], card, once[1]) == ("t", "")


@pytest.mark.parametrize("name", ["lora_runtime.js", "lora_runtime_cards.js"])
def test_the_script_needs_nothing_that_a_browser_of_2018_lacks(name: str) -> None:
    """No bundler stands between this file and the browser: optional chaining and the like would stop it as a whole."""
    text = SCRIPT.with_name(name).read_text("utf-8")
    for sign in ("?.", "??", "||=", "&&=", "replaceAll", "matchAll", "import ", "export "):
        assert sign not in text, sign


def test_a_tag_is_found_in_either_case_and_with_signs_of_a_path_in_its_name() -> None:
    assert click("a <LoRA:ink:1> b <LORA:ink>", INK) == ("a b", "")
    odd = {**INK, "names": ["back\\slash"]}
    assert click("a <lora:back\\slash:1>", odd) == ("a", "")
    assert click("a <lora:style\\ink:1>", INK) == ("a", "")
    blank = {**INK, "names": [" ink "]}
    assert click("a <lora: ink :1>", blank) == ("a", "")


# --- the page itself, in a double of it ---


def page(case: str) -> dict[str, Any]:
    """Return what a case of page_double.js finds."""
    assert NODE is not None
    double = REPOSITORY / "tests" / "extension" / "page_double.js"
    done = subprocess.run([NODE, str(double), str(SCRIPT), case], capture_output=True, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_cards_that_cannot_be_fetched_are_asked_for_once_and_a_click_asks_again() -> None:
    found = page("failure")
    assert found["asked"] == 1
    assert found["said"] == ("The cards could not be fetched (cards: 500 Internal Server Error). Click to try again.")
    assert found["gone"] and "data-tag=ink" in found["html"]


def test_more_cards_that_cannot_be_fetched_are_asked_for_once() -> None:
    found = page("more")
    assert found["offsets"] == ["0", "60"]
    assert not found["watched"]


def test_search_and_folder_outlive_a_refresh_of_the_page() -> None:
    assert page("refresh") == {"q": "boat", "folder": "style", "search": "boat", "marked": ["style"]}


def test_cards_are_fetched_again_when_another_checkpoint_is_chosen() -> None:
    assert page("checkpoint") == {"asked": 1, "html": "<div class=card data-tag=ink>for b"}


def test_a_search_that_finds_nothing_shows_what_the_server_says_and_asks_once() -> None:
    found = page("empty")
    assert found["html"] == "<div class=lora-runtime-note>Nothing found</div><details>2 files</details>"
    assert (found["q"], found["again"], found["watched"]) == ("nobody", 0, False)


def test_an_answer_that_comes_too_late_is_dropped() -> None:
    assert page("late") == {"html": "second"}


def test_a_click_on_a_card_writes_both_prompts_and_a_second_one_takes_it_back() -> None:
    found = page("click")
    assert found["texts"] == [["<lora:ink:0.8> wet", "(dry:1)", True], ["", "", False]]
    assert found["told"] == ["<lora:ink:0.8> wet", "(dry:1)", "", ""]  # the program is told of each text


def test_cards_are_marked_whichever_way_their_tag_is_written_and_comes_there() -> None:
    assert page("marks") == {
        "a": False,
        "<lora:ink:1>": True,
        "<LoRA:ink>": True,
        "<lora:back\\slash:1>": True,
        "<lyco: ink :1>": True,
        "<lora:01234567>": True,
        "<lora:inky>": False,
    }


def test_a_card_with_damaged_names_is_known_by_its_tag() -> None:
    assert page("names") == {"chosen": True}


def test_lines_under_the_picture_have_the_colour_of_what_they_say() -> None:
    assert page("notices")["lines"] == [
        ["lora-runtime-said lora-runtime-said-error", "LoRA error: column 3: gone"],
        ["", "\n"],
        ["lora-runtime-said lora-runtime-said-note", "LoRA note: 2 of 3 keys"],
        ["", "Somebody else's line"],
        ["lora-runtime-said lora-runtime-said-warning", "LoRA warning: x"],
    ]


def test_a_button_goes_with_them_once() -> None:
    found = page("notices")
    assert (found["buttons"], found["button"]) == (1, "LoRA report")


def test_the_report_is_shown_over_the_page_and_its_strengths_can_be_written_into_the_prompt() -> None:
    found = page("report")
    write = "Write these strengths into the prompt"
    asked, balanced = "a <lora:ink:1><lora:wash:1>", "a <lora:ink:0.7><lora:wash:0.7>"
    assert found["posted"] == ["./lora-runtime/report", "POST", "application/json", {"prompt": asked}]
    assert found["steps"] == [
        [["Close", "<h4>", write]],
        [[["Close", "<h4>", "The prompt is another by now: ask for the report again"]], f"{asked} and a cat"],
        [[], balanced, [balanced]],
        [["Close", "<p>"]],
        [["Close", "There is no report (other prompts are being reported on; ask again)."]],
        [["Close", "There is no report (401 Said so)."]],
        [],
    ]


def test_every_severity_of_a_notice_has_a_colour() -> None:
    from extension_package import module

    notices = module("prompts.notices")
    style = (REPOSITORY / "style.css").read_text("utf-8")
    severities = ["error", "warning", "note", "info"]
    lines = [str(notices.Notice(severity, "x", column=2)) for severity in severities]
    assert call("severityOf", [[line] for line in lines]) == severities
    assert call("severityOf", [["LoRA is nice"], ["an error: LoRA error: x"], [""]]) == ["", "", ""]
    assert all(f".lora-runtime-said-{severity}" in style for severity in severities)


def test_the_editor_closes_and_its_card_is_fetched_anew_only_when_it_was_saved() -> None:
    found = page("saved")
    assert found == {"kept": True, "closed": 1, "name": "ink", "card": "<div class=card data-tag=ink>new"}


def test_the_files_of_a_folder_of_the_tree_are_fetched_once_and_a_failure_is_said_there() -> None:
    failed = "The files could not be fetched (files: 500 Internal Server Error). Open the folder again to try again."
    assert page("folder") == [
        [True, "", 1, [failed]],
        [False, "", 1, [failed]],
        [True, "<li>ink", 2, []],
        [False, "<li>ink", 2, []],
        [True, "<li>ink", 2, []],
    ]
