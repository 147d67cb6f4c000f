"""Headless Chromium for tests and tools that see a page as a person does. What a page has is beside its tests.

`Tab` is any page; `PanelTab` is one with the stack panel in it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
# Nothing but the page's own server is asked, for gradio's page names fonts and a script elsewhere.
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


def lacking() -> str:
    """Return what is missing to drive a browser, "" for nothing."""
    if find_spec("selenium") is None:
        return "selenium is not installed: `make test` has it"
    if CHROMIUM is None or DRIVER is None:
        return "Chromium with its driver is not installed: apt install chromium chromium-driver"
    return ""


def skip_without_browser() -> None:
    """Skip the module that is being imported where there is no browser, with one line that says what is missing."""
    if reason := lacking():
        pytest.skip(reason, allow_module_level=True)


@contextmanager
def browser(*switches: str, size: tuple[int, int] = (1300, 1100)) -> Iterator[Any]:
    """Give a browser, one for several pages."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (*SWITCHES, f"--window-size={size[0]},{size[1]}", *switches):
        options.add_argument(switch)
    # The driver that is installed: selenium would look for one in the network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Tab:
    """A page in a browser."""

    seconds = 30.0  # until something must have happened
    shots = "BROWSER_SHOTS"  # names a folder for pictures of the page

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], seconds: float | None = None) -> Any:
        """Wait until a condition holds, and return it."""
        from selenium.common.exceptions import WebDriverException

        limit = self.seconds if seconds is None else seconds
        end = time.monotonic() + limit
        while True:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass  # the page is being built, or an element was just replaced
            if time.monotonic() > end:
                self.shot("late")
                raise AssertionError(f"the page did not come to that within {limit:g} s{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """Return what there is to say of a page that did not come to what was waited for."""
        return ""

    def click(self, selector: str) -> None:
        """Click where it is, with the mouse: what is hidden or covered cannot be clicked."""

        def clicked() -> bool:
            self.driver.find_element("css selector", selector).click()
            return True

        self.until(clicked)

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field by the keyboard."""
        from selenium.webdriver.common.keys import Keys

        field = self.driver.find_element("css selector", selector)
        field.send_keys(Keys.COMMAND if sys.platform == "darwin" else Keys.CONTROL, "a")
        field.send_keys(Keys.NULL, Keys.BACKSPACE, text)

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field, as typing does."""
        self.run(
            "const box = document.querySelector(arguments[0]); box.focus(); box.select();"
            "document.execCommand('insertText', false, arguments[1])",
            selector,
            text,
        )

    def field(self, selector: str) -> str:
        """Return the text in a field."""
        return str(self.run("return document.querySelector(arguments[0]).value", selector))

    def text(self, selector: str) -> str:
        """Return the text of the first element, "" for none."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())"
        return list(self.run(script, selector))

    def style(self, selector: str, name: str) -> list[str]:
        """Return how elements are shown: a property as the browser computed it."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => getComputedStyle(e)[arguments[1]])"
        return list(self.run(script, selector, name))

    def resize(self, width: int, height: int) -> None:
        """Give the page this many pixels, as a phone's where they are few."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def shot(self, name: str) -> None:
        """Keep a picture of the page, where somebody wants them."""
        if folder := os.environ.get(self.shots):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def violations(self, axe: Path, include: str, exclude: Sequence[str] = ()) -> list[tuple[str, list[Any]]]:
        """Return what axe-core finds wrong within an element: the rule, and where."""
        self.run(axe.read_text(encoding="utf-8"))
        script = (
            "const [include, exclude, done] = arguments;"
            "axe.run({include: [[include]], exclude: exclude.map(each => [each])})"
            ".then(found => done(found.violations.map(({id, nodes}) => [id, nodes.map(node => node.target)])),"
            " error => done([['error', [String(error)]]]))"
        )
        return [(rule, where) for rule, where in self.driver.execute_async_script(script, include, list(exclude))]


class PanelTab(Tab):
    """A page with the stack panel `stack` below the text area `prompt`."""

    prompt = "textarea"
    stack = "lora-stack"

    def parts(self, selector: str) -> list[Any]:
        """Return elements of the panel that are to be seen."""
        script = (
            "return [...document.querySelector(arguments[0]).shadowRoot.querySelectorAll(arguments[1])]"
            ".filter(e => e.getClientRects().length && e.checkVisibility())"
        )
        return list(self.run(script, self.stack, selector))

    def part(self, selector: str) -> Any:
        """Return the one element of the panel that this means, once it is there."""

        def found() -> Any:
            elements = self.parts(selector)
            return elements[0] if len(elements) == 1 else None

        return self.until(found)

    def said(self, selector: str) -> list[str]:
        """Return the texts of elements of the panel."""
        return [element.text for element in self.parts(selector)]

    def button(self, label: str) -> Any:
        """Return the button of the panel with these words on it, once it is there."""
        return self.until(lambda: next((each for each in self.parts("button") if each.text == label), None))

    def slide(self, selector: str, value: str) -> None:
        """Let a slider go at a value, as the pointer does."""
        script = (
            "const [slider, value] = arguments; slider.focus(); slider.value = value;"
            "for (const name of ['input', 'change']) slider.dispatchEvent(new Event(name, {bubbles: true}))"
        )
        self.run(script, self.part(selector), value)

    def choose(self, element: Any, value: str) -> None:
        """Choose one of a field's options."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
        self.run(script, element, value)

    def write(self, text: str) -> None:
        """Write a prompt, and wait until the panel shows it."""
        self.type(self.prompt, text)
        self.becomes(text)

    def becomes(self, text: str) -> None:
        """Wait until the prompt is this and the panel shows it, with nothing left to change."""
        state = "const s = document.querySelector(arguments[0]); return s.editing || s.edits.length ? null : s.shown"
        self.until(lambda: self.field(self.prompt) == text == self.run(state, self.stack))

    def undo(self) -> None:
        """Take back what was changed last, as the text area does."""
        from selenium.webdriver.common.keys import Keys

        self.driver.find_element("css selector", self.prompt).send_keys(Keys.CONTROL, "z")


def axe_core() -> Path | None:
    """Return axe-core's script: the one that AXE_CORE names, else that of the package; None where there is neither."""
    if named := os.environ.get("AXE_CORE"):
        return Path(named)
    found = find_spec("axe_core_python")
    return None if found is None or found.origin is None else Path(found.origin).with_name("axe.min.js")
