"""CLIP text encoders: with the level `text_model` (transformers 4, and files) and without it (transformers 5).

Before PEFT, diffusers called their projections `to_q` … `to_out`, as in a UNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_runtime.families.dialect import Dialect

__all__ = ["CLIP"]

_LEVEL = "text_model."
_INSIDE = ("embeddings.", "encoder.", "final_layer_norm")
_MARK = "embeddings.token_embedding"  # T5 has an `encoder` too, but not this
_OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each module's name in the other layout, and its old names in both."""
    with_level = _LEVEL + _MARK in paths
    if not (with_level or _MARK in paths):
        return
    for path in paths:
        names = [path]
        if with_level and path.startswith(_LEVEL):
            names.append(path[len(_LEVEL) :])
        elif not with_level and path.startswith(_INSIDE):
            names.append(_LEVEL + path)
        yield from ((path, name) for name in names[1:])
        parent, _, last = path.rpartition(".")
        if last in _OLD and parent.endswith("self_attn"):
            yield from ((path, name.removesuffix(last) + _OLD[last]) for name in names)


CLIP = Dialect("clip", spellings=spellings)
