"""Rows of an embedding that PEFT saves as they are to be ("trainable tokens"): Δ(W₀) = saved − W₀ in these rows.

Which rows they are, the numbers of their tokens, is in the configuration alone. Beside a LoRA they come from its option
`trainable_token_indices`, for one embedding or for several by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Rows", "build"]


@dataclass(frozen=True, eq=False)
class Rows(Dense):
    """Rows of a table."""

    algorithm: ClassVar[str] = "trainable tokens"
    base_dependent: ClassVar[bool] = True

    values: Tensor  # (n, extent)
    numbers: Tensor  # (n,) int64, of the rows: a tensor, so that it waits where the values do
    least: int  # the number of rows that the table has at least, for all of these to be in it
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a table of such rows, which has all of them."""
        if len(shape) == 2 and shape[0] >= self.least and shape[1] == self.values.shape[1]:
            return None
        made_for = f"at least {self.least} rows of {int(self.values.shape[1])}"
        return f"made for {made_for}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return saved − W₀ in the rows, 0 elsewhere."""
        values = cast(self.values)
        rows = self.numbers.to(weight.device)
        return values.new_zeros(weight.shape).index_copy_(0, rows, values - cast(weight[rows]))


def build(group: Group) -> list[Rows]:
    """Return the adapter of one embedding; ValueError says what is missing or contradictory."""
    (values,) = group.need("rows")
    listed = group.options.get("token_indices")
    if isinstance(listed, Mapping):  # by the end of the embedding's name
        listed = next((rows for name, rows in listed.items() if f".{group.stem}".endswith(f".{name}")), None)
    if listed is None:
        raise ValueError("only the adapter_config.json tells which tokens its rows are, and it does not")
    if not isinstance(listed, list) or not all(type(number) is int and 0 <= number < 2**31 for number in listed):
        raise ValueError("its tokens are no list of numbers")
    if values.ndim != 2 or len(set(listed)) != values.shape[0] or len(listed) != values.shape[0] or not listed:
        raise ValueError(f"{len(listed)} tokens, each once, do not have these rows: {group.shapes()}")
    return [Rows(values, torch.tensor(listed), max(listed) + 1, group.keys)]


ALGORITHM = Algorithm(
    "trainable tokens",
    ENDINGS["trainable tokens"],
    build,
    shared=(),
)
