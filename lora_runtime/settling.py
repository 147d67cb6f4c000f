"""What others have done to a patched weight, and what becomes of it.

    moved (`.to`, offloading)                   it still shows W′, where it is by now
    cast (`.half`, …)                           it still shows W′, cast
    made anew by `.to` (overwrite, swap)        the new Parameter takes its place
    written in place (`load_state_dict`,        the new values stay, in the original's storage; a warning says that
      an optimizer's step, EMA's `copy_to`)       they were made of, or over, patched weights
    bound to other values (`.data = …`)         the new values stay where they are; the same warning
    another Parameter in its place that is no   the new values stay; the same warning. Offloaded by accelerate, to host
      copy of W′ (quantised, weight_norm)         memory, W₀ is there in W′'s stead
    fused by PEFT while patched, or unfused     the original gets what PEFT has added: unfusing later gives it back;
                                                  both while patched: it still shows W′

A write in place is seen by the version counter that autograd keeps. A write through `.data` does not count there: in
host memory a few bytes of W′ are remembered and looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.merge import merge_into
from lora_runtime.routes.facts import Facts
from lora_runtime.weight_table import WeightTable
from lora_runtime.weights import Weight, alike, plain_data, same_form

__all__ = ["same_layout", "settle", "warn_of"]

logger = logging.getLogger("lora_runtime")


def settle(table: WeightTable, weight: Weight, written: list[Weight]) -> bool:
    """Return whether a patched parameter still shows its W′, moved or cast perhaps.

    Where other values were written they are its own from now on, and the weight is added to `written`; so it is where
    another Parameter took the place of this one, as quantising, weight_norm and offloading to disk make one.
    """
    if not (weight.untouched() or weight.parameter.is_meta or weight.shown is None):
        moved = weight.parameter.data_ptr() != weight.pointer
        ours = weight.fused_now() == weight.fused and weight.sampled_alike()
        if ours and (weight.written() or (weight.sample is None and moved)):
            ours = _shows_what_we_made(table, weight)
        if not ours and not _unfused_by_peft(table, weight):
            _keep_what_was_written(table, weight, written, moved=moved)
            return False
        weight.look()
    if not _gave_way(table, weight):
        return True
    if _let_go(weight):
        written.append(weight)
    return False


def _keep_what_was_written(table: WeightTable, weight: Weight, written: list[Weight], *, moved: bool) -> None:
    """End a patch whose parameter has other values by now."""
    added = _added_by_peft(table, weight)
    parameter, original, in_place = weight.parameter, weight.original, weight.in_place
    assert original is not None
    weight.end()
    if added is not None:
        _write(parameter, None if in_place else original, added)
    elif not in_place and not moved and same_layout(parameter.data, original):
        parameter.data = original.copy_(parameter.data)
    if added is None:
        written.append(weight)


def _gave_way(table: WeightTable, weight: Weight) -> bool:
    """Return whether other Parameters are in all its places; where one of them shows W′ too, go on with that."""
    parameter = weight.parameter
    places = [(module, name) for place, name in weight.places if (module := place()) is not None]
    if all(module._parameters.get(name) is parameter for module, name in places):
        return False
    other = weight.replacement()
    if other is not None:
        table.go_on(weight, other)
        return False
    # Pruning and parametrizations keep it under another name.
    return not any(own is parameter for module, _ in places for own in module.parameters())


def _let_go(weight: Weight) -> bool:
    """End a patch whose parameter is in no module any more; return whether W′ may be left in what took its place.

    accelerate's offloading keeps W′'s own memory in its map: with W₀ in there, the model is whole.
    """
    parameter, original = weight.parameter, weight.original
    assert original is not None
    if not parameter.is_meta:
        plain_data(parameter).copy_(original)
    weight.end()
    weight.buffer = None
    for place, name in weight.places:
        module = place()
        if module is None:
            continue
        now = module._parameters.get(name)
        kept = Facts([module]).kept(module, name)
        if now is None or not now.is_meta or (kept is not None and not _is(kept(), original)):
            return True
    return False


def _is(kept: Tensor, original: Tensor) -> bool:
    """Return whether an offloader's values are the original's."""
    return kept.shape == original.shape and torch.equal(kept, original.to(kept.device, kept.dtype))


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
    return made.shape == data.shape and alike(made.cpu(), data.cpu())


def _added_by_peft(table: WeightTable, weight: Weight) -> Tensor | None:
    """Return W₀ with what PEFT has added to W′ by fusing adapters of its own, or None where it has not."""
    if weight.fused_now() == weight.fused or weight.original is None:
        return None
    original, data = weight.original, plain_data(weight.parameter)
    wide = torch.promote_types(original.dtype, torch.float32)
    made = _again(table, weight).to(data.device, wide)
    return (original.to(data.device, wide) + (data.to(wide) - made)).to(data.dtype)


def _unfused_by_peft(table: WeightTable, weight: Weight) -> bool:
    """Return whether PEFT fused adapters of its own into W′ and took them out again, which leaves roundings in it."""
    layer: Any = None if weight.tuner is None else weight.tuner()
    if weight.fused_now() != weight.fused or not hasattr(layer, "get_delta_weight"):
        return False
    data = plain_data(weight.parameter)
    wide = torch.promote_types(data.dtype, torch.float32)
    made = _again(table, weight).to(data.device, wide)
    size = made.abs()
    for name in layer.active_adapters:
        size += layer.get_delta_weight(name).to(data.device, wide).abs().view_as(size)
    # Two roundings of numbers of that size each time; several times.
    return bool(((data.to(wide) - made).abs() <= 8 * torch.finfo(data.dtype).eps * size).all())


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
            "%s written while LoRAs were applied (by an optimizer's step, load_state_dict, an EMA copy, fusing, "
            "quantising …): the new values stay. Where they were made from the weights as they were then, the LoRAs "
            "are baked into them; train and fuse outside of the block to avoid that",
            some,
        )
