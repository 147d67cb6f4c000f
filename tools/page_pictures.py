"""Takes the pictures of docs/studio.md and docs/panel.md: the page with the embedded pipeline, and the panel on it.

    python tools/page_pictures.py [--width 1400] [--theme light] [--out docs]

Writes studio.png and panel.png. Needs the extra `studio`, selenium, and Chromium with its driver.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from PIL import Image  # noqa: E402
from studio_browser import Page, chromium  # noqa: E402

from lora_runtime.studio.server import Options, Studio  # noqa: E402

PROMPT = "a house by the sea under a sun <lora:watercolor:0.8> <lora:night:0.4>"
IN_A_BOX = "a house by the sea under a sun <lora:watercolor:0.8> <lora:stripes:1:box=0,0.45,0.55,1>"
AGAINST = f"{IN_A_BOX} <lora:night:-0.4:stop=25%>"
SEED = 2
TALLEST = 3000  # pixels
PANEL_WIDTH = 1000
COLOURS = 200  # enough for a page, and a third of the bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page, paint in it, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1400, help="pixels of the page (default: 1400)")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="a folder (default: docs)")
    given = parser.parse_args(arguments)
    studio = Studio(Options())
    studio.page.settings["seed"].value = SEED
    try:
        with chromium() as driver:
            page = Page(driver, studio.serve())
            studio.warm()
            page.resize(given.width, 1100)
            page.load(given.theme)
            page.write(PROMPT)
            page.paint()
            page.painted()
            page.run("window.scrollTo(0, 0)")
            height = page.run("return document.querySelector('.gradio-container').getBoundingClientRect().bottom")
            page.resize(given.width, min(TALLEST, int(height)))
            taken(page, given.out / "studio.png")
            page.resize(2 * PANEL_WIDTH, TALLEST)
            page.write(IN_A_BOX)
            page.paint()
            page.painted()
            page.write(AGAINST)
            opened(page)
            taken(page, given.out / "panel.png", "lora-stack")
    finally:
        studio.close()


def opened(page: Page) -> None:
    """Open the row with a box, and ask whether two of the LoRAs pull against each other."""
    page.run("document.querySelector('.lr-main').style.display = 'block'")  # one column: the panel has all of it
    page.run(f"document.querySelector('lora-stack').style.width = '{PANEL_WIDTH}px'")
    page.until(lambda: len(page.said(".name")) == 3)
    page.parts(".more")[1].click()
    page.until(lambda: page.parts(".region .picture"))
    page.button("Conflicts").click()
    page.part(".conflicts summary").click()
    page.until(lambda: page.parts(".heat"))
    page.run("document.querySelector('lora-stack').shadowRoot.activeElement?.blur(); window.scrollTo(0, 0)")


def taken(page: Page, out: Path, selector: str = "") -> None:
    """Take a picture of the page, or of one element of it."""
    page.until(lambda: page.run("return [...document.images].every(image => image.complete)"))
    asked: dict[str, Any] = {"format": "png"}
    if selector:
        box = page.run("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)
        asked["clip"] = {**{name: box[name] for name in ("x", "y", "width", "height")}, "scale": 1}
    shot = page.driver.execute_cdp_cmd("Page.captureScreenshot", asked)
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(out, optimize=True)
    print(f"{out}  {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
