"""Parameters that are saved whole: Δ(W₀) = saved − W₀, so a strength s leads from the model's own to the saved.

LN tuning (Zhao et al. 2023, arXiv:2312.11420) saves norms so, the option `modules_to_save` whole modules such as heads,
and the option `bias` the biases of layers; `base_layer` of a LoRA is such a bias, or the table of a larger vocabulary.
`set_weight`, and the scales of norms in the control LoRAs of Black Forest Labs, are of this kind too. Other programs
put these in place of W₀ whatever the strength, so that the last file wins. Here Δ is in the one sum, so that the order
of the files still cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.difference import Difference
from lora_runtime.key_endings import ENDINGS

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
    ENDINGS["replaced"],
    build,
    shared=(),
    tails={".key_norm.scale": ".key_norm", ".query_norm.scale": ".query_norm"},
)
