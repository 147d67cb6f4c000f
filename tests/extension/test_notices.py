"""What the user is told."""

from __future__ import annotations

from extension_package import module

from lora_runtime.prompt import parse_prompt

notices = module("prompts.notices")


def test_a_notice_names_the_place_in_the_prompt() -> None:
    text = "first line\na <lora:ink:>"
    (diagnostic,) = parse_prompt(text).diagnostics
    notice = notices.notice_of(diagnostic, text)
    assert (notice.line, notice.column) == (2, 13)  # the place after the second colon of line 2
    assert str(notice).startswith("LoRA error: line 2, column 13: the strength is empty")


def test_a_place_in_a_text_that_nobody_sees_is_not_named() -> None:
    text = "a <lora:ink:>"
    (diagnostic,) = parse_prompt(text).diagnostics
    assert "column" not in str(notices.notice_of(diagnostic, ""))


def test_each_notice_is_said_once_in_a_generation() -> None:
    said = notices.Notices()
    first = notices.Notice("error", "gone")
    assert said.add([first, first]) == [first]
    assert said.add([first, notices.Notice("error", "gone", column=3)]) == [notices.Notice("error", "gone", column=3)]
    assert len(said) == 2
