"""The stack panel in headless Chromium, below the prompt of the double's page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from chromium import axe_core
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

PROMPT, STACK = Page.prompt, Page.stack
AXE = axe_core()
# A picture of one colour, 8 by 8.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080802000000"
    "4b6d29dc0000001249444154789c633860ee8015310c2d090085c15481e1d4d8ce0000000049454e44ae426082"
)


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
def loaded(driver: Any, program: tuple[WebUI, Served]) -> Page:
    """Load the page once."""
    webui, server = program
    found = Page(driver, server, webui)
    found.load()
    return found


@pytest.fixture
def page(loaded: Page) -> Iterator[Page]:
    """Empty the prompt; afterwards no script of the page may have failed."""
    loaded.until(lambda: loaded.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", STACK))
    loaded.write("")
    yield loaded
    assert loaded.failures() == []
    assert loaded.webui.errors == []


def test_a_tag_that_is_typed_is_a_row_with_its_file(page: Page) -> None:
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


def test_a_slider_changes_the_tag_alone_and_cursor_undo_and_gradio_know(page: Page) -> None:
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


def test_a_muted_tag_stays_and_paints_nothing(page: Page) -> None:
    page.write("a boat <lora:ink:te=0.5:unet=0.9>")
    page.part(".mute").click()
    page.becomes("a boat <lora:ink:0:was=te 0.5 unet 0.9>")
    assert page.until(lambda: page.part(".mute").get_attribute("aria-checked") == "false")
    assert [field.get_attribute("value") for field in page.parts(".number")] == ["0.5", "0.9"]
    done = page.webui.generate(page.field(PROMPT))
    assert page.webui.changed(done.passes[0].weights) == []
    page.part(".mute").click()
    page.becomes("a boat <lora:ink:te=0.5:unet=0.9>")


def test_chips_put_trigger_words_into_the_prompt_and_take_them_out(page: Page) -> None:
    page.write("a boat <lora:ink:1>, sea")
    page.parts(".chip")[1].click()
    page.becomes("a boat <lora:ink:1> paper, sea")
    page.until(lambda: [chip.get_attribute("aria-pressed") for chip in page.parts(".chip")] == ["false", "true"])
    page.parts(".chip")[1].click()
    page.becomes("a boat <lora:ink:1>, sea")


def test_rows_are_moved_and_deleted_by_keyboard_and_the_focus_goes_along(page: Page) -> None:
    page.write("<lora:ink:0.7>, x, <lora:oil:0.2>")
    page.parts(".tools button")[1].send_keys(Keys.ENTER)  # down, of the first
    page.becomes("<lora:oil:0.2>, x, <lora:ink:0.7>")
    assert page.until(lambda: page.said(".name") == ["oil", "ink"])
    focused = page.run("return document.querySelector(arguments[0]).shadowRoot.activeElement.ariaLabel", STACK)
    assert focused == "Move up: ink"
    page.parts(".tools button")[-1].send_keys(Keys.ENTER)
    page.becomes("<lora:oil:0.2>, x")
    assert page.until(lambda: page.said(".name") == ["oil"])


def test_a_mistyped_name_is_mended_by_a_button(page: Page) -> None:
    page.write("a boat <lora:imk:0.7>, and <lora:oil:0,5>")  # the second is no tag yet
    page.until(lambda: page.said(".fix") == ["ink", "0.5"])
    page.shot("panel-hints")
    page.parts(".fix")[0].click()
    page.becomes("a boat <lora:ink:0.7>, and <lora:oil:0,5>")
    page.until(lambda: page.said(".fix") == ["0.5"])
    page.parts(".fix")[0].click()
    page.becomes("a boat <lora:ink:0.7>, and <lora:oil:0.5>")
    page.until(lambda: page.parts(".notice") == [] and page.said(".name") == ["ink", "oil"])


def test_a_curve_is_drawn_by_keyboard(page: Page) -> None:
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


def test_a_point_is_dragged_and_a_double_click_adds_one(page: Page) -> None:
    page.write("<lora:ink:0.7>")
    if not page.parts(".opened"):
        page.part(".more").click()
    plane, point = page.part(".plane"), page.parts(".point")[1]
    ActionChains(page.driver).drag_and_drop_by_offset(point, 0, -40).perform()
    page.until(lambda: page.field(PROMPT) != "<lora:ink:0.7>")
    [tag] = parse_prompt(page.field(PROMPT)).tags
    first, last = cast("Curve", tag.unet).keys
    assert (first.value, first.position.value, last.position.value) == (0.7, 0, 1)
    # The plane is 120 units high, with 10 left above and below the range of the sliders, -0.8 to 1.6.
    up = 40 / plane.size["height"] * 120 / 100 * (1.6 + 0.8)
    assert last.value == pytest.approx(0.7 + up, abs=0.051)
    assert page.said(".curve-editor .hint") == [f"{last.value:g} at 100%"]
    page.becomes(page.field(PROMPT))
    ActionChains(page.driver).move_to_element(plane).double_click().perform()
    page.until(lambda: len(page.parts(".point")) == 3)
    page.until(lambda: "@0.5," in page.field(PROMPT))


def test_a_row_is_dragged_onto_another(page: Page) -> None:
    page.write("<lora:ink:0.7>, x, <lora:oil:0.2>")
    rows, grip = page.parts(".row"), page.parts(".grip")[0]
    ActionChains(page.driver).drag_and_drop(grip, rows[1]).perform()
    page.becomes("<lora:oil:0.2>, x, <lora:ink:0.7>")


def test_what_is_opened_writes_its_fields(page: Page) -> None:
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
    assert page.field(PROMPT) == "<lora:ink:0.7:stop=10:lbw=OUTALL>"


def test_rows_are_kept_as_a_set_and_put_into_another_prompt(page: Page) -> None:
    page.write("a boat <lora:ink:0.7:lbw=MIDD>, <lora:oil:0.2>")
    page.button("Sets").click()
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
    page.button("Sets").click()


@pytest.fixture
def region(page: Page) -> Page:
    """Open the row of a tag, and what it has for a part of the picture."""
    page.write("<lora:ink:0.7>")
    if not page.parts(".opened"):
        page.part(".more").click()
    if not page.parts(".region"):
        page.part(".where summary").click()
    page.until(lambda: page.parts(".region"))
    return page


def box_of(page: Page) -> list[float]:
    """Return the box in the prompt's tag."""
    [tag] = parse_prompt(page.field(PROMPT)).tags
    assert tag.conditions.region is not None
    assert tag.conditions.region.box is not None
    return list(tag.conditions.region.box)


