"""Flux, Chroma and Flux 2: the names of the originals (Black Forest Labs, ComfyUI, kohya) and those of diffusers.

In the originals one linear layer makes q, k and v, and in a single block of Flux and Chroma also the first layer of the
MLP, which has four times as many rows as each of these. Their last modulation gives shift and scale, that of diffusers
scale and shift. XLabs (and ByteDance's USO) have names of their own for the projections of attention layers: `1` is
the image's, `2` the text's, and those of a single block are q, k and v without the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, Table

__all__ = ["CHROMA", "FLUX", "FLUX_2"]

_DOUBLE, _SINGLE = "double_blocks.#", "single_blocks.#"
_THEIR_DOUBLE, _THEIR_SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"
_QKV = tuple(f"{_THEIR_DOUBLE}.attn.to_{name}" for name in "qkv")
_TEXT_QKV = tuple(f"{_THEIR_DOUBLE}.attn.add_{name}_proj" for name in "qkv")
_SINGLE_QKV = tuple(f"{_THEIR_SINGLE}.attn.to_{name}" for name in "qkv")
_LINEAR1 = f"{_SINGLE}.linear1"
_MODULATION = "final_layer.adaLN_modulation.1"

_COMMON: Table = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    f"{_DOUBLE}.img_attn.qkv": _QKV,
    f"{_DOUBLE}.img_attn.proj": f"{_THEIR_DOUBLE}.attn.to_out.0",
    f"{_DOUBLE}.img_attn.norm.query_norm": f"{_THEIR_DOUBLE}.attn.norm_q",
    f"{_DOUBLE}.img_attn.norm.key_norm": f"{_THEIR_DOUBLE}.attn.norm_k",
    f"{_DOUBLE}.txt_attn.qkv": _TEXT_QKV,
    f"{_DOUBLE}.txt_attn.proj": f"{_THEIR_DOUBLE}.attn.to_add_out",
    f"{_DOUBLE}.txt_attn.norm.query_norm": f"{_THEIR_DOUBLE}.attn.norm_added_q",
    f"{_DOUBLE}.txt_attn.norm.key_norm": f"{_THEIR_DOUBLE}.attn.norm_added_k",
    f"{_SINGLE}.norm.query_norm": f"{_THEIR_SINGLE}.attn.norm_q",
    f"{_SINGLE}.norm.key_norm": f"{_THEIR_SINGLE}.attn.norm_k",
}
_OF_FLUX_AND_CHROMA: Table = {
    **_COMMON,
    f"{_DOUBLE}.img_mlp.0": f"{_THEIR_DOUBLE}.ff.net.0.proj",
    f"{_DOUBLE}.img_mlp.2": f"{_THEIR_DOUBLE}.ff.net.2",
    f"{_DOUBLE}.txt_mlp.0": f"{_THEIR_DOUBLE}.ff_context.net.0.proj",
    f"{_DOUBLE}.txt_mlp.2": f"{_THEIR_DOUBLE}.ff_context.net.2",
    _LINEAR1: (*_SINGLE_QKV, f"{_THEIR_SINGLE}.proj_mlp"),
    f"{_SINGLE}.linear2": f"{_THEIR_SINGLE}.proj_out",
}
_SHARES = MappingProxyType({_LINEAR1: (1, 1, 1, 4)})
_ATTENTION_OF_XLABS: Table = {
    f"{_DOUBLE}.processor.qkv_lora1": _QKV,
    f"{_DOUBLE}.processor.proj_lora1": f"{_THEIR_DOUBLE}.attn.to_out.0",
    f"{_DOUBLE}.processor.qkv_lora2": _TEXT_QKV,
    f"{_DOUBLE}.processor.proj_lora2": f"{_THEIR_DOUBLE}.attn.to_add_out",
    # "_lora" may be read as the beginning of the ending, as in `to_q_lora.up.weight`.
    f"{_SINGLE}.processor.qkv": _SINGLE_QKV,
    f"{_SINGLE}.processor.qkv_lora": _SINGLE_QKV,
    f"{_SINGLE}.processor.proj": f"{_THEIR_SINGLE}.proj_out",
    f"{_SINGLE}.processor.proj_lora": f"{_THEIR_SINGLE}.proj_out",
}

_FLUX = Layout(
    original=("double_blocks.0.img_attn.qkv", "double_blocks.0.img_mod.lin"),
    diffusers=("x_embedder", "transformer_blocks.0.norm1_context.linear", "single_transformer_blocks.0.proj_mlp"),
    table=MappingProxyType(
        {
            **_OF_FLUX_AND_CHROMA,
            "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
            f"{_DOUBLE}.img_mod.lin": f"{_THEIR_DOUBLE}.norm1.linear",
            f"{_DOUBLE}.txt_mod.lin": f"{_THEIR_DOUBLE}.norm1_context.linear",
            f"{_SINGLE}.modulation.lin": f"{_THEIR_SINGLE}.norm.linear",
            _MODULATION: "norm_out.linear",
        }
    ),
    shares=_SHARES,
    swapped=frozenset({_MODULATION}),
    aliases=MappingProxyType(_ATTENTION_OF_XLABS),
)
_GUIDANCE = "distilled_guidance_layer"
_CHROMA = Layout(
    original=("double_blocks.0.img_attn.qkv", f"{_GUIDANCE}.layers.0.in_layer"),
    diffusers=("single_transformer_blocks.0.proj_mlp", f"{_GUIDANCE}.layers.0.linear_1"),
    table=MappingProxyType(
        {
            **_OF_FLUX_AND_CHROMA,
            f"{_GUIDANCE}.layers.#.in_layer": f"{_GUIDANCE}.layers.#.linear_1",
            f"{_GUIDANCE}.layers.#.out_layer": f"{_GUIDANCE}.layers.#.linear_2",
        }
    ),
    shares=_SHARES,
)
_FLUX_2 = Layout(
    original=("double_blocks.0.img_attn.qkv", "double_stream_modulation_img.lin"),
    diffusers=("transformer_blocks.0.attn.to_q", "double_stream_modulation_img.linear"),
    table=MappingProxyType(
        {
            **_COMMON,
            "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
            "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
            "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
            "single_stream_modulation.lin": "single_stream_modulation.linear",
            f"{_DOUBLE}.img_mlp.0": f"{_THEIR_DOUBLE}.ff.linear_in",
            f"{_DOUBLE}.img_mlp.2": f"{_THEIR_DOUBLE}.ff.linear_out",
            f"{_DOUBLE}.txt_mlp.0": f"{_THEIR_DOUBLE}.ff_context.linear_in",
            f"{_DOUBLE}.txt_mlp.2": f"{_THEIR_DOUBLE}.ff_context.linear_out",
            _LINEAR1: f"{_THEIR_SINGLE}.attn.to_qkv_mlp_proj",
            f"{_SINGLE}.linear2": f"{_THEIR_SINGLE}.attn.to_out",
            _MODULATION: "norm_out.linear",
        }
    ),
    swapped=frozenset({_MODULATION}),
)

_BLOCKS, _CUT = "transformer_blocks.", "sformer_blocks."


def _cut_names(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield `sformer_blocks.…` for the double blocks of Flux 2, as files have whose prefix was cut off twice."""
    if "double_stream_modulation_img.linear" in paths:
        yield from ((path, _CUT + path[len(_BLOCKS) :]) for path in paths if path.startswith(_BLOCKS))


FLUX = Dialect("flux", translations=_FLUX.translations, fusions=_FLUX.fusions)
CHROMA = Dialect("chroma", translations=_CHROMA.translations, fusions=_CHROMA.fusions)
FLUX_2 = Dialect("flux 2", spellings=_cut_names, translations=_FLUX_2.translations, fusions=_FLUX_2.fusions)
