"""Parameters that PEFT saves whole: Δ(W₀) = saved − W₀, so a strength s leads from the model's own to the saved.

LN tuning (Zhao et al. 2023, arXiv:2312.11420) saves norms so, the option `modules_to_save` whole modules such as heads,
and the option `bias` the biases of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.difference import Difference

__all__ = ["ALGORITHM", "Replacement", "build"]


class Replacement(Difference):
    """A parameter as it is to be."""

    algorithm: ClassVar[str] = "replaced"
    base_dependent: ClassVar[bool] = True

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return saved − W₀."""
        return cast(self.values).reshape(weight.shape) - cast(weight)


def build(group: Group) -> list[Replacement]:
    """Return an adapter of the weight, of the bias, or of each."""
    return [Replacement(values, (group.key_of[role],), role) for role, values in group.tensors.items()]


# Plain names (".weight", ".bias") belong here too where the configuration says that their module is saved whole.
ALGORITHM = Algorithm(
    "replaced",
    {
        ".ln_tuning_layers.weight": "replaced/weight",
        ".ln_tuning_layers.bias": "replaced/bias",
        ".base_layer.bias": "replaced/bias",
    },
    build,
    shared=(),
)
