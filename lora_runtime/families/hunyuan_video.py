"""HunyuanVideo, FramePack and SkyReels 1: the text stands behind the video in the layers that see both.

Its files, and those of HunyuanVideo 1.5 and HunyuanImage, have two spellings: Tencent's, in which diffusion-pipe and
musubi-tuner write, and ComfyUI's, after Flux. In the two others Tencent has q, k, v and the MLP apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Reading, Span, pieces
from lora_runtime.families.dialect import Dialect, Part
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import patched, picture, shape_of, tokens_of

__all__ = ["HUNYUAN_VIDEO", "HUNYUAN_VIDEO_NAMES"]

_DOUBLE: Table = {
    "img_mod.linear": "norm1.linear",
    "txt_mod.linear": "norm1_context.linear",
    "img_attn_q_norm": "attn.norm_q",
    "img_attn_k_norm": "attn.norm_k",
    "txt_attn_q_norm": "attn.norm_added_q",
    "txt_attn_k_norm": "attn.norm_added_k",
    "img_attn_proj": "attn.to_out.0",
    "txt_attn_proj": "attn.to_add_out",
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
}
_DOUBLE_FUSED = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_DOUBLE_APART = {
    "img_attn_q": "attn.to_q",
    "img_attn_k": "attn.to_k",
    "img_attn_v": "attn.to_v",
    "txt_attn_q": "attn.add_q_proj",
    "txt_attn_k": "attn.add_k_proj",
    "txt_attn_v": "attn.add_v_proj",
}
_SINGLE: Table = {
    "modulation.linear": "norm.linear",
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
}
_SINGLE_FUSED: Table = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": "proj_out",
}
_SINGLE_APART = {
    "linear1_q": "attn.to_q",
    "linear1_k": "attn.to_k",
    "linear1_v": "attn.to_v",
    "linear1_mlp": "proj_mlp",
    "linear2.fc": "proj_out",
}
_REFINER: Table = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
_EMBEDDER = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
_TOP: Table = {
    "img_in.proj": "x_embedder.proj",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    **inside("txt_in.t_embedder", "context_embedder.time_text_embed.timestep_embedder", _EMBEDDER),
    **inside("txt_in.individual_token_refiner.blocks.#", "context_embedder.token_refiner.refiner_blocks.#", _REFINER),
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "byt5_in.layernorm": "context_embedder_2.norm",
    "byt5_in.fc1": "context_embedder_2.linear_1",
    "byt5_in.fc2": "context_embedder_2.linear_2",
    "byt5_in.fc3": "context_embedder_2.linear_3",
    "vision_in.proj.0": "image_embedder.norm_in",
    "vision_in.proj.1": "image_embedder.linear_1",
    "vision_in.proj.3": "image_embedder.linear_2",
    "vision_in.proj.4": "image_embedder.norm_out",
    "cond_type_embedding": "cond_type_embed",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_FUSED: Table = {
    **inside("double_blocks.#", "transformer_blocks.#", {**_DOUBLE, **_DOUBLE_FUSED}),
    **inside("single_blocks.#", "single_transformer_blocks.#", {**_SINGLE, **_SINGLE_FUSED}),
}
_APART: Table = {
    **inside("double_blocks.#", "transformer_blocks.#", {**_DOUBLE, **_DOUBLE_APART}),
    **inside("single_blocks.#", "single_transformer_blocks.#", {**_SINGLE, **_SINGLE_APART}),
}
_COMFY = (
    ("_attn_qkv", "_attn.qkv"),
    ("_attn_proj", "_attn.proj"),
    ("_mod.linear", "_mod.lin"),
    ("modulation.linear", "modulation.lin"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("_in.mlp.0", "_in.in_layer"),
    ("_in.mlp.2", "_in.out_layer"),
    ("t_embedder.mlp.0", "t_embedder.in_layer"),
    ("t_embedder.mlp.2", "t_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"),
    ("c_embedder.linear_2", "c_embedder.out_layer"),
)
# What diffusers calls the embedders of time in each of its classes, with a mark that only that class has.
_TIMES = (
    ("time_text_embed.timestep_embedder.linear_1", "time_text_embed"),  # HunyuanVideo
    ("time_guidance_embed.timestep_embedder.linear_1", "time_guidance_embed"),  # HunyuanImage
    ("time_embed.timestep_embedder.linear_1", "time_embed"),  # HunyuanVideo 1.5
)


def _comfy(name: str) -> str:
    for tencent, comfy in _COMFY:
        name = name.replace(tencent, comfy)
    return name


def _layouts(mark: str, time: str) -> Iterator[Layout]:
    """Yield the layouts of one class of diffusers: Tencent's, ComfyUI's, and Tencent's with all apart."""
    top: Table = {
        **_TOP,
        **inside("time_in", f"{time}.timestep_embedder", _EMBEDDER),
        **inside("time_r_in", f"{time}.timestep_embedder_r", _EMBEDDER),
        **inside("guidance_in", f"{time}.guidance_embedder", _EMBEDDER),
    }
    fused: Table = {**top, **_FUSED}
    diffusers = (mark, "context_embedder.token_refiner.refiner_blocks.0.attn.to_q")
    swapped = frozenset({"final_layer.adaLN_modulation.1"})
    shares = MappingProxyType({"single_blocks.#.linear1": (1, 1, 1, 4)})
    yield Layout(("double_blocks.0.img_attn_qkv", "txt_in.input_embedder"), diffusers, fused, shares, swapped)
    comfy = {_comfy(name): theirs for name, theirs in fused.items()}
    yield Layout(("double_blocks.0.img_attn.qkv", "txt_in.input_embedder"), diffusers, comfy, shares, swapped)
    apart: Table = {**top, **_APART}
    yield Layout(("double_blocks.0.img_attn_q", "txt_in.input_embedder"), diffusers, apart, swapped=swapped)


