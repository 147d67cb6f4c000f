"""AuraFlow: pictures and text in layers of their own, then text and eight registers before the picture.

The last modulation gives shift and scale in the original, scale and shift in diffusers.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout
from lora_runtime.families.reading import patched

__all__ = ["AURA_FLOW", "AURA_FLOW_NAMES"]

_DOUBLE, _SINGLE = "double_layers.#", "single_layers.#"
_THEIR_DOUBLE, _THEIR_SINGLE = "joint_transformer_blocks.#", "single_transformer_blocks.#"
_MLP = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}
_FIRST = {"w1q": "to_q", "w1k": "to_k", "w1v": "to_v", "w1o": "to_out.0"}
_SECOND = {"w2q": "to_q", "w2k": "to_k", "w2v": "to_v", "w2o": "to_out.0"}
_TEXT = {"w1q": "add_q_proj", "w1k": "add_k_proj", "w1v": "add_v_proj", "w1o": "to_add_out"}

_LAYOUT = Layout(
    original=("double_layers.0.attn.w2q", "init_x_linear"),
    diffusers=("joint_transformer_blocks.0.attn.to_q", "time_step_proj.linear_1"),
    table=MappingProxyType(
        {
            "init_x_linear": "pos_embed.proj",
            "cond_seq_linear": "context_embedder",
            "t_embedder.mlp.0": "time_step_proj.linear_1",
            "t_embedder.mlp.2": "time_step_proj.linear_2",
            "modF.1": "norm_out.linear",
            "final_linear": "proj_out",
            f"{_DOUBLE}.modX.1": f"{_THEIR_DOUBLE}.norm1.linear",
            f"{_DOUBLE}.modC.1": f"{_THEIR_DOUBLE}.norm1_context.linear",
            f"{_SINGLE}.modCX.1": f"{_THEIR_SINGLE}.norm1.linear",
        }
        | {f"{_DOUBLE}.mlpX.{ours}": f"{_THEIR_DOUBLE}.ff.{theirs}" for ours, theirs in _MLP.items()}
        | {f"{_DOUBLE}.mlpC.{ours}": f"{_THEIR_DOUBLE}.ff_context.{theirs}" for ours, theirs in _MLP.items()}
        | {f"{_SINGLE}.mlp.{ours}": f"{_THEIR_SINGLE}.ff.{theirs}" for ours, theirs in _MLP.items()}
        | {f"{_DOUBLE}.attn.{ours}": f"{_THEIR_DOUBLE}.attn.{theirs}" for ours, theirs in (_SECOND | _TEXT).items()}
        | {f"{_SINGLE}.attn.{ours}": f"{_THEIR_SINGLE}.attn.{theirs}" for ours, theirs in _FIRST.items()}
    ),
    swapped=frozenset({"modF.1"}),
)

AURA_FLOW_NAMES = Dialect("aura flow", translations=_LAYOUT.translations, fusions=_LAYOUT.fusions)


AURA_FLOW = Family(
    "AuraFlow",
    classes=("AuraFlowTransformer2DModel",),
    titles=("auraflow",),
    marks=(pieces("joint.transformer.blocks"), pieces("double.layers.0.")),
    read=patched("text first", extra=8),
    dialects=(AURA_FLOW_NAMES,),
)
