"""What a pipeline is called with: text embeddings that say of each row which image it belongs to, and on which side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from matrix.device import DEVICE

Side = Literal["positive", "negative"]
TOKENS = 7


class Paint:
    """One picture to be painted, or several: the same each time, so that two pipelines can be compared."""

    def __init__(self, images: int = 1, steps: int = 3) -> None:
        self.images, self.steps = images, steps
        self.marks: list[tuple[tuple[int, Side], Tensor]] = []

    def text(self, width: int, side: Side = "positive", tokens: int = TOKENS, seed: int = 0) -> Tensor:
        """Return (images, tokens, width); the rows of each side and each image differ, and are remembered."""
        first = 5000 + 100 * seed + (50 if side == "negative" else 0)  # the noise of the pictures has other seeds
        rows = torch.stack([_noise(tokens, width, seed=first + image) for image in range(self.images)])
        rows = rows.to(DEVICE)
        self.marks += [((image, side), rows[image, 0]) for image in range(self.images)]
        return rows

    def pooled(self, width: int, side: Side = "positive") -> Tensor:
        """Return (images, width)."""
        first = 1000 + (50 if side == "negative" else 0)
        return torch.stack([_noise(width, seed=first + image) for image in range(self.images)]).to(DEVICE)

    def mask(self, tokens: int = TOKENS, dtype: torch.dtype = torch.bool) -> Tensor:
        return torch.ones(self.images, tokens, dtype=dtype, device=DEVICE)

    @property
    def generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(image) for image in range(self.images)]

    def rows(self, args: Any) -> list[tuple[int, Side]] | None:
        """Return which image and side each row of a denoiser's call is, as its text says."""
        for tensor in _tensors(args):
            found = [self._whose(row) for row in tensor]
            if found and all(found):
                return [whose for whose in found if whose is not None]
        return None

    def _whose(self, row: Tensor) -> tuple[int, Side] | None:
        for whose, mark in self.marks:
            if row.shape[-1:] == mark.shape and (row.float() - mark).abs().amax(-1).min() < 0.02:
                return whose
        return None


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tensors(value: Any) -> Iterator[Any]:
    """Yield what may have a row for each row of the batch: tensors with tokens, and lists of them."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 3:
        yield value
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Tensor) and item.is_floating_point() for item in value):
            yield value
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


@dataclass(frozen=True)
class Record:
    """One kind of pipeline: how to make a tiny one, how to call it, and what of it a LoRA is put on.

    `layers`: a pattern of the layers that see the picture's tokens, and those alone. `tokens`: how many of them there
    are, in
    `grid` = (frames, height, width); a reference picture's follow. `negative`: whether the call has a negative side.
    """

    name: str
    make: Callable[[], Any]
    call: Callable[[Any, Paint], Tensor]
    layers: str
    grid: tuple[int, int, int] | None = None
    negative: bool = True
    batch: bool = True
    denoisers: tuple[str, ...] = ("transformer",)
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def seeded(make: Callable[..., nn.Module], /, size: float = 0.25, **config: Any) -> nn.Module:
    """Return a model with weights that a tiny model needs for its layers to matter, the same each time."""
    torch.manual_seed(0)
    model = make(**config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "scale_shift" in name:
            spread = size if parameter.ndim < 2 else size * (16 / max(parameter[0].numel(), 16)) ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return model.eval().requires_grad_(False)


def quiet(pipe: Any) -> Any:
    """Return the pipeline, without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


class StandIn(nn.Module):
    """A component that computes nothing, of which the pipeline asks where it is."""

    device, dtype = DEVICE, torch.float32
