"""The studio's page in headless Chromium, as a person sees and uses it."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
# Nothing but the page's own server is asked.
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,1100",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
SECONDS = 120  # where several processes share the cores, a page comes late
PROMPT = "#lr-prompt textarea"


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a browser, one for several pages."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in SWITCHES:
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One tab of a browser with the page in it; each is a user of its own."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url
        driver.switch_to.new_window("tab")
        self._handle = driver.current_window_handle
        self._before: str | None = None

    def load(self, theme: str = "light") -> None:
        """Load the page, until its cards are there."""
        self.run("location.href = arguments[0]", f"{self.url}?__theme={theme}")
        self.until(lambda: self.run("return document.querySelectorAll('.lr-card').length"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in this page."""
        if self.driver.current_window_handle != self._handle:
            self.driver.switch_to.window(self._handle)
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, and return it."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass  # the page is being built
            if time.monotonic() > end:
                raise AssertionError(f"the page did not come to that within {SECONDS} s: {self.text('#lr-status')!r}")
            time.sleep(0.05)

    def tab(self, name: str) -> None:
        """Choose a tab of the results."""
        script = (
            "[...document.querySelectorAll('button[role=tab]')].find(tab => tab.textContent.trim() == arguments[0])"
        )
        self.run(f"{script}.click()", name)

    def write(self, prompt: str) -> None:
        """Replace the prompt, as typing does."""
        self.fill(PROMPT, prompt)

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field, as typing does."""
        self.run(
            "const box = document.querySelector(arguments[0]); box.focus(); box.select();"
            "document.execCommand('insertText', false, arguments[1])",
            selector,
            text,
        )

    def value(self) -> str:
        """Return the prompt."""
        return str(self.run("return document.querySelector(arguments[0]).value", PROMPT))

    def click(self, selector: str) -> None:
        """Click, where it may be clicked."""
        script = (
            "const e = document.querySelector(arguments[0]); if (!e || e.disabled) return false; e.click(); return true"
        )
        self.until(lambda: self.run(script, selector))

    def count(self, pictures: int) -> None:
        """Say how many pictures are wanted."""
        self.run(
            "const field = document.querySelector(\"input[aria-label='number input for Pictures']\");"
            "field.value = arguments[0];"
            "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}))",
            pictures,
        )

    def text(self, selector: str) -> str:
        """Return the text of the first element, "" for none."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def panel(self, selector: str) -> str:
        """Return the text of the first element of the panel, "" for none."""
        script = "return document.querySelector('lora-stack').shadowRoot.querySelector(arguments[0])?.textContent ?? ''"
        return str(self.run(script, selector))

    def says(self, words: str) -> bool:
        """Return whether the line below the buttons says something."""
        return words in self.text("#lr-status")

    def paint(self) -> None:
        """Begin to paint.

        A click that comes while gradio still ends what was cancelled is lost: a person, too, would click once more.
        """
        self._before, said = self._shown(), self.text("#lr-status")
        self.click("#lr-paint")
        clicked = time.monotonic()
        end = clicked + SECONDS
        while self.text("#lr-status") == said and self._shown() == self._before and time.monotonic() < end:
            if time.monotonic() - clicked > SECONDS / 6:
                self.click("#lr-paint")
                clicked = time.monotonic()
            time.sleep(0.05)

    def painted(self) -> bytes:
        """Return the picture that was begun when it is done, as the server has it: each has an address of its own."""
        self.until(lambda: self.says("Painted.") and self._shown() not in (None, self._before))
        return self.fetch(str(self._shown()))

    def _shown(self) -> str | None:
        found = self.run("return document.querySelector('#lr-gallery img')?.src ?? null")
        return None if found is None else str(found)

    def fetch(self, address: str) -> bytes:
        """Return what the server has there."""
        with urllib.request.urlopen(address) as answer:
            return bytes(answer.read())
