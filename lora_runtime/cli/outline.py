"""A pipeline without its weights: components with the shapes and dtypes of a saved one, made from their configs.

A weight is one element expanded to the weight's shape, so that all rooms that plan see a parameter as usual, and a
model of 20 billion takes a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_runtime.cli.console import CommandError, one_line
from lora_runtime.dialects import DENOISERS

__all__ = ["STORAGES", "Outline", "outline_of", "read_pipeline", "stream", "without_memory"]

STORAGES = ("fp32", "bf16", "fp16", "fp8", "nf4")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_LARGE = 1_000_000_000  # parameters: text encoders from here on are worth quantising
_BLOCK = 64  # weights that share a scale in bitsandbytes' 4 bits


@dataclass(frozen=True)
class Outline:
    """A pipeline to plan on. `sizes`: bytes of each component's weights; `notes`: what is not as in the real one."""

    pipe: Any
    sizes: Mapping[str, int]
    notes: tuple[str, ...] = ()


def read_pipeline(folder: Path, storage: str) -> Outline:
    """Return the outline of a pipeline as diffusers saves it; only its configs are read.

    `storage`: one of STORAGES; "fp8" and "nf4" mean bfloat16 with the denoiser stored as diffusers' layerwise casting
    does, and as bitsandbytes' 4 bits, large text encoders with it. A component whose config says how it is quantised
    is that. CommandError where this is no such folder.
    """
    if not folder.is_dir():
        what = "is a file: give the folder of a pipeline as diffusers saves it" if folder.exists() else "does not exist"
        raise CommandError(f"the model folder {folder} {what}")
    index = folder / "model_index.json"
    if not index.is_file():
        raise CommandError(f"{folder} has no model_index.json: give the folder of a pipeline as diffusers saves it")
    table = _json(index)
    components: dict[str, nn.Module] = {}
    notes = []
    for name, entry in table.items():
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
            continue
        if (folder / name / "config.json").is_file():
            try:
                components[name] = _build(entry[0], entry[1], folder / name)
            except (ImportError, AttributeError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
                notes.append(f"{name} is left out, as {entry[1]} cannot be made from its config: {one_line(error)}")
    if not components:
        raise CommandError(f"{folder} has no component that could be made from its config; {'; '.join(notes)}")
    found = outline_of(str(table.get("_class_name", "Pipeline")), components, storage)
    return Outline(found.pipe, found.sizes, (*notes, *found.notes))


def outline_of(title: str, components: Mapping[str, nn.Module], storage: str) -> Outline:
    """Return the outline of a pipeline of these components, which are on the meta device."""
    sizes, notes = {}, []
    for name, root in components.items():
        quantised, note = _quantisation(root, name, storage)
        if note:
            notes.append(f"{name} {note}")
        with _quietly():
            root.to(_DTYPES.get(storage, torch.bfloat16))
            if storage == "fp8" and name in DENOISERS and quantised is None:
                root.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)  # type: ignore[operator]
        sizes[name] = without_memory(root.eval().requires_grad_(False), quantised)
    pipe = type(title, (_Pipeline,), {})(dict(components))
    return Outline(pipe, sizes, tuple(notes))


class _Pipeline:
    """Enough of a pipeline to be looked at."""

    def __init__(self, components: dict[str, nn.Module]) -> None:
        self.components = components


def _build(library: str, kind: str, folder: Path) -> nn.Module:
    """Return a component on the meta device."""
    if library not in ("diffusers", "transformers"):
        raise ValueError(f"it is of {library}")
    with _quietly(), torch.device("meta"):
        if library == "diffusers":
            import diffusers

            made = getattr(diffusers, kind)
            found: nn.Module = made.from_config(made.load_config(folder))
            return found
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder)
        built: nn.Module = getattr(transformers, kind)._from_config(config)
        return built


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep off the screen what the libraries advise while a model is built and cast."""
    import logging

    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CommandError(f"{path} is no table of components")
    return found


# ---- how weights are stored -----------------------------------------------------------------------------------------


class Params4bit(nn.Parameter):
    """Two weights in a byte, by bitsandbytes' name for it."""


