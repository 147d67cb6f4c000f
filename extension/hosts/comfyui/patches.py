"""What the program is asked to make of weights: one patch object of ours for each, on a clone of its patcher.

The program writes W′ when it loads a weight for good, and keeps the original; where memory is short, and wherever it
moves weights as they are needed (dynamic VRAM), it makes W′ anew each time and writes nothing. It may copy a patch
object as `type(patch)(patch.loaded_keys, patch.weights)`, with tensors in `weights` moved to another device.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from lora_runtime.errors import LoraError, ModelError
from lora_runtime.hosted import HostPatch, identity_of

from ...console import say
from .models import names_of

__all__ = ["ComfyPatch", "add_patches", "has_patches", "is_written", "take_patches_off"]

_log = logging.getLogger("lora_runtime")
_NAMES = uuid.UUID("0d0f6c0c-8a0e-4b55-9a6f-5f1a3d5f7b21")  # of our identities


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of one weight.

    `backups`: the patcher's table of originals. `first`: no other patch comes before this one. `said`: what went wrong
    already, each once.
    """

    patch: HostPatch
    backups: Mapping[str, Any]
    first: bool
    said: set[str] = field(default_factory=set)

    def made(self, weight: Tensor, key: str) -> Tensor:
        """Return W′ for what the program hands over, which is W₀ where nobody has changed it before.

        Of a weight that is loaded for good the original is in `backups`; here it is in the dtype that the program
        computes LoRAs in, half precision on most cards: W′ is made of the original, in float32 for the program to
        round. Where W′ is made for one use, `weight` is a copy of the original as the layer computes with it.
        """
        kept = self.backups.get(key)
        if kept is None:
            return self.patch.merged(weight)
        original = kept.weight.to(weight.device)
        made = self.patch.merged(original).float()
        return made if self.first else made + (weight.float() - original.to(weight.dtype).float())

    def say(self, message: str) -> None:
        """Say on the console that this weight stays as it is, each reason once."""
        if message not in self.said:
            self.said.add(message)
            say(f"{message}; left out there")


class ComfyPatch(WeightAdapterBase):
    """What the program asks for a W′: all that is asked of one weight by any number of LoRAs."""

    name = "lora_runtime"

    def __init__(self, loaded_keys: set[str], weights: tuple[Asked, ...]) -> None:
        """Take what the program hands on to copies; the only one of `weights` is what is asked."""
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_shape(self, key: str) -> None:
        """Say that W′ has the shape of the weight."""

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Return W′. The strengths are in the patch already; the program's are 1."""
        (asked,) = self.weights
        try:
            return asked.made(weight, key)
        except LoraError as error:
            asked.say(str(error))
        except Exception as error:  # nothing may stop the program in the middle of its loading
            _log.error("W′ of %s cannot be made", key, exc_info=True)
            asked.say(f"{asked.patch.target}: {type(error).__name__}: {error}")
        return weight


def has_patches(patcher: Any) -> bool:
    """Return whether a patcher has patches of ours."""
    return any(isinstance(patch[1], ComfyPatch) for own in patcher.patches.values() for patch in own)


def take_patches_off(patcher: Any) -> None:
    """Take our patches off a fresh clone, so that others can come in their place; those of others stay."""
    for key, own in list(patcher.patches.items()):
        left = [patch for patch in own if not isinstance(patch[1], ComfyPatch)]
        if left:
            patcher.patches[key] = left
        else:
            del patcher.patches[key]


def add_patches(patcher: Any, patches: Sequence[HostPatch], before: uuid.UUID) -> None:
    """Give a clone these patches, under an identity that is equal for equal ones on the patcher that it was made from.

    `before` is that one's identity. The program loads nothing again for an identity that it knows.
    """
    names = names_of(patcher.model, [patch.target.module for patch in patches])
    said: set[str] = set()
    wanted = {}
    for patch in patches:
        key = f"{names[id(patch.target.module)]}.{patch.name}"
        wanted[key] = ComfyPatch({key}, (Asked(patch, patcher.backup, not patcher.patches.get(key), said),))
    taken = patcher.add_patches(wanted)
    if len(taken) != len(wanted):
        lacking = ", ".join(sorted(set(wanted) - set(taken))[:3])
        raise ModelError(f"ComfyUI has no weights of these names: {lacking}")
    patcher.patches_uuid = uuid.uuid5(_NAMES, f"{before} {identity_of(patches)}")


def is_written(module: nn.Module) -> bool:
    """Return whether the program writes the parameters of a module: it does not where there are others below."""
    return not any(next(child.parameters(), None) is not None for child in module.children())
