"""HunyuanDiT: the picture alone, with text by cross attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import patched

__all__ = ["HUNYUAN_DIT", "HUNYUAN_DIT_NAMES"]

_EMBEDDER = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
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


def _spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names that two norms of a block exchange: a file of either layout may mean the one or the other.

    So each of the two names has two meanings, and is left out for that.
    """
    if any(mark in paths for mark in ("time_extra_emb.pooler.q_proj", "blocks.0.attn1.Wqkv")):
        for path in paths:
            name = path[-len(".norm2") :]
            if path.startswith("blocks.") and name in _DIT_NORMS:
                yield path, path.removesuffix(name) + _DIT_NORMS[name]


HUNYUAN_DIT_NAMES = Dialect("hunyuan dit", spellings=_spellings, translations=_DIT.translations, fusions=_DIT.fusions)


HUNYUAN_DIT = Family(
    "HunyuanDiT",
    classes=("HunyuanDiT2DModel",),
    titles=("hunyuan-dit", "hydit"),
    marks=(pieces("blocks.0.attn1.Wqkv"),),
    read=patched(),
    no_place=r"text_embedder|kv_proj|default_modulation|extra_embedder|pooler",
    dialects=(HUNYUAN_DIT_NAMES,),
)
