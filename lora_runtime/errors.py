"""Everything that can go wrong, one class for each thing a caller can do about it.

    LoraError
    ├── TagSyntaxError          a tag in the prompt cannot be read: correct the prompt
    ├── CatalogError            a name leads to no single file
    │   ├── UnknownLoraError        nothing has that name: choose one of the nearest
    │   └── AmbiguousLoraError      several files have it: write the path or the hash
    ├── LoraFileError           a file cannot be used
    │   ├── RefusedFileError        a format that could run code when read: convert it
    │   └── CorruptFileError        not valid safetensors, or its tensors contradict each other
    ├── ModelError              the model cannot be patched as it is now
    │   ├── ModelBusyError          somebody else has it: wait longer, or leave that block earlier
    │   └── NoMatchError            no key of the file belongs to this model: another file or model
    ├── MemoryBudgetError       what is asked takes more memory than is allowed: allow more, or ask for less
    ├── StrengthError           a changed weight is beyond what its dtype can hold: a lower strength
    ├── RegionError             a mask cannot be used: another file, or a box
    └── TrainingError           a training cannot begin or go on as it is asked for: other numbers, or other pictures

Messages say what happened, to what, why, and what to do next, in one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_runtime.prompt.tags import Diagnostic

__all__ = [
    "AmbiguousLoraError",
    "CatalogError",
    "CorruptFileError",
    "LoraError",
    "LoraFileError",
    "MemoryBudgetError",
    "ModelBusyError",
    "ModelError",
    "NoMatchError",
    "RefusedFileError",
    "RegionError",
    "StrengthError",
    "TagSyntaxError",
    "TrainingError",
    "UnknownLoraError",
]


class LoraError(Exception):
    """The root of this library's errors."""


class TagSyntaxError(LoraError):
    """A tag in the prompt cannot be read; `.diagnostic` says where and why."""

    def __init__(self, message: str, diagnostic: Diagnostic) -> None:
        super().__init__(message)
        self.diagnostic = diagnostic


class CatalogError(LoraError):
    """A name leads to no single file; `.name` is the name as written, `.candidates` what comes near."""

    def __init__(self, message: str, name: str = "", candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.candidates = candidates


class UnknownLoraError(CatalogError):
    """No file has that name."""


class AmbiguousLoraError(CatalogError):
    """Several files have that name."""


class LoraFileError(LoraError):
    """A file cannot be used."""


class RefusedFileError(LoraFileError):
    """A file in a format that can run code when it is read (.pt, .ckpt, .bin): never opened."""


class CorruptFileError(LoraFileError):
    """A file that is not valid safetensors, or whose tensors do not fit together."""


class ModelError(LoraError):
    """The model cannot be loaded or patched as it is; `.sha256`: of the file that alone asks for what fails, or ""."""

    def __init__(self, message: str, sha256: str = "") -> None:
        super().__init__(message)
        self.sha256 = sha256


class ModelBusyError(ModelError):
    """Somebody else has the model, or a part of it; the message names who."""


class NoMatchError(ModelError):
    """No key of a file belongs to this model."""


class MemoryBudgetError(LoraError):
    """What is asked takes more memory than the caller allows."""


class StrengthError(LoraError):
    """A weight with its changes is beyond what its dtype can hold; `.sha256` is of the file that changes it most."""

    def __init__(self, message: str, sha256: str = "") -> None:
        super().__init__(message)
        self.sha256 = sha256


class RegionError(LoraError):
    """The region of a tag cannot be made out."""


class TrainingError(LoraError):
    """A training cannot begin or go on as it is asked for."""
