"""merge: several LoRAs into one file that does what they do together.

sum          Σ sᵢ·Δᵢ, exact: the ranks add up, and nothing is lost unless a rank or an energy is asked for
svd          the same, cut to the greatest rank that one of the files has for the module
orthogonal   each file without what it shares with those before it, exact too
ties, dare, della   chosen elements of each Δ; what they make has no low rank, so a rank or an energy is needed
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from lora_runtime.errors import LoraFileError
from lora_runtime.requests import Request
from lora_runtime.workbench.base_model import open_model
from lora_runtime.workbench.changes import Change
from lora_runtime.workbench.devices import device_named
from lora_runtime.workbench.differences import Difference
from lora_runtime.workbench.draft import ZERO, Draft, dtype_named, embedding_keys, says_its_scale
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.low_rank import Product, concatenated, energy_of, spectrum_of
from lora_runtime.workbench.matching import Module, Part, check_families, matched_modules
from lora_runtime.workbench.methods import DENSE, Settings, orthogonalised
from lora_runtime.workbench.parallel import in_order
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sizes import Limit, limit_of, spectrum_within
from lora_runtime.workbench.sources import Source, asked_of, idle_of, read_sources
from lora_runtime.workbench.spelling import has_alpha
from lora_runtime.workbench.writing import check_free

__all__ = ["METHODS", "merge"]

Method = Literal["sum", "svd", "orthogonal", "ties", "dare", "della"]
METHODS: tuple[Method, ...] = get_args(Method)
_AS_IT_IS = "of one file at strength 1"
_ASKED_FOR_NOTHING = "its strength is 0"
_WHOLE = (
    "of no low rank, and so kept as whole differences (.diff), which the WebUI and this library read, and "
    "diffusers and PEFT do not: give a rank or an energy"
)


def merge(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    *,
    method: Method = "sum",
    rank: int | None = None,
    energy: float | None = None,
    density: float = 0.5,
    epsilon: float = 0.1,
    seed: int = 0,
    model: str | os.PathLike[str] | None = None,
    loras: Sequence[str | os.PathLike[str]] | None = None,
    dtype: str | torch.dtype | None = None,
    exact: bool = False,
    device: str | torch.device | None = None,
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write one LoRA that does what `sources` do together to `out`, and return what was kept.

    `sources`: files with strengths and block weights ("ink.safetensors:0.7@IN=0"), prompts with tags, or Requests; a
    prompt's names are looked up in the folders `loras`. `rank` and `energy` (the share of ‖Δ‖², from 0 to 1) cut each
    module; without them the ranks add up. `density`, `epsilon` and `seed` are those of ties, dare and della. `model`: a
    folder of diffusers or a checkpoint; needed where a change depends on its weights (DoRA, OFT …), and wherever it is
    given, modules are matched by their places in it, whatever the files call them. `exact`: full SVDs of what has no
    low rank, in place of sketches. `device`: where factorisations are made, in float32; the CPU in float64 unless
    given. `dtype`: float32, float16 or bfloat16; that of the files unless given.

    Raises ValueError where arguments do not go together; LoraFileError where a file cannot be read, written, or merged;
    TagSyntaxError and CatalogError for a source that cannot be read or found.
    """
    if method not in METHODS:
        raise ValueError(f"method {method}: give one of {', '.join(METHODS)}")
    limit = limit_of(rank, energy, several=True)
    if method in DENSE and not limit.cuts:
        raise ValueError(
            f"{method} chooses elements of ΔW, so that the result has no low rank: give a rank or an energy"
        )
    settings = _checked(Settings(density, epsilon, seed), method)
    path, wanted = check_free(out, force=force), dtype_named(dtype)
    requests, said = read_sources(sources, loras)
    if not requests:
        raise ValueError("there is nothing to merge: give at least one file")
    base = None if model is None else open_model(model)
    check_families(requests)
    place = device_named(device)
    making = _Making(Draft(wanted), method, limit, settings, exact, place)
    modules = matched_modules(requests, base)
    for _, add in zip(
        steps(modules, "merge", show=progress), in_order(making.prepared, modules, alone=place is not None), strict=True
    ):
        add()
    _add_the_rest(making.draft, requests, copied=_is_a_copy(requests, making))
    options = {"method": method, **{name: v for name, v in (("rank", rank), ("energy", energy)) if v is not None}}
    if method in DENSE:
        options |= {"density": density, "seed": seed} | ({"epsilon": epsilon} if method == "della" else {})
    making.draft.tally.notes.extend([*said, *idle_of(requests, base), *making.notes()])
    return making.draft.write(path, [(request.lora, asked_of(request)) for request in requests], "merge", options)


