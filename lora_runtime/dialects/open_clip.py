"""A live text encoder of OpenCLIP (SD2's, and the second of SDXL): what transformers calls its modules.

Its attention is torch.nn.MultiheadAttention: one parameter for q, k and v. The projection of the pooled text is a bare
parameter and stands the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lora_runtime.families.dialect import WHOLE, Dialect, Part

__all__ = ["OPEN_CLIP"]

_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_INSIDE_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ATTENTION = "attn"
_TOP = {
    "token_embedding": ("text_model.embeddings.token_embedding", WHOLE),
    "positional_embedding": ("text_model.embeddings.position_embedding", WHOLE),
    "ln_final": ("text_model.final_layer_norm", WHOLE),
    "text_projection": ("text_projection", Part(transposed=True)),
}


def translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield transformers' path for each module, for the attention one a part; nothing for other models."""
    if not any(path.startswith("transformer.resblocks.") for path in paths):
        return
    layers = {path: match for path in paths if (match := _LAYER.fullmatch(path))}
    for path in paths:
        if path in layers:
            number, inner = layers[path].groups()
            layer = f"text_model.encoder.layers.{number}"
            if inner == _ATTENTION:
                for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
                    yield path, f"{layer}.self_attn.{name}", Part(index, 3)
            elif inner in _INSIDE_LAYER:
                yield path, f"{layer}.{_INSIDE_LAYER[inner]}", WHOLE
        elif path in _TOP:
            yield (path, *_TOP[path])


OPEN_CLIP = Dialect("open clip", translations=translations)
