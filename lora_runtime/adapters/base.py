"""What an adapter is: a change Δ(W₀) of one weight, whichever algorithm it was trained with."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.forms import Factors, Form

__all__ = ["Adapter", "Algorithm", "Cast", "Dense", "Factors", "Group", "misfit_of", "no_autocast", "sum_dtype"]

Cast = Callable[[Tensor], Tensor]  # to the device and dtype of a computation


class Adapter(ABC):
    """A change of one weight, at strength 1."""

    algorithm: ClassVar[str]
    base_dependent: ClassVar[bool] = False  # whether Δ depends on W₀
    parameter: str = "weight"  # what of the module it changes: "weight" or "bias"

    needs_weight: bool = False  # of a bias: whether its Δ depends on the W₀ of the weight too, given with `given`

    keys: tuple[str, ...]  # the file's keys that it was made from
    rank: int  # 0 where the algorithm has none
    alpha: float | None
    scale: float  # alpha / rank, or 1 where there is no alpha

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """The shape of the weight that it was trained on, as far as its tensors tell; None where only a model does."""
        return None

    @abstractmethod
    def misfit(self, shape: torch.Size) -> str | None:
        """Return why this adapter cannot act on a weight of that shape, or None when it can."""

    def for_shape(self, shape: torch.Size) -> Adapter:
        """Return this adapter with tensors that only the shape of its weight tells, one that fits it; or itself."""
        return self

    @abstractmethod
    def factors(self) -> Factors | None:
        """Return the low-rank factors, or None when the delta is not of low rank."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """Return Δ(weight) in float32 (float64 for float64), the weight's shape and device. `weight` is the original.

        The dtype of `weight` does not matter.
        """

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return what the change of a weight of that shape is beside its layer, at strength 1: the sum of these.

        None where only a dense Δ can act. Tensors are those of the file, or come in the dtype and on the device of
        `cast`; `original` returns W₀, at a cost, for what cannot do without it.
        """
        factors = self.factors()
        return None if factors is None else (factors,)

    def products(self, cast: Cast) -> Factors | None:
        """Return factors of the whole change that cost a merge less than `delta`, or None; never a choice of ranks."""
        return None

    def given(self, originals: tuple[Tensor, ...]) -> Adapter:
        """Return this adapter with the originals of other parameters that its Δ depends on, or itself."""
        return self

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that it was made of, in shapes and dtypes of the file's, each once.

        Not to be asked of one that was `given` originals: they would be among them.
        """
        found: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            found[id(tensor)] = tensor
            return tensor

        _with_tensors(self, note)
        return tuple(found.values())

    def on(self, copies: Mapping[int, Tensor]) -> Adapter:
        """Return this adapter with other tensors of the same values, by the id of each that they stand for."""
        moved: Adapter = _with_tensors(self, lambda tensor: copies.get(id(tensor), tensor))
        return moved


class Dense(Adapter):
    """An adapter whose delta is not of low rank: its formula is in `change`."""

    # What an algorithm without these numbers leaves as it is.
    rank: int = 0
    alpha: float | None = None
    scale: float = 1.0

    def factors(self) -> None:
        """Return None: there are no factors."""
        return

    def delta(self, weight: Tensor) -> Tensor:
        """Return Δ(weight) in float32 (float64 for float64), in the shape and on the device of `weight`."""
        dtype = sum_dtype(weight)
        # Inside autocast a float32 product would be rounded to bfloat16.
        with no_autocast(weight.device):
            return self.change(weight, lambda tensor: tensor.to(weight.device, dtype)).reshape(weight.shape)

    @abstractmethod
    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return Δ(weight), in any shape with the weight's elements in order.

        `cast` brings a tensor to the device and dtype of the computation; `weight` comes uncast.
        """


