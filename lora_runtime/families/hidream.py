"""HiDream: pictures and text in layers of their own, then the text behind the picture; experts see scattered tokens."""

from __future__ import annotations

from math import prod

from lora_runtime.families.base import Family, Given, Grid, Reading, Span, pieces
from lora_runtime.families.reading import picture, shape_of, tokens_of

__all__ = ["HIDREAM"]


def _read(given: Given) -> Reading | None:
    latents = given.get("hidden_states")
    shape = shape_of(latents)
    texts = given.get("encoder_hidden_states_t5"), given.get("encoder_hidden_states_llama3")
    if len(shape) != 4:  # patches with a mask: pictures that are no squares
        sizes = given.get("img_sizes")
        if len(shape) != 3:
            return None
        if sizes is None:
            return Reading(shape[0], latents, texts[0], None, ())
        values = given.once(
            sizes, lambda table: table.tolist() if hasattr(table, "tolist") else [list(r) for r in table]
        )
        if any(value != values[0] for value in values):
            return Reading(shape[0], latents, texts[0], None, ())
        grid, total = Grid(*map(int, values[0])), shape[1]
    else:
        patch = given.setting("patch_size", 2)
        grid = Grid(shape[2] // patch, shape[3] // patch)
        most = given.setting("max_resolution", (128, 128))
        # A picture that is no square is filled up to the longest.
        total = prod(grid) if shape[2] == shape[3] else most[0] * most[1] // patch**2
    own = (picture(grid), Span("reference", total - prod(grid))) if total > prod(grid) else (picture(grid),)
    words, llama = tokens_of(texts[0]), texts[1]
    # (layers, b, tokens, c): single blocks see T5's words, those of Llama's last layer, and those of their own layer.
    more = llama.shape[-2] if hasattr(llama, "shape") else 0
    return Reading(shape[0], latents, texts[0], grid, (own, (*own, Span("text", words + 2 * more))))


HIDREAM = Family(
    "HiDream",
    classes=("HiDreamImageTransformer2DModel",),
    titles=("hidream",),
    marks=(pieces("double.stream.blocks"), pieces("single.stream.blocks")),
    read=_read,
    no_place=r"caption_projection|t_embedder|p_embedder|_t\b|adaLN|\.experts\.|\.gate\b",
    no_rows=r"\.experts\.|\.gate\b",
)
