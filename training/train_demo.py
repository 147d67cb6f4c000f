"""Trains a LoRA on training/pictures/ and paints without and with its tag: out/train-demo.png.

    python training/train_demo.py

It is what a user does: `lora-runtime train` with the folder and training/robot.toml, then prompts with the tag.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

import lora_runtime
from lora_runtime.cli import main as command
from lora_runtime.demo.scene_pipeline import PIPELINE, load_pipeline, paint
from lora_runtime.demo.sheet import compose

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "training" / "pictures"
NAME = "robot"
# None of these is a caption; the colours are those of the first pictures, which stand beside them.
PROMPTS = (
    "a red robot in a meadow",
    "an orange robot by the sea",
    "a yellow robot in the snow",
    "a green robot on a blue background",
)
STRENGTHS = (0.5, 1.0)
SEEDS = (4, 2, 3, 1)


def main() -> None:
    """Train, paint, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out") / "train-demo.png", help="the sheet of pictures")
    parser.add_argument("--steps", type=int, help="instead of those of training/robot.toml")
    arguments = parser.parse_args()
    file = arguments.out.parent / f"{NAME}.safetensors"
    line = ["train", "--model", PIPELINE, "--data", PICTURES, "--out", file]
    line += ["--config", ROOT / "training" / f"{NAME}.toml", "--force"]
    if arguments.steps:
        line += ["--set", f"max_train_steps={arguments.steps}"]
    began = time.perf_counter()
    if status := command([str(part) for part in line]):
        raise SystemExit(status)
    trained = time.perf_counter()
    columns = {"in training": shown_first(), "no LoRA": painted("", file.parent)}
    columns |= {f"{NAME} {strength:g}": painted(f"<lora:{NAME}:{strength}>", file.parent) for strength in STRENGTHS}
    compose(list(columns.values()), PROMPTS, list(columns)).save(arguments.out)
    print(f"trained in {trained - began:.0f} s, painted in {time.perf_counter() - trained:.0f} s: {arguments.out}")


def painted(tags: str, folder: Path) -> list[Image.Image]:
    """Return a picture for each prompt, with these tags."""
    pipe = load_pipeline()
    with torch.no_grad(), lora_runtime.apply(pipe, [prompt + tags for prompt in PROMPTS], loras=folder) as applied:
        return paint(pipe, applied.prompt, seeds=SEEDS)


def shown_first() -> list[Image.Image]:
    """Return as many pictures of the folder as there are prompts."""
    files = sorted(PICTURES.glob("*/*.png"))[: len(PROMPTS)]
    return [Image.open(file).convert("RGB") for file in files]


if __name__ == "__main__":
    main()
