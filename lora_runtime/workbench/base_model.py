"""A base model on disk: a folder of diffusers or one checkpoint, its weights read one at a time by LoRA files' names.

Modules are made from the names in the headers alone, so no config and no class of the model is needed: each parameter
has its shape and dtype, and one element of memory.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.dialects import DENOISERS, Part
from lora_runtime.errors import LoraFileError
from lora_runtime.folder import SUFFIX
from lora_runtime.header import Header, TensorInfo, read_header
from lora_runtime.merge import region_of, rows_of
from lora_runtime.pipelines import ModelView, view
from lora_runtime.targets import Target, Targets
from lora_runtime.tensors import DTYPES, read_one
from lora_runtime.workbench.codes import Codes, codes_in

__all__ = ["BaseModel", "Model", "Stored", "open_model", "weights_of"]

_PLAIN_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies on the disk, and its name there; with `codes` it is what these stand for."""

    path: Path
    key: str
    info: TensorInfo
    codes: Codes | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of what is read."""
        return torch.Size(self.info.shape) if self.codes is None else self.codes.shape

    def read(self) -> Tensor:
        """Return the tensor, of codes float32."""
        return read_one(self.path, self.info) if self.codes is None else self.codes.values()


class Model(ABC):
    """The weights of a model, by the names that LoRA files have for its modules.

    `whole`: whether it is all of a model, so that what has no place in it changes nothing.
    """

    whole = False

    def __init__(self, looked_at: ModelView, targets: Targets) -> None:
        self.view = looked_at
        self.targets = targets

    def __str__(self) -> str:
        """Return what people call it."""
        return self.view.description

    @abstractmethod
    def sizes(self, place: Target, name: str) -> torch.Size | None:
        """Return the shape of a parameter of a place's module, dequantised; None where it has none of that name."""

    @abstractmethod
    def value(self, place: Target, name: str) -> Tensor | None:
        """Return W₀ of a parameter that has a shape, on the CPU; None where nobody can tell it."""

    def place(self, stem: str) -> str | None:
        """Return what a file's name for a module means here, "unet.down_blocks.0…", or None."""
        target = self.targets.find(stem)
        return None if target is None else str(target)

    def reason(self, stem: str) -> str:
        """Return why a name means nothing here."""
        return self.targets.reason(stem)

    def shape(self, stem: str, parameter: str = "weight") -> torch.Size | None:
        """Return the shape of a weight or bias as files have it, or None where there is none of that name."""
        shapes = [
            region_of(torch.empty(shape, device="meta"), part).shape for _, _, shape, part in self._of(stem, parameter)
        ]
        return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:])) if shapes else None

    def read(self, stem: str, parameter: str = "weight") -> Tensor | None:
        """Return a weight or bias as files have it, several of the model's one below the other, or None."""
        values = [(self.value(place, name), part) for place, name, _, part in self._of(stem, parameter)]
        pieces = [rows_of(value, part) for value, part in values if value is not None]
        return torch.cat(pieces) if pieces and len(pieces) == len(values) else None

    def _of(self, stem: str, parameter: str) -> Iterator[tuple[Target, str, torch.Size, Part]]:
        target = self.targets.find(stem)
        for place in () if target is None else target.places:
            role = place.role(parameter)
            shape = None if role is None else self.sizes(place, role[0])
            if role is not None and shape is not None:
                yield place, role[0], shape, role[1]


class BaseModel(Model):
    """The weights of a model on the disk, of which one at a time is read."""

    def __init__(self, path: Path, model: Any, stored: Mapping[int, Stored]) -> None:
        """`model`: modules as `view` takes them; `stored`: where each of their parameters lies, by its id."""
        looked_at = view(model)
        super().__init__(looked_at, Targets(looked_at))
        self.path = path
        self._model = model  # targets refer to its modules weakly
        self._stored = stored

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def sizes(self, place: Target, name: str) -> torch.Size | None:
        """Return the shape that the header tells."""
        own = place.module._parameters.get(name)
        return None if own is None else self.stored(own).shape

    def value(self, place: Target, name: str) -> Tensor | None:
        """Return the tensor as it is stored."""
        own = place.module._parameters.get(name)
        return None if own is None else self.stored(own).read()

    def stored(self, parameter: nn.Parameter) -> Stored:
        """Return where a parameter of the view lies."""
        return self._stored[id(parameter)]


