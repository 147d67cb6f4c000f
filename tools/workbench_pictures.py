"""Paints the pictures of docs/workbench.md with the embedded pipeline: docs/workbench*.png.

    python tools/workbench_pictures.py [files balance report]

The heat map needs matplotlib (extra `plot`). Seeds are fixed, so a run repeats the pictures (on another processor, up
to rounding).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lora_runtime  # noqa: E402
from lora_runtime import workbench  # noqa: E402
from lora_runtime.cli import main as command  # noqa: E402
from lora_runtime.demo.scene_pipeline import LORAS, load_pipeline  # noqa: E402
from lora_runtime.demo.sheet import compose  # noqa: E402
from lora_runtime.workbench import balanced, merge, resize  # noqa: E402

PROMPTS = (("a boat on the sea under a sun", 4), ("a green tree", 3), ("a house by the sea under a sun", 2))
FIRST, SECOND = "<lora:watercolor:0.8>", "<lora:night:0.6>"
RANK = 2  # of the small file
MANY = ("watercolor", "stripes", "outline", "night")
REPORT = "<lora:watercolor:1><lora:night:0.8><lora:outline:0.7>"
STEPS = 20
GUIDANCE = 4.0
TILE, SMALL = 128, 88
LARGEST = 300_000  # bytes of a PNG


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint the pictures that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=f"of {', '.join(PICTURES)} (default: all)")
    names = parser.parse_args(arguments).pictures
    if unknown := set(names) - PICTURES.keys():
        parser.error(f"no picture is named {', '.join(sorted(unknown))}")
    for name in names or PICTURES:
        file, paint = PICTURES[name]
        path = ROOT / "docs" / file
        paint(path)
        if (size := path.stat().st_size) >= LARGEST:
            raise SystemExit(f"{path} has {size} bytes, which is too many for a page")
        print(f"{path}  {size:,} bytes", flush=True)


def files(out: Path) -> None:
    """Two LoRAs, each alone, both by tags, merged into one file, and that file at a lower rank."""
    pipe = load_pipeline()
    with TemporaryDirectory() as folder:
        merged, small = Path(folder, "merged.safetensors"), Path(folder, "small.safetensors")
        merge([FIRST + SECOND], merged, loras=[LORAS])
        kept = resize(merged, small, rank=RANK).kept
        columns = {
            "no LoRA": "",
            "watercolor:0.8": FIRST,
            "night:0.6": SECOND,
            "both, by tags": FIRST + SECOND,
            "merged into one file": "<lora:merged>",
            f"resized to rank {RANK},\n{kept:.0%} of the norm squared": "<lora:small>",
        }
        painted = [_paint(pipe, tags, [LORAS, folder]) for tags in columns.values()]
    by_tags, by_file = painted[3], painted[4]
    difference = max(
        int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())
        for one, other in zip(by_tags, by_file, strict=True)
    )
    print(f"tags and the merged file differ by at most {difference} of 255 in any pixel")
    compose(painted, [prompt for prompt, _ in PROMPTS], [*columns], tile=TILE).save(out, optimize=True)


def balance(out: Path) -> None:
    """Four LoRAs alone, together, with the strengths that keep the norm, and each at the strength of one norm."""
    pipe = load_pipeline()
    together = _tags(dict.fromkeys(MANY, 1.0))
    found = workbench.report([together], loras=[LORAS])
    norms = dict(zip(MANY, found.total.norms, strict=True))
    mean = math.prod(norms.values()) ** (1 / len(norms))
    alike = {name: round(mean / norm, 2) for name, norm in norms.items()}
    columns = {
        "no LoRA": "",
        **{f"{name}\nnorm {norm:.1f}": _tags({name: 1.0}) for name, norm in norms.items()},
        f"all at 1\nnorm {found.total.together:.1f}": together,
        f"all at {found.balance:.2f}\nnorm {max(norms.values()):.1f}": balanced(together, loras=[LORAS]),
        "each of one norm\n" + " ".join(f"{strength:g}" for strength in alike.values()): _tags(alike),
    }
    painted = [_paint(pipe, tags, [LORAS]) for tags in columns.values()]
    compose(painted, [prompt for prompt, _ in PROMPTS], [*columns], tile=SMALL).save(out, optimize=True)


def _tags(strengths: Mapping[str, float]) -> str:
    return "".join(f"<lora:{name}:{strength:g}>" for name, strength in strengths.items())


def _paint(pipe: Any, tags: str, folders: Sequence[Any]) -> list[Image.Image]:
    """Return a picture for each prompt with these tags, all in one batch."""
    prompts = [prompt + tags for prompt, _ in PROMPTS]
    with lora_runtime.apply(pipe, prompts, loras=folders, strict=True) as applied:
        painted: list[Image.Image] = pipe(
            applied.prompt,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in PROMPTS],
        ).images
    return painted


def report(out: Path) -> None:
    """The heat map of three LoRAs, as the command draws it."""
    model = LORAS.parent / "pipeline" / "unet"
    status = command(["report", REPORT, "--loras", str(LORAS), "--model", str(model), "--picture", str(out)])
    if status != 0:
        raise SystemExit(status)


PICTURES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "files": ("workbench.png", files),
    "balance": ("workbench-balance.png", balance),
    "report": ("workbench-report.png", report),
}

if __name__ == "__main__":
    main()
