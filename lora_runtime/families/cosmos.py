"""Cosmos 1, 2 and 2.5, and Anima, which is built as they are: the video alone, with text by cross attention.

Anima's adapter for its language model is a part of the original transformer, in diffusers a component of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.dialect import Dialect, Part
from lora_runtime.families.layout import Layout, inside
from lora_runtime.families.reading import patched

__all__ = ["ANIMA", "COSMOS", "COSMOS_NAMES", "COSMOS_OR_ANIMA"]

_ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "output_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_MODULATION = {"1": "linear_1", "2": "linear_2"}
_FEED_FORWARD = {"layer1": "net.0.proj", "layer2": "net.2"}
_BLOCK = {
    **inside("self_attn", "attn1", _ATTENTION),
    **inside("cross_attn", "attn2", _ATTENTION),
    **inside("mlp", "ff", _FEED_FORWARD),
    **inside("adaln_modulation_self_attn", "norm1", _MODULATION),
    **inside("adaln_modulation_cross_attn", "norm2", _MODULATION),
    **inside("adaln_modulation_mlp", "norm3", _MODULATION),
}
_ATTENTION_1 = {
    "to_q.0": "to_q",
    "to_k.0": "to_k",
    "to_v.0": "to_v",
    "to_out.0": "to_out.0",
    "to_q.1": "norm_q",
    "to_k.1": "norm_k",
}
_BLOCK_1 = {
    **inside("blocks.0.block.attn", "attn1", _ATTENTION_1),
    **inside("blocks.1.block.attn", "attn2", _ATTENTION_1),
    **inside("blocks.2.block", "ff", _FEED_FORWARD),
    **inside("blocks.0.adaLN_modulation", "norm1", _MODULATION),
    **inside("blocks.1.adaLN_modulation", "norm2", _MODULATION),
    **inside("blocks.2.adaLN_modulation", "norm3", _MODULATION),
}
_TOP = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DIFFUSERS = ("transformer_blocks.0.norm1.linear_1", "time_embed.t_embedder.linear_1", "norm_out.linear_1")
_COSMOS_2 = Layout(
    original=("blocks.0.self_attn.q_proj", "blocks.0.adaln_modulation_self_attn.1"),
    diffusers=_DIFFUSERS,
    table=MappingProxyType(
        {
            **_TOP,
            "t_embedding_norm": "time_embed.norm",
            **inside("final_layer.adaln_modulation", "norm_out", _MODULATION),
            **inside("blocks.#", "transformer_blocks.#", _BLOCK),
        }
    ),
)
_COSMOS_1 = Layout(
    original=("blocks.block0.blocks.0.block.attn.to_q.0", "affline_norm"),
    diffusers=_DIFFUSERS,
    table=MappingProxyType(
        {
            **_TOP,
            "affline_norm": "time_embed.norm",
            **inside("final_layer.adaLN_modulation", "norm_out", _MODULATION),
            **inside("blocks.block#", "transformer_blocks.#", _BLOCK_1),
        }
    ),
)


def _translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield each module's name in the other layout, in both where that is the original's; nothing for other models."""
    yield from _COSMOS_2.translations(paths)
    yield from _COSMOS_1.translations(paths)


COSMOS_NAMES = Dialect(
    "cosmos",
    MappingProxyType(
        {
            "text_conditioner": (
                "text_conditioner.",
                "text_conditioner.base_model.model.",
                "diffusion_model.llm_adapter.",
                "model.diffusion_model.llm_adapter.",
                "lora_unet_llm_adapter_",
            )
        }
    ),
    translations=_translations,
)


COSMOS = Family("Cosmos", titles=("cosmos",), dialects=(COSMOS_NAMES,))
ANIMA = Family("Anima", titles=("anima",), marks=(pieces("llm.adapter.blocks"),), dialects=(COSMOS_NAMES,))
# A live model may be either.
COSMOS_OR_ANIMA = Family(
    "unknown",
    classes=("CosmosTransformer3DModel",),
    read=patched(),
    no_place=r"crossattn_proj|img_context_proj|time_embed|norm\d?\.linear|norm_out\.linear|llm_adapter",
    guidance=IN_TWO_CALLS,
    dialects=(COSMOS_NAMES,),
)
