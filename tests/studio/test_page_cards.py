"""The studio's cards in headless Chromium: 5,000 files, filters, the keyboard, the window of details, the bin."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from chromium import axe_core, skip_without_browser
from handmade import write
from PIL import Image

from lora_runtime.demo.scene_pipeline import LORAS, PIPELINE
from lora_runtime.panel.marks import Marks

pytest.importorskip("gradio", reason="gradio is not installed: the extra `studio` has it")
skip_without_browser()

from selenium.webdriver.common.keys import Keys  # noqa: E402
from studio_browser import Page, chromium  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own threads, which end when they end

AXE = axe_core()
NAMES = "return [...document.querySelectorAll('.lr-card .lr-name')].map(each => each.textContent)"
WINDOW = "dialog.lora-runtime-window"
SAID = "lora-gallery .lr-said"
COUNTED = "lora-gallery .lr-counted"
NUMBER = 5000
SD1, SDXL = {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}


class Cards(Page):
    """The page with its cards."""

    def names(self) -> list[str]:
        """Return the titles of the cards that are in the page."""
        return list(self.run(NAMES))

    def filter(self, text: str) -> None:
        """Press the button above the cards that begins with this text."""
        self.run(
            "[...document.querySelectorAll('.lr-filters button')]"
            ".find(each => each.textContent.startsWith(arguments[0])).click()",
            text,
        )

    def key(self, *keys: str) -> None:
        """Press keys where the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self) -> str:
        """Return the title of the card that the focus is in, "" for none."""
        script = "return document.activeElement.closest('.lr-cell')?.querySelector('.lr-name').textContent ?? ''"
        return str(self.run(script))

    def focus(self, title: str) -> None:
        """Give the focus to a card."""
        script = (
            "[...document.querySelectorAll('.lr-card')]"
            ".find(each => each.querySelector('.lr-name').textContent === arguments[0]).focus()"
        )
        self.run(script, title)

    def open(self, title: str) -> None:
        """Open the window of a card by the keyboard."""
        self.focus(title)
        self.key("i")
        self.until(lambda: self.texts(f"{WINDOW} h3"))

    def press(self, text: str) -> None:
        """Press a button of the window."""
        script = "[...document.querySelectorAll(arguments[0])].find(b => b.textContent === arguments[1]).click()"
        self.run(script, f"{WINDOW} button", text)


def pixels(png: bytes) -> bytes:
    """Return what is to be seen of a picture: its text has the names of its LoRAs."""
    with Image.open(io.BytesIO(png)) as opened:
        return opened.convert("RGB").tobytes()


def written(folder: Path) -> Path:
    """Write the files of a small library: those of the embedded model, and some of others."""
    folder.mkdir()
    for name in ("heart", "night", "stripes"):
        shutil.copyfile(LORAS / f"{name}.safetensors", folder / f"{name}.safetensors")
    write(folder / "big.safetensors", {"x.lora_down.weight": ("F32", [1, 2], bytes(8))}, SDXL)
    (folder / "big.webm").write_bytes(b"no film, but asked for as one")
    write(folder / "old" / "private sea.safetensors", metadata=SD1)
    Image.new("RGB", (700, 500), (30, 90, 160)).save(folder / "old" / "private sea.png")
    (folder / "night.civitai.info").write_text('{"id": 2, "modelId": 1, "trainedWords": ["night sky", "stars"]}')
    (folder / "broken.safetensors").write_bytes(b"no")
    return folder


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "loras")


@pytest.fixture
def page(served: Any, driver: Any, folder: Path) -> Iterator[Cards]:
    with served(models=[str(PIPELINE)], device="cpu", loras=[str(folder)]) as (_, url):
        found = Cards(driver, url)
        found.resize(1400, 1100)
        found.load()
        yield found
        found.run("localStorage.clear()")
        found.close()


ALL = ["big", "heart", "night", "stripes", "old/private sea"]


