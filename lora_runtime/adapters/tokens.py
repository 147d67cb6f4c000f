"""Trainable tokens: new rows of an embedding's table, for a few tokens (PEFT). Which tokens is in the configuration.

The rows are the new ones themselves, so that Δ is what is to those of W₀, as for other replacements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group

__all__ = ["ALGORITHM", "Rows", "build"]


@dataclass(frozen=True, eq=False)
class Rows(Dense):
    """What some rows of a table are to be at strength 1."""

    algorithm: ClassVar[str] = "tokens"
    base_dependent: ClassVar[bool] = True

    rows: Tensor  # (n, dim)
    places: tuple[int, ...]  # n
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a table with these rows and as many columns."""
        most, columns = max(self.places), int(self.rows.shape[1])
        if len(shape) == 2 and shape[0] > most and shape[1] == columns:
            return None
        return f"made for a table of more than {most} rows of {columns}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the new rows minus the old at their places, 0 elsewhere."""
        base = cast(weight)
        places = torch.tensor(self.places, device=base.device)
        return torch.zeros_like(base).index_copy_(0, places, cast(self.rows) - base[places])


def build(group: Group) -> list[Rows]:
    """Return the adapter of one table; ValueError says what is missing or contradictory."""
    (rows,) = group.need("rows")
    places = _places(group.options.get("tokens"), group.stem)
    if not places:
        raise ValueError("only the adapter_config.json, which is not beside it, tells which tokens these are")
    if rows.ndim != 2 or rows.shape[0] != len(places) or len(set(places)) != len(places):
        raise ValueError(f"{len(places)} tokens in the configuration: {group.shapes()}")
    return [Rows(rows, places, group.keys)]


def _places(tokens: Any, stem: str) -> tuple[int, ...]:
    """Return the tokens of a table: the configuration has one list, or one for each table by the end of its name."""
    if isinstance(tokens, Mapping):
        tokens = next((listed for name, listed in tokens.items() if f".{stem}".endswith(f".{name}")), None)
    return tuple(tokens or ())


ALGORITHM = Algorithm(
    "tokens",
    {".token_adapter.trainable_tokens_delta": "beside/rows", ".trainable_tokens_delta": "alone/rows"},
    build,
    shared=(),
)
