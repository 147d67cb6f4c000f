"""Merging and extracting as a plain loop over modules: ΔW as a whole in float32, its full SVD, the first ranks of it.

It is what widely used scripts do, stated anew, and the workbench's measure. Values are not clamped, which some do and
which loses what is clamped. `layers` have Stable Diffusion's widths, a few of each, so that a round takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["RANK", "cut_to", "deltas_of", "extract_plainly", "layers", "merge_plainly"]

RANK = 32
_WIDTHS, _TINY = (320, 640, 1280), (24, 40)
_EACH = 4  # layers of a width


def layers(*, quick: bool) -> dict[str, nn.Linear]:
    """Return linear layers by the names that they have in a UNet, with random weights."""
    torch.manual_seed(0)
    return {
        f"down_blocks.{block}.attentions.0.transformer_blocks.{number}.attn1.to_q": nn.Linear(width, width, bias=False)
        for block, width in enumerate(_TINY if quick else _WIDTHS)
        for number in range(_EACH)
    }


def merge_plainly(files: Sequence[Path], strengths: Sequence[float], out: Path, rank: int) -> None:
    """Write the sum of kohya's LoRAs at these strengths, cut to a rank."""
    sums: dict[str, Tensor] = {}
    for file, strength in zip(files, strengths, strict=True):
        for stem, delta in deltas_of(file):
            sums[stem] = sums[stem] + strength * delta if stem in sums else strength * delta
    _save({stem: cut_to(delta, rank) for stem, delta in sums.items()}, out, rank)


def extract_plainly(tuned: Path, base: Path, out: Path, rank: int) -> None:
    """Write what a checkpoint changed in its base, cut to a rank."""
    found = {}
    with safe_open(tuned, framework="pt") as new, safe_open(base, framework="pt") as old:
        for key in new.keys():  # noqa: SIM118 — it is no mapping
            stem = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            found[stem] = cut_to(new.get_tensor(key).float() - old.get_tensor(key).float(), rank)
    _save(found, out, rank)


def deltas_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield each module of one of kohya's LoRAs with its ΔW (out, in), float32."""
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 — it is no mapping
            if key.endswith(".lora_up.weight"):
                stem = key.removesuffix(".lora_up.weight")
                up, down = tensors.get_tensor(key).float(), tensors.get_tensor(f"{stem}.lora_down.weight").float()
                yield stem, up @ down * (float(tensors.get_tensor(f"{stem}.alpha")) / down.shape[0])


def cut_to(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of that rank, by the SVD of the whole."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _save(found: Mapping[str, tuple[Tensor, Tensor]], out: Path, rank: int) -> None:
    tensors: dict[str, Tensor] = {}
    for stem, (up, down) in found.items():
        tensors[f"{stem}.lora_up.weight"] = up.half().contiguous()
        tensors[f"{stem}.lora_down.weight"] = down.half().contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, out)
