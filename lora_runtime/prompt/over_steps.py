"""The strength of a tag at each step of a picture, as far as the prompt alone tells it."""

from __future__ import annotations

from lora_runtime.prompt.strength import Curve, Moment, Strength, Window, at
from lora_runtime.prompt.tags import LoraTag

__all__ = ["over_steps"]


def over_steps(tag: LoraTag, steps: int, *, hires: bool = False) -> list[float] | None:
    """Return the denoiser's strength at each step; None where it depends on noise levels.

    `hires` asks for that of the second pass.
    """
    conditions = tag.conditions
    strength = tag.unet if not hires or conditions.hires_unet is None else conditions.hires_unet
    if _by_noise(strength, tag):
        return None
    moments = [Moment(step, steps) for step in range(steps)]
    return [at(strength, now) if all(when.holds(now) for when in conditions.when) else 0.0 for now in moments]


def _by_noise(strength: Strength, tag: LoraTag) -> bool:
    positions = [key.position for key in strength.keys] if isinstance(strength, Curve) else []
    edges = [edge for when in tag.conditions.when if isinstance(when, Window) for edge in (when.start, when.stop)]
    return any(position is not None and position.unit == "sigma" for position in (*positions, *edges))
