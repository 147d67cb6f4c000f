"""PixArt and Sana: the originals' names. Both fuse q, k and v of the self attention, k and v of the cross attention.

Files that PEFT wrote for PixArt and HunyuanDiT begin with `unet.base_model.model.`, though it is a transformer.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, Table, inside

__all__ = ["PIXART", "SANA"]

_ATTENTIONS: Table = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": "attn2.to_out.0",
}
_FEED_FORWARD = {"mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
_CONVOLUTIONS = {
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
_CAPTION = {
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
}
_EMBEDDER = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
_PIXART = Layout(
    original=("blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.0.mlp.fc1"),
    diffusers=("adaln_single.emb.timestep_embedder.linear_1", "pos_embed.proj", "transformer_blocks.0.attn1.to_q"),
    table=MappingProxyType(
        {
            **_CAPTION,
            "x_embedder.proj": "pos_embed.proj",
            "t_block.1": "adaln_single.linear",
            "final_layer.linear": "proj_out",
            **inside("t_embedder", "adaln_single.emb.timestep_embedder", _EMBEDDER),
            **inside("csize_embedder", "adaln_single.emb.resolution_embedder", _EMBEDDER),
            **inside("ar_embedder", "adaln_single.emb.aspect_ratio_embedder", _EMBEDDER),
            **inside("blocks.#", "transformer_blocks.#", {**_ATTENTIONS, **_FEED_FORWARD}),
        }
    ),
)
_SANA = Layout(
    original=("blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.0.mlp.inverted_conv.conv"),
    diffusers=("caption_norm", "time_embed.linear", "transformer_blocks.0.ff.conv_inverted"),
    table=MappingProxyType(
        {
            **_CAPTION,
            "x_embedder.proj": "patch_embed.proj",
            "attention_y_norm": "caption_norm",
            "t_block.1": "time_embed.linear",
            "final_layer.linear": "proj_out",
            **inside("t_embedder", "time_embed.emb.timestep_embedder", _EMBEDDER),
            **inside("blocks.#", "transformer_blocks.#", {**_ATTENTIONS, **_CONVOLUTIONS}),
        }
    ),
)

PIXART = Dialect(
    "pixart",
    MappingProxyType({"transformer": ("unet.base_model.model.",)}),
    translations=_PIXART.translations,
    fusions=_PIXART.fusions,
)
SANA = Dialect("sana", translations=_SANA.translations, fusions=_SANA.fusions)
