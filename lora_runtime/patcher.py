"""The weights of live models: which parameter shows which W′, and how each gets its W₀ back.

What may happen to a parameter between apply and restore, and what restore then does:

    nothing                                     binds the original
    moved (`.to`, offloading)                   puts the original where the parameter is by now
    cast (`.half`, …)                           casts the original the same way
    made anew by `.to` (overwrite, swap)        the new Parameter gets the original
    written in place (`load_state_dict`,        the new values stay, in the original's storage; a warning says that
      an optimizer's step, EMA's `copy_to`)       they were made of, or over, patched weights
    bound to other values (`.data = …`)         the new values stay where they are; the same warning
    fused by PEFT while patched, or unfused     the original gets what PEFT has added: unfusing later gives it back
    replaced by another Parameter               nothing: it is not ours (`load_state_dict(assign=True)`)

A write in place is seen by the version counter that autograd keeps. A write through `.data` does not count there: in
host memory a few bytes of W′ are remembered and looked at. Memory that somebody else refers to (a `state_dict()` taken
while patched) is never filled with the next W′: the storage's count of uses tells.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.errors import ModelError, StrengthError
from lora_runtime.memory import OutOfMemory, free_bytes
from lora_runtime.merge import BLOCK_BYTES, Piece, Term, Workspace, delta_of, merge_into, rows_of
from lora_runtime.plan import Assignment
from lora_runtime.weights import Weight, is_shared, plain_data, serial, tell_autograd

__all__ = ["Home", "Originals", "Patcher"]

logger = logging.getLogger("lora_runtime")

Originals = Literal["auto", "device", "host"]

P = ParamSpec("P")
R = TypeVar("R")


def _plain_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` outside of inference mode and autograd.

    A tensor made under inference mode stays an inference tensor for life, and a weight must not become one.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


class Home:
    """What is known of one module: its weights by name. It lives as long as the module does."""

    __slots__ = ("__weakref__", "lives", "serial", "weights")

    def __init__(self) -> None:
        self.serial = serial()
        self.weights: dict[str, Weight] = {}
        self.lives: dict[object, object] = {}  # what each owner asks to act beside it


class Patcher:
    """Patches parameters and restores them. Not thread-safe by itself: ownership.py says who may."""

    def __init__(self) -> None:
        """Start with nothing patched and no memory held."""
        # A weight has its parameter, and no weak reference to it: torch swaps no tensors that have one.
        self._homes: weakref.WeakKeyDictionary[nn.Module, Home] = weakref.WeakKeyDictionary()
        self._by_id: weakref.WeakValueDictionary[int, Weight] = weakref.WeakValueDictionary()

    # ---- weights ----------------------------------------------------------------------------------------------------

    def home(self, module: nn.Module) -> Home:
        """Return what is known of a module, with a weight for each of its parameters as they are now."""
        home = self._homes.get(module)
        if home is None:
            home = self._homes[module] = Home()
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self._weight(home, module, name, parameter)
        return home

    def serial_of(self, module: nn.Module) -> int | None:
        """Return the number of a module, None for one that nothing is known of."""
        home = self._homes.get(module)
        return None if home is None else home.serial

    def _weight(self, home: Home, module: nn.Module, name: str, parameter: nn.Parameter) -> Weight:
        known = home.weights.get(name)
        if known is not None and known.parameter is parameter:
            return known
        if known is not None and not known.patched and known.parameter.is_meta and parameter.is_meta:
            self._go_on(known, parameter)  # an offloader puts a new one there after each call
            return known
        if known is not None and known.patched and known.replacement() is parameter:
            self._go_on(known, parameter)
            return known
        weight = self._by_id.get(id(parameter))  # the same parameter in another module
        if weight is None or weight.parameter is not parameter:
            weight = self._by_id[id(parameter)] = Weight(parameter)
        weight.places.append((weakref.ref(module), name))
        home.weights[name] = weight
        return weight

    def _go_on(self, weight: Weight, parameter: nn.Parameter) -> None:
        weight.in_place_of(parameter)
        self._by_id[id(parameter)] = weight

    def weight_of(self, assignment: Assignment) -> Weight:
        """Return the weight of an assignment's parameter."""
        parameter = assignment.parameter
        weight = self._by_id.get(id(parameter))
        if weight is None or weight.parameter is not parameter:
            module = assignment.target.module
            home = self.home(module)
            weight = next(found for found in home.weights.values() if found.parameter is parameter)
        return weight

    def _all(self) -> list[Weight]:
        found = {id(weight): weight for home in list(self._homes.values()) for weight in home.weights.values()}
        return list(found.values())

    @property
    def patched(self) -> int:
        """The number of parameters that are patched now."""
        return sum(weight.patched for weight in self._all())

    @property
    def nbytes(self) -> int:
        """The bytes held beside the models: originals where W′ shows, and buffers kept for the next switch."""
        held = [weight.original if weight.patched else weight.buffer for weight in self._all()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def original(self, parameter: nn.Parameter) -> Tensor:
        """Return W₀ of a parameter, patched or not; in place it is the copy in host memory."""
        weight = self._by_id.get(id(parameter))
        if weight is None or weight.parameter is not parameter or weight.original is None:
            return plain_data(parameter)
        return weight.original

    def intact(self, weights: Iterable[Weight] | None = None) -> bool:
        """Return whether these parameters (all) still show what the last `apply` bound."""
        return all(weight.untouched() for weight in (self._all() if weights is None else weights) if weight.patched)

    # ---- apply and restore ------------------------------------------------------------------------------------------

    @_plain_mode
    def apply(
        self,
        assignments: Sequence[Assignment],
        originals: Originals = "auto",
        among: Sequence[Weight] | None = None,
        weights: Sequence[Weight] | None = None,
    ) -> int:
        """Make these the patches of the weights `among` (all), replacing earlier ones; return how many were computed.

        `weights`: those of the assignments, where the caller has them at hand.

        If anything fails on the way, every one of them gets its original back before the error goes on.
        "auto" that runs out of a device's memory goes on in place.
        """
        among = self._all() if among is None else among
        asked = list(zip(assignments, weights or map(self.weight_of, assignments), strict=True))
        in_place = _choose_in_place(asked, originals)
        if originals == "auto" and not all(in_place.values()):
            try:
                return self._apply(asked, in_place, among)
            except OutOfMemory:
                pass  # what was computed so far lies in the error's frames: only here, without it, is its memory free
            in_place = dict.fromkeys(in_place, True)
        return self._apply(asked, in_place, among)

    def _apply(
        self,
        asked: Sequence[tuple[Assignment, Weight]],
        in_place: Mapping[torch.device, bool],
        among: Sequence[Weight],
    ) -> int:
        written: list[Weight] = []
        try:
            wanted = {id(weight) for _, weight in asked}
            for weight in among:
                if weight.original is not None and id(weight) not in wanted:
                    self._restore(weight, written)
            modes = [(a, w, in_place[w.parameter.device] or w.parameter.is_inference()) for a, w in asked]
            stale = {id(w.parameter) for a, w, mode in modes if not self._is_current(a, w, mode, written)}
            changed = [found for found in modes if not stale.isdisjoint(_reads(found[0]))] if stale else []
            workspace = Workspace()
            bindings = [(a, w, self._filled(a, w, mode, workspace)) for a, w, mode in changed]
            for assignment, weight, value in bindings:
                weight.bind(value, assignment)
        except BaseException:
            self.restore(among=[*among, *(weight for _, weight in asked)])
            raise
        finally:
            _warn_of(written)
        return len(changed)

    @_plain_mode
    def restore(self, *, release: bool = False, among: Iterable[Weight] | None = None) -> int:
        """Give these parameters (all) their originals back; return how many were patched.

        `release` frees the buffers too. One that fails, for want of memory, keeps no other from its original; the error
        goes on then.
        """
        written: list[Weight] = []
        count, failure = 0, None
        for weight in self._all() if among is None else among:
            if weight.original is not None:
                try:
                    self._restore(weight, written)
                    count += 1
                except Exception as error:
                    failure = failure or error
            if release:
                weight.buffer = None
        _warn_of(written)
        if failure is not None:
            raise failure
        return count

    def _is_current(self, assignment: Assignment, weight: Weight, in_place: bool, written: list[Weight]) -> bool:
        """Return whether the parameter shows just this already; where it does not, settle what happened to it."""
        if weight.original is None or not self._settle(weight, written):
            return False
        cast = weight.parameter.dtype != weight.original.dtype
        if weight.in_place != in_place or cast or weight.shown is None:
            self._restore(weight, written)
            return False
        return weight.shown.identity == assignment.identity

    def _settle(self, weight: Weight, written: list[Weight]) -> bool:
        """Return whether a patched parameter still shows its W′, moved or cast perhaps.

        Where other values were written they are its own from now on.
        """
        if weight.untouched() and not self._replaced(weight):
            return True
        parameter = weight.parameter
        if parameter.is_meta or weight.shown is None:
            return True
        moved = parameter.data_ptr() != weight.pointer
        ours = weight.fused_now() == weight.fused and weight.sampled_alike()
        if ours and (weight.written() or (weight.sample is None and moved)):
            ours = self._shows_what_we_made(weight)
        if ours:
            weight.look()
            return True
        added = self._added_by_peft(weight)
        original, in_place = weight.original, weight.in_place
        assert original is not None
        weight.end()
        if added is not None:
            _write(parameter, None if in_place else original, added)
        elif not in_place and not moved and _same_layout(parameter.data, original):
            parameter.data = original.copy_(parameter.data)
        if added is None:
            written.append(weight)
        return False

    def _replaced(self, weight: Weight) -> bool:
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
            self._go_on(weight, other)
        return other is not None

    def _again(self, weight: Weight) -> Tensor:
        """Return the W′ that was bound, computed once more."""
        assert weight.original is not None
        assert weight.shown is not None
        value = torch.empty_like(weight.original)
        base = weight.original if weight.shown.precise is None else weight.shown.precise
        merge_into(value, base, self._terms(weight.shown))
        return value

    def _shows_what_we_made(self, weight: Weight) -> bool:
        """Return whether the parameter's values are those of W′, compared in full: rare, where somebody wrote."""
        data = plain_data(weight.parameter)
        made = self._again(weight)
        return made.shape == data.shape and torch.equal(made.to(data.device, data.dtype), data)

    def _added_by_peft(self, weight: Weight) -> Tensor | None:
        """Return W₀ with what PEFT has added to W′ by fusing adapters of its own, or None where it has not."""
        if weight.fused_now() == weight.fused or weight.original is None:
            return None
        original, data = weight.original, plain_data(weight.parameter)
        wide = torch.promote_types(original.dtype, torch.float32)
        made = self._again(weight).to(data.device, wide)
        return (original.to(data.device, wide) + (data.to(wide) - made)).to(data.dtype)

    def _filled(self, assignment: Assignment, weight: Weight, in_place: bool, workspace: Workspace) -> Tensor:
        """Return what `_fill` does; StrengthError names the file that makes a weight too large."""
        try:
            return self._fill(assignment, weight, in_place, workspace)
        except ModelError as error:  # another weight that a file depends on cannot be read
            most = next((index for index, term in enumerate(assignment.terms) if term.pieces), 0)
            raise ModelError(str(error), error.sha256 or str(assignment.identity[most][0])) from error  # type: ignore[index]
        except OverflowError as error:
            original = self.original(assignment.parameter)
            sizes = [
                abs(term.strength) * float(delta_of(original, term.adapter, term.dyn, term.part).abs().max())
                for term in self._terms(assignment)
            ]
            most = sizes.index(max(sizes))
            sha256, strength = str(assignment.identity[most][0]), assignment.terms[most].strength  # type: ignore[index]
            raise StrengthError(
                f"{assignment.target} would be {error}, at strength {strength:g}: use a lower strength", sha256
            ) from error

    def _fill(self, assignment: Assignment, weight: Weight, in_place: bool, workspace: Workspace) -> Tensor:
        """Compute W′ of one parameter into memory of its own (in place: into its own storage) and return that."""
        parameter = weight.parameter
        if in_place:
            here = plain_data(parameter)
            first = weight.original is None
            if weight.original is None:
                weight.begin(_copy_to_host(parameter, weight.buffer), in_place=True)
            assert weight.original is not None
            weight.shown = None  # neither W₀ nor W′ until the sum is done
            if first and assignment.precise is None:
                with suppress(OverflowError):  # which only a sum from W₀ itself can tell from a W₀ that is not finite
                    # The device has W₀ still: from the host it would be a copy more.
                    merge_into(here, here, self._terms(assignment), workspace)
                    return weight.original
            base = weight.original if assignment.precise is None else assignment.precise
            merge_into(here, base, self._terms(assignment), workspace)
            return weight.original
        original = plain_data(parameter) if weight.original is None else weight.original
        value = self._memory(weight, original)
        base = original if assignment.precise is None else assignment.precise
        merge_into(value, base, self._terms(assignment), workspace)
        return value

    def _memory(self, weight: Weight, original: Tensor) -> Tensor:
        """Return memory for W′: what held the last one, unless somebody else refers to it."""
        device = weight.parameter.device
        known = 1
        buffer = weight.buffer
        if weight.original is not None:
            buffer, known = weight.parameter.data, 2  # and the parameter itself
        fits = buffer is not None and _same_layout(buffer, torch.empty_like(original, device="meta"), device)
        if buffer is not None and fits and not is_shared(buffer, known):
            weight.shown = None  # where it is bound now, what it shows changes under it
            return buffer
        return torch.empty_like(original, device=device)

    def _restore(self, weight: Weight, written: list[Weight]) -> None:
        """Give one parameter its original back, in the form that it has by now (see the table above)."""
        if not self._settle(weight, written):
            return
        parameter, original = weight.parameter, weight.original
        assert original is not None
        weight.buffer = None
        if parameter.is_meta:
            pass  # it has no values
        elif weight.in_place:
            plain_data(parameter).copy_(original)
            weight.buffer = original
        elif _same_form(parameter, original):
            # A device's allocator has the memory again at once; fresh memory of the host costs page faults.
            weight.buffer = parameter.data if parameter.device.type == "cpu" else None
            parameter.data = original
        elif is_shared(parameter, 1):
            parameter.data = torch.empty_like(parameter.data).copy_(original)
        else:  # a device that just fits the model has no room for another copy
            parameter.data.copy_(original)
        tell_autograd(parameter)
        weight.end()  # last: an interrupt before it leaves a patch that can be restored again

    # ---- adapters that depend on originals --------------------------------------------------------------------------

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        """Return an adapter that has the originals of these pieces, where it depends on them."""
        return adapter.given(tuple(map(self._original_of, pieces))) if pieces else adapter

    def _original_of(self, piece: Piece) -> Tensor:
        """Return what a parameter has of a weight, before any patch."""
        if piece.base is not None:
            return rows_of(piece.base(), piece.part)
        assert piece.parameter is not None
        weight = self.original(piece.parameter) if piece.precise is None else piece.precise
        return rows_of(weight, piece.part)

    def _terms(self, assignment: Assignment) -> list[Term]:
        """Return the terms of a parameter; those that depend on the originals of others too are given them."""
        return [
            replace(term, adapter=self.grounded(term.adapter, term.pieces)) if term.pieces else term
            for term in assignment.terms
        ]


def _warn_of(written: Sequence[Weight]) -> None:
    """Say once what it means that weights were written while they were patched."""
    if written:
        some = "1 weight was" if len(written) == 1 else f"{len(written)} weights were"
        logger.warning(
            "%s written while LoRAs were applied (by an optimizer's step, load_state_dict, an EMA copy, fusing …): the "
            "new values stay. Where they were made from the weights as they were then, the LoRAs are baked into them; "
            "train and fuse outside of the block to avoid that",
            some,
        )


def _write(parameter: nn.Parameter, original: Tensor | None, value: Tensor) -> None:
    """Show a value in the original's storage where there is one on the device, else in the parameter's."""
    if original is not None and _same_form(parameter, original):
        parameter.data = original.copy_(value)
    else:
        plain_data(parameter).copy_(value)


def _same_form(parameter: nn.Parameter, original: Tensor) -> bool:
    return (
        parameter.dtype == original.dtype
        and parameter.device == original.device
        and (parameter.stride() == original.stride() or parameter.shape != original.shape)
    )


def _reads(assignment: Assignment) -> set[int]:
    """Return the ids of the parameters whose originals a W′ is made of: its own, and others where a file has them."""
    return {id(assignment.parameter), *(id(piece.parameter) for term in assignment.terms for piece in term.pieces)}


def _same_layout(a: Tensor, b: Tensor, device: torch.device | None = None) -> bool:
    """Return whether `a` lies in memory as `b` does, on the device of `b` or on another one given."""
    same_device = a.device == (device or b.device)
    return same_device and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def _copy_to_host(parameter: nn.Parameter, buffer: Tensor | None) -> Tensor:
    """Return a copy of the parameter's values in host memory, in `buffer` if it fits."""
    value = parameter.data
    if buffer is None or buffer.device.type != "cpu" or buffer.dtype != value.dtype or buffer.shape != value.shape:
        buffer = torch.empty_like(value, device="cpu")
    return buffer.copy_(value)


def _choose_in_place(asked: Sequence[tuple[Assignment, Weight]], originals: Originals) -> dict[torch.device, bool]:
    """Return for each device whether its weights are written in place (True) or bound anew (False)."""
    if originals != "auto":
        return dict.fromkeys({weight.parameter.device for _, weight in asked}, originals == "host")
    touched: dict[torch.device, int] = {}
    held: dict[torch.device, int] = {}
    for _, weight in asked:
        parameter = weight.parameter
        device = parameter.device
        if device.type != "cuda":  # host memory, and what shares it, counts as room
            touched[device] = 0
            continue
        size = parameter.numel() * parameter.element_size()
        touched[device] = touched.get(device, 0) + size
        if not weight.in_place and (weight.patched or weight.buffer is not None):
            held[device] = held.get(device, 0) + size
    if originals != "auto":
        return dict.fromkeys(touched, originals == "host")
    return {
        # Twice: what the model computes with the weights needs memory too.
        device: size > held.get(device, 0)
        and not _has_room(device, 2 * (size - held.get(device, 0)) + _temporaries(asked, device))
        for device, size in touched.items()
    }


def _temporaries(asked: Sequence[tuple[Assignment, Weight]], device: torch.device) -> int:
    """Return the bytes beside W₀ and W′ that the merge of the largest weight takes, about.

    Measured, as multiples of the weight in float32: 1 to 6.5 for the algorithms without factors. Low-rank sums run in
    blocks.
    """
    most = 0
    for assignment, weight in asked:
        if weight.parameter.device == device:
            dense = any(term.adapter.factors() is None for term in assignment.terms)
            size = 4 * weight.parameter.numel()
            most = max(most, 7 * size if dense else 2 * min(size, BLOCK_BYTES))
    return most


def _has_room(device: torch.device, size: int) -> bool:
    """Return whether `size` bytes are free on the device; one that does not tell counts as having room."""
    if size <= 0:
        return True
    free = free_bytes(device)
    return free is None or size <= free
