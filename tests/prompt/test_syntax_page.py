"""The page about the syntax: every example in it is read without an error or a warning."""

import re
from pathlib import Path

import pytest

from lora_runtime.prompt import parse_prompt
from lora_runtime.prompt.arguments import ARGUMENTS
from lora_runtime.prompt.strength import CURVES
from lora_runtime.prompt.tags import Dialect, Scope

PAGE = (Path(__file__).parents[2] / "docs" / "syntax.md").read_text(encoding="utf-8")
# The first column of the tables with the heading "example", by what is read there with another dialect or scope.
SECTIONS = re.split(r"^(?=## |With `)", PAGE, flags=re.MULTILINE)
EXAMPLES = [
    (example.replace("\\|", "|"), section)
    for section in SECTIONS
    for table in re.findall(r"^\| example .*\n\|[-|]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    for row in table.splitlines()
    for example in re.findall(r"`([^`]+)`", re.split(r"(?<!\\) \| ", row)[0])
]


def how(section: str) -> tuple[Dialect, Scope]:
    """Return the dialect and the scope that a section is about."""
    scope: Scope = "edit" if '`scope="edit"`' in section else "and" if '`scope="and"`' in section else "all"
    return "native" if '`dialect="native"`' in section else "a1111", scope


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) > 50
    assert {how(section) for _, section in EXAMPLES} == {
        *(("a1111", "all"), ("a1111", "edit"), ("a1111", "and"), ("native", "all")),
    }


@pytest.mark.parametrize(("example", "section"), EXAMPLES, ids=[example for example, _ in EXAMPLES])
def test_every_example_is_read(example: str, section: str) -> None:
    dialect, scope = how(section)
    prompt = parse_prompt(example, dialect=dialect, scope=scope)
    assert [d for d in prompt.diagnostics if d.severity != "info"] == []
    assert len(prompt.tags) == (0 if example.startswith("\\<") else example.count("<"))


def test_the_page_has_an_example_of_every_argument_and_every_curve() -> None:
    for argument in ARGUMENTS:
        assert f"{argument.name}=" in PAGE
    for curve in CURVES:
        assert f"`{curve}`" in PAGE
