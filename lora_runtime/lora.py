"""One file → its adapters, by the name of the module that each is for."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from lora_runtime.adapters import ALGORITHMS, Adapter, Group, Pending, split_key
from lora_runtime.adapters.training import Training, read_training
from lora_runtime.errors import CorruptFileError, LoraFileError
from lora_runtime.header import Header, TensorInfo, header_of, open_file
from lora_runtime.metadata import family

__all__ = ["Lora", "load_lora"]

# Read and hashed in pieces that stay in the cache between the two.
_PIECE = 4 << 20

_ALGORITHMS = MappingProxyType({algorithm.name: algorithm for algorithm in ALGORITHMS})

# fp8 and the wide unsigned types are missing from older torch.
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        name: getattr(torch, known)
        for name, known in {
            "F64": "float64",
            "F32": "float32",
            "F16": "float16",
            "BF16": "bfloat16",
            "F8_E4M3": "float8_e4m3fn",
            "F8_E5M2": "float8_e5m2",
            "F8_E4M3FNUZ": "float8_e4m3fnuz",
            "F8_E5M2FNUZ": "float8_e5m2fnuz",
            "I64": "int64",
            "I32": "int32",
            "I16": "int16",
            "I8": "int8",
            "U8": "uint8",
            "BOOL": "bool",
        }.items()
        if hasattr(torch, known)
    }
)


@dataclass(frozen=True, eq=False)
class Lora:
    """A file in memory. Its tensors share one buffer with the file's bytes; nothing keeps the file open."""

    name: str
    path: Path
    sha256: str  # of the whole file, hex: what the file is known by
    metadata: Mapping[str, str]
    family: str  # what model it seems to be made for: "SD1", "SDXL", … or "unknown"
    adapters: Mapping[str, tuple[Adapter, ...]]  # by stem: what the file calls the module
    unused: Mapping[str, str] = field(repr=False)  # key → why it is in no adapter
    key_count: int = 0
    nbytes: int = 0

    def __repr__(self) -> str:
        """Return the name, the hash and the counts."""
        return f"<Lora {self.name!r} #{self.sha256[:12]}: {len(self.adapters)} modules, {self.key_count} keys>"


def load_lora(path: str | os.PathLike[str], *, name: str | None = None) -> Lora:
    """Return the adapters of a safetensors file; `name` is its stem unless given.

    Keys that no adapter uses are in `.unused` with the reason. Raises CorruptFileError when the bytes are not valid or
    all of its adapters contradict themselves, RefusedFileError for pickles, LoraFileError when it holds no adapter that
    is supported. Nothing is unpickled.
    """
    path = Path(path)
    # A tensor made in inference mode could not take part in autograd later; a loaded file outlives the caller's mode.
    with torch.inference_mode(False), torch.no_grad():
        header, buffer, sha256 = _read(path)
        try:
            found = _Builder(_Tensors(header.tensors, buffer), read_training(header.metadata))
        except ValueError as error:
            raise CorruptFileError(f"{path}: {error}") from error
        found.build()
    if not found.adapters:
        raise _nothing_usable(path, found)
    return Lora(
        name=path.stem if name is None else name,
        path=path,
        sha256=sha256,
        metadata=header.metadata,
        family=family(header),
        adapters=MappingProxyType(found.adapters),
        unused=MappingProxyType(found.unused),
        key_count=len(header.tensors),
        nbytes=buffer.numel(),
    )


def _nothing_usable(path: Path, found: _Builder) -> LoraFileError:
    """Return the error for a file without a single adapter."""
    if not found.unused:
        return LoraFileError(f"{path}: holds no tensors")
    key, reason = next(iter(found.unused.items()))
    more = f" (and {len(found.unused) - 1} more keys)" if len(found.unused) > 1 else ""
    kind = CorruptFileError if found.broken else LoraFileError
    return kind(f"{path}: no adapter in it can be used: {key}{more}: {reason}")


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Header, Tensor, str]:
    """Return the header, the file's bytes (uint8) and their hash.

    The bytes are read once, so all three are of the same file even while a trainer writes the next one. A memory map
    would die with the process when the file is truncated, and would lock it on Windows.
    """
    with open_file(path) as file:
        # torch's memory and not a bytearray's, which would be filled with zeros first.
        buffer = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8, device="cpu")
        view, sha256, done = buffer.numpy().data, hashlib.sha256(), 0
        while count := file.readinto(view[done : done + _PIECE]):
            sha256.update(view[done : done + count])
            done += count
    return header_of(path, view[:done]), buffer[:done], sha256.hexdigest()


