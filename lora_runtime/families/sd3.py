"""Stable Diffusion 3 and 3.5: pictures and text in layers of their own.

In the original (MMDiT) one linear layer makes q, k and v. Where a layer gives shift and scale, diffusers has scale and
shift: in the last layer, and for the text in the last block, which gives nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.dialect import Dialect, Part
from lora_runtime.families.layout import SWAPPED, Layout
from lora_runtime.families.reading import patched

__all__ = ["SD3", "SD3_NAMES"]

_IMAGE = "joint_blocks.#.x_block"
_TEXT = "joint_blocks.#.context_block"
_BLOCK = "transformer_blocks.#"

_LAYOUT = Layout(
    original=("joint_blocks.0.x_block.attn.qkv",),
    diffusers=("pos_embed.proj", "transformer_blocks.0.attn.add_q_proj"),
    table=MappingProxyType(
        {
            "x_embedder.proj": "pos_embed.proj",
            "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
            "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            "context_embedder": "context_embedder",
            "final_layer.adaLN_modulation.1": "norm_out.linear",
            "final_layer.linear": "proj_out",
            f"{_IMAGE}.attn.qkv": (f"{_BLOCK}.attn.to_q", f"{_BLOCK}.attn.to_k", f"{_BLOCK}.attn.to_v"),
            f"{_IMAGE}.attn.proj": f"{_BLOCK}.attn.to_out.0",
            f"{_IMAGE}.attn.ln_q": f"{_BLOCK}.attn.norm_q",
            f"{_IMAGE}.attn.ln_k": f"{_BLOCK}.attn.norm_k",
            f"{_IMAGE}.attn2.qkv": (f"{_BLOCK}.attn2.to_q", f"{_BLOCK}.attn2.to_k", f"{_BLOCK}.attn2.to_v"),
            f"{_IMAGE}.attn2.proj": f"{_BLOCK}.attn2.to_out.0",
            f"{_IMAGE}.attn2.ln_q": f"{_BLOCK}.attn2.norm_q",
            f"{_IMAGE}.attn2.ln_k": f"{_BLOCK}.attn2.norm_k",
            f"{_IMAGE}.mlp.fc1": f"{_BLOCK}.ff.net.0.proj",
            f"{_IMAGE}.mlp.fc2": f"{_BLOCK}.ff.net.2",
            f"{_IMAGE}.adaLN_modulation.1": f"{_BLOCK}.norm1.linear",
            f"{_TEXT}.attn.qkv": tuple(f"{_BLOCK}.attn.add_{name}_proj" for name in "qkv"),
            f"{_TEXT}.attn.proj": f"{_BLOCK}.attn.to_add_out",
            f"{_TEXT}.attn.ln_q": f"{_BLOCK}.attn.norm_added_q",
            f"{_TEXT}.attn.ln_k": f"{_BLOCK}.attn.norm_added_k",
            f"{_TEXT}.mlp.fc1": f"{_BLOCK}.ff_context.net.0.proj",
            f"{_TEXT}.mlp.fc2": f"{_BLOCK}.ff_context.net.2",
            f"{_TEXT}.adaLN_modulation.1": f"{_BLOCK}.norm1_context.linear",
        }
    ),
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
)
# What gives shift and scale of the text, and what is beside it in all blocks but the last.
_NORMS = {
    ".context_block.adaLN_modulation.1": ".context_block.mlp.fc1",
    ".norm1_context.linear": ".ff_context.net.0.proj",
}


def _translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield each module's name in the other layout, for q, k and v one a part; nothing for other models."""
    there: set[str] | None = None
    for path, name, part in _LAYOUT.translations(paths):
        there = set(paths) if there is None else there
        norm = next((norm for norm in _NORMS if path.endswith(norm)), None)
        short = norm is not None and path.removesuffix(norm) + _NORMS[norm] not in there
        yield path, name, SWAPPED if short else part


SD3_NAMES = Dialect("mmdit", translations=_translations, fusions=_LAYOUT.fusions)


SD3 = Family(
    "SD3",
    classes=("SD3Transformer2DModel", "MMDiT"),
    titles=("sd3", "stable-diffusion-3", "stable-diffusion-v3"),
    marks=(
        pieces("joint.blocks"),
        pieces(width=("transformer.blocks.0.attn.add.", (1536, 2432))),
    ),
    read=patched(),
    no_place=r"context_block|pos_embed\.proj$|[ty]_embedder\.",
    dialects=(SD3_NAMES,),
)
