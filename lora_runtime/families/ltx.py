"""LTX-Video and LTX-2: the video's tokens alone, with text by cross attention; LTX-2 has sound in layers of its own.

The connectors of LTX-2, a part of the original's text projection, are a component of their own in diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from types import MappingProxyType

from lora_runtime.families.base import Family, Given, Grid, Reading, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, inside
from lora_runtime.families.reading import packed, tokens_of

__all__ = ["LTX", "LTX_NAMES"]

_MODULATIONS = {
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
}
_LEVELS = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_NORMS = {f"{attention}.{side}_norm": f"{attention}.norm_{side}" for attention in _ATTENTIONS for side in "qk"}
_LAYOUT = Layout(
    original=("patchify_proj", "adaln_single.linear"),
    diffusers=("proj_in", "time_embed.linear", "transformer_blocks.0.attn1.norm_q"),
    table=MappingProxyType(
        {
            "patchify_proj": "proj_in",
            "audio_patchify_proj": "audio_proj_in",
            **{f"{name}.{level}": f"{theirs}.{level}" for name, theirs in _MODULATIONS.items() for level in _LEVELS},
            **inside("transformer_blocks.#", "transformer_blocks.#", _NORMS),
        }
    ),
)

_PROJECTION = ("text_proj_in", "aggregate_embed")  # diffusers', the original's


def _spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the original's name of what gathers the states of LTX-2's text encoder; nothing for other models."""
    if _PROJECTION[0] in paths:
        yield _PROJECTION


LTX_NAMES = Dialect(
    "ltx",
    MappingProxyType({"connectors": ("connectors.", "connectors.base_model.model.", "text_embedding_projection.")}),
    _spellings,
    _LAYOUT.translations,
    _LAYOUT.fusions,
)


def _read(given: Given) -> Reading | None:
    size = tuple(given.get(name) for name in ("height", "width", "num_frames"))
    known = all(isinstance(extent, int) for extent in size)
    grid = Grid(*map(int, size)) if known else None
    # What conditions a video stands before or behind it, with places of its own; without it all tokens are the video's.
    if (
        grid is not None
        and given.get("video_coords") is not None
        and tokens_of(given.get("hidden_states")) != prod(grid)
    ):
        grid = None
    return packed(given, grid)


LTX = Family(
    "LTX",
    classes=("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    titles=("ltx",),
    marks=(pieces("patchify.proj"), pieces("audio.to.video.attn")),
    read=_read,
    no_place=r"caption_projection|audio|adaln|av_ca_",
    placeless=("LTXConditionPipeline", "LTXI2VLongMultiPromptPipeline"),
    dialects=(LTX_NAMES,),
)