def across(page: Page, *ways: tuple[float, float]) -> None:
    """Press at the first place on the picture, in fractions of it, go to the others, and let go."""
    plane = page.part(".region")
    page.run("arguments[0].scrollIntoView({block: 'center'})", plane)
    width, height = plane.size["width"], plane.size["height"]
    chain = ActionChains(page.driver)
    for index, (x, y) in enumerate(ways):
        chain.move_to_element_with_offset(plane, round((x - 0.5) * width), round((y - 0.5) * height))
        if index == 0:
            chain.click_and_hold()
    chain.release().perform()


def test_a_box_is_drawn_moved_and_resized_with_the_pointer(region: Page) -> None:
    across(region, (0.2, 0.3), (0.5, 0.5), (0.6, 0.8))
    region.until(lambda: "box=" in region.field(PROMPT))
    assert box_of(region) == pytest.approx([0.2, 0.3, 0.6, 0.8], abs=0.011)
    region.becomes(region.field(PROMPT))
    across(region, (0.4, 0.5), (0.5, 0.4))  # within it: it moves
    region.until(lambda: box_of(region)[0] > 0.25)
    assert box_of(region) == pytest.approx([0.3, 0.2, 0.7, 0.7], abs=0.021)
    region.becomes(region.field(PROMPT))
    across(region, (0.69, 0.69), (1.2, 0.9))  # its corner, beyond the picture
    region.until(lambda: box_of(region)[2] == 1)
    assert box_of(region) == pytest.approx([0.3, 0.2, 1, 0.9], abs=0.031)
    region.shot("panel-region")
    region.undo()
    region.until(lambda: box_of(region)[2] < 0.75)