def _checked(settings: Settings, method: str) -> Settings:
    density, epsilon = settings.density, settings.epsilon
    if not 0 < density <= 1:
        raise ValueError(f"density {density:g}: give the share of elements to keep, above 0 and at most 1")
    if method == "della" and not 0 <= epsilon / 2 <= min(density, 1 - density):
        raise ValueError(f"epsilon {epsilon:g}: with density {density:g} chances would leave the range from 0 to 1")
    return settings


# ---- one module -----------------------------------------------------------------------------------------------------


Add = Callable[[], None]
"""Adds what was computed of one parameter to the draft."""
Terms = Sequence[tuple[float, Product]]


@dataclass
class _Making:
    draft: Draft
    method: Method
    limit: Limit
    settings: Settings
    exact: bool
    device: torch.device | None
    whole: int = 0  # weights kept as whole differences
    # Of orthogonal: what each file has of ‖Δ‖², by itself and beside those before it.
    before: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def prepared(self, module: Module) -> Add:
        """Compute what the files do together to one parameter; return what adds it to the draft.

        The computing may be done on any thread, and changes nothing here.
        """
        first = module.parts[0].change
        if (reason := first.misplaced()) is not None:
            return partial(self.draft.tally.drop, first.stem, 0.0, reason)
        parts = [part for part in module.parts if part.strength != 0]
        if not parts:
            return partial(self.draft.tally.drop, first.stem, 0.0, _ASKED_FOR_NOTHING)
        _check_shapes(parts)
        if self._is_taken_over(parts):
            change = parts[0].change
            product = change.product() if change.is_plain else None
            size = 0.0 if product is None else energy_of(product)
            return partial(self.draft.copy_module, change.lora, change.stem, change.adapters, size, _AS_IT_IS)
        if self.method in DENSE:
            names = [f"{part.request.lora.sha256} {first.stem} {first.parameter}" for part in parts]
            deltas, strengths = [_dense(part, first.shape()) for part in parts], [part.strength for part in parts]
            return self._of_dense(first, DENSE[self.method](deltas, strengths, names, self.settings), self.limit)
        terms = [part.change.terms(part.request.dyn) for part in parts]
        own = [each for each in terms if each is not None]
        if len(own) == len(parts):
            return self._of_products(first, parts, own)
        several = len(parts) > 1 and first.parameter == "weight" and len(first.shape()) > 1
        if self.method == "orthogonal" and several:
            raise LoraFileError(
                f"{first.lora.path}: {first.stem} ({', '.join(part.change.algorithms for part in parts)}): "
                "orthogonal takes products of two factors; make them of all files with to-lora first"
            )
        total = torch.stack([_dense(part, first.shape()) * part.strength for part in parts]).sum(0)
        return self._of_dense(first, total, self._limit_for([a.rank for p in parts for a in p.change.adapters]))

    def _is_taken_over(self, parts: Sequence[Part]) -> bool:
        """Return whether the tensors of the one file can be those of the new one, bit for bit."""
        if len(parts) > 1 or self.limit.cuts or self.method in DENSE:
            return False
        (part,) = parts
        if part.strength != 1 or part.request.dyn is not None:
            return False
        # What settings beside the tensors say of them is not in the new file.
        return not part.change.lora.configured or all(map(says_its_scale, part.change.adapters))

    def _limit_for(self, ranks: Sequence[int]) -> Limit:
        """Return the limit; of svd without one, the greatest rank of the files."""
        if self.method == "svd" and not self.limit.cuts and max(ranks) > 0:
            return Limit(rank=max(ranks))
        return self.limit

    def _of_products(self, first: Change, parts: Sequence[Part], own: Sequence[Terms]) -> Add:
        limit = self._limit_for([sum(product.rank for _, product in each) for each in own])
        if self.method == "orthogonal":
            products = [concatenated(terms) for terms in own]
            apart = orthogonalised(products)
            counts = [
                (part.request.lora.name, energy_of(product), energy_of(rest))
                for part, product, rest in zip(parts, products, apart, strict=True)
            ]
            add = self._of_terms(first, [(part.strength, rest) for part, rest in zip(parts, apart, strict=True)], limit)
            return partial(self._add_apart, counts, add)
        terms = [
            (part.strength * scale, each) for part, several in zip(parts, own, strict=True) for scale, each in several
        ]
        return self._of_terms(first, terms, limit)

    def _of_terms(self, first: Change, terms: Terms, limit: Limit) -> Add:
        path, stem, adapters, shape = first.lora.path, first.stem, first.adapters, first.shape()
        whole = concatenated(terms)
        if limit.energy is not None or (limit.rank is not None and limit.rank < whole.rank):
            spectrum = spectrum_of(whole, self.device)
            if spectrum.energy > 0:
                cut = spectrum.cut(limit.of(spectrum.values, spectrum.energy))
                return partial(self.draft.factors, path, stem, adapters, cut, shape, spectrum.energy)
        if not (bool(whole.up.any()) and bool(whole.down.any())):
            return partial(self.draft.tally.drop, stem, 0.0, ZERO)
        scale, energy = 1.0, energy_of(whole)
        if len({abs(factor) for factor, _ in terms}) == 1 and has_alpha(stem, adapters):
            # The factors stay bit for bit, and alpha says the scale.
            scale = abs(terms[0][0])
            whole = concatenated([(factor / scale, product) for factor, product in terms])
        return partial(self.draft.factors, path, stem, adapters, whole, shape, energy, scale)

    def _add_apart(self, counts: Sequence[tuple[str, float, float]], add: Add) -> None:
        for name, before, left in counts:
            self.before[name] += before  # type: ignore[assignment]
            self.left[name] += left  # type: ignore[assignment]
        add()

    def _of_dense(self, first: Change, total: Tensor, limit: Limit) -> Add:
        path, stem, adapters = first.lora.path, first.stem, first.adapters
        if not bool(total.any()):
            return partial(self.draft.tally.drop, stem, 0.0, ZERO)
        matrix = first.parameter == "weight" and total.ndim > 1
        if matrix and limit.cuts:
            spectrum = spectrum_within(Difference(total.flatten(1), device=self.device), limit, exact=self.exact)
            cut = spectrum.cut(limit.of(spectrum.values, spectrum.energy))
            return partial(self.draft.factors, path, stem, adapters, cut, total.shape, spectrum.energy)
        return partial(self._add_whole, first, total, matrix)

    def _add_whole(self, first: Change, total: Tensor, matrix: bool) -> None:
        self.whole += matrix
        self.draft.difference(first.lora.path, first.stem, first.parameter, first.adapters, total)

    def notes(self) -> Iterator[str]:
        """Yield what is worth knowing of the whole."""
        if self.whole:
            yield f"{self.whole:,} modules are {_WHOLE}"
        for name, size in self.before.items():
            if size > 0:
                yield f"{name}: {self.left[name] / size:.1%} of its ‖Δ‖² is left beside the files before it"