def test_stars_families_and_what_was_used_last_choose_the_cards(page: Cards) -> None:
    page.until(lambda: page.names() == ALL)
    assert page.text(COUNTED) == "5 LoRAs"
    page.click(".lr-cell[data-name='0/night.safetensors'] .lr-star")
    page.until(lambda: [Path(mark.path).stem for mark in Marks().seen().all] == ["night"])
    assert "night" not in page.value()  # the star is no part of the card
    page.filter("★ Favourites")
    page.until(lambda: page.names() == ["night"])
    assert page.run("return document.querySelector('.lr-star').getAttribute('aria-pressed')") == "true"
    page.filter("★ Favourites")
    page.filter("SDXL 1")
    page.until(lambda: page.names() == ["big"])
    page.filter("SDXL 1")
    page.until(lambda: page.names() == ALL)
    page.write("a boat <lora:stripes:0.5>")
    page.paint()
    page.painted()
    page.filter("Last used first")
    page.until(lambda: page.names() == ["stripes", "big", "heart", "night", "old/private sea"])
    film = page.run("return document.querySelector('video').getAttribute('src')")
    assert film.startswith("lora-runtime/film?name=0%2Fbig.safetensors")


@pytest.mark.slow
def test_what_fits_the_model_is_asked_for_and_folders_are_hidden_and_pictures_blurred(page: Cards) -> None:
    page.filter("Fits this model")
    page.until(lambda: page.names() == ["heart", "night", "stripes"])
    page.filter("Fits this model")
    page.until(lambda: page.names() == ALL)
    page.run("document.querySelector('.lr-wishes summary').click()")
    hide, blur = page.driver.find_elements("css selector", ".lr-wishes input")
    blur.send_keys("nsfw, priv*sea", Keys.ENTER)
    blurred = ".lr-blurred .lr-look img"
    page.until(lambda: page.style(blurred, "filter") == ["blur(19.2px)"])
    page.focus("old/private sea")
    assert page.style(blurred, "filter") == ["none"]
    hide.send_keys("old", Keys.ENTER)
    page.until(lambda: page.names() == ALL[:4])
    page.load()  # the browser keeps it
    page.until(lambda: page.names() == ALL[:4])
    assert page.text(".lr-refused summary") == "1 file cannot be used"
    page.write("a <lora:private sea:1>")  # and tags find it all the same
    page.until(lambda: page.said(".name") == ["private sea"] and not page.said(".notice.error"))


def test_a_folder_and_words_narrow_down_and_nothing_found_is_said(page: Cards) -> None:
    page.run("const f = document.querySelector('.lr-folder'); f.value = 'old'; f.dispatchEvent(new Event('change'))")
    page.until(lambda: page.names() == ["old/private sea"])
    page.type("#lr-search", "night")
    page.until(lambda: page.text(COUNTED) == "No LoRA is what you look for.")
    assert page.names() == []
    assert page.run("return document.querySelector(arguments[0]).getAttribute('role')", COUNTED) == "status"


def test_the_window_has_picture_words_and_page_and_gives_the_focus_back(page: Cards) -> None:
    page.write("a boat")
    page.open("night")
    assert page.texts(f"{WINDOW} .lora-runtime-words button") == ["night sky", "stars"]
    assert page.texts(f"{WINDOW} dd a") == ["https://civitai.com/models/1?modelVersionId=2"]
    page.click(f"{WINDOW} .lora-runtime-words button")
    assert page.value() == "a boat, night sky"
    assert page.run("return document.activeElement.textContent") == "night sky"
    page.click(f"{WINDOW} .lora-runtime-star")
    page.until(lambda: [mark.favourite for mark in Marks().seen().all] == [True])
    page.key(Keys.ESCAPE)
    page.until(lambda: not page.texts(WINDOW))
    assert page.focused() == "night"
    assert page.run("return document.activeElement.closest('.lr-cell').querySelector('.lr-star').ariaPressed") == "true"
    page.open("old/private sea")
    large = f"return document.querySelector('{WINDOW} img.lora-runtime-large')?.naturalWidth"
    page.until(lambda: page.run(large) == 700)


