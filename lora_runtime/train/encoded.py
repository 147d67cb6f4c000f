"""What the autoencoder and the text encoders made of pictures and captions, kept so that it is computed once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lora_runtime.errors import TrainingError
from lora_runtime.train.buckets import Placed
from lora_runtime.train.folders import Picture, sha256_of

__all__ = ["Encoded", "key_of"]


def key_of(picture: Picture, placed: Placed, flipped: bool, model_id: str) -> str:
    """Return the name of what a model makes of a picture: 64 hex digits, from its bytes, its place and the model.

    `model_id` says all that the result depends on beside the picture: the autoencoder's weights and its dtype.
    """
    digest = picture.sha256 or sha256_of(picture.path)
    said = [digest, placed.bucket, placed.resized, placed.crop, flipped, model_id]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class Encoded:
    """Tensors by key: in memory, or each key's as one safetensors file of a folder, which later runs find again.

    Tensors are on the CPU and contiguous, whatever was computed: the same from memory and from disk, to the bit. Nobody
    may write into them. A file that cannot be read is made anew. Where none can be written (a full disk), the tensors
    stay in memory and the run goes on; `problem` says it, else it is "".
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problem = ""
        self._kept: dict[str, dict[str, Tensor]] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"{folder}: no folder for what is encoded ({error.strerror or error})") from error

    def get(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a key, from `compute` where they are not there yet."""
        if key in self._kept:
            return self._kept[key]
        if self.folder is None:
            return self._kept.setdefault(key, _own(compute()))
        path = self.folder / f"{key}.safetensors"
        try:
            found: dict[str, Tensor] = load(path.read_bytes())
            return found
        except (OSError, SafetensorError, ValueError):
            tensors = _own(compute())
        try:
            _write(path, save(tensors))
        except OSError as error:
            self.problem = f"{path}: cannot be written ({error.strerror or error}); kept in memory instead"
            self._kept[key] = tensors
        return tensors


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory with those of a whole batch, which would live as long as they."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _write(path: Path, raw: bytes) -> None:
    """Write a file only whole: what is broken off leaves no part of it under its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
