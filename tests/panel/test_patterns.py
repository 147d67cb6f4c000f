"""Patterns that a person writes with commas between."""

from __future__ import annotations

import pytest

from lora_runtime.panel.patterns import has_one, in_folders, patterns_of


def test_what_is_written_is_cut_at_its_commas() -> None:
    assert patterns_of(" Old, style/Trial*/ ,, /private ") == ["old", "style/trial*", "private"]
    assert patterns_of("") == patterns_of(" , / ") == []


@pytest.mark.parametrize(
    ("folder", "hidden"),
    [
        ("", False),
        ("old", True),
        ("Old/deep/er", True),
        ("style/old", True),
        ("older", False),
        ("style", False),
        ("style/trial 3", True),
        ("style/trial 3/inner", True),
        ("other/trial 3", False),  # a pattern with a path is one of the whole path
    ],
)
def test_a_folder_is_meant_by_its_name_or_its_path_or_by_one_that_it_is_in(folder: str, hidden: bool) -> None:
    assert in_folders(["old", "style/trial*"])(folder) is hidden
    assert in_folders([])(folder) is False


def test_a_word_stands_anywhere_in_the_texts() -> None:
    assert has_one(["priv?te"], ("style/ink", "A Private one"))
    assert has_one(["ink*private"], ("style/ink", "A Private one"))
    assert not has_one(["private"], ("style/ink",))
    assert not has_one([], ("style/ink",))
