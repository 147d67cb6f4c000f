"""Paints the pictures of docs/strength.md with the embedded pipeline: docs/strength-*.png.

    python tools/strength_pictures.py [time batch regions negative blocks]

Seeds are fixed, so a run repeats the pictures (on another processor, up to rounding).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lora_runtime  # noqa: E402
from lora_runtime.demo.scene_pipeline import LORAS, load_pipeline  # noqa: E402
from lora_runtime.demo.sheet import compose  # noqa: E402

CIRCLE = ("a red circle", 4)
BOAT = ("a boat on the sea under a sun", 4)
TWO_SUNS = ("a boat on the sea under a sun", 3)
HOUSE = ("a house by the sea under a sun", 2)
TREE = ("a green tree", 3)

STEPS = 20
GUIDANCE = 4.0
TILE = 128
LARGEST = 300_000  # bytes of a PNG
MASK = Path("docs", "strength-mask.png")

Pictures = list[Image.Image]
Row = tuple[str, int]  # a prompt and its seed
Column = tuple[str, str]  # its label, and the tags of its prompts


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint the sheets that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheets", nargs="*", metavar="SHEET", help=f"of {', '.join(SHEETS)} (default: all)")
    names = parser.parse_args(arguments).sheets
    if unknown := set(names) - set(SHEETS):
        parser.error(f"no sheet is named {', '.join(sorted(unknown))}")
    os.chdir(ROOT)  # the tags name the mask by its path from here
    logging.getLogger("lora_runtime").addHandler(logging.NullHandler())  # each region says that text has no place
    pipe = load_pipeline()
    for name in names or SHEETS:
        path = Path("docs", f"strength-{name}.png")
        SHEETS[name](pipe).save(path, optimize=True)
        size = path.stat().st_size
        if size >= LARGEST:
            raise SystemExit(f"{path} has {size} bytes, which is too many for a page")
        print(f"{path}  {size:,} bytes", flush=True)


def paint(pipe: Any, rows: Sequence[Row], tags: Sequence[str], negative: str = "") -> Pictures:
    """Return a picture for each row with its tags, all in one batch; `negative` is for all of them, with tags too."""
    prompts = [prompt + own for (prompt, _), own in zip(rows, tags, strict=True)]
    with lora_runtime.apply(
        pipe, prompts, loras=LORAS, strict=True, negative_prompt=[negative] * len(rows), negative_tags="apply"
    ) as applied:
        painted: Pictures = pipe(
            applied.prompt,
            negative_prompt=applied.negative_prompt,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in rows],
        ).images
    return painted


def sheet(pipe: Any, rows: Sequence[Row], columns: Sequence[Column]) -> Image.Image:
    """Return rows of prompts by columns of tags."""
    painted = [paint(pipe, rows, [tags] * len(rows)) for _, tags in columns]
    return compose(painted, [prompt for prompt, _ in rows], [label for label, _ in columns], tile=TILE)


def over_time(pipe: Any) -> Image.Image:
    """From one style to another, and back to front."""
    columns = [
        ("no LoRA", ""),
        ("night", "<lora:night:1>"),
        ("outline", "<lora:outline:1>"),
        ("watercolor", "<lora:watercolor:1>"),
        ("night, from step 10 outline", "<lora:night:1:stop=10><lora:outline:1:start=10>"),
        ("outline, from step 10 night", "<lora:outline:1:stop=10><lora:night:1:start=10>"),
        ("night 1@0,0@0.5\nwatercolor 0@0.3,1@0.6", "<lora:night:1@0,0@0.5><lora:watercolor:0@0.3,1@0.6>"),
    ]
    return sheet(pipe, [BOAT, TREE], columns)


def per_image(pipe: Any) -> Image.Image:
    """Four images of one batch, each with a LoRA of its own, above the same four one by one."""
    names = ("night", "outline", "stripes", "watercolor")
    tags = [f"<lora:{name}:1>" for name in names]
    batch = paint(pipe, [HOUSE] * len(tags), tags)
    single = [paint(pipe, [HOUSE], [own])[0] for own in tags]
    difference = max(
        int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())
        for one, other in zip(batch, single, strict=True)
    )
    print(f"batch and single pictures differ by at most {difference} of 255 in any pixel")
    columns = [list(pair) for pair in zip(batch, single, strict=True)]
    return compose(columns, ["one batch", "one by one"], names, tile=TILE)


def regions(pipe: Any) -> Image.Image:
    """Halves with a soft edge, and a mask from a file, which is drawn here too."""
    mask = draw_mask()
    left, right = "box=0,0,0.5,1:soft=0.2", "box=0.5,0,1,1:soft=0.2"
    columns = [
        ("no LoRA", ""),
        ("night, left half", f"<lora:night:1.2:{left}>"),
        ("outline, right half", f"<lora:outline:1.2:{right}>"),
        ("both", f"<lora:night:1.2:{left}><lora:outline:1.2:{right}>"),
        ("night, by the mask", f"<lora:night:1.2:mask={MASK.as_posix()}>"),
    ]
    rows = [CIRCLE, BOAT, HOUSE]
    painted = [paint(pipe, rows, [tags] * len(rows)) for _, tags in columns]
    painted.append([mask.convert("RGB")] * len(rows))
    labels = [*(label for label, _ in columns), "the mask"]
    return compose(painted, [prompt for prompt, _ in rows], labels, tile=TILE)


def draw_mask() -> Image.Image:
    """Write the mask: white below the diagonal, with an edge of a sixth of the picture; return it."""
    side = 96
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    mask = Image.fromarray((np.clip((x + y - 1) * 6 + 0.5, 0, 1) * 255).astype(np.uint8))
    mask.save(MASK, optimize=True)
    return mask


def negative(pipe: Any) -> Image.Image:
    """A LoRA on the side of the prompt, and on the side that guidance leads away from."""
    rows = [CIRCLE, BOAT, TREE]
    columns = [("no LoRA", "", "")]
    for name in ("night", "watercolor"):
        tag = f"<lora:{name}:1>"
        columns += [(f"{name} in the prompt", tag, ""), (f"{name} in the negative", "", tag)]
    painted = [paint(pipe, rows, [tags] * len(rows), against) for _, tags, against in columns]
    return compose(painted, [prompt for prompt, _ in rows], [label for label, *_ in columns], tile=TILE)


def blocks(pipe: Any) -> Image.Image:
    """Which blocks of the embedded UNet hold a style, and which the changes of the composition."""
    rules = {
        "all blocks": "",
        "OUT alone\nIN=0:M00=0": ":IN=0:M00=0",
        "IN and M00 alone\nOUT=0": ":OUT=0",
        "without the finest OUT\nOUT06-07=0": ":OUT06-07=0",
        "OUT06-07 alone\nIN=0:M00=0:OUT00-05=0": ":IN=0:M00=0:OUT00-05=0",
    }
    columns = [("no LoRA\n", ""), *((label, f"<lora:outline:1{rule}>") for label, rule in rules.items())]
    return sheet(pipe, [TWO_SUNS, (TWO_SUNS[0], 6), TREE], columns)


SHEETS: dict[str, Callable[[Any], Image.Image]] = {
    "time": over_time,
    "batch": per_image,
    "regions": regions,
    "negative": negative,
    "blocks": blocks,
}

if __name__ == "__main__":
    main()
