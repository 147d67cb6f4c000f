"""Sana, Sana Sprint and Sana Video: the picture alone, with text by cross attention."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, inside
from lora_runtime.families.pixart import ATTENTIONS, CAPTION, EMBEDDER
from lora_runtime.families.reading import patched

__all__ = ["SANA", "SANA_NAMES", "SANA_VIDEO"]

_CONVOLUTIONS = {
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
_SANA = Layout(
    original=("blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.0.mlp.inverted_conv.conv"),
    diffusers=("caption_norm", "time_embed.linear", "transformer_blocks.0.ff.conv_inverted"),
    table=MappingProxyType(
        {
            **CAPTION,
            "x_embedder.proj": "patch_embed.proj",
            "attention_y_norm": "caption_norm",
            "t_block.1": "time_embed.linear",
            "final_layer.linear": "proj_out",
            **inside("t_embedder", "time_embed.emb.timestep_embedder", EMBEDDER),
            **inside("blocks.#", "transformer_blocks.#", {**ATTENTIONS, **_CONVOLUTIONS}),
        }
    ),
)

SANA_NAMES = Dialect("sana", translations=_SANA.translations, fusions=_SANA.fusions)


SANA = Family(
    "Sana",
    classes=("SanaTransformer2DModel",),
    titles=("sana",),
    read=patched(),
    no_place=r"caption_projection|time_embed|guidance_embedder",
    # The scale of these is an input of the model: they have one side, in one call.
    pipelines=MappingProxyType({"SanaSprintPipeline": IN_TWO_CALLS, "SanaSprintImg2ImgPipeline": IN_TWO_CALLS}),
    dialects=(SANA_NAMES,),
)
SANA_VIDEO = Family(
    "unknown",
    classes=("SanaVideoTransformer3DModel",),
    read=patched(),
    no_place=r"caption_projection|time_embed",
)