@dataclass(frozen=True, eq=False)
class Group:
    """The tensors of one algorithm on one module, as an algorithm's `build` gets them."""

    stem: str
    tensors: Mapping[str, Tensor]  # by role, such as "up" and "down"
    keys: tuple[str, ...]  # all of the file's keys that belong to the group
    alpha: float | None = None
    rank_stabilised: bool = False  # rsLoRA: scale = alpha / √rank
    scale: float | None = None  # said by a key of its own, it goes before alpha / rank
    key_of: Mapping[str, str] = field(default_factory=dict)  # role → key
    inner: tuple[Adapter, ...] = ()  # what an algorithm that `wraps` has to wrap
    # Settings that only PEFT's configuration has, by its names; empty where there is none.
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Mapping[str, Tensor] = field(default_factory=dict)  # what the file has once for all modules, by role
    of_experts: bool = False  # whether the stem is a parameter that has the weights of several experts

    def scale_for(self, rank: int) -> float:
        """Return what a product of that rank is multiplied by; rank 0 gives 0, and no division."""
        if self.scale is not None:
            return self.scale
        if self.alpha is None:
            return 1.0
        if rank == 0:
            return 0.0
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def need(self, *roles: str) -> list[Tensor]:
        """Return the tensors of these roles; ValueError names those that are missing."""
        missing = [role for role in roles if role not in self.tensors]
        if missing:
            raise ValueError(f"{' and '.join(self.tensors)} without {' and '.join(missing)}")
        return [self.tensors[role] for role in roles]

    def of_file(self, *roles: str) -> list[Tensor]:
        """Return tensors that all modules share, or the module's own copies; ValueError names what is missing."""
        found = {**self.file, **self.tensors}
        missing = [role for role in roles if role not in found]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)}, which its modules share, is not in the file: save it again with all that "
                "PEFT can save (save_projection)"
            )
        return [found[role] for role in roles]

    def shapes(self) -> str:
        """Return the roles and shapes of all tensors, for a reason."""
        return ", ".join(f"{role} {tuple(self.tensors[role].shape)}" for role in sorted(self.tensors))


@dataclass(frozen=True)
class Algorithm:
    """One family of adapters: the key endings that it owns, and how adapters are built from them."""

    name: str
    endings: Mapping[str, str]  # ".lora_up.weight" → "kohya/up": spelling and role
    build: Callable[[Group], Sequence[Adapter]]  # raises ValueError with the reason when the tensors do not fit
    # Endings too common to own: they count only beside a key of `endings` with the same stem.
    companions: Mapping[str, str] = field(default_factory=dict)
    # Which it uses of what a module has once, whatever the spelling of the rest: two numbers and a shape.
    shared: tuple[str, ...] = ("alpha", "scale")
    configured: bool = False  # whether an alpha that only the metadata has (PEFT's LoraConfig) is meant for it
    wraps: bool = False  # it is built last, of the other adapters of the module's weight, and takes their place
    # Roles of tensors that the file has once for all modules, under a name that is no module's.
    of_file: frozenset[str] = frozenset()
    way_out: str = ""  # what to do about a file that has these and nothing of any module, where that is known
    # What an ending tells of the module's own name, which the stem then ends with: ".diff_m" → ".modulation".
    tails: Mapping[str, str] = field(default_factory=dict)


def _with_tensors(value: Any, other: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with `other` in place of each tensor in it, within tuples and dataclasses; the same if none is."""
    if isinstance(value, Tensor):
        return other(value)
    if isinstance(value, tuple):
        inner = [_with_tensors(each, other) for each in value]
        return value if all(map(operator.is_, inner, value)) else tuple(inner)
    if is_dataclass(value) and not isinstance(value, type):
        now = {each.name: getattr(value, each.name) for each in fields(value)}
        then = {name: _with_tensors(each, other) for name, each in now.items()}
        changed = {name: each for name, each in then.items() if each is not now[name]}
        return replace(value, **changed) if changed else value
    return value


def misfit_of(made_for: tuple[int, ...], shape: torch.Size, what: str = "weight", *, least: int = 1) -> str | None:
    """Return None where a delta of shape `made_for` changes a tensor of `shape`, else a reason with both.

    Files store a linear layer as a 1×1 convolution and the other way round, and the kernel of a convolution
    flattened, so what counts is the shape without trailing ones, or the size of the flattened side. `least` is the
    number of dimensions that the tensor has at least.
    """
    flat_fits = len(made_for) == 2 and made_for[:1] == shape[:1] and made_for[1] == math.prod(shape[1:])
    if len(shape) >= least and (flat_fits or _trim(made_for) == _trim(shape)):
        return None
    return f"made for {made_for}, the {what} is {tuple(shape)}"


def _trim(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape without its trailing ones; the first dimension stays."""
    length = len(shape)
    while length > 1 and shape[length - 1] == 1:
        length -= 1
    return tuple(shape[:length])


def sum_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype that deltas of this weight are computed in."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products on `device` are not rounded to half precision, whatever the caller's is."""
    try:
        return torch.autocast(device.type, enabled=False) if _may_autocast(device.type) else nullcontext()
    except (RuntimeError, AssertionError, AttributeError):  # a device without autocast: MPS before torch 2.5, others
        return nullcontext()


def _may_autocast(kind: str) -> bool:
    """Return whether autocast may be on for a kind of device; an idle torch.autocast took 10 % of a small merge."""
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # torch before 2.4 tells it of CUDA alone
        return True
