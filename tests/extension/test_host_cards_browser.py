"""The cards of 5,000 files in headless Chromium: filters, keyboard, the window of details, the bin, what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double.page.driven import Page, browser, skip_without_browser
from handmade import write

if TYPE_CHECKING:
    from double.page import Served
    from double.webui import WebUI

pytest.importorskip("selenium", reason="selenium is not installed: `make test` has it with the WebUI's own versions")

from selenium.webdriver.common.keys import Keys

skip_without_browser()

CARDS = "#txt2img_lora_cards"
CARD = f"{CARDS} .card[data-tag]"
FILTERS = "#txt2img_lora_cards_html .lora-runtime-filters"
PROMPT = "#txt2img_prompt textarea"
SEARCH = "#txt2img_lora_extra_search"
WINDOW = "dialog.lora-runtime-window"
NUMBER = 5000
FAMILIES = {"sd_v1": "SD1", "sdxl_base_v1-0": "SDXL", "flux1": "Flux"}
# A picture of one colour, 8 by 8.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080802000000"
    "4b6d29dc0000001249444154789c633860ee8015310c2d090085c15481e1d4d8ce0000000049454e44ae426082"
)


def write_files(folder: Path, number: int) -> None:
    """Write so many files, of three families in turn, in ten folders, with the picture of one of a hundred."""
    contents = []
    for family in FAMILIES:
        metadata = {"ss_base_model_version": family, "modelspec.trigger_phrase": "ink wash, paper"}
        path = write(folder / "x.safetensors", {"x.lora_down.weight": ("F32", [1, 2], bytes(8))}, metadata)
        contents.append(path.read_bytes())
    (folder / "x.safetensors").unlink()
    for index in range(number):
        place = folder / f"folder {index % 10}"
        place.mkdir(exist_ok=True)
        (place / f"lora {index:04}.safetensors").write_bytes(contents[index % 3])
        if index % 100 == 0:
            (place / f"lora {index:04}.png").write_bytes(PNG)


class CardPage(Page):
    """The page with its cards."""

    seconds = 120.0  # thousands of cards come 60 at a time, where several processes share the cores

    def open(self, theme: str = "light") -> None:
        """Load the page anew, and go to the cards."""
        self.load(theme)
        self.until(lambda: self.texts(".lora-runtime-dir"))
        [tab] = [
            each
            for each in self.driver.find_elements("css selector", "#txt2img_extra_tabs > .tab-nav > button")
            if each.text == "Lora"
        ]

        def there() -> bool:
            tab.click()  # until gradio's page listens
            return bool(self.run("return document.querySelector(arguments[0]).checkVisibility()", CARDS))

        self.until(there)
        self.until(lambda: self.names() and self.texts(f"{FILTERS} [data-family]"))

    def names(self) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(card => card.dataset.name)"
        return list(self.run(script, CARD))

    def filter(self, text: str) -> None:
        """Click on a filter by its text."""
        script = "[...document.querySelectorAll(arguments[0])].find(b => b.textContent.startsWith(arguments[1]))"
        self.run(f"{script}.click()", f"{FILTERS} button", text)

    def key(self, *keys: str) -> None:
        """Press keys where the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self) -> str:
        """Return the name of the card that has the focus, "" for none."""
        script = "const c = document.activeElement.closest('.card'); return c ? c.dataset.name : ''"
        return str(self.run(script))

    def loaded(self, number: int) -> None:
        """Scroll down until so many cards were there."""
        script = "const box = document.querySelector(arguments[0]); box.scrollTop = box.scrollHeight"

        def there() -> bool:
            self.run(script, CARDS)
            [count] = self.texts(".lora-runtime-count")
            return int(count.split()[0].replace(",", "")) >= number

        self.until(there)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> Iterator[tuple[WebUI, Served]]:
    """Start the double once, with thousands of files, and serve its page."""
    from double.page import served, with_scripts
    from double.webui import REPOSITORY, WebUI, process

    with process():
        folder = tmp_path_factory.mktemp("webui")
        write_files(folder / "models" / "Lora", NUMBER)
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


