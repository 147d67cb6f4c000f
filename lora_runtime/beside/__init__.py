"""Adapters beside a module, for strengths that a weight cannot have: y += s·U(D·x), at every call.

A weight is one number for a whole picture. Where the strength depends on the step, on the image of a batch, on the side
(prompt or negative prompt) or on the place in the picture, the adapter stays outside of the weight: the module runs as
it is, and what the adapter would have added is added to its output, s being broadcast over rows, tokens or pixels. The
factors of all adapters of a module lie in one pair of matrices.

What has no factors keeps its dense Δ: a module that is linear in its parameters (linear, convolution, norm, embedding)
run once more with Δ for its weight gives just what Δ adds.

Who runs the model says at each call what it is about (`Stage.begin`); a module only looks.
"""

from __future__ import annotations

from lora_runtime.beside.compiled import uncompiled
from lora_runtime.beside.layers import reason_against
from lora_runtime.beside.module import Attached, make_attached
from lora_runtime.beside.prepare import dense_bytes, prepare
from lora_runtime.beside.registry import Live
from lora_runtime.beside.terms import Keeper, LiveModule, LiveTerm

__all__ = [
    "Attached",
    "Keeper",
    "Live",
    "LiveModule",
    "LiveTerm",
    "dense_bytes",
    "make_attached",
    "prepare",
    "reason_against",
    "uncompiled",
]
