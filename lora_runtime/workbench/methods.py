"""How several changes of one weight become one, beside their plain sum: on ΔW, never on its factors.

What is done to factors one by one (PEFT's `linear`, `ties` and `dare` on LoRAs, and what many tools do) is something
else: Σ sᵢUᵢ · Σ sᵢDᵢ has all the products of one file's outputs with another's inputs in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_runtime.workbench.low_rank import Product

__all__ = ["DENSE", "Settings", "orthogonalised"]


@dataclass(frozen=True)
class Settings:
    """Numbers of the methods that drop elements.

    `density` is the share of them that stays, `epsilon` by how much the chance of the greatest and the least differ
    (DELLA), `seed` what chance is drawn from.
    """

    density: float = 0.5
    epsilon: float = 0.1
    seed: int = 0


def orthogonalised(products: Sequence[Product]) -> list[Product]:
    """Return products that do not meet: each without what it has in the outputs and in the inputs of those before.

    Δᵢ′ = (I − PPᵀ)·Δᵢ·(I − QQᵀ), with orthonormal P and Q of all outputs and inputs so far: the first file stays as it
    is, and Δᵢ′·Δⱼᵀ = 0 and Δᵢ′ᵀ·Δⱼ = 0 for each j before i. The ranks stay.
    """
    found: list[Product] = []
    outputs = inputs = None  # orthonormal columns: (out, r) and (columns, r)
    for product in products:
        up, down = product.up, product.down
        if outputs is not None and inputs is not None:
            for _ in range(2):  # once more: what rounding has left of them
                up = up - outputs @ (outputs.mT @ up)
                down = down - (down @ inputs) @ inputs.mT
        found.append(Product(up, down))
        outputs, inputs = _span(outputs, product.up), _span(inputs, product.down.mT)
    return found


def _span(basis: Tensor | None, columns: Tensor) -> Tensor:
    """Return orthonormal columns of all that `basis` and these reach; a direction of rounding size is none."""
    together = columns if basis is None else torch.cat([basis, columns / _scale(columns)], 1)
    left, values, _ = torch.linalg.svd(together, full_matrices=False)
    floor = values[:1] * max(together.shape) * torch.finfo(together.dtype).eps
    found: Tensor = left[:, values > floor]
    return found


def _scale(columns: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(columns)
    return norm.clamp(min=torch.finfo(columns.dtype).tiny)


def _ties(deltas: Sequence[Tensor], strengths: Sequence[float], names: Sequence[str], settings: Settings) -> Tensor:
    """Return TIES (Yadav et al. 2023, arXiv:2306.01708): trim, elect a sign, take the mean of those that agree."""
    return _agreeing([_trimmed(delta, settings.density) for delta in deltas], strengths)


def _dare(deltas: Sequence[Tensor], strengths: Sequence[float], names: Sequence[str], settings: Settings) -> Tensor:
    """Return DARE (Yu et al. 2023, arXiv:2311.03099): drop elements by chance, divide by the chance, and sum."""
    kept = []
    for delta, name in zip(deltas, names, strict=True):
        chance = torch.full_like(delta, settings.density)
        kept.append(_drawn(delta, chance, name, settings))
    return _sum(kept, strengths)


def _della(deltas: Sequence[Tensor], strengths: Sequence[float], names: Sequence[str], settings: Settings) -> Tensor:
    """Return DELLA (Deep et al. 2024, arXiv:2406.11617): drop small elements more often, then as TIES."""
    kept = []
    for delta, name in zip(deltas, names, strict=True):
        rows = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta[None]
        # The greatest of a row is number 0.
        order = rows.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1).double()
        dropped = 1 - settings.density - settings.epsilon / 2 + settings.epsilon * order / rows.shape[1]
        kept.append(_drawn(delta, (1 - dropped).reshape(delta.shape), name, settings))
    return _agreeing(kept, strengths)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    """Return the greatest elements, that share of them."""
    count = int(density * delta.numel())
    places = delta.flatten().abs().topk(count).indices
    return torch.zeros_like(delta).flatten().index_copy_(0, places, delta.flatten()[places]).reshape(delta.shape)


def _drawn(delta: Tensor, chance: Tensor, name: str, settings: Settings) -> Tensor:
    """Return elements that stay by chance, divided by it; what is drawn depends on the seed and on the name alone."""
    digest = hashlib.sha256(f"{settings.seed}\n{name}".encode("utf-8", "surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    drawn = torch.rand(delta.shape, generator=generator, dtype=torch.float64)
    return torch.where(drawn < chance, delta / chance, 0.0)


def _agreeing(deltas: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
    """Return, of each element, the mean of those that have the sign of their sum."""
    sign = torch.stack(list(deltas)).sum(0).sign()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, strength in zip(deltas, strengths, strict=True):
        agrees = delta.sign() == sign
        total += torch.where(agrees, delta * strength, 0.0)
        count += agrees & (delta != 0)
    return total / count.clamp(min=1)


def _sum(deltas: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
    total = torch.zeros_like(deltas[0])
    for delta, strength in zip(deltas, strengths, strict=True):
        total.add_(delta, alpha=strength)
    return total


Method = Callable[[Sequence[Tensor], Sequence[float], Sequence[str], Settings], Tensor]
DENSE: dict[str, Method] = {"ties": _ties, "dare": _dare, "della": _della}
