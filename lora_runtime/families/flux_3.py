"""Flux 3. Nobody has described its calls yet: rows and regions are refused."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import Family
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, inside

__all__ = ["FLUX_3", "FLUX_3_NAMES"]

_FLUX_3_BLOCK = {
    "q_proj": "attn.to_q",
    "k_proj": "attn.to_k",
    "v_proj": "attn.to_v",
    "attn_out": "attn.to_out.0",
    "mlp_in": "ff.linear_in",
    "mlp_out": "ff.linear_out",
}
_FLUX_3_MODES = ("image", "image_cond")
_FLUX_3_MODULATIONS = {f"{stream}.lin": f"{stream}.linear" for stream in (*_FLUX_3_MODES, "txt")}
_FLUX_3 = Layout(
    original=("single_blocks.0.q_proj", "txt_mode_blocks.0.q_proj"),
    diffusers=("single_transformer_blocks.0.attn.to_q", "txt_mode_blocks.0.attn.to_q"),
    table=MappingProxyType(
        {
            "time_in.in_layer": "timestep_embedder.linear_1",
            "time_in.out_layer": "timestep_embedder.linear_2",
            "ref_time_in.in_layer": "target_timestep_embedder.linear_1",
            "ref_time_in.out_layer": "target_timestep_embedder.linear_2",
            "txt_in": "context_embedder",
            "final_layer.image.adaLN_modulation.1": "norm_out.linear",
            "final_layer.image.linear": "proj_out",
            **inside("emb_in", "x_embedders", {mode: mode for mode in _FLUX_3_MODES}),
            **inside("early_stream_modulations", "early_stream_modulations", _FLUX_3_MODULATIONS),
            **inside("single_stream_modulations", "single_stream_modulations", _FLUX_3_MODULATIONS),
            **inside("single_blocks.#", "single_transformer_blocks.#", _FLUX_3_BLOCK),
            **inside("txt_mode_blocks.#", "txt_mode_blocks.#", _FLUX_3_BLOCK),
            **inside("content_mode_blocks.image.#", "mode_blocks.image.#", _FLUX_3_BLOCK),
            **inside("content_mode_blocks.image_cond.#", "mode_blocks.image_cond.#", _FLUX_3_BLOCK),
        }
    ),
    swapped=frozenset({"final_layer.image.adaLN_modulation.1"}),
)
FLUX_3_NAMES = Dialect("flux 3", translations=_FLUX_3.translations)

FLUX_3 = Family("Flux3", ("Flux3Transformer2DModel",), ("flux3", "flux-3"), dialects=(FLUX_3_NAMES,))
