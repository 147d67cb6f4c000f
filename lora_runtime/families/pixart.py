"""PixArt alpha and sigma: the picture alone, with text by cross attention.

The original fuses q, k and v of the self attention, k and v of the cross attention. Files that PEFT wrote for it and
for HunyuanDiT begin with `unet.base_model.model.`, though it is a transformer.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import Family
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import patched

__all__ = ["ATTENTIONS", "CAPTION", "EMBEDDER", "PIXART", "PIXART_NAMES"]

ATTENTIONS: Table = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": "attn2.to_out.0",
}
_FEED_FORWARD = {"mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
CAPTION = {
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
}
EMBEDDER = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
_PIXART = Layout(
    original=("blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.0.mlp.fc1"),
    diffusers=("adaln_single.emb.timestep_embedder.linear_1", "pos_embed.proj", "transformer_blocks.0.attn1.to_q"),
    table=MappingProxyType(
        {
            **CAPTION,
            "x_embedder.proj": "pos_embed.proj",
            "t_block.1": "adaln_single.linear",
            "final_layer.linear": "proj_out",
            **inside("t_embedder", "adaln_single.emb.timestep_embedder", EMBEDDER),
            **inside("csize_embedder", "adaln_single.emb.resolution_embedder", EMBEDDER),
            **inside("ar_embedder", "adaln_single.emb.aspect_ratio_embedder", EMBEDDER),
            **inside("blocks.#", "transformer_blocks.#", {**ATTENTIONS, **_FEED_FORWARD}),
        }
    ),
)
PIXART_NAMES = Dialect(
    "pixart",
    MappingProxyType({"transformer": ("unet.base_model.model.",)}),
    translations=_PIXART.translations,
    fusions=_PIXART.fusions,
)


PIXART = Family(
    "PixArt",
    classes=("PixArtTransformer2DModel",),
    titles=("pixart",),
    read=patched(),
    no_place=r"caption_projection|adaln_single",
    dialects=(PIXART_NAMES,),
)