class Int8Params(nn.Parameter):
    """A weight in a byte, by bitsandbytes' name for it."""


Stored = Callable[[str, nn.Linear], "tuple[nn.Parameter, int] | None"]  # the parameter and its bytes, scales included


def _quantisation(root: nn.Module, name: str, storage: str) -> tuple[Stored | None, str]:
    """Return how linear layers are stored where they are quantised, and what cannot be told of it."""
    config: Any = getattr(root, "config", None)
    given = config.get("quantization_config") if isinstance(config, Mapping) else None
    given = given if given is not None else getattr(config, "quantization_config", None)
    if given is not None:
        given = given if isinstance(given, Mapping) else given.to_dict()
        skipped = tuple(given.get("llm_int8_skip_modules") or ())
        if given.get("load_in_4bit"):
            return _in_4_bits(skipped, double=bool(given.get("bnb_4bit_use_double_quant"))), ""
        if given.get("load_in_8bit"):
            return _in_8_bits(skipped), ""
        method = given.get("quant_method", "an unknown method")
        return None, f"is quantised by {method}, of which no outline can be made: planned as if it were not"
    large = sum(parameter.numel() for parameter in root.parameters()) >= _LARGE
    if storage == "nf4" and (name in DENOISERS or (name.startswith("text_encoder") and large)):
        return _in_4_bits(("lm_head",), double=False), ""
    return None, ""


def _in_4_bits(skipped: tuple[str, ...], *, double: bool) -> Stored:
    def stored(path: str, layer: nn.Linear) -> tuple[nn.Parameter, int] | None:
        if any(word in path.split(".") for word in skipped):
            return None
        count = layer.weight.numel()
        blocks = -(-count // _BLOCK)
        scales = blocks + 4 * -(-blocks // 256) if double else 4 * blocks
        return Params4bit(_expanded(torch.uint8, (-(-count // 2), 1)), requires_grad=False), -(-count // 2) + scales

    return stored


def _in_8_bits(skipped: tuple[str, ...]) -> Stored:
    def stored(path: str, layer: nn.Linear) -> tuple[nn.Parameter, int] | None:
        if any(word in path.split(".") for word in skipped):
            return None
        shape = layer.weight.shape
        return Int8Params(_expanded(torch.int8, shape), requires_grad=False), shape.numel() + 4 * shape[0]

    return stored


def without_memory(root: nn.Module, quantised: Stored | None = None) -> int:
    """Give each weight of a model its shape without memory, and return the bytes that the real ones take."""
    size = 0
    outlines: dict[nn.Parameter, nn.Parameter] = {}  # a weight that two layers share stays one
    for path, module in root.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if parameter not in outlines:
                found = None
                if name == "weight" and quantised is not None and isinstance(module, nn.Linear):
                    found = quantised(path, module)
                if found is None:
                    plain = nn.Parameter(_expanded(parameter.dtype, parameter.shape), requires_grad=False)
                    found = plain, parameter.numel() * parameter.element_size()
                outlines[parameter] = found[0]
                size += found[1]
            module._parameters[name] = outlines[parameter]
    return size


def _expanded(dtype: torch.dtype, shape: Any) -> torch.Tensor:
    return torch.empty((), dtype=dtype).expand(shape)


# ---- offloading -----------------------------------------------------------------------------------------------------


class _Group:
    """A group of diffusers' group offloading with a stream: between two calls it has the weights."""

    offload_to_disk_path = None
    stream = "a stream"

    def __init__(self, root: nn.Module) -> None:
        self.modules = [root]
        self.parameters: list[nn.Parameter] = []
        self.cpu_param_dict: dict[nn.Parameter, torch.Tensor] = {}


class _Hook:
    def __init__(self, root: nn.Module) -> None:
        self.group = _Group(root)


class _Hooks:
    def __init__(self, root: nn.Module) -> None:
        self.hooks = {"group_offloading": _Hook(root)}


def stream(root: nn.Module) -> None:
    """Let a model look as under diffusers' group offloading with a stream."""
    root.__dict__["_diffusers_hook"] = _Hooks(root)
