"""HunyuanVideo, HunyuanImage and HunyuanDiT: the originals' names.

The first two have two spellings: Tencent's, in which diffusion-pipe and musubi-tuner write, and ComfyUI's, after Flux.
In HunyuanVideo 1.5 and HunyuanImage 2.1, which are otherwise the same, Tencent has q, k, v and the MLP apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.dialects.base import Dialect, Part
from lora_runtime.dialects.layout import Layout, Table, inside

__all__ = ["HUNYUAN_DIT", "HUNYUAN_VIDEO"]

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


def translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield each module's names in the other layouts; nothing for other models."""
    for layout in _LAYOUTS:
        yield from layout.translations(paths)


def fusions(paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the modules that an original has in one weight, and its name for it; nothing for other models."""
    for layout in _LAYOUTS:
        yield from layout.fusions(paths)


HUNYUAN_VIDEO = Dialect("hunyuan video", translations=translations, fusions=fusions)

_DIT_BLOCK: Table = {
    "norm1": "norm1.norm",
    "default_modulation.1": "norm1.linear",
    "attn1.Wqkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn1.q_norm": "attn1.norm_q",
    "attn1.k_norm": "attn1.norm_k",
    "attn1.out_proj": "attn1.to_out.0",
    "attn2.q_proj": "attn2.to_q",
    "attn2.kv_proj": ("attn2.to_k", "attn2.to_v"),
    "attn2.q_norm": "attn2.norm_q",
    "attn2.k_norm": "attn2.norm_k",
    "attn2.out_proj": "attn2.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_DIT = Layout(
    original=("blocks.0.attn1.Wqkv", "mlp_t5.0"),
    diffusers=("blocks.0.attn1.to_q", "time_extra_emb.timestep_embedder.linear_1"),
    table=MappingProxyType(
        {
            "x_embedder.proj": "pos_embed.proj",
            "mlp_t5.0": "text_embedder.linear_1",
            "mlp_t5.2": "text_embedder.linear_2",
            **inside("t_embedder", "time_extra_emb.timestep_embedder", _EMBEDDER),
            "extra_embedder.0": "time_extra_emb.extra_embedder.linear_1",
            "extra_embedder.2": "time_extra_emb.extra_embedder.linear_2",
            "style_embedder": "time_extra_emb.style_embedder",
            "pooler.q_proj": "time_extra_emb.pooler.q_proj",
            "pooler.k_proj": "time_extra_emb.pooler.k_proj",
            "pooler.v_proj": "time_extra_emb.pooler.v_proj",
            "pooler.c_proj": "time_extra_emb.pooler.c_proj",
            "final_layer.adaLN_modulation.1": "norm_out.linear",
            "final_layer.linear": "proj_out",
            **inside("blocks.#", "blocks.#", _DIT_BLOCK),
        }
    ),
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
)
_DIT_NORMS = {".norm2": ".norm3", ".norm3": ".norm2"}


def dit_spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names that two norms of a block exchange: a file of either layout may mean the one or the other.

    So each of the two names has two meanings, and is left out for that.
    """
    if any(mark in paths for mark in ("time_extra_emb.pooler.q_proj", "blocks.0.attn1.Wqkv")):
        for path in paths:
            name = path[-len(".norm2") :]
            if path.startswith("blocks.") and name in _DIT_NORMS:
                yield path, path.removesuffix(name) + _DIT_NORMS[name]


HUNYUAN_DIT = Dialect("hunyuan dit", spellings=dit_spellings, translations=_DIT.translations, fusions=_DIT.fusions)
