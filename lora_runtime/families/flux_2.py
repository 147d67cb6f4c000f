"""Flux 2 and its Klein models: Flux with four numbers for the place of a token, and one modulation for all blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.flux import DOUBLE, LINEAR1, MODULATION, SHARED, SINGLE, THEIR_DOUBLE, THEIR_SINGLE
from lora_runtime.families.layout import Layout
from lora_runtime.families.reading import with_ids

__all__ = ["FLUX_2", "FLUX_2_NAMES"]

_FLUX_2 = Layout(
    original=("double_blocks.0.img_attn.qkv", "double_stream_modulation_img.lin"),
    diffusers=("transformer_blocks.0.attn.to_q", "double_stream_modulation_img.linear"),
    table=MappingProxyType(
        {
            **SHARED,
            "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
            "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
            "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
            "single_stream_modulation.lin": "single_stream_modulation.linear",
            f"{DOUBLE}.img_mlp.0": f"{THEIR_DOUBLE}.ff.linear_in",
            f"{DOUBLE}.img_mlp.2": f"{THEIR_DOUBLE}.ff.linear_out",
            f"{DOUBLE}.txt_mlp.0": f"{THEIR_DOUBLE}.ff_context.linear_in",
            f"{DOUBLE}.txt_mlp.2": f"{THEIR_DOUBLE}.ff_context.linear_out",
            LINEAR1: f"{THEIR_SINGLE}.attn.to_qkv_mlp_proj",
            f"{SINGLE}.linear2": f"{THEIR_SINGLE}.attn.to_out",
            MODULATION: "norm_out.linear",
        }
    ),
    swapped=frozenset({MODULATION}),
)

_BLOCKS, _CUT = "transformer_blocks.", "sformer_blocks."


def _cut_names(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield `sformer_blocks.…` for the double blocks of Flux 2, as files have whose prefix was cut off twice."""
    if "double_stream_modulation_img.linear" in paths:
        yield from ((path, _CUT + path[len(_BLOCKS) :]) for path in paths if path.startswith(_BLOCKS))


FLUX_2_NAMES = Dialect("flux 2", spellings=_cut_names, translations=_FLUX_2.translations, fusions=_FLUX_2.fusions)


FLUX_2 = Family(
    "Flux2",
    classes=("Flux2Transformer2DModel",),
    titles=("flux2", "flux-2"),
    marks=(pieces("double.stream.modulation"), pieces("to.qkv.mlp.proj")),
    read=with_ids,
    no_place=r"stream_modulation",
    guidance=IN_TWO_CALLS,
    dialects=(FLUX_2_NAMES,),
)