def test_a_renamed_file_keeps_its_tag_in_the_prompt_and_paints_as_before(page: Cards, folder: Path) -> None:
    page.write("a boat <lora:stripes:0.5>")
    page.paint()
    before = page.painted()
    page.open("stripes")
    field = f"{WINDOW} input"
    page.type(field, "heart")
    page.key(Keys.ENTER)
    page.until(lambda: "nothing is overwritten" in page.text(f"{WINDOW} [role=alert]"))
    page.type(field, "bands")
    page.key(Keys.ENTER)
    page.until(lambda: "bands" in page.names())
    page.until(lambda: page.value() == "a boat <lora:bands:0.5>")
    assert page.text(SAID) == "Renamed stripes to bands. Undo"
    assert (folder / "bands.safetensors").exists()
    page.until(lambda: page.said(".name") == ["bands"] and not page.said(".notice"))
    page.paint()
    assert pixels(page.painted()) == pixels(before)
    page.run("document.querySelector(arguments[0]).click()", f"{SAID} button")
    page.until(lambda: page.value() == "a boat <lora:stripes:0.5>" and "stripes" in page.names())


@pytest.mark.slow
def test_a_tag_of_a_file_that_is_gone_is_said_in_its_row_at_once(page: Cards, folder: Path) -> None:
    page.write("a boat <lora:stripes:0.5>")
    page.until(lambda: page.said(".name") == ["stripes"])
    page.open("stripes")
    page.press("Put into the bin")
    page.until(lambda: page.names() == ["big", "heart", "night", "old/private sea"])
    page.until(lambda: any("no LoRA named" in said for said in page.said(".notice")))
    assert page.run("return document.activeElement.textContent") == "Undo"
    page.filter("Bin")
    page.until(lambda: page.texts(f"{WINDOW} li span") == ["stripes"])
    page.press("Put back")
    page.until(lambda: page.names() == ALL and not page.said(".notice"))
    assert not (folder / ".lora-bin").exists()


