"""What SD.Next's own LoRA has done to a checkpoint before its tags were ours.

kept a copy of each weight (lora_fuse_native off)   the copies are put back, by the program's own function
adapters of PEFT, not fused                          are taken off
fused: W + Δ in the weight's own dtype               W − Δ is not W any more: only loading the model again helps
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from modules import shared
from modules.lora import lora_apply, lora_diffusers
from torch import Tensor, nn

from ...prompts.notices import Notice

__all__ = ["about_fused", "put_back"]


def put_back(pipeline: Any, components: Iterable[nn.Module]) -> tuple[str, ...]:
    """Make the built-in's LoRAs be gone, as far as they can; return the names of those that stay, "" for an unknown."""
    found: dict[str, None] = {}
    if lora_diffusers.diffuser_loaded:
        if shared.opts.lora_fuse_diffusers:
            found.update(dict.fromkeys(lora_diffusers.diffuser_loaded))
        pipeline.unload_lora_weights()
        lora_diffusers.diffuser_loaded.clear()
        lora_diffusers.diffuser_scales.clear()
    for module in (module for component in components for module in component.modules()):
        names = [str(name) for name, *_ in getattr(module, "network_current_names", ())]
        kept = getattr(module, "network_weights_backup", None)
        if isinstance(kept, Tensor):
            weight = module.weight
            assert isinstance(weight, Tensor)
            lora_apply.network_apply_weights(module, None, None, device=weight.device)
            module.network_weights_backup = None  # type: ignore[assignment]
            module.network_current_names = ()  # type: ignore[assignment]
        elif kept:  # True: fused, at one time or another
            found.update(dict.fromkeys(names or [""]))
    return tuple(found)


def about_fused(names: Sequence[str]) -> list[Notice]:
    """Say what is left, and the one click that helps."""
    named = [f'"{name}"' for name in names if name]
    if not names:
        return []
    what = f"{', '.join(named)} into this checkpoint" if named else "LoRAs into this checkpoint, and out of it again"
    return [
        Notice(
            "warning",
            f"SD.Next's own LoRA has fused {what}: its weights are not those of its file any more",
            'click "Reload model" in System',
        )
    ]