def _dense(part: Part, shape: torch.Size) -> Tensor:
    """Return Δ in the shape that the first file has for the module, with the ranks that `dyn` leaves."""
    dyn = part.request.dyn
    if dyn is not None and (terms := part.change.terms(dyn)) is not None:
        whole = concatenated(terms)
        return (whole.up @ whole.down).reshape(shape)
    return part.change.dense().reshape(shape)


def _check_shapes(parts: Sequence[Part]) -> None:
    """Check that all files mean weights of one shape, flat or not."""
    first = parts[0].change.shape() if len(parts) > 1 else torch.Size()
    for part in parts[1:]:
        own = part.change.shape()
        if (own[:1], own.numel()) != (first[:1], first.numel()):
            raise LoraFileError(
                f"{part.change.lora.path}: {part.change.stem} is for {tuple(own)}, and for {tuple(first)} in "
                f"{parts[0].change.lora.path}: the files are for different models"
            )


# ---- what is no module ----------------------------------------------------------------------------------------------


def _add_the_rest(draft: Draft, requests: Sequence[Request], *, copied: bool) -> None:
    """Take embeddings over; and of one file that is copied, what is not understood too."""
    for lora in dict.fromkeys(request.lora for request in requests):
        draft.copy(lora, embedding_keys(lora))
        if copied:
            draft.copy(lora, [*lora.unused])
        else:
            draft.tally.left_out.update(lora.unused)


def _is_a_copy(requests: Sequence[Request], making: _Making) -> bool:
    return len(requests) == 1 and set(making.draft.tally.unchanged) == {_AS_IT_IS} and not making.draft.tally.left_out
