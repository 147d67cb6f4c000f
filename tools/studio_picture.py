"""Takes the picture of docs/studio.md: the page with the embedded pipeline, after it has painted: docs/studio.png.

    python tools/studio_picture.py [--width 1400] [--theme light] [--out docs/studio.png]

Needs the extra `studio`, selenium, and Chromium with its driver.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from PIL import Image  # noqa: E402
from studio_browser import Page, chromium  # noqa: E402

from lora_runtime.studio.server import Options, Studio  # noqa: E402

PROMPT = "a house by the sea under a sun <lora:watercolor:0.8> <lora:night:0.4>"
SEED = 2
TALLEST = 3000  # pixels
COLOURS = 200  # enough for a page, and a third of the bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page, paint in it, and take its picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1400, help="pixels (default: 1400)")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studio.png")
    given = parser.parse_args(arguments)
    studio = Studio(Options())
    studio.page.settings["seed"].value = SEED
    try:
        with chromium() as driver:
            page = Page(driver, studio.serve())
            studio.warm()
            resized(driver, given.width, 1100)
            page.load(given.theme)
            page.write(PROMPT)
            page.paint()
            page.painted()
            page.run("window.scrollTo(0, 0)")
            height = page.run("return document.querySelector('.gradio-container').getBoundingClientRect().bottom")
            resized(driver, given.width, min(TALLEST, int(height)))
            page.until(lambda: page.run("return [...document.images].every(image => image.complete)"))
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as taken:
                few = taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(given.out, optimize=True)
    finally:
        studio.close()
    print(f"{given.out}  {given.out.stat().st_size:,} bytes")


def resized(driver: object, width: int, height: int) -> None:
    """Give the page this many pixels, as a phone's where they are few."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
