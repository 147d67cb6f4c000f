"""The page and the sheet of a sweep: nothing of a row is read as HTML, and each picture has its place."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from lora_runtime.sweep.manifest import line_of
from lora_runtime.sweep.page import page_of
from lora_runtime.sweep.rows import read_row
from lora_runtime.sweep.sheet import cells_of

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


def line(prompt: str, **more: Any) -> dict[str, Any]:
    given = {name: more.pop(name) for name in ("seed", "steps", "negative", "width", "mood") if name in more}
    return line_of(read_row({"prompt": prompt, **given}), **more)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_what_a_row_says_is_text_and_nothing_else() -> None:
    evil = line(
        EVIL,
        negative=EVIL,
        mood=EVIL,
        file=f"{EVIL}.png",
        error=EVIL,
        diagnostics=[{"severity": "warning", "message": EVIL}],
    )
    reader = read(page_of([evil], EVIL))
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert [tag for tag, _ in reader.tags].count("img") == 1
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert reader.text.count("alert(1)") == 7  # two titles, prompt, negative, error, warning, column
    (image,) = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert image["alt"] == EVIL
    assert not set('<>"') & set(image["src"] or "")


def test_pictures_are_beside_the_page_and_nothing_is_fetched() -> None:
    page = page_of([line("a", file="Boot-über #1.png"), line("b", error="no")], "out")
    reader = read(page)
    assert [attributes["src"] for tag, attributes in reader.tags if tag == "img"] == ["Boot-%C3%BCber%20%231.png"]
    assert "http" not in page.replace('charset="utf-8"', "")
    assert [tag for tag, _ in reader.tags].count("figure") == 2


def test_half_of_a_character_is_no_error() -> None:
    assert "a?" in page_of([line("a\ud800", file=None)], "out")


def test_more_rows_than_a_browser_likes_are_said() -> None:
    page = page_of([line(f"p{n}") for n in range(10_003)], "out")
    assert "10003 rows, of which the last 3 are only in manifest.jsonl" in page
    assert page.count("<figure>") == 10_000


def test_a_sheet_has_tags_across_and_down_what_else_differs() -> None:
    rows = [
        line(f"{text}{tags}", seed=seed)
        for text in ("a boat ", "a house ")
        for seed in (1, 2)
        for tags in ("<lora:ink:0.5>", "<lora:ink:1><lora:wash:te=1:unet=0>", "")
    ]
    titles, cells = cells_of(rows)
    assert titles == ["ink 0.5", "ink 1 + wash te=1:unet=0", "no LoRA"]
    assert [label for label, _ in cells] == ["a boat, seed 1", "a boat, seed 2", "a house, seed 1", "a house, seed 2"]
    assert [each for _, row in cells for each in row] == rows


def test_rows_that_differ_in_nothing_that_is_shown_stand_below_each_other() -> None:
    one, other, third = line("a", mood="x"), line("a", mood="y"), line("b <lora:ink:1>")
    titles, cells = cells_of([one, other, third])
    assert titles == ["no LoRA", "ink 1"]
    assert cells == [("a", [one, None]), ("a", [other, None]), ("b", [None, third])]


def test_sizes_and_steps_are_said_where_they_differ() -> None:
    _, cells = cells_of([line("a", width=32, steps=2), line("a", steps=3, width=64)])
    assert [label for label, _ in cells] == ["a, 2 steps, 32 × None", "a, 3 steps, 64 × None"]
