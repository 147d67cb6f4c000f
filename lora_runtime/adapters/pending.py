"""Endings of algorithms that are known by name and not supported: what is found is named, never misread.

Their endings are in `key_endings`; an algorithm that gets its own file moves there from KNOWN_ONLY to ENDINGS.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from lora_runtime.key_endings import KNOWN_ONLY

__all__ = ["COUNTED", "PENDING", "Pending"]


@dataclass(frozen=True)
class Pending:
    """A known algorithm without support. What else the file has for the same module would be wrong alone."""

    algorithm: str
    why: str = ""  # it cannot be supported, where that is known

    @property
    def reason(self) -> str:
        """Return why a key of it is not used."""
        return f"{self.algorithm} cannot be used: {self.why}" if self.why else f"{self.algorithm} is not supported yet"


# Why it cannot be supported, where that is known.
_REASONS = {
    "LoKr with a core on its first factor": "no trainer writes lokr_t1, and no formula says what it would mean",
    "T-LoRA": (
        "its change depends on the timestep, and on a decomposition of the weights it was trained on that is not saved"
    ),
    "TinyLoRA": (
        "which module has which of its vectors is told by the order of the modules in the model it was trained on"
    ),
}
PENDING = MappingProxyType(
    {ending: Pending(name, _REASONS.get(name, "")) for name, endings in KNOWN_ONLY.items() for ending in endings}
)
COUNTED = Pending(
    "cloneofsimo's LoRA",
    "its keys count the modules in an order that only its training script has; convert it to diffusers' names",
)
