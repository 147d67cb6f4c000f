"""The double's page in headless Chromium, driven as a person does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import chromium
import pytest
from chromium import PanelTab, browser

if TYPE_CHECKING:
    from double.page import Served
    from double.webui import WebUI

__all__ = ["Page", "browser", "skip_without_browser"]


def skip_without_browser() -> None:
    """Skip the module that is being imported where something is missing, with one line that says what."""
    pytest.importorskip("gradio", reason="gradio is not installed: `make test` has it with the WebUI's own versions")
    chromium.skip_without_browser()


class Page(PanelTab):
    """The page in a browser, as a person sees and uses it."""

    prompt = "#txt2img_prompt textarea"
    stack = "#txt2img_lora_stack"

    def __init__(self, driver: Any, server: Served, webui: WebUI) -> None:
        super().__init__(driver)
        self.server, self.webui = server, webui

    def load(self, theme: str = "light") -> None:
        """Load the page anew, until our script has taken it over."""
        self.driver.get(f"{self.server.url}?__theme={theme}")
        self.until(lambda: self.run("return extraNetworksApplyFilter.txt2img_lora.toString().includes('reload')"))

    def failures(self) -> list[str]:
        """Return what failed in the page since it was asked last; what the page wants from elsewhere does not count."""
        log = self.driver.get_log("browser")
        return [each["message"] for each in log if each["level"] == "SEVERE" and self.server.url in each["message"]]

    def last_words(self) -> str:
        """Return what failed in the page."""
        return f"; it said: {self.failures()}"