def open_model(path: str | os.PathLike[str], *, decoded: bool = False) -> BaseModel:
    """Return the model in a folder as diffusers or transformers save it, or in one checkpoint (.safetensors).

    `decoded`: weights that are stored as codes (`codes.py`) are read as the values that these stand for.

    Only headers are read. LoraFileError where there are no weights, or it is not told which of several are meant.
    """
    path = Path(path)
    stored: dict[int, Stored] = {}
    if not path.is_dir():
        if not path.exists():
            raise LoraFileError(f"{path}: no such file or folder; give a checkpoint, or a folder as diffusers saves it")
        return BaseModel(path, _modules([read_header(path)], stored, decoded), stored)
    if not (path / "model_index.json").is_file():
        root = _modules([read_header(file) for file in weights_of(path)], stored, decoded)
        named = path.name in DENOISERS or path.name.startswith("text_encoder")
        return BaseModel(path, _Pipeline({path.name: root}) if named else root, stored)
    components = {}
    for folder in sorted(each for each in path.iterdir() if each.is_dir()):
        if any(file.suffix.lower() == SUFFIX for file in folder.iterdir()):
            components[folder.name] = _modules([read_header(file) for file in weights_of(folder)], stored, decoded)
    if not components:
        raise LoraFileError(f"{path}: no component in it has its weights as safetensors")
    return BaseModel(path, _Pipeline(components), stored)


def weights_of(folder: Path) -> list[Path]:
    """Return the safetensors files of one component's folder: those of its index, or the one that is there."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX)
    indices = [file for file in folder.iterdir() if file.name.endswith(_INDEX)]
    plain = [file for file in files if file.name in _PLAIN_NAMES]
    if len(plain) == 1:
        return plain
    if len(indices) == 1:
        try:
            table = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"]
            return sorted({folder / name for name in table.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoraFileError(f"{indices[0]}: is no index of safetensors files ({error})") from error
    if len(files) == 1:
        return files
    found = ", ".join(file.name for file in files) or "none"
    raise LoraFileError(f"{folder}: not one set of weights (.safetensors), but {found}; give one file, or keep one set")


class _Pipeline:
    """Enough of a pipeline to be looked at."""

    def __init__(self, components: dict[str, nn.Module]) -> None:
        self.components = components


def _modules(headers: list[Header], stored: dict[int, Stored], decoded: bool) -> nn.Module:
    """Return modules with a parameter for each tensor, and note where each lies."""
    tree: dict[str, Any] = {}
    for header in headers:
        codes = codes_in(header)
        # What belongs to codes is no parameter of its own, where it is read with them or is called as a part of them.
        within = {key for each in codes.values() for key in each.beside if decoded or key.startswith(f"{each.key}.")}
        for key, info in header.tensors.items():
            if key in within:
                continue
            *path, name = key.split(".")
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
                if not isinstance(branch, dict):
                    raise LoraFileError(f"{header.path}: {key} lies inside of a tensor of that name")
            if info.dtype in DTYPES:
                branch[name] = Stored(header.path, key, info, codes.get(key) if decoded else None)
    return _grown(tree, stored)


def _grown(tree: Mapping[str, Any], stored: dict[int, Stored]) -> nn.Module:
    # LDM's models are told apart by what is a list of modules.
    module = nn.ModuleList() if tree and all(name.isdigit() for name in tree) else nn.Module()
    for name, branch in tree.items():
        if isinstance(branch, dict):
            module._modules[name] = _grown(branch, stored)
            continue
        dtype = DTYPES[branch.info.dtype] if branch.codes is None else torch.float32
        outline = torch.empty((), dtype=dtype).expand(branch.shape)
        parameter = module._parameters[name] = nn.Parameter(outline, requires_grad=False)
        stored[id(parameter)] = branch
    return module
