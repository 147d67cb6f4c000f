"""Text encoders that show what one prompt of a batch asks for.

A text encoder runs before the first step, for one prompt at a time. So what prompts ask of it need not act beside its
weights, row by row, as in the denoiser: the weights are those of the prompt that is encoded, exact as for it alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lora_runtime.requests import Request
from lora_runtime.stage import Row


def differs(requests: Iterable[Request]) -> bool:
    """Return whether the text encoders should show different weights for different prompts of the batch."""
    return any(_chooses(request) and request.te != 0 for request in requests)


def seen_by(requests: Iterable[Request], row: Row) -> list[Request]:
    """Return what to show while the prompt of `row` is encoded: of the text encoders its own, of the denoiser all."""
    shown = []
    for request in requests:
        if not _chooses(request):
            shown.append(request)
            continue
        shown.append(replace(request, te=0.0))
        if _means(request, row):
            blocks = request.conditions.blocks
            alone = None if blocks is None else replace(blocks, inner=None, mid=None, outer=None)
            conditions = replace(request.conditions, part=None, blocks=alone)
            shown.append(replace(request, unet=0.0, conditions=conditions, images=None, side=None))
    return shown


def of_text(requests: Iterable[Request], row: Row) -> list[Request]:
    """Return those of the requests that not all rows have in common, and that the text encoders show for this one."""
    return [request for request in requests if _chooses(request) and _means(request, row) and request.te != 0]


def _chooses(request: Request) -> bool:
    return request.images is not None or request.side is not None or request.conditions.part is not None


def _means(request: Request, row: Row) -> bool:
    part = request.conditions.part
    return (
        (request.images is None or row.image in request.images)
        and request.side in (None, row.side)
        and (part is None or (row.side == "positive" and row.part == part))
    )
