"""One parameter: its original W₀, the W′ that it shows, and what happened to it in between.

The original is never written (except in place, see below). Patching binds a new tensor to the Parameter with
`parameter.data = W′`; the old tensor *is* the backup, and restoring binds it again: no copy, about 1 µs a weight, exact
by construction. W′ belongs to the parameter alone while it is shown, so that it goes where the parameter goes.

In place (`originals="host"` and "inplace"): the original is copied, to host memory or on the device, its storage is
written, and restoring copies back. Addresses stay.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_runtime.hooks import Endings, end_all, hook_moves

if TYPE_CHECKING:
    from lora_runtime.adapters import Adapter
    from lora_runtime.forecast import Step
    from lora_runtime.plan import Assignment
    from lora_runtime.uploads import Upload

__all__ = ["Weight", "alike", "is_shared", "plain_data", "same_form", "serial", "tell_autograd"]

_serials = count()
_SPOT = 32  # bytes of a sample, at the start and in the middle
# What casts and back may have gone through: a float32 weight that was half for a while is no other weight.
_ROUNDINGS = (None, torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)


def serial() -> int:
    """Return a number that was never given before: an id of a thing in memory may be another's later."""
    return next(_serials)


class Weight:
    """One parameter of a model, wherever it lies in it. `asks`: what each owner asks of it."""

    __slots__ = (
        "__weakref__",
        "asks",
        "binds",
        "buffer",
        "following",
        "fused",
        "layout",
        "original",
        "parameter",
        "places",
        "pointer",
        "sample",
        "serial",
        "shown",
        "stamp",
        "step",
        "tuner",
        "uploads",
        "window",
    )

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.serial = serial()
        self.places: list[tuple[weakref.ref[nn.Module], str]] = []
        self.asks: dict[Any, Assignment] = {}
        self.original: Tensor | None = None  # W₀ itself, or in place its copy; None: nothing is patched
        self.buffer: Tensor | None = None  # memory for the next W′, or in place for the next copy of W₀
        self.step: Step = "device"  # how W₀ is kept
        self.binds = False  # whether W₀ could be bound as it is at the last look
        self.shown: Assignment | None = None
        self.stamp: int | tuple[torch.dtype, int] = 0
        self.pointer = 0  # to W′
        self.layout: tuple[torch.dtype, tuple[int, ...]] = parameter.dtype, ()
        self.sample: bytes | None = None
        self.window: tuple[_Window, ...] = ()  # on the bytes of the sample, where the parameter lay at the last look
        self.following: Endings = []  # while moves of its modules are followed
        self.tuner: Callable[[], nn.Module | None] | None = None  # PEFT's layer around the weight's own
        self.fused: tuple[str, ...] = ()  # the adapters that PEFT had fused into the weight at the last look
        # What stays on its device of the adapters that were summed into it, whether they are shown now or not.
        self.uploads: weakref.WeakKeyDictionary[Adapter, Upload] | None = None

    @property
    def patched(self) -> bool:
        """Whether the parameter shows a W′."""
        return self.original is not None

    @property
    def in_place(self) -> bool:
        """Whether W₀'s own storage is written, and `original` is a copy."""
        return self.step != "device"

    # ---- binding ----------------------------------------------------------------------------------------------------

    def begin(self, original: Tensor, step: Step) -> None:
        """Record what will bring the parameter back."""
        self.original, self.step, self.shown = original, step, None
        self.look()

    def bind(self, value: Tensor, assignment: Assignment) -> None:
        """Show W′; in place `value` is what was written into the parameter already."""
        if self.original is None:
            self.begin(plain_data(self.parameter), "device")
        self.shown = None  # until it is known how W′ looks: an interrupt must not take it for somebody else's values
        if not self.in_place:
            self.parameter.data = value
            self.buffer = None
        tell_autograd(self.parameter)
        self.look()
        self.shown = assignment
        if not self.following and self.parameter.device.type != "cpu":
            self._follow_moves()

    def look(self) -> None:
        """Remember how the parameter is now: what differs from this later was done by others."""
        parameter = self.parameter
        self.stamp = _stamp(parameter)
        self.pointer = parameter.data_ptr()
        self.layout = parameter.dtype, parameter.stride()
        self.binds = self.original is not None and not self.in_place and same_form(parameter, self.original)
        self.window = _windows(parameter, self.pointer)
        self.sample = _read(self.window)
        self.fused = self.fused_now() if self.tuner is not None else ()

    def end(self) -> None:
        """Forget the patch: what the parameter shows is its own."""
        self.original = self.shown = self.sample = None
        self.window = ()
        self._stop_following()

    # ---- uploads ----------------------------------------------------------------------------------------------------

    def upload_of(self, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> Upload | None:
        """Return what stays on a device of an adapter, for sums in that dtype."""
        uploads = self.uploads
        upload = None if uploads is None else uploads.get(adapter)
        return upload if upload is not None and upload.fits(device, dtype) else None

    def keep(self, adapter: Adapter, upload: Upload) -> None:
        """Keep what was sent up for an adapter, for as long as its file is in memory and the weight on that device."""
        if self.uploads is None:
            self.uploads = weakref.WeakKeyDictionary()
        self.uploads[adapter] = upload
        if not self.following:  # also where the apply fails that it is for, and nothing is bound
            self._follow_moves()

    def drop_uploads(self, wanted: Collection[Adapter] = ()) -> bool:
        """Keep no uploads but those `wanted`; return whether there were others. Any thread may: they are a cache."""
        uploads = self.uploads
        if not uploads:
            return False
        dropped = [adapter for adapter in list(uploads) if adapter not in wanted]
        for adapter in dropped:
            uploads.pop(adapter, None)
        self._stop_following()
        return bool(dropped)

    def _stop_following(self) -> None:
        """Follow moves no longer where nothing of the weight is left on its device."""
        if self.following and self.original is None and not self.uploads:
            end_all(self.following)

    def _follow_moves(self) -> None:
        """Have W₀ and uploads leave a device when the parameter does: the device's memory is what a move is for."""
        for reference, name in self.places:
            module = reference()
            if module is not None:
                hook_moves(module, _mover(weakref.ref(self), reference, name), self.following)

    # ---- what happened since ----------------------------------------------------------------------------------------

    def can_bind(self) -> bool:
        """Return whether W₀ can be bound to the parameter, which is untouched since the last look."""
        return self.binds and self.parameter.stride() == self.layout[1]

    def untouched(self) -> bool:
        """Return whether the parameter is just as it was at the last `look`."""
        parameter = self.parameter
        return (
            parameter.data_ptr() == self.pointer
            and parameter.dtype == self.layout[0]
            and (parameter._version == self.stamp if type(self.stamp) is int else not self.written())
            and (self.sample is None or _read(self.window) == self.sample)
            and (self.tuner is None or self.fused_now() == self.fused)
        )

    def fused_now(self) -> tuple[str, ...]:
        """Return the adapters of its own that PEFT has added to the weight."""
        layer = None if self.tuner is None else self.tuner()
        return tuple(getattr(layer, "merged_adapters", ()))

    def written(self) -> bool:
        """Return whether autograd counts a write since the last `look`."""
        return _written(self.parameter, self.stamp)

    def replacement(self) -> nn.Parameter | None:
        """Return the Parameter that took this one's place with its values, as some kinds of `.to` make one."""
        for reference, name in self.places:
            module = reference()
            other = None if module is None else module._parameters.get(name)
            if other is None or other is self.parameter:
                continue
            if type(other.data) is not Tensor or other.shape != self.parameter.shape:
                continue  # quantised, say
            if self.parameter.is_meta or other.is_meta:
                continue
            if alike(_elements(self.parameter.data), _elements(other.data)):
                return other
        return None

    def in_place_of(self, other: nn.Parameter) -> None:
        """Go on with another Parameter, which shows the same where W′ shows."""
        self.parameter = other
        for owner, assignment in self.asks.items():
            self.asks[owner] = replace(assignment, parameter=other)
        if self.shown is not None:
            self.shown = replace(self.shown, parameter=other)
        if self.patched:
            self.look()

    def sampled_alike(self) -> bool:
        """Return whether the values at the places of the sample are those of W′, as far as casts leave them."""
        if self.sample is None:
            return True
        parameter = self.parameter
        same_layout = parameter.device.type == "cpu" and (parameter.dtype, parameter.stride()) == self.layout
        if same_layout and _read(_windows(parameter, parameter.data_ptr())) == self.sample:
            return True
        dtype, strides = self.layout
        then = torch.frombuffer(bytearray(self.sample), dtype=torch.uint8).view(dtype)
        data = plain_data(parameter)
        # Each by itself to the host: to join them takes memory that a full device does not have.
        if data.is_contiguous() and strides == data.stride():
            starts, size = _spots(data.numel(), dtype.itemsize if hasattr(dtype, "itemsize") else _size(dtype))
            now_values = torch.cat([data.view(-1)[start : start + size].cpu() for start in starts])
        else:
            indices = _indices(data.numel(), data.shape, strides, _size(dtype))
            now_values = torch.stack([data[index].cpu() for index in indices])
        return alike(then, now_values)


def _mover(
    weight: weakref.ref[Weight], reference: weakref.ref[nn.Module], name: str
) -> Callable[[], Callable[[], None]]:
    """Return what is called before a module's tensors are moved; it returns what is called after."""

    def before() -> Callable[[], None]:
        found = weight()
        untouched = found is not None and found.patched and found.untouched()

        def after() -> None:
            here, module = weight(), reference()
            if here is None or module is None:
                return
            now = module._parameters.get(name)
            if here.uploads and now is not None:
                there = [adapter for adapter, upload in here.uploads.items() if upload.device == now.device]
                here.drop_uploads(there)
            if here.original is None:
                return
            if now is not None and untouched:
                if now is not here.parameter:
                    here.in_place_of(now)
                here.look()
            original, device = here.original, here.parameter.device
            if original.device != device and original.device.type != "cpu":
                here.original = original.to(device)

        return after

    return before


# ---- tensors --------------------------------------------------------------------------------------------------------


def plain_data(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's values as a plain tensor over the same storage.

    A parameter made under inference mode holds an inference tensor, which cannot be written outside of it; nor can
    another tensor be bound to it (its forward then fails for want of a version counter), so it is patched in place.
    """
    data = parameter.data
    if not data.is_inference():
        return data
    plain = torch.empty(0, dtype=data.dtype, device=data.device)
    return plain.set_(data.untyped_storage(), data.storage_offset(), data.shape, data.stride())


def same_form(parameter: nn.Parameter, original: Tensor) -> bool:
    """Return whether an original can be bound to the parameter as it is now."""
    return (
        parameter.dtype == original.dtype
        and parameter.device == original.device
        and (parameter.stride() == original.stride() or parameter.shape != original.shape)
    )


_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


def is_shared(tensor: Tensor, known: int) -> bool:
    """Return whether others than `known` tensors refer to the memory of this one; True where it cannot be asked."""
    if _use_count is None:
        return True
    storage = tensor.untyped_storage()
    return _use_count(storage._cdata) > known + 1  # the storage's own name


def tell_autograd(parameter: nn.Parameter) -> None:
    """Let a backward pass through what the parameter was fail, as after any other write: it would use what is now."""
    if parameter.is_inference():
        return
    uses: Callable[[], int] | None = getattr(parameter, "_use_count", None)
    if uses is None or uses() > 1:
        torch._C._increment_version(parameter)  # type: ignore[arg-type, unused-ignore]


def _stamp(parameter: nn.Parameter) -> int | tuple[torch.dtype, int]:
    """Return what changes when somebody writes into the parameter: autograd's counter of writes.

    A parameter made under inference mode has none; a sum of the bits of some of its values stands in.
    """
    try:
        return parameter._version
    except RuntimeError:
        return parameter.dtype, int(_spread(plain_data(parameter)).view(torch.uint8).sum(dtype=torch.int64))


_SPREAD = 4096  # values of a weight that stand for all: a look at each of those of SDXL would read 5 GB


def _spread(data: Tensor) -> Tensor:
    """Return some values of a tensor, the same distance apart in memory, (n,)."""
    step = max(1, data.numel() // _SPREAD)
    if data.is_contiguous() or data.is_contiguous(memory_format=torch.channels_last):
        flat = data.as_strided((data.numel(),), (1,), data.storage_offset())
    else:
        flat = data.reshape(-1)
    return flat[::step].clone()


def _written(parameter: nn.Parameter, stamp: int | tuple[torch.dtype, int]) -> bool:
    """Return whether somebody has written into the parameter since `stamp`; a cast is no write."""
    if isinstance(stamp, int):
        return parameter._version != stamp
    return stamp[0] == parameter.dtype and _stamp(parameter) != stamp


def _size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _spots(numel: int, size: int) -> tuple[tuple[int, int], int]:
    """Return where the two samples of a weight begin, in elements, and how many elements each has."""
    length = min(numel, _SPOT // size)
    return (0, (numel - length) // 2), length


_Window = Any  # an array of ctypes over somebody else's memory


def _windows(parameter: nn.Parameter, pointer: int) -> tuple[_Window, ...]:
    """Return what reads a few bytes of a weight in host memory; nothing elsewhere.

    Writes through `.data` leave no trace but these. A look by address takes 0.1 µs, one by torch 3.
    """
    if parameter.device.type != "cpu" or not pointer or parameter.is_inference():
        return ()
    if not parameter.is_contiguous() and not parameter.is_contiguous(memory_format=torch.channels_last):
        return ()  # between its values there may lie others'
    size = parameter.element_size()
    starts, length = _spots(parameter.numel(), size)
    kind = _WINDOWS.get(length * size) or _WINDOWS.setdefault(length * size, ctypes.c_char * (length * size))
    return tuple(kind.from_address(pointer + start * size) for start in starts)


_WINDOWS: dict[int, Any] = {}  # by their bytes


def _read(windows: tuple[_Window, ...]) -> bytes | None:
    """Return the bytes behind the windows. They are there only while the memory is: look at the address first."""
    return windows[0].raw + windows[1].raw if windows else None


def _indices(numel: int, shape: torch.Size, strides: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    """Return the indices of the sampled elements of a weight that lay in memory with these strides."""
    starts, length = _spots(numel, size)
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    found = []
    for place in (start + step for start in starts for step in range(length)):
        index = [0] * len(shape)
        for dim in order:
            index[dim], place = divmod(place, strides[dim]) if strides[dim] else (0, place)
        found.append(tuple(index))
    return found


def _elements(data: Tensor) -> Tensor:
    """Return some elements of a tensor, in host memory."""
    flat = data.reshape(-1)
    return flat[:: max(1, flat.numel() // 64)][:64].cpu()


def alike(then: Tensor, now: Tensor) -> bool:
    """Return whether `now` is `then`, or what casts (up to three, the last to its own dtype) have left of it."""
    bits = _bits(now)
    for first in _ROUNDINGS:
        once = then if first is None else then.to(first)
        for second in _ROUNDINGS:
            twice = once if second is None else once.to(second)
            if torch.equal(_bits(twice.to(now.dtype)), bits):
                return True
    return False


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