LONGEST = "const found = Math.round(window.longest); window.longest = 0; return found"


@pytest.mark.slow
def test_of_thousands_of_cards_only_some_are_in_the_page_and_only_those_in_sight_are_laid_out(page: CardPage) -> None:
    """The longest tasks are printed, for whoever asks with `-s`: where others use the machine they say little."""
    page.run(
        "window.longest = 0; new PerformanceObserver(list => { for (const task of list.getEntries())"
        " window.longest = Math.max(window.longest, task.duration); }).observe({type: 'longtask'})"
    )
    first = page.names()
    page.loaded(NUMBER)
    assert 300 < len(page.names()) < 700
    assert page.names()[-1] == f"lora {NUMBER - 1:04}"  # the last of the last folder
    loading = page.run(LONGEST)
    drawn = page.run(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(card => card.querySelector('.name').checkVisibility({contentVisibilityAuto: true})).length",
        CARD,
    )
    assert 0 < drawn < 200  # of some hundreds: what is seen, and a little around it
    # Upwards row by row: cards come before those that are there, and these stay where they are.
    seen = set(page.names())
    below = len(seen)
    for _ in range(60):
        page.run("document.querySelector(arguments[0]).scrollTop -= 400", CARDS)
        page.until(lambda: page.server.idle)
        seen |= set(page.names())
    assert len(seen) > below + 100
    order = page.names()
    assert order == sorted(order, key=lambda name: (int(name[-1]), name))
    assert len(order) == len(set(order)) < 900
    # And far up at once.
    page.run("document.querySelector(arguments[0]).scrollTop = 0", CARDS)
    page.until(lambda: page.names()[:60] == first)
    scrolling = page.run(LONGEST)
    page.type(PROMPT, f"<lora:{first[2]}:1>")
    page.until(lambda: page.run("return document.querySelectorAll('.card.lora-runtime-chosen').length") == 1)
    marking = page.run(LONGEST)
    page.type(SEARCH, "0042")
    page.until(lambda: page.names() == ["lora 0042"])
    filtering = page.run(LONGEST)
    print(f"\nlongest tasks in ms: loading {loading}, scrolling {scrolling}, marking {marking}, filtering {filtering}")
    page.type(PROMPT, "")


