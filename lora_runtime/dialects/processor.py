"""diffusers before PEFT: attention processors own the factors, `attn1.processor.to_out_lora`.

The ending of the factors (`_lora.up.weight`) belongs to the algorithm, so the names here end before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_runtime.families.dialect import Dialect

__all__ = ["PROCESSOR"]

_PROJECTIONS = {
    "to_q": ("processor.to_q",),
    "to_k": ("processor.to_k",),
    "to_v": ("processor.to_v",),
    "to_out.0": ("processor.to_out", "processor.to_out.0", "to_out"),
    "add_q_proj": ("processor.add_q_proj",),
    "add_k_proj": ("processor.add_k_proj",),
    "add_v_proj": ("processor.add_v_proj",),
    "to_add_out": ("processor.to_add_out",),
}


def spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the old names of the projections of attention layers."""
    for path in paths:
        parent, _, last = path.rpartition(".")
        if last == "0":
            parent, _, list_name = parent.rpartition(".")
            last = f"{list_name}.0"
        for name in _PROJECTIONS.get(last, ()):
            yield path, f"{parent}.{name}"


PROCESSOR = Dialect("processor", spellings=spellings)
