"""Checkpoints in memory, and all the ways in which one takes the place of another.

the same                     nothing happens
loaded already               that model is taken from the list; nobody is told
room for one more            a new model
no room, same config         the weights are written into the oldest model, in place
no room, another config      the oldest model is moved to meta, and a new one is made
cannot be read               fails before anything is written: the model stays without the program's wrappers
does not fit                 fails while it is written: the previous weights are written again, then the error goes on
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from modules import extra_networks, processing, script_callbacks, sd_hijack, shared
from torch import Tensor, nn

# The driver fills these in.
checkpoints: dict[str, Checkpoint] = {}
make_model: Callable[[str], nn.Module] = nn.Module


@dataclass(eq=False)
class Checkpoint:
    """A file of weights: `kind` is what its config says, `fault` is "unreadable" or "misfit"."""

    name: str
    kind: str
    weights: dict[str, Tensor]
    fault: str = ""

    @property
    def filename(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def title(self) -> str:
        return self.filename

    def read(self) -> dict[str, Tensor]:
        """Return the weights."""
        if self.fault == "unreadable":
            raise OSError(f"{self.filename} cannot be read")
        return {name: tensor.clone() for name, tensor in self.weights.items()}


class SdModelData:
    """The model that is used, and all that are loaded, the last used first."""

    def __init__(self) -> None:
        self.sd_model: Any = None
        self.loaded_sd_models: list[Any] = []

    def get_sd_model(self) -> Any:
        """Return the model; load one if there is none."""
        if self.sd_model is None:
            load_model()
        return self.sd_model

    def set_sd_model(self, model: Any) -> None:
        """Use a model."""
        self.sd_model = model
        if model in self.loaded_sd_models:
            self.loaded_sd_models.remove(model)
        if model is not None:
            self.loaded_sd_models.insert(0, model)


model_data = SdModelData()
_writes_config = True


@contextmanager
def SkipWritingToConfig() -> Iterator[None]:
    """Load a checkpoint for a part of a picture: the user's choice stays."""
    global _writes_config
    _writes_config = False
    try:
        yield
    finally:
        _writes_config = True


def select_checkpoint() -> Checkpoint:
    """Return the checkpoint that the user has chosen."""
    return checkpoints[str(shared.opts.sd_model_checkpoint).removesuffix(".safetensors")]


def get_empty_cond(model: Any) -> None:
    """Encode an empty prompt, without any tags: by a job that has no prompts."""
    extra_networks.activate(processing.StableDiffusionProcessing(), {})


def send_model_to_cpu(model: Any) -> None:
    """Move a model out of the way."""
    if model is not None:
        model.to("cpu")


def send_model_to_device(model: Any) -> None:
    """Move a model to where it works."""
    model.to("cpu")


def send_model_to_trash(model: Any) -> None:
    """Free a model's memory."""
    model.to(device="meta")


def load_model_weights(model: Any, checkpoint: Checkpoint, weights: dict[str, Tensor] | None) -> None:
    """Write a checkpoint's weights into a model, in place."""
    if _writes_config:
        shared.opts.data["sd_model_checkpoint"] = checkpoint.title
    weights = checkpoint.read() if weights is None else weights
    _set_kind(model, checkpoint.kind)
    if not shared.cmd_opts.no_half:
        model.half()
    model.load_state_dict(weights, strict=False)
    if checkpoint.fault == "misfit":
        raise RuntimeError(f"{checkpoint.filename} does not fit")
    if shared.cmd_opts.no_half:
        model.float()
    model.sd_checkpoint_info = checkpoint
    model.sd_model_checkpoint = checkpoint.filename
    model.sd_model_hash = "0123456789"


def _set_kind(model: Any, kind: str) -> None:
    for flag in ("sd1", "sd2", "sdxl", "sd3"):
        setattr(model, f"is_{flag}", flag == ("sdxl" if kind == "refiner" else kind))
    model.text_width = 12 if kind == "sd1" else 16


def load_model(checkpoint: Checkpoint | None = None, already_read: dict[str, Tensor] | None = None) -> Any:
    """Make a new model."""
    checkpoint = checkpoint or select_checkpoint()
    if model_data.sd_model is not None:
        send_model_to_trash(model_data.sd_model)
        model_data.sd_model = None
    weights = checkpoint.read() if already_read is None else already_read
    model: Any = make_model(checkpoint.kind)
    model.used_config = checkpoint.kind
    model.lowvram = shared.cmd_opts.medvram
    load_model_weights(model, checkpoint, weights)
    send_model_to_device(model)
    sd_hijack.model_hijack.hijack(model)
    model_data.set_sd_model(model)
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(model)
    script_callbacks.model_loaded_callback(model)
    with torch.no_grad():
        get_empty_cond(model)
    return model


def reuse_model_from_already_loaded(model: Any, checkpoint: Checkpoint, timer: Any) -> Any:
    """Return a model that has the checkpoint's weights, or one to write them into, or None for a new one."""
    if model is not None and model.sd_checkpoint_info.filename == checkpoint.filename:
        return model
    if shared.opts.sd_checkpoints_keep_in_cpu:
        send_model_to_cpu(model)
    loaded, limit = model_data.loaded_sd_models, shared.opts.sd_checkpoints_limit
    found = None
    for other in list(reversed(loaded)):
        if other.sd_checkpoint_info.filename == checkpoint.filename:
            found = other
        elif len(loaded) > limit > 0:
            loaded.remove(other)
            send_model_to_trash(other)
    if found is not None:
        send_model_to_device(found)
        model_data.set_sd_model(found)
        if _writes_config:
            shared.opts.data["sd_model_checkpoint"] = checkpoint.title
        return found
    if limit > 1 and len(loaded) < limit:
        model_data.sd_model = None
        return load_model(checkpoint)
    if loaded:
        model_data.sd_model = loaded.pop()
        return model_data.sd_model
    return None


def reload_model_weights(sd_model: Any = None, info: Checkpoint | None = None, forced_reload: bool = False) -> Any:
    """Make a checkpoint the one that is used; the user's choice if none is named."""
    checkpoint = info or select_checkpoint()
    model = sd_model or model_data.sd_model
    before = None
    if model is not None:
        before = model.sd_checkpoint_info
        if before.filename == checkpoint.filename and not forced_reload:
            return model
    model = reuse_model_from_already_loaded(model, checkpoint, None)
    if not forced_reload and model is not None and model.sd_checkpoint_info.filename == checkpoint.filename:
        return model
    if model is not None:
        send_model_to_cpu(model)
        sd_hijack.model_hijack.undo_hijack(model)
    weights = checkpoint.read()
    if model is None or model.used_config != checkpoint.kind:
        if model is not None:
            send_model_to_trash(model)
        load_model(checkpoint, weights)
        return model_data.sd_model
    try:
        load_model_weights(model, checkpoint, weights)
    except Exception:
        load_model_weights(model, before, None)
        raise
    finally:
        sd_hijack.model_hijack.hijack(model)
        script_callbacks.model_loaded_callback(model)
    model_data.set_sd_model(model)
    return model


def unload_model_weights(sd_model: Any = None, info: Any = None) -> Any:
    """Move the model out of the way, and keep it."""
    send_model_to_cpu(sd_model or shared.sd_model)
    return sd_model
