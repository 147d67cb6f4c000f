"""doctor: what is odd about a file, before it is used.

A finding is an error where something is lost or broken, a warning where it is likely not what was meant, and a note
where a person may want to know.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_runtime.adapters import LowRank
from lora_runtime.dialects import component_of
from lora_runtime.errors import LoraFileError
from lora_runtime.folder import SUFFIX
from lora_runtime.header import Header, hashes, read_header
from lora_runtime.lora import Lora, load_lora
from lora_runtime.workbench.base_model import open_model
from lora_runtime.workbench.changes import Change, changes_of
from lora_runtime.workbench.low_rank import significant, spectrum_of
from lora_runtime.workbench.progress import steps

__all__ = ["Diagnosis", "Finding", "doctor"]

Severity = Literal["error", "warning", "note"]
_FAR = 30.0  # times the median norm of the component: what training gives stays within a factor of ten


@dataclass(frozen=True)
class Finding:
    """One thing that is odd: `where` has the keys, modules or files that it is about."""

    severity: Severity
    what: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What was found; `modules` is how many were looked at, `norm` the Frobenius norm ‖Δ‖ of all that have factors."""

    path: Path
    modules: int
    norm: float
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "note" for finding in self.findings)


def doctor(
    file: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Return what is odd about a LoRA file.

    Looked for are keys that no adapter can use (NaN among the reasons), alphas that are missing, zero or negative,
    changes that are exactly zero, norms more than 30 times the median of their component or less than a 30th, ranks
    that are not used or not what the metadata say, and files in `folder` (that of the file unless given) with the same
    tensors. With a `model`, a folder of diffusers or a checkpoint, also names and shapes that it does not have.

    Raises LoraFileError where the file, or the model, cannot be read at all.
    """
    lora = load_lora(file)
    header = read_header(lora.path)
    changes = [*changes_of(lora)]
    findings = [*_unused(lora), *_alphas(lora)]
    norms: dict[str, float] = {}
    idle: list[str] = []
    for change in steps([c for c in changes if c.is_plain], "doctor", show=progress):
        product = change.product()
        assert product is not None, change.stem
        spectrum = spectrum_of(product)
        norms[change.stem] = math.sqrt(spectrum.energy)
        if 0 < significant(spectrum) < min(product.rank, product.up.shape[0], product.down.shape[1]):
            idle.append(change.stem)
    findings += [*_norms(norms), *_ranks(lora, header, changes, idle)]
    others = sorted({change.algorithms for change in changes if change.parameter == "weight" and not change.is_plain})
    if others:
        findings.append(Finding("note", f"norms and ranks of {', '.join(others)} were not looked at: no factors"))
    findings += _duplicates(lora.path, header, Path(folder) if folder is not None else lora.path.parent)
    if model is not None:
        findings += _places(lora, model)
    norm = math.sqrt(sum(norm * norm for norm in norms.values()))
    return Diagnosis(lora.path, len(lora.adapters), norm, tuple(findings))


def _unused(lora: Lora) -> Iterator[Finding]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for key, reason in lora.unused.items():
        # The reason names the key, and would be another for each.
        reasons["NaN or infinity" if reason.endswith("has NaN or infinity in it") else reason].append(key)
    for reason, keys in reasons.items():
        yield Finding("error", f"cannot be used: {reason}", tuple(keys))


def _alphas(lora: Lora) -> Iterator[Finding]:
    low_rank = [(s, a) for s, adapters in lora.adapters.items() for a in adapters if isinstance(a, LowRank)]
    missing = tuple(stem for stem, adapter in low_rank if adapter.alpha is None and adapter.scale == 1)
    if missing and len(missing) < len(low_rank):
        yield Finding("warning", "has no alpha, where other modules of the file have one: its scale is 1", missing)
    elif missing:
        yield Finding("note", "no module has an alpha: all scales are 1", missing)
    if zero := tuple(stem for stem, adapter in low_rank if adapter.alpha == 0):
        yield Finding("error", "its alpha is 0, so that it changes nothing", zero)
    if negative := tuple(stem for stem, adapter in low_rank if (adapter.alpha or 0) < 0):
        yield Finding("warning", "its alpha is negative, so that it acts against what was trained", negative)


def _norms(norms: dict[str, float]) -> Iterator[Finding]:
    if zero := tuple(stem for stem, norm in norms.items() if norm == 0):
        yield Finding("warning", "its change is exactly zero", zero)
    by_component: dict[str, list[str]] = defaultdict(list)
    for stem, norm in norms.items():
        if norm > 0:
            by_component[component_of(stem) or ""].append(stem)
    for stems in by_component.values():
        median = statistics.median(norms[stem] for stem in stems)
        if large := tuple(stem for stem in stems if norms[stem] > _FAR * median):
            yield Finding("warning", f"its ‖Δ‖ is more than {_FAR:g} times the median of {median:.3g}", large)
        if small := tuple(stem for stem in stems if norms[stem] * _FAR < median):
            yield Finding("note", f"its ‖Δ‖ is less than a {_FAR:g}th of the median of {median:.3g}", small)


def _ranks(lora: Lora, header: Header, changes: Sequence[Change], idle: Sequence[str]) -> Iterator[Finding]:
    if idle:
        yield Finding("note", "some of its ranks are not used: resize would lose nothing", tuple(idle))
    said = header.metadata.get("ss_network_dim", "")
    ranks = {adapter.rank for change in changes if change.is_plain for adapter in change.adapters}
    if said.isdecimal() and ranks and int(said) not in ranks:
        found = ", ".join(map(str, sorted(ranks)))
        yield Finding("warning", f"its metadata say rank {said} (ss_network_dim), and its tensors have {found}")
    if lora.family == "unknown":
        yield Finding("note", "neither its metadata nor its keys tell what model it is for")


def _duplicates(path: Path, header: Header, folder: Path) -> Iterator[Finding]:
    """Yield a finding for files of the same tensors; only those of the same count of bytes are read."""
    size = _bytes(header)
    same, own = [], ""
    for other in sorted(each for each in folder.iterdir() if each.suffix.lower() == SUFFIX):
        try:
            if other.samefile(path) or _bytes(read_header(other)) != size:
                continue
            own = own or hashes(path).sha256_of_tensors
            if hashes(other).sha256_of_tensors == own:
                same.append(other.name)
        except (LoraFileError, OSError):
            continue  # whatever it is, it is no copy that could be used
    if same:
        yield Finding("warning", "has the same tensors under another name", tuple(same))


def _bytes(header: Header) -> int:
    return sum(info.end - info.begin for info in header.tensors.values())


def _places(lora: Lora, path: str | os.PathLike[str]) -> Iterator[Finding]:
    model = open_model(path)
    reasons: dict[str, list[str]] = defaultdict(list)
    for change in changes_of(lora):
        if model.place(change.stem) is None:
            reasons[model.reason(change.stem)].append(change.stem)
            continue
        shape = model.shape(change.stem, change.parameter)
        if shape is None:
            reasons[f"for a {change.parameter} that this module does not have"].append(change.stem)
            continue
        misfit = next((found for adapter in change.adapters if (found := adapter.misfit(shape)) is not None), None)
        if misfit is not None:
            reasons[misfit].append(change.stem)
    for reason, stems in reasons.items():
        yield Finding("error", f"has no place in {model}: {reason}", tuple(dict.fromkeys(stems)))