def test_what_is_seen_stays_where_it_is_while_cards_come_and_go(page: CardPage) -> None:
    page.loaded(NUMBER // 3)
    assert 300 < len(page.names()) < 700
    place = "const {left, top} = document.querySelector(arguments[0]).getBoundingClientRect(); return [left, top]"
    seen = (
        "const box = document.querySelector(arguments[0]), top = box.getBoundingClientRect().top;"
        "return [...box.querySelectorAll('.card')].find(each => each.getBoundingClientRect().top >= top).dataset.name"
    )
    asked = page.server.count("/lora-runtime/cards?")
    while page.server.count("/lora-runtime/cards?") < asked + 5:
        page.run("document.querySelector(arguments[0]).scrollTop -= 300", CARDS)
        card = f"{CARD}[data-name='{page.run(seen, CARDS)}']"
        before = page.run(place, card)
        page.until(lambda: page.server.idle)
        page.run("return new Promise(done => setTimeout(done, 60))")
        assert page.run(place, card) == pytest.approx(before, abs=2)  # heights of rows are no whole numbers


def test_families_favourites_and_what_was_used_are_asked_for_by_buttons(page: CardPage) -> None:
    assert page.texts(f"{FILTERS} [data-family]") == ["SD1 1,667", "SDXL 1,667", "Flux 1,666"]
    page.filter("Flux")
    page.until(lambda: page.texts(".lora-runtime-count") == ["60 of 1,666"])
    page.filter("SDXL")
    page.until(lambda: page.texts(".lora-runtime-count") == ["60 of 3,333"])
    page.shot("filters")
    page.filter("SDXL")
    page.filter("Flux")
    page.until(lambda: page.texts(".lora-runtime-count") == ["60 of 5,000"])
    name = page.names()[3]
    page.click(f"{CARD}[data-name='{name}'] .lora-runtime-star")  # which nothing covers
    page.until(lambda: page.server.idle)
    page.filter("★ Favourites")
    page.until(lambda: page.names() == [name])
    page.run("document.querySelector(arguments[0]).click()", f"{CARD} .lora-runtime-star")
    page.until(lambda: page.server.idle)
    page.filter("★ Favourites")
    page.until(lambda: len(page.names()) == 60)


def test_cards_are_walked_through_chosen_and_starred_by_the_keyboard(page: CardPage) -> None:
    names = page.names()
    in_row = page.run(
        "const all = [...document.querySelectorAll(arguments[0])];"
        "return all.filter(card => card.offsetTop === all[0].offsetTop).length",
        CARD,
    )
    page.run("document.querySelector(arguments[0]).focus()", SEARCH)
    for _ in range(100):  # Tab leads to one card, whatever stands between
        page.key(Keys.TAB)
        if page.focused():
            break
    assert page.focused() == names[0]
    page.key(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert page.focused() == names[2 + in_row]
    page.key(Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert page.focused() == names[1]
    page.key(Keys.ENTER)
    page.until(lambda: page.field(PROMPT) == f"<lora:{names[1]}:1>")
    pressed = f"{CARD}[data-name='{names[1]}'] .lora-runtime-choose"
    assert page.run("return document.querySelector(arguments[0]).getAttribute('aria-pressed')", pressed) == "true"
    outline = page.style(pressed, "outlineStyle")
    page.shot("focus")
    assert outline == ["solid"]
    page.key(Keys.SPACE)
    page.until(lambda: page.field(PROMPT) == "")
    page.key("f")
    star = f"{CARD}[data-name='{names[1]}'] .lora-runtime-star"
    page.until(
        lambda: page.run("return document.querySelector(arguments[0]).getAttribute('aria-pressed')", star) == "true"
    )
    page.key("f")
    page.until(
        lambda: page.run("return document.querySelector(arguments[0]).getAttribute('aria-pressed')", star) == "false"
    )
    # And on to its own buttons, none of which another card has for Tab.
    page.key(Keys.TAB)
    assert page.focused() == names[1]
    assert page.run("return document.querySelectorAll(arguments[0]).length", f"{CARD} [tabindex='0']") == 6


def test_home_and_end_lead_to_the_first_and_the_last_of_all_cards(page: CardPage) -> None:
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    first = page.focused()
    page.key(Keys.END)
    page.until(lambda: page.focused() == f"lora {NUMBER - 1:04}")  # the last of the last folder
    page.until(lambda: page.server.idle)
    assert page.names()[-1] == page.focused()
    page.key(Keys.ARROW_UP)
    page.until(lambda: page.focused() not in ("", f"lora {NUMBER - 1:04}"))
    page.key(Keys.HOME)
    page.until(lambda: page.focused() == first)
    page.until(lambda: page.server.idle)
    assert page.names()[0] == first
    assert page.run("return document.querySelector(arguments[0]).scrollTop", CARDS) < 50
    # What is between comes by scrolling, as ever.
    page.key(Keys.ARROW_RIGHT)
    assert page.focused() == page.names()[1]


def test_the_folders_beside_the_cards_show_a_move_at_once(page: CardPage) -> None:
    (page.webui.loras / "new folder").mkdir()
    folders = ".extra-network-dirs button"
    assert "new folder/" not in page.texts(folders)
    page.type(SEARCH, "0017")
    page.until(lambda: page.names() == ["lora 0017"])
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    page.key("i")
    page.until(lambda: page.texts(f"{WINDOW} select option"))
    page.run(
        "const s = document.querySelector(arguments[0]); s.value = 'new folder'; s.form.requestSubmit()",
        f"{WINDOW} select",
    )
    page.until(lambda: "new folder/" in page.texts(folders))
    page.key(Keys.ENTER)  # the focus is on Undo
    page.until(lambda: "new folder/" not in page.texts(folders))
    assert (page.webui.loras / "folder 7" / "lora 0017.safetensors").exists()
    (page.webui.loras / "new folder").rmdir()
    page.type(SEARCH, "")


def test_the_window_has_the_words_and_gives_the_focus_back(page: CardPage) -> None:
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    first = page.focused()
    page.key("i")
    page.until(lambda: page.texts(f"{WINDOW} .lora-runtime-words button") == ["ink wash", "paper"])
    assert page.texts(f"{WINDOW} h3") == [first]
    page.shot("details")
    [font] = page.style(WINDOW, "fontFamily")
    assert set(page.style(f"{WINDOW} button, {WINDOW} input, {WINDOW} select", "fontFamily")) == {font}
    page.click(f"{WINDOW} .lora-runtime-words button")
    assert page.field(PROMPT) == "ink wash"
    page.click(f"{WINDOW} .lora-runtime-words button")
    assert page.field(PROMPT) == ""
    page.key(Keys.ESCAPE)
    page.until(lambda: not page.texts(WINDOW))
    page.until(lambda: page.focused() == first)


def test_escape_closes_what_lies_over_the_page_and_interrupts_no_picture(page: CardPage) -> None:
    # What the program does while it paints.
    page.run(
        "window.interrupted = 0; document.addEventListener('keydown', (event) => {"
        "if (event.key === 'Escape') { window.interrupted++; event.preventDefault(); } })"
    )
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    page.key("i")
    page.until(lambda: page.texts(WINDOW))
    page.run("document.activeElement.blur()")  # as after a click on a text
    page.key(Keys.ESCAPE)
    page.until(lambda: not page.texts(WINDOW))
    page.click(".lora-runtime-ask")
    page.until(lambda: page.texts(".lora-runtime-report"))
    page.key(Keys.ESCAPE)
    page.until(lambda: not page.texts(".lora-runtime-report"))
    assert page.run("return window.interrupted") == 0
    page.key(Keys.ESCAPE)
    assert page.run("return window.interrupted") == 1


def test_a_word_changes_nothing_else_of_the_prompt_and_can_be_undone(page: CardPage) -> None:
    prompt = "a boat ,sea,\n\nwide  shot"
    page.type(PROMPT, prompt)
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    page.key("i")
    page.until(lambda: page.texts(f"{WINDOW} .lora-runtime-words button") == ["ink wash", "paper"])
    page.click(f"{WINDOW} .lora-runtime-words button")
    assert page.field(PROMPT) == f"{prompt}, ink wash"
    assert page.run("return document.activeElement.textContent") == "ink wash"
    assert page.run("return document.querySelector(arguments[0]).matches(':modal')", WINDOW) is True
    page.key(Keys.ESCAPE)
    page.until(lambda: not page.texts(WINDOW))
    page.run("document.querySelector(arguments[0]).focus()", PROMPT)
    page.key(Keys.CONTROL + "z")
    assert page.field(PROMPT) == prompt


def test_a_file_is_renamed_thrown_away_and_put_back(page: CardPage) -> None:
    path = page.webui.loras / "folder 7" / "lora 0007.safetensors"
    page.type(SEARCH, "0007")
    page.until(lambda: page.names() == ["lora 0007"])
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    page.key("i")
    field = f"{WINDOW} input"
    page.until(lambda: page.field(field) == "lora 0007")
    page.type(field, "lora 0008")  # which lies in another folder: a name may come twice
    page.type(field, "lora 0017")
    page.key(Keys.ENTER)
    page.until(lambda: "already, and nothing is overwritten" in "".join(page.texts(f"{WINDOW} [role=alert]")))
    page.shot("refused")
    page.type(field, "seven 0007")
    page.key(Keys.ENTER)
    page.until(lambda: page.names() == ["seven 0007"])
    assert not path.exists()
    assert page.texts(f"{FILTERS} [role=status]") == ["Renamed lora 0007 to seven 0007. Undo"]
    page.key(Keys.ENTER)  # the focus is on Undo
    page.until(lambda: page.names() == ["lora 0007"])
    assert path.exists()
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    page.key("i")
    page.until(lambda: page.texts(f"{WINDOW} form"))
    page.run(
        "[...document.querySelectorAll(arguments[0])].find(b => b.textContent === 'Put into the bin').click()",
        f"{WINDOW} button",
    )
    page.until(lambda: page.names() == [])
    assert not path.exists()
    page.filter("Bin")
    page.until(lambda: page.texts(f"{WINDOW} li span") == ["folder 7/lora 0007"])
    page.shot("bin")
    page.click(f"{WINDOW} li button")
    page.until(lambda: page.names() == ["lora 0007"])
    assert path.exists()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_are_readable_in_both_themes_and_translated(page: CardPage, theme: str) -> None:
    page.open(theme)
    page.shot(f"cards-{theme}")
    page.run("window.localization = {'Close': 'Zu', 'Rename': 'Umbenennen'}")
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    page.key("i")
    page.until(lambda: page.texts(f"{WINDOW} header button") == ["Zu"])
    assert "Umbenennen" in page.texts(f"{WINDOW} button")
    page.shot(f"details-{theme}")
    for selector in (f"{WINDOW} h3", f"{WINDOW} dt", f"{WINDOW} dd", f"{WINDOW} button", f"{FILTERS} button"):
        assert min(page.run(CONTRAST, selector)) >= 4.5, selector


# How far the badge of the first card begins below the end of its buttons, in pixels.
BELOW = (
    "const card = document.querySelector(arguments[0]);"
    "const box = (part) => card.querySelector(part).getBoundingClientRect();"
    "return box('.lora-runtime-badge').top - box('.button-row').bottom"
)


def test_a_badge_is_below_the_buttons_while_these_are_shown(page: CardPage) -> None:
    page.run("document.querySelector(arguments[0]).focus()", f"{CARD} .lora-runtime-choose")
    assert page.style(f"{CARD} .button-row", "visibility")[0] == "visible"
    assert page.run(BELOW, CARD) >= 0


@pytest.fixture
def finger(driver: Any) -> Iterator[None]:
    """Make the browser that of a telephone."""
    screen = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_a_finger_points_at_is_44_pixels_large(finger: None, page: CardPage) -> None:
    assert page.run("return matchMedia('(pointer: coarse)').matches")
    page.shot("cards-400")
    assert page.run(BELOW, CARD) >= 0
    page.click(f"{CARD} .lora-runtime-details-button")
    page.until(lambda: page.texts(f"{WINDOW} form"))
    page.shot("details-400")
    sizes = (
        "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect()).filter(r => r.width)"
        ".map(({width, height}) => Math.min(width, height))"
    )
    targets = f"{FILTERS} button, {CARD} .card-button, {WINDOW} button, {WINDOW} input, {WINDOW} select"
    found = page.run(sizes, targets)
    assert len(found) > 10
    assert min(found) >= 44
    inside = page.run("const r = document.querySelector(arguments[0]).getBoundingClientRect(); return r.right", WINDOW)
    assert inside <= 400


# The contrast of each element's text with the first ground behind it that is opaque (WCAG 2.1).
CONTRAST = """
const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
return [...document.querySelectorAll(arguments[0])].map(element => {
    let ground = element;
    while (ground && (rgb(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 1) ground = ground.parentElement;
    const behind = ground ? rgb(getComputedStyle(ground).backgroundColor) : [255, 255, 255];
    const [high, low] = [light(rgb(getComputedStyle(element).color)), light(behind)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
});
"""
