"""One file → its adapters, by the name of the module that each is for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from lora_runtime.adapters import (
    ALGORITHMS,
    Adapter,
    Algorithm,
    Group,
    KeyParts,
    Pending,
    companion,
    replaced_parts,
    split_key,
)
from lora_runtime.adapters.training import (
    CONFIG_NAME,
    CONFIGURED,
    WEIGHTS_NAMES,
    Training,
    read_adapter_config,
    read_training,
)
from lora_runtime.errors import CorruptFileError, LoraError, LoraFileError
from lora_runtime.folder import SUFFIX, name_of
from lora_runtime.foreign import kind_of
from lora_runtime.header import Header, no_collection, read_header, shown
from lora_runtime.metadata import family
from lora_runtime.tensors import Shapes, Tensors, read_tensors

__all__ = ["Lora", "load_lora", "outline"]

_OF_PEFT = "base_model.model."
_LARGEST_CONFIG = 1 << 20  # PEFT's are a few kilobytes
_LARGEST_NUMBER = torch.finfo(torch.float32).max  # a product with more would be infinite

_ALGORITHMS = MappingProxyType({algorithm.name: algorithm for algorithm in ALGORITHMS})
_ORDER = MappingProxyType({algorithm.name: index for index, algorithm in enumerate(ALGORITHMS)})


@dataclass(frozen=True, eq=False)
class Lora:
    """A file in memory. Its tensors share one buffer with the file's bytes; nothing keeps the file open."""

    name: str
    path: Path
    hashed: Callable[[], str] = field(repr=False)  # waits for the SHA-256, which is made on a thread of its own
    metadata: Mapping[str, str]
    family: str  # what model it seems to be made for: "SD1", "SDXL", … or "unknown"
    adapters: Mapping[str, tuple[Adapter, ...]]  # by stem: what the file calls the module
    unused: Mapping[str, str] = field(repr=False)  # key → why it is in no adapter
    key_count: int = 0
    nbytes: int = 0
    # Textual inversions in the file, by name, then by what the file calls the tensor; in no adapter and not unused.
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    # Whether settings beside the tensors, in the metadata or a configuration, may tell what they mean.
    configured: bool = False

    @property
    def sha256(self) -> str:
        """Return the hash of the whole file, hex: what the file is known by. "" of an outline."""
        return self.hashed()

    def __repr__(self) -> str:
        """Return the name, the hash and the counts."""
        return f"<Lora {self.name!r} #{self.sha256[:12]}: {len(self.adapters)} modules, {self.key_count} keys>"


def load_lora(path: str | os.PathLike[str], *, name: str | None = None) -> Lora:
    """Return the adapters of a safetensors file; `name` is its stem unless given.

    Of a folder that PEFT (MLX-LM) has saved, adapter_model.safetensors (adapters.safetensors) is read, with the
    adapter_config.json beside it, and its name is the folder's; the configuration counts under another name too, where
    no other file is there. Keys that no adapter uses are in `.unused` with the reason. Nothing is unpickled.

    Raises CorruptFileError when the bytes are not valid or all of its adapters contradict themselves, RefusedFileError
    for pickles, LoraFileError when it holds no adapter that is supported and no embedding.
    """
    path = _weights_in(Path(path))
    # A tensor made in inference mode could not take part in autograd later; a loaded file outlives the caller's mode.
    hasher = ThreadPoolExecutor(1, "hash")
    try:
        with _costing_only(path), torch.inference_mode(False), torch.no_grad(), no_collection():
            header, tensors, sha256 = read_tensors(path, hasher)
            lora = _made(path, header, tensors, sha256)
    finally:
        # The hash takes longer than all the rest, and nobody asks for it at once: 200 MB are here after 1.3 times the
        # time of reading them, not after 1.8.
        hasher.shutdown(wait=False)
    return replace(lora, name=lora.name if name is None else name, nbytes=header.size)


def outline(path: str | os.PathLike[str]) -> Lora:
    """Return the adapters of a file without their values: what `make_plan` needs to say where they would go.

    Only the header is read, and the adapter_config.json of a folder; tensors are on the meta device, numbers such as
    alpha are 1. Raises as `load_lora` does.
    """
    path = _weights_in(Path(path))
    with _costing_only(path), torch.inference_mode(False), torch.no_grad(), no_collection():
        header = read_header(path)
        return _made(path, header, Shapes(header.tensors), lambda: "")


@contextmanager
def _costing_only(path: Path) -> Iterator[None]:
    """Turn what nobody foresaw into a LoraFileError: whatever a file does to this torch, it costs that file alone."""
    try:
        yield
    except LoraError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise LoraFileError(f"{path}: cannot be read with torch {torch.__version__}: {what}") from error


