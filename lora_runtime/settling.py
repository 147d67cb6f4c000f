"""What others have done to a patched weight, and what becomes of it.

    moved (`.to`, offloading)                   it still shows W′, where it is by now
    cast (`.half`, …)                           it still shows W′, cast
    made anew by `.to` (overwrite, swap)        the new Parameter takes its place
    written in place (`load_state_dict`,        the new values stay, in the original's storage; a warning says that
      an optimizer's step, EMA's `copy_to`)       they were made of, or over, patched weights
    bound to other values (`.data = …`)         the new values stay where they are; the same warning
    fused by PEFT while patched, or unfused     the original gets what PEFT has added: unfusing later gives it back

A write in place is seen by the version counter that autograd keeps. A write through `.data` does not count there: in
host memory a few bytes of W′ are remembered and looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_runtime.merge import merge_into
from lora_runtime.weight_table import WeightTable
from lora_runtime.weights import Weight, plain_data, same_form

__all__ = ["same_layout", "settle", "warn_of"]

logger = logging.getLogger("lora_runtime")


def settle(table: WeightTable, weight: Weight, written: list[Weight]) -> bool:
    """Return whether a patched parameter still shows its W′, moved or cast perhaps.

    Where other values were written they are its own from now on, and the weight is added to `written`.
    """
    if weight.untouched() and not _replaced(table, weight):
        return True
    parameter = weight.parameter
    if parameter.is_meta or weight.shown is None:
        return True
    moved = parameter.data_ptr() != weight.pointer
    ours = weight.fused_now() == weight.fused and weight.sampled_alike()
    if ours and (weight.written() or (weight.sample is None and moved)):
        ours = _shows_what_we_made(table, weight)
    if ours:
        weight.look()
        return True
    added = _added_by_peft(table, weight)
    original, in_place = weight.original, weight.in_place
    assert original is not None
    weight.end()
    if added is not None:
        _write(parameter, None if in_place else original, added)
    elif not in_place and not moved and same_layout(parameter.data, original):
        parameter.data = original.copy_(parameter.data)
    if added is None:
        written.append(weight)
    return False


def _replaced(table: WeightTable, weight: Weight) -> bool:
    """Go on with the Parameter that took the place of this one, if one did; return whether."""
    parameter = weight.parameter
    for place, name in weight.places:
        module = place()
        if module is not None and module._parameters.get(name) is not parameter:
            break
    else:
        return False
    other = weight.replacement()
    if other is not None:
        table.go_on(weight, other)
    return other is not None


def _again(table: WeightTable, weight: Weight) -> Tensor:
    """Return the W′ that was bound, computed once more."""
    assert weight.original is not None
    assert weight.shown is not None
    value = torch.empty_like(weight.original)
    base = weight.original if weight.shown.precise is None else weight.shown.precise
    merge_into(value, base, table.terms(weight.shown))
    return value


def _shows_what_we_made(table: WeightTable, weight: Weight) -> bool:
    """Return whether the parameter's values are those of W′, compared in full: rare, where somebody wrote."""
    data = plain_data(weight.parameter)
    made = _again(table, weight)
    return made.shape == data.shape and torch.equal(made.to(data.device, data.dtype), data)


def _added_by_peft(table: WeightTable, weight: Weight) -> Tensor | None:
    """Return W₀ with what PEFT has added to W′ by fusing adapters of its own, or None where it has not."""
    if weight.fused_now() == weight.fused or weight.original is None:
        return None
    original, data = weight.original, plain_data(weight.parameter)
    wide = torch.promote_types(original.dtype, torch.float32)
    made = _again(table, weight).to(data.device, wide)
    return (original.to(data.device, wide) + (data.to(wide) - made)).to(data.dtype)


def _write(parameter: nn.Parameter, original: Tensor | None, value: Tensor) -> None:
    """Show a value in the original's storage where there is one on the device, else in the parameter's."""
    if original is not None and same_form(parameter, original):
        parameter.data = original.copy_(value)
    else:
        plain_data(parameter).copy_(value)


def same_layout(a: Tensor, b: Tensor, device: torch.device | None = None) -> bool:
    """Return whether `a` lies in memory as `b` does, on the device of `b` or on another one given."""
    same_device = a.device == (device or b.device)
    return same_device and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def warn_of(written: Sequence[Weight]) -> None:
    """Say once what it means that weights were written while they were patched."""
    if written:
        some = "1 weight was" if len(written) == 1 else f"{len(written)} weights were"
        logger.warning(
            "%s written while LoRAs were applied (by an optimizer's step, load_state_dict, an EMA copy, fusing …): the "
            "new values stay. Where they were made from the weights as they were then, the LoRAs are baked into them; "
            "train and fuse outside of the block to avoid that",
            some,
        )
