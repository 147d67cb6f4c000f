"""Words and tags that come into a prompt and go out of it by a button: panel/web/words.js, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
WORDS = Path(__file__).parents[2] / "lora_runtime" / "panel" / "web" / "words.js"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed; the modules run in browsers")


def call(folder: Path, function: str, *arguments: Any) -> Any:
    """Return what a function gives."""
    (folder / "words.mjs").write_bytes(WORDS.read_bytes())  # the name by which every Node knows a module
    program = (
        f"import {{{function}}} from './words.mjs'; import {{readFileSync}} from 'fs';"
        f"process.stdout.write(JSON.stringify({function}(...JSON.parse(readFileSync(0, 'utf8')))));"
    )
    (folder / "asked.mjs").write_text(program, encoding="utf-8")
    assert NODE is not None
    done = subprocess.run(
        [NODE, "asked.mjs"], cwd=folder, input=json.dumps(arguments), capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout)


def after(prompt: str, change: dict[str, Any]) -> str:
    """Return a prompt after a change of it."""
    start, end = change["span"]
    return prompt[:start] + str(change["text"]) + prompt[end:]


def words(folder: Path, prompt: str, word: str) -> str:
    """Return the prompt after the button of a word."""
    return after(prompt, call(folder, "changeOfWord", prompt, word))


@pytest.mark.parametrize(
    ("without", "with_it"),
    [
        ("", "ink wash"),
        ("a boat", "a boat, ink wash"),
        ("a boat ,sea,\n\n <lora:ink:1:IN=0,1>", "a boat ,sea,\n\n <lora:ink:1:IN=0,1>, ink wash"),
        ("a boat , ", "a boat, ink wash , "),
        ("(ink wash:1.2)", "(ink wash:1.2), ink wash"),
    ],
)
def test_a_word_comes_in_and_goes_out_again_and_nothing_else_changes(
    tmp_path: Path, without: str, with_it: str
) -> None:
    assert words(tmp_path, without, "ink wash") == with_it
    assert words(tmp_path, with_it, "ink wash") == without


@pytest.mark.parametrize(
    ("before", "without"),
    [
        ("ink wash ,  sea", "sea"),
        ("a ,\n Ink Wash,  sea", "a ,\n sea"),
        ("a, ink wash,  sea ,b", "a,  sea ,b"),
        ("<lora:ink:0.8> ink wash, sea", "<lora:ink:0.8> sea"),
        ("<lora:ink:0.8:ink wash> ink wash", "<lora:ink:0.8:ink wash> "),
        ("a,ink wash\nsea", "a\nsea"),
        ("ink wash, a, ink wash", "a, ink wash"),
    ],
)
def test_a_word_goes_with_one_comma(tmp_path: Path, before: str, without: str) -> None:
    assert words(tmp_path, before, "ink wash") == without


@pytest.mark.parametrize(
    ("without", "place", "with_it"),
    [
        ("", 0, "<lora:ink:1>"),
        ("a boat", 6, "a boat <lora:ink:1>"),
        ("a boat ", 7, "a boat <lora:ink:1>"),
        ("a boat, sea", 6, "a boat <lora:ink:1>, sea"),
        ("a <lora:wash:0.5> b", 8, "a <lora:wash:0.5> b <lora:ink:1>"),  # not within another tag
    ],
)
def test_a_tag_comes_in_where_the_cursor_is(tmp_path: Path, without: str, place: int, with_it: str) -> None:
    assert after(without, call(tmp_path, "changeOfTag", without, "ink", place)) == with_it


@pytest.mark.parametrize(
    ("before", "without"),
    [
        ("a boat <lora:ink:1>", "a boat"),
        ("<lora:ink:0.5:start=0.2> a", " a"),
        ("a <LoRA: ink :1>, b", "a, b"),
        ("a <lora:inkwell:1> <lora:ink>", "a <lora:inkwell:1>"),
        ("a <lora:ink", "a"),  # one that is not ended
    ],
)
def test_a_tag_goes_out_whatever_stands_in_it(tmp_path: Path, before: str, without: str) -> None:
    assert after(before, call(tmp_path, "changeOfTag", before, "ink")) == without


def test_a_renamed_file_keeps_its_place_and_strengths_in_the_prompt(tmp_path: Path) -> None:
    before = "ink <lora:ink:0.5:lbw=x> <lora:inkwell:1> <lyco:ink>"
    now = "ink <lora:wash:0.5:lbw=x> <lora:inkwell:1> <lyco:wash>"
    assert call(tmp_path, "withRenamed", before, "ink", "wash") == now
    assert call(tmp_path, "withRenamed", now, "wash", "ink") == before
    assert call(tmp_path, "withRenamed", "$& <lora:a.b:1>", "a.b", "$1") == "$& <lora:$1:1>"
