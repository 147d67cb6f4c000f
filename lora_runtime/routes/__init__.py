"""The way that an adapter acts on one parameter of a live model: merged into it, beside its module, or not at all.

This is the one place that looks at how a weight is stored and used. An adapter is merged only where the parameter's
data is what the forward pass reads: unscaled, in more than 8 bits, held by one layer alone, and there between two
calls. Elsewhere it acts beside the module, whose stored data is never rewritten.
"""

from __future__ import annotations

from lora_runtime.routes.base import Route, route_of
from lora_runtime.routes.facts import Facts, kept_buffers, own_forward
from lora_runtime.routes.fused import FusedPart, fused_parts, give_back_copies
from lora_runtime.routes.look import Look, Seen, modules_of
from lora_runtime.routes.storage import is_linear, is_plain, layer_shape, stands_for_weight

__all__ = [
    "Facts",
    "FusedPart",
    "Look",
    "Route",
    "Seen",
    "fused_parts",
    "give_back_copies",
    "is_linear",
    "is_plain",
    "kept_buffers",
    "layer_shape",
    "modules_of",
    "own_forward",
    "route_of",
    "stands_for_weight",
]
