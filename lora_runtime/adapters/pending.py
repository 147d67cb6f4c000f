"""Endings of algorithms that are known by name and not supported yet: what is found is named, never misread.

An algorithm that gets its own file leaves this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["PENDING", "Pending"]


@dataclass(frozen=True)
class Pending:
    """A known algorithm without support. What else the file has for the same module would be wrong alone."""

    algorithm: str


_ENDINGS = {
    "LoKr with a core on both sides": ".lokr_t1",
    "OFT of several parts": ".oft_blocks.0 .oft_blocks.1 .oft_blocks.2 .oft_blocks.3",
    "OFT of PEFT before 0.16": ".oft_r",
    "OFT of PEFT without its .weight": ".oft_R",
    # Trainers after OneTrainer's: the same key of two releases means two formulas.
    "scaled, clipped or exponential OFT": ".oft_R.scaled_oft .oft_R.clipped_oft .oft_R.cans_exp .dora_multiplier "
    ".dora_log_multiplier .initial_norm",
    "a modulation": ".diff_m",
    "replacement": ".set_weight .reshape_weight",
    "T-LoRA": ".q_layer.weight .p_layer.weight .lambda_layer",
    "AdaLoRA": ".lora_E.weight",
    "LoRA of an embedding": ".lora_embedding_A .lora_embedding_B .lora_embedding_A.weight .lora_embedding_B.weight",
    "VeRA": ".vera_lambda_b .vera_lambda_d .vera_A .vera_B",
    "FourierFT": ".fourierft_spectrum",
    "WaveFT": ".waveft_spectrum",
    # What these two start from is not in the file: singular vectors of the weight, whose signs are those of a machine.
    "OSF": ".osf_svd_params.U_low .osf_svd_params.S_low .osf_svd_params.V_low",
    "PSOFT": ".psoft_R.weight .psoft_R.vector_a .psoft_R.vector_b",
    "FRoD": ".frod_lambda_l .frod_lambda_s_values",
    "PEANuT": ".peanut_A.weight .peanut_B.weight",
    "Lily, whose changes depend on the input": ".lily_A.weight .lily_B.weight .lily_router.weight",
    "XLabs": ".qkv_lora1.up.weight .qkv_lora1.down.weight .qkv_lora2.up.weight .qkv_lora2.down.weight "
    ".proj_lora1.up.weight .proj_lora1.down.weight .proj_lora2.up.weight .proj_lora2.down.weight",
}
PENDING = MappingProxyType({ending: Pending(name) for name, endings in _ENDINGS.items() for ending in endings.split()})
