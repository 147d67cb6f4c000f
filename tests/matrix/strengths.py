"""The kinds of strength: the tags that say them, and what they mean for one row of a batch at one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matrix.paint import Side

NAME = "x"


@dataclass(frozen=True)
class Strength:
    """`prompts` for the pictures painted at once, and `at`: (step of how many, image, side) → the strength there.

    `left_half`: only in that part of the picture.
    """

    prompts: tuple[str, ...]
    at: Callable[[int, int, int, Side], float]
    negative: str | None = None
    left_half: bool = False

    @property
    def images(self) -> int:
        return len(self.prompts)


STRENGTHS: Mapping[str, Strength] = {
    "constant": Strength((f"<lora:{NAME}:0.75>",), lambda step, steps, image, side: 0.75),
    "schedule": Strength((f"<lora:{NAME}:1@0,0@1>",), lambda step, steps, image, side: 1 - step / (steps - 1)),
    "per image": Strength((f"<lora:{NAME}:0.75>", ""), lambda step, steps, image, side: 0.75 if image == 0 else 0.0),
    "negative side": Strength(
        ("",), lambda step, steps, image, side: 0.75 if side == "negative" else 0.0, negative=f"<lora:{NAME}:0.75>"
    ),
    "region": Strength((f"<lora:{NAME}:0.75:box=0,0,0.5,1>",), lambda step, steps, image, side: 0.75, left_half=True),
}
