"""Endings of algorithms that are known by name and not supported: what is found is named, never misread.

An algorithm that gets its own file leaves these tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

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


_ENDINGS = {
    "OFT of PEFT": ".oft_R .oft_R.weight .oft_r",
    "BOFT of PEFT": ".boft_R .boft_s",
    "AdaLoRA": ".lora_E.weight",
    "RoAd": ".road_theta .road_alpha",
    "Bone": ".bone_block",
    "HiRA of an embedding": ".hira_embedding_A .hira_embedding_B",
    "DeLoRA": ".delora_A .delora_B .delora_lambda .delora_w_norm",
    "GraLoRA": ".gralora_A .gralora_B .gralora_A_general .gralora_B_general",
}
# (algorithm, why it cannot be supported, endings)
_REFUSED = (
    (
        "LoKr with a core on its first factor",
        "no trainer writes lokr_t1, and no formula says what it would mean",
        ".lokr_t1",
    ),
    (
        "T-LoRA",
        "its change depends on the timestep, and on a decomposition of the weights it was trained on that is not saved",
        ".q_layer.weight .p_layer.weight .lambda_layer",
    ),
    (
        "TinyLoRA",
        "which module has which of its vectors is told by the order of the modules in the model it was trained on",
        ".tinylora_A .tinylora_B .tinylora_P",
    ),
    (
        "Nunchaku's packed LoRA",
        "its factors are padded and in the order of its kernels; use the file that it was converted from",
        ".lora_down .lora_up",
    ),
)
PENDING = MappingProxyType(
    {ending: Pending(name) for name, endings in _ENDINGS.items() for ending in endings.split()}
    | {ending: Pending(name, why) for name, why, endings in _REFUSED for ending in endings.split()}
)
COUNTED = Pending(
    "cloneofsimo's LoRA",
    "its keys count the modules in an order that only its training script has; convert it to diffusers' names",
)