def test_a_box_is_moved_by_keyboard_written_as_numbers_and_taken_out(region: Page) -> None:
    region.button("Add a box").click()
    region.becomes("<lora:ink:0.7:box=0.25,0.25,0.75,0.75>")
    region.part(".frame").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_UP)
    region.becomes("<lora:ink:0.7:box=0.3,0.2,0.8,0.7>")
    region.part(".corner.end").send_keys(Keys.SHIFT, Keys.ARROW_RIGHT)
    region.becomes("<lora:ink:0.7:box=0.3,0.2,0.81,0.7>")
    assert region.part(".frame").get_attribute("aria-valuetext") == "30 to 81 % across, 20 to 70 % down"
    region.parts(".edges input")[0].send_keys(Keys.CONTROL, "a", Keys.NULL, "10", Keys.TAB)
    region.becomes("<lora:ink:0.7:box=0.1,0.2,0.81,0.7>")
    region.slide(".where input[type=range]", "0.1")
    region.becomes("<lora:ink:0.7:box=0.1,0.2,0.81,0.7:soft=0.1>")
    region.parts(".edges input")[0].send_keys(Keys.CONTROL, "a", Keys.NULL, "90", Keys.TAB)
    region.becomes("<lora:ink:0.7:box=0.8,0.2,0.81,0.7:soft=0.1>")  # as far as the edge opposite
    region.part(".frame").send_keys(Keys.DELETE)
    region.becomes("<lora:ink:0.7>")
    assert region.parts(".frame") == []


def test_the_box_lies_over_the_picture_that_was_painted_last(region: Page) -> None:
    shape = "const box = arguments[0].getBoundingClientRect(); return box.width / box.height"
    assert region.run(shape, region.part(".region")) == pytest.approx(96 / 64, rel=0.02)  # as the next would be
    region.click("#txt2img_generate")
    painted = region.until(lambda: region.run("return document.querySelector('#txt2img_gallery img')?.src"))
    region.until(lambda: [each.get_attribute("src") for each in region.parts(".region .picture")] == [painted])


def test_of_a_batch_the_box_lies_over_one_picture_and_not_over_their_grid(region: Page) -> None:
    region.webui.batch_size = 2
    try:
        region.click("#txt2img_generate")
        sizes = "return [...document.querySelectorAll('#txt2img_gallery img')].map(each => each.naturalWidth)"
        region.until(lambda: set(region.run(sizes)) == {192, 96})
    finally:
        region.webui.batch_size = 1
    widths = "return arguments[0].naturalWidth"
    region.until(lambda: [region.run(widths, each) for each in region.parts(".region .picture")] == [96])


def test_a_mask_is_one_of_the_pictures_in_the_folders(region: Page) -> None:
    from PIL import Image

    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    (region.webui.loras / "masks").mkdir(exist_ok=True)
    mask.save(region.webui.loras / "masks" / "left half.png")
    for _ in range(2):  # closed and opened: it looks again
        region.part(".where summary").click()
    masks = "return [...arguments[0].options].map(each => each.value)"
    choice = region.parts(".where select")[0]
    region.until(lambda: region.run(masks, choice) == ["", "masks/left half.png"])  # and not ink.png, a LoRA's own
    region.choose(choice, "masks/left half.png")
    region.becomes("<lora:ink:0.7:mask=masks/left half.png>")
    region.until(lambda: region.run("return arguments[0].naturalWidth", region.part(".shade")) == 64)
    region.shot("panel-mask")
    done = region.webui.generate(region.field(PROMPT))
    assert done.comments == []
    region.choose(choice, "")
    region.becomes("<lora:ink:0.7>")


def test_block_weights_are_saved_and_are_a_preset_from_then_on(page: Page) -> None:
    page.write("<lora:ink:0.7:M00=0.5>")
    if not page.parts(".opened"):
        page.part(".more").click()
    page.part("[aria-label='Name of the preset']").send_keys("half middle", Keys.ENTER)
    page.becomes("<lora:ink:0.7:lbw=half middle>")
    page.until(lambda: "saved: half middle" in page.said(".opened .notice"))
    page.shot("panel-preset")
    [line] = (page.webui.loras / "lora_runtime_presets.txt").read_text(encoding="utf-8").splitlines()
    name, _, weights = line.partition(":")
    assert (name, len(weights.split(",")), weights.split(",").count("0.5")) == ("half middle", 26, 1)
    page.write("<lora:oil:1:half middle>")
    page.until(lambda: page.said(".block output")[page.said(".block span").index("M00")] == "0.5")
    page.part("[aria-label='Name of the preset']").send_keys("MIDD", Keys.ENTER)
    page.until(lambda: any("others have too" in said for said in page.said(".opened .notice")))


