"""A live MMDiT of SD3: what diffusers calls its modules.

One linear layer makes q, k and v. Where a layer gives shift and scale, diffusers has scale and shift: in the last
layer, and for the text in the last block, which gives nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lora_runtime.dialects.base import WHOLE, Dialect, Part

__all__ = ["MMDIT"]

_BLOCK = re.compile(r"joint_blocks\.(\d+)\.(x_block|context_block)\.(.+)")
_SWAPPED = Part(swapped=True)
_TOP = {
    "x_embedder.proj": ("pos_embed.proj", WHOLE),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1", WHOLE),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2", WHOLE),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1", WHOLE),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2", WHOLE),
    "context_embedder": ("context_embedder", WHOLE),
    "final_layer.adaLN_modulation.1": ("norm_out.linear", _SWAPPED),
    "final_layer.linear": ("proj_out", WHOLE),
}
_IMAGE = {
    "attn.proj": "attn.to_out.0",
    "attn.ln_q": "attn.norm_q",
    "attn.ln_k": "attn.norm_k",
    "attn2.proj": "attn2.to_out.0",
    "attn2.ln_q": "attn2.norm_q",
    "attn2.ln_k": "attn2.norm_k",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_TEXT = {
    "attn.proj": "attn.to_add_out",
    "attn.ln_q": "attn.norm_added_q",
    "attn.ln_k": "attn.norm_added_k",
    "mlp.fc1": "ff_context.net.0.proj",
    "mlp.fc2": "ff_context.net.2",
    "adaLN_modulation.1": "norm1_context.linear",
}
_FUSED = {
    ("x_block", "attn.qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x_block", "attn2.qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("context_block", "attn.qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield diffusers' path for each module, for q, k and v one a part; nothing for other models."""
    if not any(path.startswith("joint_blocks.") for path in paths):
        return
    blocks = {path: match for path in paths if (match := _BLOCK.fullmatch(path))}
    there = set(paths)
    for path in paths:
        if path in _TOP:
            yield (path, *_TOP[path])
        elif path in blocks:
            number, side, inner = blocks[path].groups()
            block = f"transformer_blocks.{number}"
            for index, name in enumerate(_FUSED.get((side, inner), ())):
                yield path, f"{block}.{name}", Part(index, 3)
            name = (_IMAGE if side == "x_block" else _TEXT).get(inner, "")
            if name:
                short = side == "context_block" and f"joint_blocks.{number}.context_block.mlp.fc1" not in there
                yield path, f"{block}.{name}", _SWAPPED if short and inner == "adaLN_modulation.1" else WHOLE


MMDIT = Dialect("mmdit", translations=translations)
