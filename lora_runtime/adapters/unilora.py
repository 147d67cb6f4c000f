"""UniLoRA: a LoRA whose factors take their elements from one vector that all modules of the file share.

Li et al. 2025, arXiv:2506.00799. Where an element lies in the vector, and what it is multiplied by, is in the file if
PEFT was told so (save_indices). If not, they are drawn anew for all modules of a model in its order, which no file has.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.lora import LowRank
from lora_runtime.key_endings import ENDINGS, OF_FILE

__all__ = ["ALGORITHM", "OneVector", "build"]


class OneVector(LowRank):
    """A LoRA like any other, once its elements are in their places."""

    algorithm: ClassVar[str] = "unilora"


def build(group: Group) -> list[OneVector]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    places_a, scales_a, places_b, scales_b = group.need("indices_A", "scales_A", "indices_B", "scales_B")
    (theta,) = group.of_file("theta_d")
    if theta.ndim != 1 or places_a.ndim != 2 or places_b.ndim != 2 or places_b.shape[1] != places_a.shape[0]:
        raise ValueError(f"the factors do not fit together: theta_d {tuple(theta.shape)}, {group.shapes()}")
    up, down = _factor(theta, places_b, scales_b), _factor(theta, places_a, scales_a)
    return [OneVector(up, down, None, group.keys, None, 1.0)]


def _factor(theta: Tensor, places: Tensor, scales: Tensor) -> Tensor:
    if scales.shape != places.shape or places.is_floating_point():
        raise ValueError(f"places {tuple(places.shape)} and scales {tuple(scales.shape)} do not fit together")
    count = theta.shape[0]
    if places.numel() and not places.is_meta and not 0 <= int(places.min()) <= int(places.max()) < count:
        raise ValueError(f"a place outside of the shared vector's {count} elements")
    # float32: a product in the file's half precision would be rounded.
    return theta.float()[places.long()] * scales.float()


ALGORITHM = Algorithm(
    "unilora",
    ENDINGS["unilora"],
    build,
    shared=(),
    of_file=OF_FILE["unilora"],
    way_out="where its elements belong is drawn anew for each model; save it again with all that PEFT can save "
    "(save_indices)",
)
