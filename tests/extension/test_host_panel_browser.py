"""The stack panel in headless Chromium, below the prompt of the double's page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from double import loras
from double.loras import plain
from double.page.driven import Page, browser, skip_without_browser

from lora_runtime.prompt import Curve, parse_prompt

if TYPE_CHECKING:
    from double.page import Served
    from double.webui import WebUI

pytest.importorskip("selenium", reason="selenium is not installed: `make test` has it with the WebUI's own versions")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

skip_without_browser()

PROMPT = "#txt2img_prompt textarea"
# axe-core is not ours to ship; where somebody has it, it looks at the panel too.
AXE = next(
    filter(Path.is_file, map(Path, (os.environ.get("AXE_CORE", "axe.min.js"), "node_modules/axe-core/axe.min.js"))),
    None,
)
STACK = "#txt2img_lora_stack"
# A picture of one colour, 8 by 8.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080802000000"
    "4b6d29dc0000001249444154789c633860ee8015310c2d090085c15481e1d4d8ce0000000049454e44ae426082"
)


class PanelPage(Page):
    """The page with its panel."""

    def parts(self, selector: str) -> list[Any]:
        """Return elements of the panel that are to be seen."""
        script = (
            "return [...document.querySelector(arguments[0]).shadowRoot.querySelectorAll(arguments[1])]"
            ".filter(e => e.getClientRects().length)"
        )
        return list(self.run(script, STACK, selector))

    def part(self, selector: str) -> Any:
        """Return the one element of the panel that this means, once it is there."""

        def found() -> Any:
            elements = self.parts(selector)
            return elements[0] if len(elements) == 1 else None

        return self.until(found)

    def said(self, selector: str) -> list[str]:
        """Return the texts of elements of the panel."""
        return [element.text for element in self.parts(selector)]

    def slide(self, selector: str, value: str) -> None:
        """Let a slider go at a value, as the pointer does."""
        script = (
            "const [slider, value] = arguments; slider.focus(); slider.value = value;"
            "for (const name of ['input', 'change']) slider.dispatchEvent(new Event(name, {bubbles: true}))"
        )
        self.run(script, self.part(selector), value)

    def write(self, text: str) -> None:
        """Write a prompt, and wait until the panel shows it."""
        self.type(PROMPT, text)
        self.becomes(text)

    def becomes(self, text: str) -> None:
        """Wait until the prompt is this and the panel shows it, with nothing left to change."""
        state = "const s = document.querySelector(arguments[0]); return s.editing || s.edits.length ? null : s.shown"
        self.until(lambda: self.value(PROMPT) == text == self.run(state, STACK))

    def undo(self) -> None:
        self.driver.find_element("css selector", PROMPT).send_keys(Keys.CONTROL, "z")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """Start the browser once."""
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> Iterator[tuple[WebUI, Served]]:
    """Start the double once, with files, and serve its page."""
    from double.page import served, with_scripts
    from double.webui import REPOSITORY, WebUI, process

    with process():
        webui = WebUI(tmp_path_factory.mktemp("webui"), page=True)
        ink = loras.write(webui.loras / "ink.safetensors", plain())
        notes = {"activation text": "ink wash, paper", "preferred weight": 0.8}
        ink.path.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")
        ink.path.with_suffix(".png").write_bytes(PNG)
        (webui.loras / "style").mkdir()
        for name in ("style/wash of water", "oil"):
            (webui.loras / f"{name}.safetensors").write_bytes(ink.path.read_bytes())
        loras.write(webui.loras / "other.safetensors", plain("sdxl"), "sdxl")
        webui.generate("a")
        webui.client().post("/sdapi/v1/refresh-loras")
        with with_scripts([REPOSITORY], {}), served(webui.app) as server:
            yield webui, server


@pytest.fixture(scope="module")
def loaded(driver: Any, program: tuple[WebUI, Served]) -> PanelPage:
    """Load the page once."""
    webui, server = program
    found = PanelPage(driver, server, webui)
    found.load()
    return found


@pytest.fixture
def page(loaded: PanelPage) -> Iterator[PanelPage]:
    """Empty the prompt; afterwards no script of the page may have failed."""
    loaded.until(lambda: loaded.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", STACK))
    loaded.write("")
    yield loaded
    assert loaded.failures() == []
    assert loaded.webui.errors == []


def test_a_tag_that_is_typed_is_a_row_with_its_file(page: PanelPage) -> None:
    page.write("a boat <lora:ink:0.7> and <lora:other:1>")
    assert page.said(".name") == ["ink", "other"]
    assert [field.get_attribute("value") for field in page.parts(".number")] == ["0.7", "0.7", "1", "1"]
    [badge] = page.said(".badge")  # of the one that does not fit
    assert badge.endswith("made for SDXL")
    assert page.said(".chip") == ["ink wash", "paper"]
    assert [slider.get_attribute("max") for slider in page.parts(".te input[type=range]")] == ["1.6", "2"]
    assert len(page.parts(".line .thumb img")) == 1
    page.shot("panel-rows")
    page.write("a boat")
    assert page.parts(".row") == []


def test_a_slider_changes_the_tag_alone_and_cursor_undo_and_gradio_know(page: PanelPage) -> None:
    page.write("a  boat <lora:ink:0.7:lbw=MIDD>, sea")
    page.run("document.querySelector(arguments[0]).setSelectionRange(3, 3)", PROMPT)
    page.slide(".unet input[type=range]", "1.1")
    page.becomes("a  boat <lora:ink:1.1:lbw=MIDD>, sea")
    assert page.run("return document.querySelector(arguments[0]).selectionStart", PROMPT) == 3
    assert page.run("return document.querySelector(arguments[0]).shadowRoot.activeElement.type", STACK) == "range"
    page.part(".link").click()
    page.slide(".te input[type=range]", "0.5")
    page.becomes("a  boat <lora:ink:te=0.5:unet=1.1:lbw=MIDD>, sea")
    page.click("#txt2img_generate")
    page.until(lambda: page.texts("#html_log_txt2img .performance"))
    assert page.webui.job.prompt == "a  boat <lora:ink:te=0.5:unet=1.1:lbw=MIDD>, sea"
    page.undo()
    page.becomes("a  boat <lora:ink:1.1:lbw=MIDD>, sea")
    page.undo()
    page.becomes("a  boat <lora:ink:0.7:lbw=MIDD>, sea")
    page.until(lambda: [field.get_attribute("value") for field in page.parts(".number")] == ["0.7", "0.7"])


def test_a_muted_tag_stays_and_paints_nothing(page: PanelPage) -> None:
    page.write("a boat <lora:ink:te=0.5:unet=0.9>")
    page.part(".mute").click()
    page.becomes("a boat <lora:ink:0:was=te 0.5 unet 0.9>")
    assert page.until(lambda: page.part(".mute").get_attribute("aria-checked") == "false")
    assert [field.get_attribute("value") for field in page.parts(".number")] == ["0.5", "0.9"]
    done = page.webui.generate(page.value(PROMPT))
    assert page.webui.changed(done.passes[0].weights) == []
    page.part(".mute").click()
    page.becomes("a boat <lora:ink:te=0.5:unet=0.9>")


def test_chips_put_trigger_words_into_the_prompt_and_take_them_out(page: PanelPage) -> None:
    page.write("a boat <lora:ink:1>, sea")
    page.parts(".chip")[1].click()
    page.becomes("a boat <lora:ink:1> paper, sea")
    page.until(lambda: [chip.get_attribute("aria-pressed") for chip in page.parts(".chip")] == ["false", "true"])
    page.parts(".chip")[1].click()
    page.becomes("a boat <lora:ink:1>, sea")


def test_rows_are_moved_and_deleted_by_keyboard_and_the_focus_goes_along(page: PanelPage) -> None:
    page.write("<lora:ink:0.7>, x, <lora:oil:0.2>")
    page.parts(".tools button")[1].send_keys(Keys.ENTER)  # down, of the first
    page.becomes("<lora:oil:0.2>, x, <lora:ink:0.7>")
    assert page.until(lambda: page.said(".name") == ["oil", "ink"])
    focused = page.run("return document.querySelector(arguments[0]).shadowRoot.activeElement.ariaLabel", STACK)
    assert focused == "Move up: ink"
    page.parts(".tools button")[-1].send_keys(Keys.ENTER)
    page.becomes("<lora:oil:0.2>, x")
    assert page.until(lambda: page.said(".name") == ["oil"])


def test_a_mistyped_name_is_mended_by_a_button(page: PanelPage) -> None:
    page.write("a boat <lora:imk:0.7>, and <lora:oil:0,5>")  # the second is no tag yet
    page.until(lambda: page.said(".fix") == ["ink", "0.5"])
    page.shot("panel-hints")
    page.parts(".fix")[0].click()
    page.becomes("a boat <lora:ink:0.7>, and <lora:oil:0,5>")
    page.until(lambda: page.said(".fix") == ["0.5"])
    page.parts(".fix")[0].click()
    page.becomes("a boat <lora:ink:0.7>, and <lora:oil:0.5>")
    page.until(lambda: page.parts(".notice") == [] and page.said(".name") == ["ink", "oil"])


def test_a_curve_is_drawn_by_keyboard(page: PanelPage) -> None:
    page.write("<lora:ink:0.7>")
    page.part(".more").click()
    assert len(page.parts(".point")) == 2
    page.parts(".point")[0].send_keys(Keys.ARROW_DOWN)
    page.becomes("<lora:ink:0.65@0,0.7@1>")
    page.parts(".point")[1].send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP)
    page.becomes("<lora:ink:0.65@0,0.75@0.9>")
    page.part("button[aria-label='Add a point']").send_keys(Keys.ENTER)
    page.becomes("<lora:ink:0.65@0,0.7@0.45,0.75@0.9>")
    page.until(lambda: len(page.parts(".point")) == 3)
    page.parts(".point")[1].send_keys(Keys.DELETE)
    page.becomes("<lora:ink:0.65@0,0.75@0.9>")
    page.shot("panel-curve")


def test_a_point_is_dragged_and_a_double_click_adds_one(page: PanelPage) -> None:
    page.write("<lora:ink:0.7>")
    if not page.parts(".opened"):
        page.part(".more").click()
    plane, point = page.part(".plane"), page.parts(".point")[1]
    ActionChains(page.driver).drag_and_drop_by_offset(point, 0, -40).perform()
    page.until(lambda: page.value(PROMPT) != "<lora:ink:0.7>")
    [tag] = parse_prompt(page.value(PROMPT)).tags
    first, last = cast("Curve", tag.unet).keys
    assert (first.value, first.position.value, last.position.value) == (0.7, 0, 1)
    # The plane is 120 units high, with 10 left above and below the range of the sliders, -0.8 to 1.6.
    up = 40 / plane.size["height"] * 120 / 100 * (1.6 + 0.8)
    assert last.value == pytest.approx(0.7 + up, abs=0.051)
    assert page.said(".curve-editor .hint") == [f"{last.value:g} at 100%"]
    page.becomes(page.value(PROMPT))
    ActionChains(page.driver).move_to_element(plane).double_click().perform()
    page.until(lambda: len(page.parts(".point")) == 3)
    page.until(lambda: "@0.5," in page.value(PROMPT))


def test_a_row_is_dragged_onto_another(page: PanelPage) -> None:
    page.write("<lora:ink:0.7>, x, <lora:oil:0.2>")
    rows, grip = page.parts(".row"), page.parts(".grip")[0]
    ActionChains(page.driver).drag_and_drop(grip, rows[1]).perform()
    page.becomes("<lora:oil:0.2>, x, <lora:ink:0.7>")


def test_what_is_opened_writes_its_fields(page: PanelPage) -> None:
    page.write("<lora:ink:0.7>")
    if not page.parts(".opened"):
        page.part(".more").click()
    blocks = page.said(".block span")
    assert {"BASE", "M00"} <= set(blocks)
    page.slide(".block:first-child input", "0.5")
    page.becomes("<lora:ink:0.7:BASE=0.5>")
    field = page.parts(".fields input")[3]
    field.send_keys("10", Keys.TAB)
    page.becomes("<lora:ink:0.7:BASE=0.5:stop=10>")
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
    page.run(script, page.parts(".fields select")[2], "OUTALL")
    page.becomes("<lora:ink:0.7:stop=10:lbw=OUTALL>")
    page.until(lambda: page.said(".block output")[blocks.index("M00")] == "0")
    page.shot("panel-opened")
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, "-3", Keys.TAB)
    page.until(lambda: any("lies before the run" in said for said in page.said(".notice")))
    assert page.value(PROMPT) == "<lora:ink:0.7:stop=10:lbw=OUTALL>"


def test_rows_are_kept_as_a_set_and_put_into_another_prompt(page: PanelPage) -> None:
    page.write("a boat <lora:ink:0.7:lbw=MIDD>, <lora:oil:0.2>")
    page.part("header .word").click()
    page.part(".sets input").send_keys("portrait", Keys.ENTER)
    page.until(lambda: page.said(".sets .notice") == ["saved: portrait"])
    page.shot("panel-sets")
    written = (page.webui.loras / "portrait.set.txt").read_text(encoding="utf-8")
    assert written == "<lora:ink:0.7:lbw=MIDD> <lora:oil:0.2>\n"
    page.write("a house")
    page.parts(".sets .word")[0].click()
    page.becomes("a house <lora:ink:0.7:lbw=MIDD> <lora:oil:0.2>")
    assert page.said(".name") == ["ink", "oil"]
    page.parts(".sets .word")[2].click()
    page.until(lambda: page.said(".sets .notice") == ["deleted: portrait"])
    assert not (page.webui.loras / "portrait.set.txt").exists()
    page.part(".sets input").send_keys("..", Keys.ENTER)
    page.until(lambda: any("is no name for a set" in said for said in page.said(".sets .notice")))
    page.part("header .word").click()


def test_names_and_fields_are_completed_and_the_area_keeps_the_focus(page: PanelPage) -> None:
    area = page.driver.find_element("css selector", PROMPT)
    area.send_keys("a boat <lora:water wa")
    page.until(
        lambda: page.said(".option .name") == ["style/wash of water"] or page.said(".option .name") == ["wash of water"]
    )
    page.shot("panel-completion")
    area.send_keys(Keys.ENTER)
    page.until(lambda: page.value(PROMPT).startswith("a boat <lora:") and page.value(PROMPT).endswith(":1>"))
    area.send_keys(" x")
    assert page.value(PROMPT).endswith("> x")
    page.write("")
    area.send_keys("<lora:ink:0.7:lb")
    page.until(lambda: page.said(".option .name") == ["lbw=", "lbwe="])
    area.send_keys(Keys.TAB)
    page.until(lambda: "OUTALL" in page.said(".option .name"))
    area.send_keys("OUTA", Keys.NULL)
    page.until(lambda: page.said(".option .name") == ["OUTALL"])
    area.send_keys(Keys.ENTER)
    page.until(lambda: page.value(PROMPT) == "<lora:ink:0.7:lbw=OUTALL")
    area.send_keys(":")
    page.until(lambda: page.parts(".option"))
    area.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.parts(".option"))


def test_it_stands_back_where_another_extension_completes(page: PanelPage) -> None:
    page.run("document.querySelector(arguments[0]).classList.add('autocomplete')", PROMPT)
    try:
        asked = page.server.count("/lora-runtime/complete")
        page.type(PROMPT, "<lora:in")
        assert page.said(".notice") == []  # it is being written
        page.run("document.querySelector(arguments[0]).blur()", PROMPT)
        page.until(lambda: page.said(".fix") == ["add >"])
        assert page.server.count("/lora-runtime/complete") == asked
        assert page.parts(".option") == []
    finally:
        page.run("document.querySelector(arguments[0]).classList.remove('autocomplete')", PROMPT)


def test_under_a_finger_everything_that_is_pressed_is_large_enough(page: PanelPage) -> None:
    page.write("<lora:ink:0.5> <lora:imk:1>")
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        if not page.parts(".opened"):
            page.parts(".more")[0].click()
        sizes = (
            "return [...document.querySelector(arguments[0]).shadowRoot.querySelectorAll('button, input, select')]"
            ".map(e => [e.getBoundingClientRect(), e.ariaLabel || e.className || e.type])"
            ".filter(([box]) => box.width && (box.height < 43.9 || box.width < 43.9)).map(([, name]) => name)"
        )
        assert page.run("return matchMedia('(pointer: coarse)').matches")
        assert page.run(sizes, STACK) == []
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.mark.skipif(AXE is None, reason="axe-core is not there: npm install axe-core, or AXE_CORE=…/axe.min.js")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(loaded: PanelPage, theme: str) -> None:
    loaded.load(theme)
    loaded.until(lambda: loaded.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", STACK))
    loaded.write("<lora:ink:te=0.5:unet=0.2@0,1@0.5> <lora:ink:0:was=1> <lora:other:0.8> <lora:imk:1> <lora:x:0,5>")
    loaded.parts(".more")[0].click()
    loaded.until(lambda: loaded.parts(".point"))
    loaded.run(cast("Path", AXE).read_text(encoding="utf-8"))
    script = "const done = arguments[1]; axe.run(arguments[0]).then(r => done(r.violations), e => done(String(e)))"
    violations = loaded.driver.execute_async_script(script, STACK)
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in violations] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_is_as_wide_as_the_page_and_as_dark(loaded: PanelPage, theme: str, width: int) -> None:
    loaded.driver.set_window_size(width, 1100)
    try:
        loaded.load(theme)
        loaded.until(lambda: loaded.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", STACK))
        loaded.write("a boat at sea <lora:ink:te=0.5:unet=0.2@0,1@0.5,0@1> <lora:other:0.8> <lora:imk:1>")
        loaded.parts(".more")[0].click()
        loaded.until(lambda: loaded.parts(".point") and loaded.server.idle)
        loaded.shot(f"panel-{theme}-{width}")
        assert loaded.run("return document.documentElement.scrollWidth <= window.innerWidth")
        outside = (
            "const s = document.querySelector(arguments[0]).shadowRoot;"
            "const box = s.querySelector('.stack').getBoundingClientRect();"
            "return [...s.querySelectorAll('.stack *')].filter(e => e.getClientRects().length &&"
            " e.getBoundingClientRect().right > box.right + 1).map(e => e.className || e.tagName)"
        )
        assert loaded.run(outside, STACK) == []
        shade = loaded.run("return document.querySelector(arguments[0]).dataset.shade", STACK)
        assert shade == theme
    finally:
        loaded.driver.set_window_size(1300, 1100)