def _made(path: Path, header: Header, tensors: Tensors | Shapes, hashed: Callable[[], str]) -> Lora:
    """Return the adapters of these tensors. Raises as `load_lora` does."""
    try:
        training, config = _training(path, header)
        training.check(len(header.tensors))
    except LoraFileError as error:
        raise LoraFileError(f"{path}: {error}") from None
    except ValueError as error:
        raise CorruptFileError(f"{path}: {error}") from error
    found = _Builder(tensors, training)
    found.build()
    if not (found.adapters or found.embeddings):
        raise _nothing_usable(path, found)
    return Lora(
        name=name_of(path),
        path=path,
        hashed=_with_config(hashed, config) if config else hashed,
        metadata=header.metadata,
        family=family(header),
        adapters=MappingProxyType(found.adapters),
        unused=MappingProxyType(found.unused),
        key_count=len(header.tensors) - sum(map(len, found.embeddings.values())),
        embeddings=MappingProxyType({name: MappingProxyType(keys) for name, keys in found.embeddings.items()}),
        configured=bool(config) or CONFIGURED in header.metadata,
    )


def _with_config(hashed: Callable[[], str], config: bytes) -> Callable[[], str]:
    """Return what gives the hash of a file and its configuration: with another alpha, a file is another change."""

    @cache
    def both() -> str:
        sha256 = hashed()
        return hashlib.sha256(sha256.encode() + config).hexdigest() if sha256 else ""

    return both


def _weights_in(path: Path) -> Path:
    """Return the file with the weights where the path is a folder that PEFT or MLX-LM has saved, else the path."""
    return next((inside for name in WEIGHTS_NAMES if (inside := path / name).is_file()), path)


def _training(path: Path, header: Header) -> tuple[Training, bytes]:
    """Return what is said about the training, and the bytes of the file beside this one that say it."""
    beside = path.with_name(CONFIG_NAME)
    if not beside.is_file() or not (path.name in WEIGHTS_NAMES or _was_renamed(path, header)):
        return read_training(header.metadata), b""
    try:
        with beside.open("rb") as file:
            raw = file.read(_LARGEST_CONFIG + 1)
    except OSError as error:
        raise ValueError(f"the {CONFIG_NAME} beside it cannot be read ({error.strerror})") from error
    if len(raw) > _LARGEST_CONFIG:
        raise ValueError(f"the {CONFIG_NAME} beside it is larger than {_LARGEST_CONFIG} bytes")
    return read_adapter_config(raw), raw


def _was_renamed(path: Path, header: Header) -> bool:
    """Return whether a file beside a configuration of PEFT is the one that it belongs to, under a name of its own.

    PEFT alone writes such keys, always with a configuration; of several files it would be a guess whose it is.
    """
    if not any(key.startswith(_OF_PEFT) for key in header.tensors):
        return False
    try:
        others = (each.suffix.lower() == SUFFIX and each.name != path.name for each in path.parent.iterdir())
        return not any(others)
    except OSError:
        return False


def _nothing_usable(path: Path, found: _Builder) -> LoraFileError:
    """Return the error for a file without a single adapter."""
    if not found.unused:
        return LoraFileError(f"{path}: holds no tensors")
    if not found.broken and (what := kind_of(found.unused)):
        return LoraFileError(f"{path}: this is {what}")
    # A key that is known says more: of FRoD, what all modules share has an ending of its own and comes first.
    telling = (item for item in found.unused.items() if item[1] != _UNKNOWN_ENDING)
    key, reason = next(telling, next(iter(found.unused.items())))
    rest = len(found.unused) - 1
    more = f" (and {rest} more key{'s' if rest > 1 else ''})" if rest else ""
    kind = CorruptFileError if found.broken else LoraFileError
    return kind(f"{path}: no adapter in it can be used: {shown(key)}{more}: {reason}")


# ---- keys -----------------------------------------------------------------------------------------------------------

_WRAPPED = ".base_layer"  # what PEFT calls the module inside of its own
_UNKNOWN_ENDING = "no adapter has keys with this ending"
_BUNDLED = "bundle_emb."  # "bundle_emb.NAME.KEY": textual inversions that OneTrainer puts into the file


@dataclass(slots=True)
class _Module:
    """The keys that a file has for one stem."""

    shared: dict[str, str] = field(default_factory=dict)  # "alpha", "scale", "reshape_weight" → key
    groups: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)  # (algorithm, spelling) → role → key
    pending: dict[str, Pending] = field(default_factory=dict)  # by key

    def supported(self) -> Iterator[str]:
        """Yield the keys of supported algorithms, and those that they share."""
        for roles in self.groups.values():
            yield from roles.values()
        yield from self.shared.values()

    def in_order(self) -> Iterable[tuple[tuple[str, str], dict[str, str]]]:
        """Return the groups in the order of ALGORITHMS: the order of the file's keys must not change a sum."""
        if len(self.groups) == 1:
            return self.groups.items()
        return sorted(self.groups.items(), key=lambda item: (_ORDER[item[0][0]], item[0][1]))


