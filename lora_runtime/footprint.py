"""How much memory a computation takes on a device, found on torch's meta device: nothing is computed."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Footprint", "rounded"]

_GRAIN = 512  # bytes; what the allocators of CUDA and others round a tensor's memory up to


def rounded(size: int) -> int:
    """Return the bytes that a device's allocator gives for a tensor of `size` bytes."""
    return -(-size // _GRAIN) * _GRAIN


class Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within its `with` block, counts the bytes of the meta tensors that are made: `now`, and the `peak` so far.

    A tensor counts from the operation that makes it until its memory would be free again. What is made within
    `apart()` never counts.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._paused = False
        self._sizes: dict[int, int] = {}  # by the address of a storage
        self._uses: Counter[int] = Counter()  # the tensors that have it; a storage's own object may go before it does

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave out what is made in this block."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it has made."""
        kwargs = kwargs or {}
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        if self._paused:
            return result
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if tensor.is_meta and key not in given and key not in self._sizes:
                self._sizes[key] = rounded(storage.nbytes())
                self.now += self._sizes[key]
            if key in self._sizes:
                self._uses[key] += 1
                weakref.finalize(tensor, self._gone, key)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            self.now -= self._sizes.pop(key)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