@pytest.mark.slow
def test_cards_are_walked_through_chosen_and_starred_by_the_keyboard(page: Cards) -> None:
    page.write("")
    page.until(lambda: page.names() == ALL)
    page.run("document.querySelector('#lr-search').focus()")
    for _ in range(40):  # Tab leads to one card, whatever stands between
        page.key(Keys.TAB)
        if page.focused():
            break
    assert page.focused() == "big"
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.key(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.until(lambda: page.focused() == "night")
    page.key(Keys.ENTER)
    page.until(lambda: page.value() == "<lora:night:1>")
    assert page.focused() == "night"
    assert page.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    page.key(Keys.ARROW_LEFT, Keys.SPACE)
    page.until(lambda: page.value() == "<lora:night:1> <lora:heart:1>")
    page.key(Keys.SPACE)
    page.until(lambda: page.value() == "<lora:night:1>")
    page.key("f")
    page.until(lambda: [Path(mark.path).stem for mark in Marks().seen().all] == ["heart"])
    page.key(Keys.END)
    page.until(lambda: page.focused() == ALL[-1])
    page.key(Keys.HOME)
    page.until(lambda: page.focused() == "big")
    # And on to its own buttons, none of which another card has for Tab.
    page.key(Keys.TAB)
    assert page.focused() == "big"
    assert page.run("return document.querySelectorAll('.lr-cell [tabindex=\"0\"]').length") == 3


@pytest.mark.slow
def test_another_users_stars_and_files_are_there_at_the_next_question(page: Cards, folder: Path) -> None:
    page.until(lambda: page.names() == ALL)
    write(folder / "new.safetensors")
    page.type("#lr-search", "new")
    page.until(lambda: page.names() == ["new"])


# --- thousands ---


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 files in ten folders, of two families in turn."""
    found = tmp_path_factory.mktemp("many")
    contents = [write(found / "x.safetensors", metadata=family).read_bytes() for family in (SD1, SDXL)]
    (found / "x.safetensors").unlink()
    for index in range(NUMBER):
        place = found / f"folder {index // 500}"
        place.mkdir(exist_ok=True)
        (place / f"lora {index:04}.safetensors").write_bytes(contents[index % 2])
        if index % 10 == 0:
            (place / f"lora {index:04}.png").write_bytes(picture())
    return found


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 140, 200)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def many(served: Any, driver: Any, library: Path) -> Iterator[Cards]:
    with served(models=[str(PIPELINE)], device="cpu", loras=[str(library)]) as (_, url):
        found = Cards(driver, url)
        found.resize(1400, 1100)
        found.load()
        yield found
        found.close()


def title(index: int) -> str:
    return f"folder {index // 500}/lora {index:04}"


LONGEST = "const found = Math.round(window.longest); window.longest = 0; return found"


@pytest.mark.slow
def test_of_thousands_of_cards_those_in_sight_are_in_the_page(many: Cards) -> None:
    """The longest tasks are printed, for whoever asks with `-s`: where others use the machine they say little."""
    many.run(
        "window.longest = 0; new PerformanceObserver(list => { for (const task of list.getEntries())"
        " window.longest = Math.max(window.longest, task.duration); }).observe({type: 'longtask'})"
    )
    many.until(lambda: many.text(COUNTED) == "5,000 LoRAs")
    assert many.names()[0] == title(0)
    # Wherever somebody scrolls to, the cards of that place come, and no more than a screen or two of them.
    for part in (0.25, 0.5, 0.99, 0.1):
        many.run(
            "const box = document.querySelector('.lr-cards').getBoundingClientRect();"
            "scrollTo(0, scrollY + box.top + box.height * arguments[0])",
            part,
        )
        wanted = title(int(part * NUMBER))
        many.until(lambda wanted=wanted: wanted in many.names())
        many.until(lambda: not many.run("return document.querySelectorAll('.lr-waiting').length"))
        found = many.names()
        assert found == sorted(found)
        assert len(found) < 200
    scrolling = many.run(LONGEST)
    many.type("#lr-search", "0042")
    many.until(lambda: many.names() == [title(42)])
    filtering = many.run(LONGEST)
    many.type("#lr-search", "")
    many.until(lambda: many.text(COUNTED) == "5,000 LoRAs")
    print(f"\nlongest tasks in ms: scrolling {scrolling}, filtering {filtering}")


@pytest.mark.slow
def test_home_and_end_lead_to_the_first_and_the_last_of_all(many: Cards) -> None:
    many.run("scrollTo(0, document.querySelector('.lr-cards').getBoundingClientRect().top + scrollY)")
    many.until(lambda: title(0) in many.names())
    many.focus(title(0))
    many.key(Keys.END)
    many.until(lambda: many.focused() == title(NUMBER - 1))
    seen = "const r = document.activeElement.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight"
    assert many.run(seen)
    many.key(Keys.PAGE_UP)
    many.until(lambda: many.focused() not in ("", title(NUMBER - 1)))
    many.key(Keys.HOME)
    many.until(lambda: many.focused() == title(0))
    assert many.run(seen)
    place = "const c = document.activeElement.closest('.lr-cell'); return [c.ariaPosInSet, c.ariaSetSize, c.role]"
    assert many.run(place) == ["1", str(NUMBER), "listitem"]


def test_the_focus_stays_where_it_is_when_its_card_is_scrolled_away(many: Cards) -> None:
    many.run("scrollTo(0, document.querySelector('.lr-cards').getBoundingClientRect().top + scrollY)")
    many.until(lambda: title(0) in many.names())
    many.focus(title(0))
    many.run("scrollBy(0, 30000)")
    many.until(
        lambda: not many.run("return document.querySelectorAll('.lr-waiting').length") and len(many.names()) > 20
    )
    assert many.focused() == title(0)
    many.key(Keys.ARROW_RIGHT)
    many.until(lambda: many.focused() == title(1))


@pytest.mark.slow
def test_one_of_thousands_is_renamed_and_stays_in_sight(many: Cards, library: Path) -> None:
    many.type("#lr-search", "")
    many.run("scrollTo(0, document.querySelector('.lr-cards').getBoundingClientRect().top + scrollY)")
    many.until(lambda: title(7) in many.names())
    many.open(title(7))
    many.type(f"{WINDOW} input", "seven")
    many.key(Keys.ENTER)
    many.until(lambda: many.text(SAID) == "Renamed lora 0007 to seven. Undo")
    assert (library / "folder 0" / "seven.safetensors").exists()
    many.key(Keys.ENTER)  # the focus is on Undo
    many.until(lambda: title(7) in many.names())


# --- how it looks ---


@pytest.mark.skipif(AXE is None, reason="axe-core is not there: pip install axe-core-python, or AXE_CORE=…/axe.min.js")
@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_axe_finds_nothing(page: Cards, theme: str) -> None:
    page.load(theme)
    page.run("document.querySelector('.lr-wishes summary').click()")
    page.click(".lr-star")
    page.focus("night")
    assert page.violations(cast("Path", AXE), "lora-gallery") == []
    for title in ("night", "big", "old/private sea"):
        page.open(title)
        page.shot(f"studio-window-{theme}-{title.rpartition('/')[2]}")
        assert page.violations(cast("Path", AXE), WINDOW) == []
        page.key(Keys.ESCAPE)
    page.open("stripes")
    page.press("Put into the bin")
    page.until(lambda: "into the bin" in page.text(SAID))
    assert page.violations(cast("Path", AXE), "lora-gallery") == []
    page.filter("Bin")
    page.until(lambda: page.texts(f"{WINDOW} li"))
    page.shot(f"studio-bin-{theme}")
    assert page.violations(cast("Path", AXE), WINDOW) == []


@pytest.mark.quick
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_page(many: Cards, theme: str, width: int) -> None:
    many.resize(width, 1000)
    many.load(theme)
    many.run(
        "document.querySelector('.lr-wishes').open = true; document.querySelector('lora-gallery').scrollIntoView()"
    )
    many.until(lambda: title(1) in many.names())
    many.focus(title(1))
    many.shot(f"studio-cards-{theme}-{width}")
    outside = (
        "return [...document.querySelectorAll('lora-gallery *')].filter(e => e.getClientRects().length"
        " && e.getBoundingClientRect().right > innerWidth).map(e => e.className || e.tagName)"
    )
    assert many.run(outside) == []
    cut = "return [...document.querySelectorAll('.lr-card')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    assert many.run(cut) == 0  # all that stands on a card is to be seen
    many.resize(1400, 1100)


@pytest.fixture
def finger(driver: Any) -> Iterator[None]:
    """Make the browser that of a telephone."""
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.mark.slow
def test_what_a_finger_points_at_is_44_pixels_large(page: Cards, driver: Any, finger: None) -> None:
    screen = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.load()
    assert page.run("return matchMedia('(pointer: coarse)').matches")
    page.run(
        "document.querySelector('.lr-wishes').open = true; document.querySelector('lora-gallery').scrollIntoView()"
    )
    page.shot("studio-cards-finger")
    sizes = (
        "return [...document.querySelectorAll(arguments[0])].map(e => [e.getBoundingClientRect(), e])"
        ".filter(([r]) => r.width).map(([r, e]) => [Math.min(r.width, r.height), e.className])"
    )
    shelf = "lora-gallery :is(button, input, select, summary, a)"
    assert [each for each in page.run(sizes, shelf) if each[0] < 44] == []
    assert len(page.run(sizes, shelf)) > 15
    page.click(".lr-cell[data-name='0/night.safetensors'] .lr-info")
    page.until(lambda: page.texts(f"{WINDOW} form"))
    page.shot("studio-window-finger")
    assert [each for each in page.run(sizes, f"{WINDOW} :is(button, input, select)") if each[0] < 44] == []
    assert page.run("return document.querySelector(arguments[0]).getBoundingClientRect().right", WINDOW) <= 400
