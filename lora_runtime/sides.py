"""What the rows of a denoiser's batch are: which image of the prompts, and which side of the guidance.

A pipeline calls its denoiser once for both sides, or once for each. Which of them comes first is known of each family,
and of the pipelines that do otherwise (`Guidance`); how many copies there are follows from whether it is guided, which
most pipelines say. In calls of their own the sides are told by what they read: the prompt's text comes first in each
step, and who reads the same text again is of the same side, whatever has been left out or called again in between.

Where it cannot be told the answer is None, and nothing that is meant for some rows alone acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_runtime.families import Family, Guidance, Reading, Row, Side

__all__ = ["Ask", "Sides", "guidance_of"]

Ask = Callable[[str], Any]  # an attribute of the pipeline, or None
_ALL: tuple[Side, ...] = ("positive",)


def guidance_of(family: Family, titles: Sequence[str]) -> Guidance:
    """Return how a pipeline calls the denoiser; `titles`: its class's name and those of the classes it is made from."""
    return next((family.pipelines[title] for title in titles if title in family.pipelines), family.guidance)


class Sides:
    """Tells the rows of one component's calls. What is remembered of a run ends with `forget`."""

    def __init__(self, family: Family | None, titles: Sequence[str], images: int, ask: Ask) -> None:
        self._guidance = None if family is None else guidance_of(family, titles)
        self._images = images
        self._ask = ask
        self.forget()

    def forget(self) -> None:
        """Begin a run: its texts are other ones."""
        self.disturbed = 0  # rows of the last call that are disturbed copies, at its end
        self._texts: list[tuple[Any, Side]] = []  # of calls for one side each
        self._stacked: tuple[Any, tuple[Row, ...]] | None = None  # the text of a call for several, and its rows
        self._most = 0  # rows of a call
        self._guided: bool | None = None
        self._asked = False

    def rows(self, reading: Reading, first: bool) -> tuple[Row, ...] | None:
        """Return the rows of a call; `first`: whether it is the first of its step."""
        guidance, self.disturbed = self._guidance, 0
        if guidance is None or guidance.reason:
            return None
        if not guidance.stacked or self._ask("guider") is not None:
            return self._of((self._side(reading, first),), reading.rows)
        part = self._part(reading)
        if part is not None:
            return part
        if reading.rows % self._images:
            return None
        sides = self._sides(guidance.stacked, reading)
        rows = None if sides is None else self._of(sides, reading.rows)
        if rows is not None and len(rows) > self._most:
            self._stacked, self._most = (reading.text, rows), len(rows)
        if sides is not None and rows is not None and len(sides) > 1 and self._is_disturbed():
            self.disturbed = len(rows) // len(sides)
        return rows

    def _of(self, sides: Sequence[Side], batch: int) -> tuple[Row, ...] | None:
        """Return the rows of copies for these sides: in each the images, each as often as was asked for."""
        each, rest = divmod(batch, len(sides) * self._images)
        if rest:
            return None
        return tuple(Row(image, side) for side in sides for image in range(self._images) for _ in range(each))

    # ---- a call for each side -----------------------------------------------------------------------------------

    def _side(self, reading: Reading, first: bool) -> Side:
        if self._ask("do_classifier_free_guidance") is False:
            return "positive"
        text = reading.text
        known = next((side for other, side in self._texts if _is_same(text, other)), None)
        if known is None and not first and text is not None:
            known = next((side for other, side in self._texts if _is_equal(text, other)), None)
        side: Side = known or ("positive" if first else "negative")
        if known is None and text is not None:
            self._texts.append((text, side))
        return side

    # ---- one call for all ---------------------------------------------------------------------------------------

    def _sides(self, stacked: tuple[Side, ...], reading: Reading) -> tuple[Side, ...] | None:
        guided = self._is_guided()
        if isinstance(reading.text, (list, tuple)) and reading.text and guided is not False:
            several = len({id(text) for text in reading.text})  # each image of a prompt is given the same object
            if several > self._images:
                return stacked if several == len(stacked) * self._images else None
            alone = guided is None or self._is_alone(stacked, reading)
            return _ALL if several == self._images and alone else None
        again: tuple[Side, ...] = ("positive",) if self._is_disturbed() else ()
        stacked += again  # a disturbed copy of the prompt's side comes last
        if guided is None:
            guided = self._looks_guided(len(stacked), reading)
        if guided is None:
            return None
        if not guided:
            return (*_ALL, *again)
        if self._is_alone(stacked, reading):
            return _ALL
        # Other rows than the images have copies: other prompts than it was applied for, or a side in a call of its own.
        return stacked if reading.rows % (len(stacked) * self._images) == 0 else None

    def _is_alone(self, stacked: tuple[Side, ...], reading: Reading) -> bool:
        """Return whether a call of a guided pipeline is for the prompt's side alone, among those for both."""
        return reading.rows * len(stacked) == self._most

    def _part(self, reading: Reading) -> tuple[Row, ...] | None:
        """Return the rows of a call that is given a part of an earlier call's text."""
        if self._stacked is None:
            return None
        text, rows = self._stacked
        start = _start_within(reading.text, text)
        if start is None or start + reading.rows > len(rows) or reading.rows == len(rows):
            return None
        return rows[start : start + reading.rows]

    def _is_disturbed(self) -> bool:
        """Return whether there is a copy whose attention is disturbed (PAG)."""
        return bool(self._ask("do_perturbed_attention_guidance"))

    def _is_guided(self) -> bool | None:
        """Return whether the pipeline is guided now, as it says, or None where it does not."""
        said = self._ask("do_classifier_free_guidance")
        if isinstance(said, bool):
            return said
        if not self._asked:  # some pipelines change the scale from step to step
            scale = self._ask("_guidance_scale")
            self._guided = scale > 1 if isinstance(scale, (int, float)) else None
            self._asked = True
        return self._guided

    def _looks_guided(self, copies: int, reading: Reading) -> bool | None:
        """Return whether there are copies of the same latents that read other texts; None where it cannot be told."""
        if reading.rows % (copies * self._images):
            return False
        latents, text = reading.latents, reading.text
        if not isinstance(latents, Tensor) or not isinstance(text, Tensor) or text.shape[0] != reading.rows:
            return None
        if not _are_copies(latents[:, :4], copies):
            return False
        if _are_copies(text, copies):  # equal seeds, or the same words on both sides
            return None if self._images > 1 else False
        # Latents of equal seeds are copies too; only the images of one prompt are no doubt copies for the guidance.
        return True if self._images == 1 or not _are_copies(latents[: len(latents) // copies], self._images) else None


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two are the same object, or the same part of one tensor's storage."""
    if one is other:
        return one is not None
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return False
    place = (one.stride(), one.storage_offset(), one.dtype, one.device)
    return place == (other.stride(), other.storage_offset(), other.dtype, other.device) and _storage(one) == _storage(
        other
    )


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two hold the same values, which waits for the device."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    return one.shape == other.shape and one.device == other.device and torch.equal(one, other.to(one.dtype))


def _start_within(part: Any, whole: Any) -> int | None:
    """Return the first row of a tensor that a part of it shows, or None where it shows none."""
    if not (isinstance(part, Tensor) and isinstance(whole, Tensor)) or part is whole:
        return None
    if part.shape[1:] != whole.shape[1:] or part.stride() != whole.stride() or _storage(part) != _storage(whole):
        return None
    start, rest = divmod(int(part.storage_offset()) - int(whole.storage_offset()), whole.stride(0) or 1)
    return start if not rest and 0 <= start < whole.shape[0] else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _are_copies(tensor: Tensor, copies: int) -> bool:
    first, *others = tensor.chunk(copies)
    return all(torch.equal(first, other) for other in others)