def test_two_that_pull_against_each_other_are_told_with_their_heat_map(page: Page) -> None:
    page.write("<lora:ink:0.7>")
    assert all(button.text != "Conflicts" for button in page.parts("header button"))
    page.write("<lora:ink:0.7> <lora:oil:-0.7>")  # of the same content
    before = page.webui.not_whole()
    page.button("Conflicts").click()
    page.until(lambda: any("100 %" in said for said in page.said(".conflicts .notice")))
    line = page.said(".conflicts .notice")[0]
    assert line == "ink and oil pull 100 % of the common layers against each other (cosine −1.00)"
    page.part(".conflicts summary").click()
    assert {"-1.00"} == {cell.text for cell in page.parts(".heat td.against")}
    page.shot("panel-conflicts")
    asked = page.server.count("/lora-runtime/conflicts")
    page.write("<lora:ink:0.7> <lora:oil:0.7>")
    assert page.parts(".conflicts") == []  # it was said of other strengths
    page.button("Conflicts").click()
    page.until(lambda: page.said(".conflicts .notice")[0].startswith("ink and oil pull against each other in none of"))
    assert page.server.count("/lora-runtime/conflicts") == asked + 1
    assert page.webui.not_whole() == before


def test_names_and_fields_are_completed_and_the_area_keeps_the_focus(page: Page) -> None:
    area = page.driver.find_element("css selector", PROMPT)
    area.send_keys("a boat <lora:water wa")
    page.until(
        lambda: page.said(".option .name") == ["style/wash of water"] or page.said(".option .name") == ["wash of water"]
    )
    page.shot("panel-completion")
    area.send_keys(Keys.ENTER)
    page.until(lambda: page.field(PROMPT).startswith("a boat <lora:") and page.field(PROMPT).endswith(":1>"))
    area.send_keys(" x")
    assert page.field(PROMPT).endswith("> x")
    page.write("")
    area.send_keys("<lora:ink:0.7:lb")
    page.until(lambda: page.said(".option .name") == ["lbw=", "lbwe="])
    area.send_keys(Keys.TAB)
    page.until(lambda: "OUTALL" in page.said(".option .name"))
    area.send_keys("OUTA", Keys.NULL)
    page.until(lambda: page.said(".option .name") == ["OUTALL"])
    area.send_keys(Keys.ENTER)
    page.until(lambda: page.field(PROMPT) == "<lora:ink:0.7:lbw=OUTALL")
    area.send_keys(":")
    page.until(lambda: page.parts(".option"))
    area.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.parts(".option"))


def test_it_stands_back_where_another_extension_completes(page: Page) -> None:
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


def test_under_a_finger_everything_that_is_pressed_is_large_enough(page: Page) -> None:
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


@pytest.mark.skipif(AXE is None, reason="axe-core is not there: pip install axe-core-python, or AXE_CORE=…/axe.min.js")
@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_axe_finds_nothing(loaded: Page, theme: str) -> None:
    loaded.load(theme)
    loaded.until(lambda: loaded.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", STACK))
    loaded.write("<lora:ink:te=0.5:unet=0.2@0,1@0.5> <lora:ink:0:was=1> <lora:other:0.8> <lora:imk:1> <lora:x:0,5>")
    loaded.parts(".more")[0].click()
    loaded.until(lambda: loaded.parts(".point"))
    assert loaded.violations(cast("Path", AXE), STACK) == []
    loaded.write("<lora:oil:0.5:box=0.1,0.2,0.5,0.9> <lora:ink:-0.8>")
    loaded.until(lambda: loaded.parts(".frame"))
    loaded.button("Conflicts").click()
    loaded.part(".conflicts summary").click()
    loaded.button("Sets").click()
    loaded.until(lambda: loaded.parts(".heat") and loaded.parts(".sets"))
    assert loaded.violations(cast("Path", AXE), STACK) == []


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (400, "dark"),
        (1400, "light"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((400, "light"), (1400, "dark"))),
    ],
)
def test_it_is_as_wide_as_the_page_and_as_dark(loaded: Page, theme: str, width: int) -> None:
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
