"""One contact sheet: prompts down, LoRAs across at growing strength, and the proof that nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS, load_pipeline, paint
from lora_runtime.errors import ModelError
from lora_runtime.prompt import parse_prompt
from lora_runtime.runtime import apply, restore

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Row", "compose", "main", "paint_sheet", "weights_hash"]


@dataclass(frozen=True)
class Row:
    """A prompt and the seed of all its pictures."""

    prompt: str
    seed: int


ROWS = (
    Row("a red circle", 4),
    Row("a boat on the sea under a sun", 4),
    Row("a house by the sea under a sun", 2),
    Row("a green tree", 3),
    Row("a red heart", 1),
)
STRENGTHS = (0.4, 0.8, 1.2)
TOGETHER = ("<lora:heart:1.1><lora:outline:0.7>", "<lora:outline:0.7><lora:night:0.8>")

_TILE = 96  # pixels: the 48 of a picture twice
_GAP = 4
_LABEL = 16


def main(*, out: str | None = None) -> Path:
    """Paint the sheet, print what was done and the time of each picture, and return the path of the PNG."""
    path = Path(out or "demo.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    _quieten()
    print("loading the embedded pipeline …", flush=True)
    started = time.perf_counter()
    pipe = load_pipeline()
    print(f"  {time.perf_counter() - started:.1f} s", flush=True)
    before = weights_hash(pipe)
    sheet = paint_sheet(pipe, ROWS, _columns())
    restore(pipe)
    after = weights_hash(pipe)
    sheet.save(path)
    print(f"sha256 of all weights, before  {before}\n                       after   {after}")
    if before != after:
        raise ModelError("the weights are not what they were before; this is a fault of lora_runtime, please report it")
    print(f"every weight is bit for bit what it was\nwrote {path.resolve()}")
    return path


def _quieten() -> None:
    """Keep the notices and bars of diffusers and transformers out of what the demo prints."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _columns() -> list[str]:
    """Return the tags of each column: none, each LoRA at each strength, two together (twice)."""
    names = sorted(entry.name for entry in LoraCatalog(LORAS).entries)
    return ["", *(f"<lora:{name}:{strength}>" for name in names for strength in STRENGTHS), *TOGETHER]


def paint_sheet(pipe: Any, rows: Sequence[Row], columns: Sequence[str]) -> Image.Image:
    """Return the sheet: a picture for each prompt (down) with each column's tags (across), labelled.

    The prompts of a column ask for the same LoRAs, so they are painted in one batch.
    """
    painted: list[list[Image.Image]] = []
    for number, tags in enumerate(columns, start=1):
        started = time.perf_counter()
        with apply(pipe, [row.prompt + tags for row in rows], loras=LORAS, strict=True) as applied:
            switched = time.perf_counter()
            painted.append(paint(pipe, applied.prompt, seeds=[row.seed for row in rows]))
        each = (time.perf_counter() - switched) / len(rows)
        switch = f"LoRAs on in {(switched - started) * 1e3:5.1f} ms" if tags else "no LoRA"
        print(f"[{number:2}/{len(columns)}] {each:.2f} s a picture, {switch}  {tags}", flush=True)
    return compose(painted, [row.prompt for row in rows], [_title(tags) for tags in columns])


def _title(tags: str) -> str:
    """Return the label of a column: "outline 0.7", and "+ stripes 0.7" below it."""
    return "\n+ ".join(f"{tag.name} {tag.te:g}" for tag in parse_prompt(tags).tags) or "no LoRA"


def compose(
    painted: Sequence[Sequence[Image.Image]], rows: Sequence[str], columns: Sequence[str], *, tile: int = _TILE
) -> Image.Image:
    """Return the columns of pictures on one white sheet, each `tile` pixels wide and high, with their labels.

    The label of a column may have several lines; those of rows stand above them.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    head = _LABEL * (1 + max(2, *(label.count("\n") + 1 for label in columns)))
    step, line = tile + _GAP, tile + _LABEL + _GAP
    sheet = Image.new("RGB", (_GAP + len(columns) * step, head + len(rows) * line), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (column, label) in enumerate(zip(painted, columns, strict=True)):
        left = _GAP + x * step
        draw.multiline_text((left, 2), label, fill="black", font=font, spacing=1)
        for y, picture in enumerate(column):
            enlarged = picture.resize((tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left, head + y * line))
    for y, label in enumerate(rows):
        draw.text((_GAP, head - _LABEL + y * line), label, fill="black", font=font)
    return sheet


def weights_hash(pipe: Any) -> str:
    """Return the sha256, in hex, of the bytes of every weight of a pipeline."""
    import torch

    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, torch.nn.Module):
            for key, value in component.state_dict().items():
                digest.update(f"{name}.{key}".encode())
                digest.update(_bytes_of(value))
    return digest.hexdigest()


def _bytes_of(value: Any) -> Any:
    """Return a copy of a tensor's bytes; not by way of numpy, whose second version torch 2.1 and 2.2 cannot use."""
    import torch

    copy = bytearray(value.numel() * value.element_size())
    if copy:
        torch.frombuffer(copy, dtype=torch.uint8).copy_(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8))
    return copy
