"""Flux, its Kontext, Fill and Control models, and Krea's.

The latents come packed, 2 × 2 to a token, with the place of each beside them; reference pictures follow them. Double
blocks see pictures and text in layers of their own, single blocks the text before the pictures.

In the originals of Flux, Chroma and Flux 2 one linear layer makes q, k and v, and in a single block of Flux and Chroma
also the first layer of the MLP, which has four times as many rows as each of these. Their last modulation gives shift
and scale, that of diffusers scale and shift. XLabs (and ByteDance's USO) have names of their own for the projections
of attention layers: `1` is the image's, `2` the text's, and those of a single block are q, k and v without the MLP.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table
from lora_runtime.families.reading import with_ids

__all__ = [
    "DOUBLE",
    "FLUX",
    "FLUX_NAMES",
    "LINEAR1",
    "MODULATION",
    "SHARED",
    "SHARED_WITH_CHROMA",
    "SHARES",
    "SINGLE",
    "THEIR_DOUBLE",
    "THEIR_SINGLE",
]

DOUBLE, SINGLE = "double_blocks.#", "single_blocks.#"
THEIR_DOUBLE, THEIR_SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"
_QKV = tuple(f"{THEIR_DOUBLE}.attn.to_{name}" for name in "qkv")
_TEXT_QKV = tuple(f"{THEIR_DOUBLE}.attn.add_{name}_proj" for name in "qkv")
_SINGLE_QKV = tuple(f"{THEIR_SINGLE}.attn.to_{name}" for name in "qkv")
LINEAR1 = f"{SINGLE}.linear1"
MODULATION = "final_layer.adaLN_modulation.1"

SHARED: Table = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    f"{DOUBLE}.img_attn.qkv": _QKV,
    f"{DOUBLE}.img_attn.proj": f"{THEIR_DOUBLE}.attn.to_out.0",
    f"{DOUBLE}.img_attn.norm.query_norm": f"{THEIR_DOUBLE}.attn.norm_q",
    f"{DOUBLE}.img_attn.norm.key_norm": f"{THEIR_DOUBLE}.attn.norm_k",
    f"{DOUBLE}.txt_attn.qkv": _TEXT_QKV,
    f"{DOUBLE}.txt_attn.proj": f"{THEIR_DOUBLE}.attn.to_add_out",
    f"{DOUBLE}.txt_attn.norm.query_norm": f"{THEIR_DOUBLE}.attn.norm_added_q",
    f"{DOUBLE}.txt_attn.norm.key_norm": f"{THEIR_DOUBLE}.attn.norm_added_k",
    f"{SINGLE}.norm.query_norm": f"{THEIR_SINGLE}.attn.norm_q",
    f"{SINGLE}.norm.key_norm": f"{THEIR_SINGLE}.attn.norm_k",
}
SHARED_WITH_CHROMA: Table = {
    **SHARED,
    f"{DOUBLE}.img_mlp.0": f"{THEIR_DOUBLE}.ff.net.0.proj",
    f"{DOUBLE}.img_mlp.2": f"{THEIR_DOUBLE}.ff.net.2",
    f"{DOUBLE}.txt_mlp.0": f"{THEIR_DOUBLE}.ff_context.net.0.proj",
    f"{DOUBLE}.txt_mlp.2": f"{THEIR_DOUBLE}.ff_context.net.2",
    LINEAR1: (*_SINGLE_QKV, f"{THEIR_SINGLE}.proj_mlp"),
    f"{SINGLE}.linear2": f"{THEIR_SINGLE}.proj_out",
}
SHARES = MappingProxyType({LINEAR1: (1, 1, 1, 4)})
_ATTENTION_OF_XLABS: Table = {
    f"{DOUBLE}.processor.qkv_lora1": _QKV,
    f"{DOUBLE}.processor.proj_lora1": f"{THEIR_DOUBLE}.attn.to_out.0",
    f"{DOUBLE}.processor.qkv_lora2": _TEXT_QKV,
    f"{DOUBLE}.processor.proj_lora2": f"{THEIR_DOUBLE}.attn.to_add_out",
    # "_lora" may be read as the beginning of the ending, as in `to_q_lora.up.weight`.
    f"{SINGLE}.processor.qkv": _SINGLE_QKV,
    f"{SINGLE}.processor.qkv_lora": _SINGLE_QKV,
    f"{SINGLE}.processor.proj": f"{THEIR_SINGLE}.proj_out",
    f"{SINGLE}.processor.proj_lora": f"{THEIR_SINGLE}.proj_out",
}

_FLUX = Layout(
    original=("double_blocks.0.img_attn.qkv", "double_blocks.0.img_mod.lin"),
    diffusers=("x_embedder", "transformer_blocks.0.norm1_context.linear", "single_transformer_blocks.0.proj_mlp"),
    table=MappingProxyType(
        {
            **SHARED_WITH_CHROMA,
            "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
            f"{DOUBLE}.img_mod.lin": f"{THEIR_DOUBLE}.norm1.linear",
            f"{DOUBLE}.txt_mod.lin": f"{THEIR_DOUBLE}.norm1_context.linear",
            f"{SINGLE}.modulation.lin": f"{THEIR_SINGLE}.norm.linear",
            MODULATION: "norm_out.linear",
        }
    ),
    shares=SHARES,
    swapped=frozenset({MODULATION}),
    aliases=MappingProxyType(_ATTENTION_OF_XLABS),
)
FLUX_NAMES = Dialect("flux", translations=_FLUX.translations, fusions=_FLUX.fusions)


_BFL = ("img.mod.lin.", "txt.mod.lin.", "modulation.lin.")
_DIFFUSERS = (".norm.linear", ".norm1.linear", ".norm1.context.linear", "time.text.embed")
_LAST = ("single.transformer.blocks.37.", "transformer.blocks.18.")  # other models of this kind have fewer blocks
_XLABS = ("processor.qkv.lora", "processor.proj.lora")

FLUX = Family(
    "Flux",
    classes=("FluxTransformer2DModel",),
    titles=("flux",),
    # Without these a file may as well be Chroma's, whose other layers are called the same and are as wide.
    marks=(
        *(pieces(blocks, piece) for blocks in ("double.blocks", "single.blocks") for piece in _BFL),
        *(pieces(last, piece) for last in _LAST for piece in _DIFFUSERS),
        *map(pieces, _XLABS),
    ),
    read=with_ids,
    guidance=IN_TWO_CALLS,
    dialects=(FLUX_NAMES,),
)
