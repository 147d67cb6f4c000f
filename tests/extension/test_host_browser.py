"""The Lora page in headless Chromium: gradio's own front end, the program's element ids, our script and style sheet.

The page is the double's (tests/double/page/); tests/webui/test_browser.py drives an installed WebUI.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain
from double.page.driven import Page, browser, skip_without_browser

if TYPE_CHECKING:
    from double.page import Served
    from double.webui import WebUI

skip_without_browser()

CARDS = "#txt2img_lora_cards"
SEARCH = "#txt2img_lora_extra_search"
PROMPT = "#txt2img_prompt textarea"
NUMBER = 200
FOLDERS = {"style/water": ("boat harbour", "boat river"), "people": ("anna", "boat builder")}


class CardPage(Page):
    """The page with its cards."""

    def open(self, theme: str = "light") -> None:
        """Load the page anew, go to the cards, and wait until all is there."""
        self.load(theme)
        self.until(lambda: self.texts(".lora-runtime-dir"))  # the page came after the empty one that stood for it
        before = self.questions()
        self.tab("Lora")
        self.until(lambda: self.questions() > before and self.server.idle and self.names())
        self.until(lambda: self.texts(".lora-runtime-count"))  # its bar waits for modules, and the cards do not

    def tab(self, name: str) -> None:
        """Choose a tab."""
        tabs = self.driver.find_elements("css selector", "#txt2img_extra_tabs > .tab-nav > button")
        [tab] = [each for each in tabs if each.text == name]
        tab.click()

    def scroll(self) -> None:
        """Go to the end of the cards."""
        self.run("const box = document.querySelector(arguments[0]); box.scrollTop = box.scrollHeight", CARDS)

    def names(self) -> list[str]:
        """Return the names on the cards that are to be seen."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(c => c.offsetParent).map(c => c.dataset.name)"
        )
        return list(self.run(script, f"{CARDS} .card"))

    def chosen(self) -> list[str]:
        """Return the names on the cards that are marked."""
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map(c => c.dataset.name)", MARKED))

    def questions(self) -> int:
        """Return how often the server was asked for cards."""
        return self.server.count("/lora-runtime/cards?")


MARKED = f"{CARDS} .card.lora-runtime-chosen"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """Start the browser once."""
    with browser() as found:
        yield found


def write_files(folder: Path) -> None:
    """Write `NUMBER` files, all alike, and those of `FOLDERS`."""
    first = loras.write(folder / "000.safetensors", plain())
    names = [f"{number:03}" for number in range(1, NUMBER)]
    for name in [*names, *(f"{place}/{name}" for place, files in FOLDERS.items() for name in files)]:
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first.path.read_bytes())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> Iterator[tuple[WebUI, Served]]:
    """Start the double once, with files, and serve its page."""
    from double.page import served, with_scripts
    from double.webui import REPOSITORY, WebUI, process

    with process():
        folder = tmp_path_factory.mktemp("webui")
        write_files(folder / "models" / "Lora")
        webui = WebUI(folder, page=True)
        given = ("extra_networks_default_multiplier", "extra_networks_add_text_separator", "sd_model_checkpoint")
        options = {name: getattr(webui.options, name) for name in given}
        with with_scripts([REPOSITORY], options), served(webui.app) as server:
            yield webui, server


@pytest.fixture
def page(driver: Any, program: tuple[WebUI, Served]) -> Iterator[CardPage]:
    """Open the page; afterwards no script of the page may have failed."""
    webui, server = program
    found = CardPage(driver, server, webui)
    found.open()
    yield found
    assert found.failures() == []
    assert webui.errors == []


def test_cards_come_while_one_scrolls(page: CardPage) -> None:
    assert len(page.names()) == 60
    assert page.texts(".lora-runtime-count") == ["60 of 204"]
    page.shot("cards")
    for number in (120, 180, 204):
        page.scroll()
        page.until(lambda number=number: len(page.names()) == number)
    assert sorted(page.names()) == sorted(
        [f"{number:03}" for number in range(NUMBER)] + [name for files in FOLDERS.values() for name in files]
    )
    assert page.texts(".lora-runtime-count") == ["204"]


def test_the_programs_own_controls_keep_their_line_and_the_number_and_the_report_are_in_the_bar(page: CardPage) -> None:
    ours = (
        "return [...document.querySelector(arguments[0]).children].filter(e => /lora-runtime/.test(e.className)).length"
    )
    assert page.run(ours, "#txt2img_lora_controls") == 0  # on a narrow page there is no room beside them
    assert page.texts(".lora-runtime-filters .lora-runtime-ask") == ["LoRA report"]
    assert len(page.texts(".lora-runtime-filters .lora-runtime-count")) == 1


def test_a_click_writes_the_tag_where_gradio_reads_it_and_a_second_one_takes_it_out(page: CardPage) -> None:
    page.type(PROMPT, "a harbour <lora:nobody:1>")
    page.click(f"{CARDS} .card[data-name='007']")
    assert page.field(PROMPT) == "a harbour <lora:nobody:1> <lora:007:1>"
    assert page.until(page.chosen) == ["007"]
    page.shot("chosen")
    page.click("#txt2img_generate")
    page.until(lambda: page.texts("#html_log_txt2img .performance"))
    assert page.webui.job.prompt == "a harbour <lora:nobody:1> <lora:007:1>"
    page.click(f"{CARDS} .card[data-name='007']")
    assert page.field(PROMPT) == "a harbour <lora:nobody:1>"
    assert page.chosen() == []