class _Tensors:
    """The tensors of a buffer, made when asked for."""

    def __init__(self, infos: Mapping[str, TensorInfo], buffer: Tensor) -> None:
        self.infos = infos
        self._buffer = buffer
        self._typed: dict[str, Tensor] = {}  # the buffer as if all of it had one dtype
        # One look at each run of equal dtype costs a twentieth of a look at each tensor.
        self._all_finite = all(_is_finite(self._slice(info)) for info in _runs(infos.values()))

    def finite(self, key: str) -> Tensor:
        """Return a tensor; ValueError says why it cannot be used."""
        info = self.infos[key]
        if info.dtype not in _DTYPES:
            raise ValueError(f"{key} is stored as {info.dtype}, which this torch cannot read")
        tensor = self._slice(info)
        if not (self._all_finite or _is_finite(tensor)):
            raise ValueError(f"{key} has NaN or infinity in it")
        return tensor

    def _slice(self, info: TensorInfo) -> Tensor:
        """Return a view into the buffer, or a copy where the place is not aligned for the dtype."""
        dtype = _DTYPES[info.dtype]
        size = dtype.itemsize
        if info.begin % size:
            return self._buffer[info.begin : info.end].clone().view(dtype).view(info.shape)
        if info.dtype not in self._typed:
            self._typed[info.dtype] = self._buffer[: self._buffer.numel() // size * size].view(dtype)
        return self._typed[info.dtype][info.begin // size : info.end // size].view(info.shape)


def _runs(infos: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
    """Yield each stretch of the file that holds one floating dtype, as a tensor of one dimension."""
    in_order = sorted((info for info in infos if info.dtype in _DTYPES), key=lambda info: info.begin)
    for dtype, run in groupby(in_order, key=lambda info: info.dtype):
        stretch = list(run)
        begin, end = stretch[0].begin, stretch[-1].end
        if end - begin == sum(info.end - info.begin for info in stretch):
            yield TensorInfo(dtype, ((end - begin) // _DTYPES[dtype].itemsize,), begin, end)
        else:  # around a tensor of a dtype that torch lacks
            yield from stretch


def _is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite; the extremes tell, 30 times faster than `isfinite().all()`."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return True
    if tensor.dtype.itemsize == 1:  # torch has no extremes of fp8; in pieces, since float32 is four times as large
        return all(_is_finite(piece.float()) for piece in torch.split(tensor.flatten(), _PIECE))
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(tensor))


# ---- keys -----------------------------------------------------------------------------------------------------------


@dataclass
class _Module:
    """The keys that a file has for one stem."""

    alpha: str | None = None
    groups: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)  # (algorithm, spelling) → role → key
    pending: dict[str, Pending] = field(default_factory=dict)  # by key

    def supported(self) -> Iterator[str]:
        """Yield the keys of supported algorithms, and the alpha."""
        for roles in self.groups.values():
            yield from roles.values()
        if self.alpha is not None:
            yield self.alpha


@dataclass
class _Builder:
    """Makes adapters of keys, and notes why a key is in none of them."""

    tensors: _Tensors
    training: Training
    adapters: dict[str, tuple[Adapter, ...]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    broken: bool = False  # whether some tensors contradict each other

    def build(self) -> None:
        """Go through all keys."""
        for stem, module in self._modules().items():
            self.unused.update((key, f"{kind.algorithm} is not supported yet") for key, kind in module.pending.items())
            reason = _blocked(module)
            if reason is not None:
                self.unused.update((key, reason) for key in module.supported())
                continue
            built = tuple(self._build_module(stem, module))
            if built:
                self.adapters[stem] = built

    def _modules(self) -> dict[str, _Module]:
        modules: dict[str, _Module] = {}
        for key in self.tensors.infos:
            parts = split_key(key)
            if parts is None:
                self.unused[key] = "no adapter has keys with this ending"
                continue
            module = modules.setdefault(parts.stem, _Module())
            if parts.owner is None:
                module.alpha = key
            elif isinstance(parts.owner, Pending):
                module.pending[key] = parts.owner
            else:
                module.groups.setdefault((parts.owner.name, parts.spelling), {})[parts.role] = key
        return modules

    def _build_module(self, stem: str, module: _Module) -> Iterator[Adapter]:
        rest = [module.alpha] if module.alpha is not None else []  # the first adapter reports the alpha, all use it
        for (algorithm, _), roles in module.groups.items():
            keys = [*roles.values(), *rest]
            try:
                yield _ALGORITHMS[algorithm].build(self._group(stem, module, roles, tuple(keys)))
                rest = []
            except ValueError as error:
                self.broken = True
                self.unused.update((key, str(error)) for key in roles.values())
        if rest:
            self.unused[rest[0]] = "an alpha without factors"

    def _group(self, stem: str, module: _Module, roles: Mapping[str, str], keys: tuple[str, ...]) -> Group:
        tensors = {role: self.tensors.finite(key) for role, key in roles.items()}
        if module.alpha is None:
            alpha, rank_stabilised = self.training.alpha_of(stem)
            return Group(stem, tensors, keys, alpha, rank_stabilised)
        alpha_tensor = self.tensors.finite(module.alpha)
        if alpha_tensor.numel() != 1:
            raise ValueError(f"alpha should be one number and has the shape {tuple(alpha_tensor.shape)}")
        return Group(stem, tensors, keys, float(alpha_tensor.item()))


def _blocked(module: _Module) -> str | None:
    """Return why the supported part of a module must be left out, or None."""
    for key, kind in module.pending.items():
        if kind.on_weight:
            return f"left out, since alone it would be wrong: it belongs with {key} ({kind.algorithm})"
    return None
