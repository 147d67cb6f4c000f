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
    "OFT of PEFT before 0.16": ".oft_r",
    "OFT of PEFT without its .weight": ".oft_R",
    # Trainers after OneTrainer's: the same key of two releases means two formulas.
    "scaled, clipped or exponential OFT": ".oft_R.scaled_oft .oft_R.clipped_oft .oft_R.cans_exp .dora_multiplier "
    ".dora_log_multiplier .initial_norm",
    "AdaLoRA": ".lora_E.weight",
    # What these two start from is not in the file: singular vectors of the weight, whose signs are those of a machine.
    "OSF": ".osf_svd_params.U_low .osf_svd_params.S_low .osf_svd_params.V_low",
    "PSOFT": ".psoft_R.weight .psoft_R.vector_a .psoft_R.vector_b",
    "FRoD": ".frod_lambda_l .frod_lambda_s_values",
    "PEANuT": ".peanut_A.weight .peanut_B.weight",
    "Lily, whose changes depend on the input": ".lily_A.weight .lily_B.weight .lily_router.weight",
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
