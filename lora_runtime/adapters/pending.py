"""Endings of algorithms that are known by name and not supported yet: what is found is named, never misread.

An algorithm that gets its own file leaves this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["PENDING", "Pending"]


@dataclass(frozen=True)
class Pending:
    """A known algorithm without support."""

    algorithm: str
    # Whether it acts on the same weight: then what else the file has for that module would be wrong alone.
    on_weight: bool = True


_WEIGHT_ENDINGS = {
    "DoRA": ".dora_scale .lora_magnitude_vector .lora_magnitude_vector.weight .magnitude",
    "LoHa": ".hada_w1_a .hada_w1_b .hada_w2_a .hada_w2_b .hada_t1 .hada_t2",
    "LoKr": ".lokr_w1 .lokr_w1_a .lokr_w1_b .lokr_w2 .lokr_w2_a .lokr_w2_b .lokr_t1 .lokr_t2",
    "IA³": ".on_input .ia3_l .ia3_l.weight",
    "GLoRA": ".a1.weight .a2.weight .b1.weight .b2.weight .bm.weight",
    "OFT": ".oft_blocks .oft_blocks.0 .oft_blocks.1 .oft_blocks.2 .oft_blocks.3 .oft_diag .oft_R .oft_R.weight "
    ".oft_r .rescale",
    "BOFT": ".boft_R .boft_s",
    "full difference": ".diff .diff_m",
    "norm difference": ".w_norm",
    "replacement": ".set_weight .reshape_weight",
    "sparse remainder": ".bias_indices .bias_values .bias_size",
    "a scale of its own": ".scale",
    "ABBA": ".lora_up1.weight .lora_down1.weight .lora_up2.weight .lora_down2.weight",
    "T-LoRA": ".q_layer.weight .p_layer.weight .lambda_layer",
    "AdaLoRA": ".lora_E .lora_E.weight",
    "LoRA of an embedding": ".lora_embedding_A .lora_embedding_B .lora_embedding_A.weight .lora_embedding_B.weight",
    "VeRA": ".vera_lambda_b .vera_lambda_d .vera_A .vera_B",
    "HRA": ".hra_u",
    "RoAd": ".road_theta .road_alpha",
    "FourierFT": ".fourierft_spectrum",
    "WaveFT": ".waveft_spectrum",
    "C3A": ".c3a_kernel",
    "SHiRA": ".shira_weight .shira_indices",
    "MiSS": ".miss_block .bone_block",
    "HiRA": ".hira_A .hira_B .hira_A.weight .hira_B.weight",
    "DeLoRA": ".delora_A .delora_B .delora_lambda .delora_w_norm",
    "GraLoRA": ".gralora_A .gralora_B .gralora_A_general .gralora_B_general",
    "XLabs": ".qkv_lora1.up.weight .qkv_lora1.down.weight .qkv_lora2.up.weight .qkv_lora2.down.weight "
    ".proj_lora1.up.weight .proj_lora1.down.weight .proj_lora2.up.weight .proj_lora2.down.weight",
}
_BIAS_ENDINGS = {
    "difference of a bias": ".diff_b .b_norm",
    "LoRA with a bias": ".lora_B.bias .lora_up.bias",
}

PENDING = MappingProxyType(
    {ending: Pending(name) for name, endings in _WEIGHT_ENDINGS.items() for ending in endings.split()}
    | {ending: Pending(name, False) for name, endings in _BIAS_ENDINGS.items() for ending in endings.split()}
)