_LAYOUTS = tuple(layout for mark, time in _TIMES for layout in _layouts(mark, time))


def _translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield each module's names in the other layouts; nothing for other models."""
    for layout in _LAYOUTS:
        yield from layout.translations(paths)


def _fusions(paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the modules that an original has in one weight, and its name for it; nothing for other models."""
    for layout in _LAYOUTS:
        yield from layout.fusions(paths)


HUNYUAN_VIDEO_NAMES = Dialect("hunyuan video", translations=_translations, fusions=_fusions)


_IN = (3072,)


def _history(given: Given) -> int:
    """Return how many tokens of earlier frames FramePack puts before those that it paints."""
    count = 0
    for name, cell in (
        ("latents_clean", (1, 2, 2)),
        ("latents_history_2x", (2, 4, 4)),
        ("latents_history_4x", (4, 8, 8)),
    ):
        shape = shape_of(given.get(name))
        if len(shape) == 5:
            count += prod(-(-extent // size) for extent, size in zip(shape[2:], cell, strict=True))
    return count


def _read(given: Given) -> Reading | None:
    found = patched()(given)
    if found is None or found.grid is None:
        return found
    words = Span("text", tokens_of(given.get("encoder_hidden_states")) + tokens_of(given.get("image_embeds")))
    earlier = _history(given)
    frames = (Span("reference", earlier), picture(found.grid)) if earlier else (picture(found.grid),)
    return replace(found, sequences=(frames, (*frames, words)))


HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    classes=("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
    titles=("hunyuan_video", "hunyuan-video", "hunyuanvideo"),
    marks=(
        pieces("img.mlp.fc1", width=("img.mlp.fc1", _IN)),
        pieces("img.mod.linear", width=("img.mod.linear", _IN)),
        pieces("individual.token.refiner", width=("individual.token.refiner", _IN)),
        pieces("context.embedder.token.refiner", width=("context.embedder.token.refiner", _IN)),
    ),
    read=_read,
    no_place=r"context_embedder|image_projection",
    guidance=IN_TWO_CALLS,
    dialects=(HUNYUAN_VIDEO_NAMES,),
)
