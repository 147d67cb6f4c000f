"""Krea 2, Ideogram 4, ACE-Step, MiniMax-H3, Flux 3 and Qwen-Image 2.1: the originals' names, a short table each."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, Table, inside

__all__ = ["ACE_STEP", "FLUX_3", "IDEOGRAM", "KREA", "MINIMAX", "QWEN_IMAGE"]

_KREA_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
_KREA = Layout(
    original=("first", "tproj.1", "blocks.0.attn.wq"),
    diffusers=("img_in", "time_mod_proj", "transformer_blocks.0.attn.to_gate"),
    table=MappingProxyType(
        {
            "first": "img_in",
            "tmlp.0": "time_embed.linear_1",
            "tmlp.2": "time_embed.linear_2",
            "tproj.1": "time_mod_proj",
            "txtmlp.1": "txt_in.linear_1",
            "txtmlp.3": "txt_in.linear_2",
            "txtfusion.projector": "text_fusion.projector",
            "last.linear": "final_layer.linear",
            **inside("blocks.#", "transformer_blocks.#", _KREA_BLOCK),
            **inside("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", _KREA_BLOCK),
            **inside("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", _KREA_BLOCK),
        }
    ),
)
KREA = Dialect("krea 2", translations=_KREA.translations)

_IDEOGRAM_ATTENTION: Table = {"qkv": ("to_q", "to_k", "to_v"), "o": "to_out.0"}
_IDEOGRAM = Layout(
    original=("llm_cond_proj", "layers.0.attention.qkv"),
    diffusers=("llm_cond_proj", "layers.0.attention.to_q"),
    table=MappingProxyType(inside("layers.#.attention", "layers.#.attention", _IDEOGRAM_ATTENTION)),
)
IDEOGRAM = Dialect(
    "ideogram 4",
    MappingProxyType({"transformer": ("conditional_transformer.",)}),
    translations=_IDEOGRAM.translations,
    fusions=_IDEOGRAM.fusions,
)

_ACE_STEP_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
_ACE_STEP = Layout(
    original=("layers.0.self_attn.q_proj", "layers.0.cross_attn.q_proj"),
    diffusers=("layers.0.self_attn.to_q", "layers.0.cross_attn.to_q"),
    table=MappingProxyType(
        {
            **inside("layers.#.self_attn", "layers.#.self_attn", _ACE_STEP_ATTENTION),
            **inside("layers.#.cross_attn", "layers.#.cross_attn", _ACE_STEP_ATTENTION),
        }
    ),
)
ACE_STEP = Dialect("ace-step", translations=_ACE_STEP.translations)

_MINIMAX_BLOCK: Table = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv_proj": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.out_proj": "attn.to_out.0",
    "attn.q_norm": "attn.norm_q",
    "attn.k_norm": "attn.norm_k",
    "mlp.fc1": "ff.net.0.proj",  # gate and value, the other way round in diffusers
    "mlp.fc2": "ff.net.2",
    "adaln_proj.linear": "adaln_proj.linear",
}
_MINIMAX = Layout(
    original=("audio_patch_proj", "token_refiner.blocks.0.attn.qkv_proj"),
    diffusers=("audio_proj_in", "token_refiner.refiner_blocks.0.attn.to_q"),
    table=MappingProxyType(
        {
            "video_patch_proj": "proj_in",
            "audio_patch_proj": "audio_proj_in",
            "condition_proj": "context_embedder",
            "time_embedder.proj_in": "time_embedder.linear_1",
            "time_embedder.proj_out": "time_embedder.linear_2",
            "final_layer.norm": "norm_out.norm",
            "final_layer.adaln_proj.linear": "norm_out.linear",
            "final_layer.video_out": "proj_out",
            "final_layer.audio_out": "audio_proj_out",
            **inside("blocks.#", "transformer_blocks.#", _MINIMAX_BLOCK),
            **inside("token_refiner.blocks.#", "token_refiner.refiner_blocks.#", _MINIMAX_BLOCK),
        }
    ),
    swapped=frozenset({"blocks.#.mlp.fc1", "token_refiner.blocks.#.mlp.fc1"}),
)
MINIMAX = Dialect("minimax h3", translations=_MINIMAX.translations, fusions=_MINIMAX.fusions)

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
FLUX_3 = Dialect("flux 3", translations=_FLUX_3.translations)

_QWEN_IMAGE_MLP: Table = {"gate_up": ("gate_layer", "proj")}
_QWEN_IMAGE = Layout(
    original=("transformer_blocks.0.img_mlp.gate_up", "transformer_blocks.0.img_mlp.out"),
    diffusers=("transformer_blocks.0.img_mlp.gate_layer", "transformer_blocks.0.img_mlp.proj"),
    table=MappingProxyType(inside("transformer_blocks.#.img_mlp", "transformer_blocks.#.img_mlp", _QWEN_IMAGE_MLP)),
)
QWEN_IMAGE = Dialect("qwen-image 2.1", translations=_QWEN_IMAGE.translations, fusions=_QWEN_IMAGE.fusions)
