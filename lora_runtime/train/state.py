"""What a broken run goes on from: one safetensors file, with tensors beside the JSON that says where they belong.

Nothing in it is unpickled. It lies beside the LoRA as NAME.state, so that no program takes it for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_runtime.errors import LoraFileError, TrainingError
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset
from lora_runtime.workbench.writing import write_file

__all__ = ["State", "check_same", "identity_of", "read_state", "state_path", "write_state"]

_NOTE = "lora_runtime.state"
# What may be another when a run goes on: where things lie, what is seen of it, and how memory is saved.
_FREE = {
    "pretrained_model_name_or_path",
    "model_config",
    "train_data_dir",
    "reg_data_dir",
    "subsets",
    "output_dir",
    "output_name",
}
_FREE |= {"save_every_n_steps", "save_every_n_epochs", "sample_every_n_steps", "sample_prompts", "save_precision"}
_FREE |= {"cache_latents_to_disk", "gradient_checkpointing", "caption_extension"}


@dataclass(frozen=True)
class State:
    """A run after `step` steps: the loss of each, what the run is (`run`), and what Learner.load takes."""

    step: int
    losses: tuple[float, ...]
    run: Mapping[str, Any]
    learner: Mapping[str, Any]


def state_path(out: Path) -> Path:
    """Return where the state of the run that writes `out` is."""
    return out.with_suffix(".state")


def write_state(path: Path, state: State) -> None:
    """Write a state whole or not at all; LoraFileError where it cannot be written."""
    tensors: dict[str, Tensor] = {}
    parts = {"step": state.step, "losses": list(state.losses), "run": dict(state.run), "learner": dict(state.learner)}
    note = json.dumps(_apart(parts, "", tensors))
    write_file(path, tensors, {_NOTE: note})


def read_state(path: Path) -> State:
    """Return a state; TrainingError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            note = json.loads(file.metadata()[_NOTE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        parts = _together(note, tensors)
        return State(parts["step"], tuple(parts["losses"]), parts["run"], parts["learner"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: is no state of a run that can be read ({error}); --force begins anew") from error


def identity_of(config: Config, dataset: Dataset) -> dict[str, str]:
    """Return what makes a run the run that it is: its numbers, and a hash of its pictures with their captions."""
    said = [(each.sha256, each.caption, each.repeats, each.regularisation, each.size) for each in dataset.pictures]
    numbers = {f.name: repr(getattr(config, f.name)) for f in fields(config) if f.name not in _FREE}
    return {**numbers, "the pictures": hashlib.sha256(json.dumps(said).encode()).hexdigest()}


def check_same(path: Path, state: State, identity: Mapping[str, str]) -> None:
    """Raise TrainingError where a state is of another run, and say what differs."""
    differing = [
        f"{name} (was {state.run.get(name)}, is {identity.get(name)})"
        for name in dict.fromkeys([*state.run, *identity])
        if state.run.get(name) != identity.get(name)
    ]
    if differing:
        raise TrainingError(f"{path}: is of another run: {', '.join(differing)}; set that back, or begin anew: --force")


def _apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value for JSON: ["dict", [[key, value], …]], ["list", …], ["tuple", …], ["tensor", name], or bare."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, Mapping):
        return ["dict", [[key, _apart(each, f"{name}/{key}", tensors)] for key, each in value.items()]]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_apart(each, f"{name}/{number}", tensors) for number, each in enumerate(value)]]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise LoraFileError(f"{name}: a {type(value).__name__} in the optimiser's state cannot be written")


def _together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, inner = value
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _together(each, tensors) for key, each in inner}
    values = [_together(each, tensors) for each in inner]
    return tuple(values) if kind == "tuple" else values