@dataclass
class _Builder:
    """Makes adapters of keys, and notes why a key is in none of them."""

    tensors: Tensors | Shapes
    training: Training
    adapters: dict[str, tuple[Adapter, ...]] = field(default_factory=dict)
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    # What all modules share: algorithm → role → key; and those of these keys that an adapter has, the first it is for.
    of_file: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # their tensors: algorithm → role → tensor
    reported: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)  # stems that are modules whose weight was named as a parameter
    experts: set[str] = field(default_factory=set)  # stems that are parameters with the weights of several experts
    broken: bool = False  # whether some tensors contradict each other

    def build(self) -> None:
        """Go through all keys."""
        modules = self._modules()
        for stem, module in modules.items():
            reason = None
            for key, kind in module.pending.items():
                self.unused[key] = kind.reason
                reason = f"left out, since alone it would be wrong: it belongs with {key} ({kind.algorithm})"
            if reason is not None:
                self.unused.update((key, reason) for key in module.supported())
                continue
            try:
                place = self._place(stem)
            except ValueError as error:
                self.unused.update((key, str(error)) for key in module.supported())
                continue
            built = self._build_module(place, module)
            if built:
                self.adapters[place] = built
        for name, roles in self.of_file.items():
            reason = f"shared by modules ({name}) of which the file has none that can be used"
            if _ALGORITHMS[name].way_out and all(name != kind for each in modules.values() for kind, _ in each.groups):
                reason += f": {_ALGORITHMS[name].way_out}"
            self.unused.update((key, reason) for key in roles.values() if key not in self.reported)

    def _place(self, stem: str) -> str:
        """Return the name of what a module's factors are for: the module, or one of its parameters.

        PEFT wraps a module once for each of them, the first innermost: "experts.base_layer" and "experts".
        """
        module, depth = stem, 0
        while module.endswith(_WRAPPED):
            module, depth = module[: -len(_WRAPPED)], depth + 1
        names = self.training.parameters_of(module)
        if not names:
            return stem
        if depth >= len(names):
            raise ValueError(f"one of more than the {len(names)} parameters of this module that its configuration has")
        name = names[len(names) - 1 - depth]
        if name == "weight":
            self.weights.add(module)
            return module
        place = f"{module}.{name}"
        self.experts.add(place)
        return place

    def _modules(self) -> dict[str, _Module]:
        modules: dict[str, _Module] = {}
        unknown = []
        shared: list[tuple[str, KeyParts, Algorithm]] = []
        for key in self.tensors.infos:
            parts = split_key(key)
            if key.startswith(_BUNDLED):
                self._add_embedding(key)
            elif parts is None:
                unknown.append(key)
            elif isinstance(parts.owner, Algorithm) and parts.role in parts.owner.of_file:
                shared.append((key, parts, parts.owner))
            else:
                self._add_key(key, parts, modules)
        for key, parts, owner in shared:  # PEFT's RandLoRA writes a copy for each module too
            if parts.stem in modules:
                self._add_key(key, parts, modules)
            else:
                self._take(self.of_file.setdefault(owner.name, {}), parts.role, key)
        for key in unknown:
            parts = companion(key)
            module = None if parts is None else modules.get(parts.stem)
            whole = replaced_parts(key) if self.training.replaces(key) else None
            if whole is not None:
                self._add_key(key, whole, modules)
            elif parts is None or module is None or (_name_of(parts), parts.spelling) not in module.groups:
                self.unused[key] = _UNKNOWN_ENDING
            else:
                self._add_key(key, parts, modules)
        return modules

    def _add_key(self, key: str, parts: KeyParts, modules: dict[str, _Module]) -> None:
        stem, role, spelling, owner = parts
        module = modules.get(stem)
        if module is None:
            module = modules[stem] = _Module()
        if owner is None:
            module.shared[role] = key
        elif isinstance(owner, Pending):
            module.pending[key] = owner
        else:
            roles = module.groups.get((owner.name, spelling))
            if roles is None:
                roles = module.groups[owner.name, spelling] = {}
            self._take(roles, role, key)

    def _take(self, roles: dict[str, str], role: str, key: str) -> None:
        """Give a role to a key; of two spellings of one tensor to the first by name, wherever the file has them."""
        other = roles.setdefault(role, key)
        if other != key:
            roles[role], late = sorted((other, key))
            self.unused[late] = f"the file has this tensor twice: {roles[role]}"

    def _add_embedding(self, key: str) -> None:
        name, _, inner = key[len(_BUNDLED) :].partition(".")
        try:
            if not (name and inner):
                raise ValueError("a bundled embedding without a name")
            tensor = self.tensors.finite(key)
            self.embeddings.setdefault(name, {})[inner] = tensor
        except ValueError as error:
            self.broken = True
            self.unused[key] = str(error)

    def _build_module(self, stem: str, module: _Module) -> tuple[Adapter, ...]:
        built: list[tuple[str, Adapter]] = []  # with the adapter's name in PEFT's keys
        rest = dict(module.shared)  # the first adapter that uses a number reports its key, all use it
        broken = False
        for (kind, spelling), roles in module.in_order():
            algorithm = _ALGORITHMS[kind]
            name = spelling.partition("/")[2]
            mine = [role for role in rest if role in algorithm.shared] if rest else []
            new = [key for key in self.of_file.get(kind, {}).values() if key not in self.reported]
            keys = (*roles.values(), *[rest[role] for role in mine], *new)
            wrapped = _to_wrap(built, name) if algorithm.wraps else []
            try:
                if algorithm.wraps and broken:
                    raise ValueError(f"{algorithm.name} around factors that cannot be used")
                inner = tuple([adapter for _, adapter in wrapped])
                made = algorithm.build(self._group(stem, module, algorithm, roles, keys, inner))
            except ValueError as error:
                broken = self.broken = True
                self.unused.update((key, str(error)) for key in roles.values())
                reason = f"left out, since alone it would be wrong: it belongs with {keys[0]} ({algorithm.name})"
                self.unused.update((key, reason) for _, adapter in wrapped for key in adapter.keys)
                made = ()
            else:
                for role in mine:
                    del rest[role]
                self.reported.update(new)
            if wrapped:
                built = [item for item in built if item not in wrapped]
            built += [(name, adapter) for adapter in made]
        for role, key in rest.items():
            self.unused[key] = f"{'an' if role == 'alpha' else 'a'} {role} without factors"
        return tuple([adapter for _, adapter in built])

    def _group(
        self,
        stem: str,
        module: _Module,
        algorithm: Algorithm,
        roles: Mapping[str, str],
        keys: tuple[str, ...],
        inner: tuple[Adapter, ...],
    ) -> Group:
        shared = {role: key for role, key in module.shared.items() if role in algorithm.shared}
        shape = {role: shared.pop(role) for role in ("reshape_weight",) if role in shared}
        tensors = {role: self.tensors.finite(key) for role, key in (*roles.items(), *shape.items())}
        numbers = {role: self._number(role, key) for role, key in shared.items()}
        alpha, rank_stabilised = numbers.get("alpha"), False
        if alpha is None and algorithm.configured:
            # PEFT matches its patterns with the name of what it wraps, which for target_parameters is the parameter's.
            trained = f"{stem}.weight" if stem in self.weights else stem
            alpha, rank_stabilised = self.training.alpha_of(trained)
        scale = numbers.get("scale")
        if scale is None and not algorithm.configured and "scale" in algorithm.shared:
            scale = self.training.scale_of(stem)
        file = self._file(algorithm.name)
        options, of_experts = self.training.options, stem in self.experts
        return Group(stem, tensors, keys, alpha, rank_stabilised, scale, roles, inner, options, file, of_experts)

    def _file(self, algorithm: str) -> Mapping[str, Tensor]:
        """Return the tensors that all modules of an algorithm share: the same objects for each of them."""
        if algorithm not in self.files:
            roles = self.of_file.get(algorithm, {})
            self.files[algorithm] = {role: self.tensors.finite(key) for role, key in roles.items()}
        return self.files[algorithm]

    def _number(self, role: str, key: str) -> float:
        tensor = self.tensors.finite(key)
        if tensor.numel() != 1:
            raise ValueError(f"{role} should be one number and has the shape {tuple(tensor.shape)}")
        number = float(tensor.item())
        if abs(number) > _LARGEST_NUMBER:
            raise ValueError(f"{role} is {number:g}, which no product in float32 can take")
        return number


def _name_of(parts: KeyParts) -> str:
    return parts.owner.name if isinstance(parts.owner, Algorithm) else ""


def _to_wrap(built: list[tuple[str, Adapter]], name: str) -> list[tuple[str, Adapter]]:
    """Return the adapters of the weight that one named `name` wraps: those of its name, or else all."""
    on_weight = [item for item in built if item[1].parameter == "weight"]
    return [item for item in on_weight if item[0] == name] or on_weight