def test_cards_are_marked_for_tags_however_they_are_typed(page: CardPage) -> None:
    for text, marked in (
        ("<LoRA:003:0.5>, <lora:001:te=1:unet=-1>", ["001", "003"]),
        ("<lyco:002>", ["002"]),
        ("<lora:00", []),
    ):
        page.type(PROMPT, text)
        page.until(lambda marked=marked: page.chosen() == marked)
    page.type(PROMPT, "<LORA:boat harbour>")
    page.type(SEARCH, "harbour")
    page.until(lambda: page.names() == ["boat harbour"] == page.chosen())
    [width] = set(page.run(f"return [getComputedStyle(document.querySelector('{MARKED}'), '::after').borderTopWidth]"))
    assert width == "3px"


def test_a_page_that_comes_after_its_cards_is_marked_and_scrolls(
    page: CardPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many files the first page takes the server longest; until it comes, the cards are in the empty one."""
    [lora_page] = page.webui.module("ui_extra_networks").extra_pages
    create_html, gate = lora_page.create_html, threading.Event()
    monkeypatch.setattr(lora_page, "create_html", lambda *given, **named: gate.wait() and create_html(*given, **named))
    monkeypatch.setattr(page.webui.ui, "pages_contents", [])  # else the page is there from the last time
    try:
        page.load()
        page.tab("Lora")
        page.type(PROMPT, "<lora:001:1>")
        page.until(lambda: page.chosen() == ["001"])
        assert page.texts(".lora-runtime-dir") == []
    finally:
        gate.set()
    page.until(lambda: page.texts(".lora-runtime-dir"))
    page.until(lambda: page.chosen() == ["001"])
    page.scroll()
    page.until(lambda: len(page.names()) == 120)


def test_several_words_are_searched_in_any_order_and_nothing_found_is_said(page: CardPage) -> None:
    page.type(SEARCH, "boat water")
    page.until(lambda: sorted(page.names()) == ["boat harbour", "boat river"])
    assert page.texts(".lora-runtime-count") == ["2"]
    page.type(SEARCH, "boat anna")
    page.until(lambda: page.texts(f"{CARDS} .lora-runtime-note") == ["Nothing found for “boat anna”."])
    assert page.names() == []
    page.type(SEARCH, "")
    page.until(lambda: len(page.names()) == 60)


def test_folder_and_search_outlive_a_refresh_that_finds_a_new_file(page: CardPage) -> None:
    page.click(".lora-runtime-dir[data-folder='people']")
    page.until(lambda: page.names() == ["anna", "boat builder"])
    page.type(SEARCH, "boat")
    page.until(lambda: page.names() == ["boat builder"])
    new = page.webui.loras / "people" / "boat captain.safetensors"
    new.write_bytes((page.webui.loras / "000.safetensors").read_bytes())
    try:
        page.click("#txt2img_lora_extra_refresh")
        page.until(lambda: page.names() == ["boat builder", "boat captain"])
        assert page.field(SEARCH) == "boat"
        assert page.texts(".lora-runtime-dir.lora-runtime-chosen") == ["people/"]
        page.shot("refreshed")
        page.click(".lora-runtime-dir[data-folder='']")
        page.until(lambda: len(page.names()) == 4)
        assert page.texts(".lora-runtime-dir.lora-runtime-chosen") == []
    finally:
        new.unlink()
        page.webui.client().post("/sdapi/v1/refresh-loras")


def test_a_request_that_fails_is_said_and_asked_again_only_by_a_click(
    page: CardPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    [lora_page] = page.webui.module("ui_extra_networks").extra_pages

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is gone")

    failed = f"{CARDS} .lora-runtime-failed"
    with monkeypatch.context() as patch:
        patch.setattr(lora_page, "search", fail)
        page.type(SEARCH, "b")
        asked = "/lora-runtime/cards?tabname=txt2img&q=b&"
        said = page.until(lambda: page.server.count(asked) and page.server.idle and page.texts(failed))
        assert said == ["The cards could not be fetched (cards: 500 Internal Server Error). Click to try again."]
        page.shot("failed")
        log = page.failures()
        assert any(asked in each for each in log)
        assert any("LoRA Runtime:" in each for each in log)
        before = page.questions()
        for name in ("001", "002", "003"):  # each mark shows that the page has looked at everything once more
            page.type(PROMPT, f"<lora:{name}:1>")
            page.until(lambda name=name: page.chosen() == [name])
            page.scroll()
        assert page.questions() == before
        red, green, blue = map(int, page.style(failed, "color")[0].removeprefix("rgb(").removesuffix(")").split(", "))
        assert red > 1.5 * max(green, blue)
    page.click(failed)
    page.until(lambda: set(page.names()) >= {"boat harbour", "boat builder"})
    assert page.texts(failed) == []


@pytest.mark.quick(1)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_under_the_picture_have_the_text_and_the_colour_of_what_they_say(page: CardPage, theme: str) -> None:
    page.open(theme)
    page.tab("Generation")
    page.type(PROMPT, "a boat <lora:nobody:1> <lora:001:0.1:unet=1:unet=2> <lora:002:7>")
    page.click("#txt2img_generate")
    comments = "#html_log_txt2img .comments"
    error, warning, note = page.until(lambda: page.texts(f"{comments} .lora-runtime-said"))
    assert error == f'LoRA error: column 8: no LoRA named "nobody" in {page.webui.loras} (204 files)'
    assert warning == 'LoRA warning: column 43: "unet=" is given twice; the last one counts'
    assert note.startswith("LoRA note: column ")
    page.shot(f"notices-{theme}")
    colours = page.style(f"{comments} .lora-runtime-said, {comments}", "color")
    assert len(set(colours)) == 4, colours  # each its own, and none that of the text around them
