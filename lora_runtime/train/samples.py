"""Pictures on the way: prompts with tags, painted by this library's own `apply` from the weights in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import TrainingError
from lora_runtime.runtime import apply
from lora_runtime.workbench.writing import write_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Wish", "paint", "read_wish"]

_OPTION = re.compile(r"\s--([nwhdsl])\s+([^\s].*?)(?=\s+--[nwhdsl]\s|\s*$)")


@dataclass(frozen=True)
class Wish:
    """A picture to be painted; in kohya's line `a robot <lora:robot:0.8> --n grey --w 512 --d 1 --s 28 --l 7`."""

    prompt: str
    negative: str = ""
    width: int = 0  # 0: as the pictures in training
    height: int = 0
    seed: int = 0
    steps: int = 20
    scale: float | None = None  # None: the pipeline's own


def read_wish(line: str, size: tuple[int, int], seed: int) -> Wish:
    """Return what a line asks for; `size` (width, height) and `seed` where it says nothing of them.

    TrainingError for an option that is no number.
    """
    given = dict(_OPTION.findall(f" {line}"))
    wish = Wish(_OPTION.sub("", f" {line}").strip(), given.get("n", ""), *size, seed)
    try:
        return replace(
            wish,
            width=int(given.get("w", wish.width)),
            height=int(given.get("h", wish.height)),
            seed=int(given.get("d", wish.seed)),
            steps=int(given.get("s", wish.steps)),
            scale=float(given["l"]) if "l" in given else None,
        )
    except ValueError as error:
        raise TrainingError(f"sample_prompts {line!r}: {error}; --w, --h, --d and --s take whole numbers") from error


@torch.no_grad()
def paint(
    pipe: Any, wishes: Sequence[Wish], name: str, tensors: Mapping[str, Tensor]
) -> tuple[list[Image.Image], list[str]]:
    """Return a picture for each wish, and what there is to say of its tags.

    `tensors` are the weights in training, which `<lora:NAME:1>` means; other names are looked for where they always
    are. The pipeline must be without the layers in training.
    """
    pictures, said = [], []
    with TemporaryDirectory() as folder:
        write_file(Path(folder) / f"{name}.safetensors", tensors, {})
        catalog = LoraCatalog(folder, *LoraCatalog.default().folders)
        for wish in wishes:
            more: dict[str, Any] = {} if wish.scale is None else {"guidance_scale": wish.scale}
            if wish.negative:
                more["negative_prompt"] = wish.negative
            with apply(pipe, wish.prompt, loras=catalog) as applied:
                said += [each.message for each in applied.diagnostics if each.severity != "info"]
                painted = pipe(
                    applied.prompt,
                    width=wish.width,
                    height=wish.height,
                    num_inference_steps=wish.steps,
                    generator=torch.Generator("cpu").manual_seed(wish.seed),
                    **more,
                )
            pictures.append(painted.images[0])
    return pictures, list(dict.fromkeys(said))
