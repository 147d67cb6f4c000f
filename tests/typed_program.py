"""A program of somebody else's: `make wheel` checks it with mypy and pyright by the types of the installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lora_runtime
from lora_runtime import Applied, LoraCatalog, LoraError, parse_prompt


def tags_of(prompt: str) -> dict[str, float]:
    """Return the denoiser's strength by name, of the tags whose strength is a number."""
    return {tag.name: tag.unet for tag in parse_prompt(prompt).tags if isinstance(tag.unet, float)}


def one(pipe: Any, prompt: str, loras: Path) -> str:
    """One text in, one text out."""
    with lora_runtime.apply(pipe, prompt, loras=loras, originals="host", device_memory="4GB") as applied:
        text: str = applied.prompt
        problems: list[str] = [diagnostic.message for diagnostic in applied.diagnostics]
        return "\n".join([text, *problems, str(applied.report)])


def several(pipe: Any, prompts: list[str], loras: LoraCatalog) -> list[str]:
    """A list in, a list out."""
    applied: Applied[list[str]] = lora_runtime.apply(pipe, prompts, loras=loras)
    try:
        applied.set("ink", 0.4)
        return applied.prompt
    finally:
        applied.restore()


async def named(pipe: Any) -> tuple[str, ...]:
    """Ask for LoRAs by name, from a coroutine."""
    async with lora_runtime.apply(pipe, adapters={"ink": 0.7, "wash": (0.5, 0.9), "line": "0@0,1@1"}) as applied:
        return tuple(applied.strengths)


def keys_of(path: Path) -> int:
    """Return how many modules a file changes, 0 for one that cannot be read."""
    try:
        lora = lora_runtime.load_lora(path)
    except LoraError:
        return 0
    return len(lora.adapters)


if __name__ == "__main__":
    print(tags_of("a boat <lora:ink:0.7>"))
