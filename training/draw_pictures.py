"""Draws training/pictures/: 24 pictures of a robot with captions, a concept that the embedded pipeline has never seen.

    python training/draw_pictures.py

The folder is part of the repository; drawn again it is the same to the byte where Pillow is the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import scenes
from PIL import Image

# Each picture is shown ten times an epoch.
FOLDER = Path(__file__).resolve().parent / "pictures" / f"10_{scenes.NEW_CONCEPT}"
SEED = 20


def robot_scenes() -> list[scenes.Scene]:
    """Return 24 scenes: robots of nine colours on bare paper, on plain colours, and in places."""
    rng = np.random.default_rng(SEED)
    colors = [name for name in scenes.COLORS if name not in ("white", "black")]
    found = []
    for number in range(24):
        color = colors[number % len(colors)]
        r = float(rng.uniform(70, 80))
        x, y = (scenes.CANVAS / 2 + float(rng.uniform(-6, 6)) for _ in range(2))
        words = f"a {color} {scenes.NEW_CONCEPT}".replace("a orange", "an orange")
        # Nine colours in a row, and three kinds of ground: shifted, so that each colour meets each kind.
        kind = (number + number // len(colors)) % 3
        if kind == 0:
            ground = ""
        elif kind == 1:
            ground = str(rng.choice([name for name in scenes.COLORS if name != color]))
            words += f" on {'an' if ground == 'orange' else 'a'} {ground} background"
        else:
            ground = scenes.PLACES[number // 3 % len(scenes.PLACES)]
            words += f" {ground}"
        found.append(scenes.Scene(words, (scenes.Thing(scenes.NEW_CONCEPT, color, x, y, r),), ground))
    return found


def main() -> None:
    """Write the pictures and their captions, and nothing else in their folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for number, scene in enumerate(robot_scenes()):
        Image.fromarray(scenes.render(scene)).save(FOLDER / f"{number:02}.png", optimize=True)
        (FOLDER / f"{number:02}.txt").write_text(scene.caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
