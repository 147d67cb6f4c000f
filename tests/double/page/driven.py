"""The double's page in headless Chromium, driven as a person does it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from double.page import Served
    from double.webui import WebUI

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

# Nothing but the page's own server is asked, for gradio's page names fonts and a script elsewhere.
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1100",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
SECONDS = 30


def skip_without_browser() -> None:
    """Skip the module that is being imported where there is no browser, with one line that says what is missing."""
    for name in ("selenium", "gradio"):
        pytest.importorskip(name, reason=f"{name} is not installed: `make test` has it with the WebUI's own versions")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "Chromium with its driver is not installed: apt install chromium chromium-driver", allow_module_level=True
        )


@contextmanager
def browser() -> Iterator[Any]:
    """Start the browser."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in SWITCHES:
        options.add_argument(switch)
    # The driver that is installed: selenium would look for one in the network.
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield found
    finally:
        found.quit()


class Page:
    """The page in a browser, as a person sees and uses it."""

    def __init__(self, driver: Any, server: Served, webui: WebUI) -> None:
        self.driver, self.server, self.webui = driver, server, webui

    def load(self, theme: str = "light") -> None:
        """Load the page anew, until our script has taken it over."""
        self.driver.get(f"{self.server.url}?__theme={theme}")
        self.until(lambda: self.run("return extraNetworksApplyFilter.txt2img_lora.toString().includes('reload')"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, and return it."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + SECONDS
        while True:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass  # the page is being built, or an element was just replaced
            if time.monotonic() > end:
                self.shot("late")
                pytest.fail(f"the page did not come to that within {SECONDS} s; it said: {self.failures()}")
            time.sleep(0.05)

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

    def value(self, selector: str) -> str:
        """Return the text in a field."""
        return str(self.run("return document.querySelector(arguments[0]).value", selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())"
        return list(self.run(script, selector))

    def style(self, selector: str, name: str) -> list[str]:
        """Return how elements are shown: a property as the browser computed it."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => getComputedStyle(e)[arguments[1]])"
        return list(self.run(script, selector, name))

    def failures(self) -> list[str]:
        """Return what failed in the page since it was asked last; what the page wants from elsewhere does not count."""
        log = self.driver.get_log("browser")
        return [each["message"] for each in log if each["level"] == "SEVERE" and self.server.url in each["message"]]

    def shot(self, name: str) -> None:
        """Keep a picture of the page where BROWSER_SHOTS names a folder."""
        if folder := os.environ.get("BROWSER_SHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
