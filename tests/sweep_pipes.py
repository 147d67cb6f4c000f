"""Pipelines that workers of a sweep make in their own processes, where this module is found by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tiny


def plain() -> Any:
    """Return a tiny pipeline."""
    return tiny.pipeline()


def deadly(flags: str) -> Any:
    """Return one that ends its process at a prompt with "die", and at one with "once" if no process did before."""
    pipe = tiny.pipeline()

    class Deadly(type(pipe)):  # type: ignore[misc]
        def __call__(self, prompt: list[str], **more: Any) -> Any:
            text = " ".join(prompt)
            once = Path(flags) / "once"
            if "once" in text and not once.exists():
                once.touch()
                os._exit(1)
            if "die" in text:
                os._exit(1)
            return super().__call__(prompt, **more)

    pipe.__class__ = Deadly
    return pipe


def dead() -> Any:
    """End the process before there is a pipeline."""
    os._exit(1)


def broken() -> Any:
    """Raise."""
    raise ValueError("no such model")
