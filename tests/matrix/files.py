"""The algorithms: what a file has for a layer, and what it changes there, in float64 by the formula of its paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]  # W₀ in float64 → Δ at strength 1
Made = tuple[dict[str, Tensor], Change]


class Dice:
    """Random tensors, the same in every run."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, size: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=self.generator) * size


def lora(weight: Tensor, dice: Dice) -> Made:
    up, down = dice(weight.shape[0], 2), dice(2, weight.shape[1])
    return {"lora_B.weight": up, "lora_A.weight": down}, lambda w: up.double() @ down.double()


def loha(weight: Tensor, dice: Dice) -> Made:
    out, inputs = weight.shape
    factors = [dice(out, 2), dice(2, inputs), dice(out, 2), dice(2, inputs)]
    a, b, c, d = (factor.double() for factor in factors)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, factors, strict=True)), lambda w: (a @ b) * (c @ d)


def lokr(weight: Tensor, dice: Dice) -> Made:
    out, inputs = weight.shape
    left, right = dice(2, 2), dice(out // 2, inputs // 2)
    return {"lokr_w1": left, "lokr_w2": right}, lambda w: torch.kron(left.double(), right.double())


def dora(weight: Tensor, dice: Dice) -> Made:
    tensors, change = lora(weight, dice)
    lengths = weight.norm(dim=1, keepdim=True) * (1 + dice(weight.shape[0], 1).abs())

    def whole(w: Tensor) -> Tensor:
        turned = w + change(w)
        return lengths.double() * turned / turned.norm(dim=1, keepdim=True) - w

    named = {"lora_up.weight": tensors["lora_B.weight"], "lora_down.weight": tensors["lora_A.weight"]}
    return named | {"dora_scale": lengths}, whole


def oft(weight: Tensor, dice: Dice) -> Made:
    size = weight.shape[0] // 2
    blocks = dice(2, size, size, size=0.2)

    def turned(w: Tensor) -> Tensor:
        skew = blocks.double() - blocks.double().transpose(1, 2)
        eye = torch.eye(size, dtype=torch.float64)
        return torch.block_diag(*(((eye + q) @ torch.linalg.inv(eye - q)).T for q in skew)) @ w - w

    return {"oft_blocks": blocks}, turned


def ia3(weight: Tensor, dice: Dice) -> Made:
    vector = dice(weight.shape[0], size=0.6)
    return {"weight": vector, "on_input": torch.tensor(False)}, lambda w: vector.double()[:, None] * w


def full(weight: Tensor, dice: Dice) -> Made:
    difference = dice(*weight.shape, size=0.2)
    return {"diff": difference}, lambda w: difference.double()


ALGORITHMS: Mapping[str, Callable[[Tensor, Dice], Made]] = {
    "LoRA": lora,
    "LoHa": loha,
    "LoKr": lokr,
    "DoRA": dora,
    "OFT": oft,
    "IA³": ia3,
    "full difference": full,
}


@dataclass(frozen=True)
class Written:
    """A file, and by component and parameter what it changes there, with the beginning of the keys that say so."""

    name: str
    changes: Mapping[tuple[str, str], tuple[str, Change]]


def write(
    folder: Path, name: str, algorithm: str, layers: Mapping[str, Mapping[str, nn.Module]], seed: int = 0
) -> Written:
    """Write a file for these layers: by component, by path."""
    dice = Dice(seed)
    tensors: dict[str, Tensor] = {}
    changes: dict[tuple[str, str], tuple[str, Change]] = {}
    for component, places in layers.items():
        for path, layer in places.items():
            keys, change = ALGORITHMS[algorithm](layer.weight.detach().float(), dice)
            # LyCORIS writes its own algorithms with kohya's names, PEFT writes LoRA with diffusers' own.
            dotted = algorithm == "LoRA"
            prefix = {"transformer": "lora_transformer", "unet": "lora_unet"}.get(component, f"lora_{component}")
            stem = f"{component}.{path}" if dotted else f"{prefix}_{path.replace('.', '_')}"
            tensors |= {f"{stem}.{key}": tensor for key, tensor in keys.items()}
            changes[component, f"{path}.weight"] = stem, change
    save_file(tensors, folder / f"{name}.safetensors")
    return Written(name, changes)
