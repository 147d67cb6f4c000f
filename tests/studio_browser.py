"""The studio's page in headless Chromium, as a person sees and uses it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chromium import PanelTab, browser

SECONDS = 120.0  # where several processes share the cores, a page comes late
PROMPT = "#lr-prompt textarea"


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a browser, one for several pages."""
    with browser("--hide-scrollbars", size=(1400, 1100)) as driver:
        yield driver


class Page(PanelTab):
    """One tab of a browser with the page in it; each is a user of its own."""

    seconds = SECONDS
    prompt = PROMPT

    def __init__(self, driver: Any, url: str) -> None:
        super().__init__(driver)
        self.url = url
        driver.switch_to.new_window("tab")
        self._handle = driver.current_window_handle
        self._before: str | None = None

    def load(self, theme: str = "light") -> None:
        """Load the page, until it knows its cards; those in sight are there a moment later."""
        self.run("location.href = arguments[0]", f"{self.url}?__theme={theme}")
        self.until(lambda: self.text("lora-gallery .lr-counted"))

    def close(self) -> None:
        """Close the tab: each keeps a connection to the server, of which a browser has six."""
        self.run("return 0")
        self.driver.close()
        self.driver.switch_to.window(self.driver.window_handles[0])

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in this page."""
        if self.driver.current_window_handle != self._handle:
            self.driver.switch_to.window(self._handle)
        return self.driver.execute_script(script, *arguments)

    def last_words(self) -> str:
        """Return what the line below the buttons says."""
        return f": {self.text('#lr-status')!r}"

    def tab(self, name: str) -> None:
        """Choose a tab of the results."""
        script = (
            "[...document.querySelectorAll('button[role=tab]')].find(tab => tab.textContent.trim() == arguments[0])"
        )
        self.run(f"{script}.click()", name)

    def write(self, text: str) -> None:
        """Replace the prompt, as typing does."""
        self.fill(PROMPT, text)

    def value(self) -> str:
        """Return the prompt."""
        return self.field(PROMPT)

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

    def panel(self, selector: str) -> str:
        """Return the text of the first element of the panel, "" for none."""
        script = "return document.querySelector('lora-stack').shadowRoot.querySelector(arguments[0])?.textContent ?? ''"
        return str(self.run(script, selector))

    def says(self, words: str) -> bool:
        """Return whether the line below the buttons says something."""
        return words in self.text("#lr-status")

    def paint(self) -> None:
        """Begin to paint."""
        self._before = self._shown()
        self.click("#lr-paint")

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
