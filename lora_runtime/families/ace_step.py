"""ACE-Step. Nobody has described its calls yet: rows and regions are refused."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import Family
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, inside

__all__ = ["ACE_STEP", "ACE_STEP_NAMES"]

_ACE_STEP_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
_ACE_STEP = Layout(
    original=("layers.0.self_attn.q_proj", "layers.0.cross_attn.q_proj"),
    diffusers=("layers.0.self_attn.to_q", "layers.0.cross_attn.to_q"),
    table=MappingProxyType(
        {
            **inside("layers.#.self_attn", "layers.#.self_attn", _ACE_STEP_ATTENTION),
            **inside("layers.#.cross_attn", "layers.#.cross_attn", _ACE_STEP_ATTENTION),
        }
    ),
)
ACE_STEP_NAMES = Dialect("ace-step", translations=_ACE_STEP.translations)

ACE_STEP = Family(
    "ACE-Step",
    ("AceStepTransformer1DModel",),
    ("ace-step", "ace_step", "acestep"),
    dialects=(ACE_STEP_NAMES,),
)
