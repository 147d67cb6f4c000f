"""Checkpoints, and the engine that is made of one."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from backend.patcher.base import Linear, ModelPatcher
from backend.patcher.unet import UnetPatcher
from backend.text_processing.textual_inversion import EmbeddingDatabase
from modules import script_callbacks, shared
from modules.prompt_parser import Conditioning
from torch import Tensor, nn


def make_model(kind: str) -> Any:
    """Return a model of a kind; whoever starts the program puts a function here that can."""
    raise NotImplementedError


@dataclass
class Checkpoint:
    """A file with weights."""

    name: str
    kind: str
    weights: dict[str, Tensor]
    fault: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def filename(self) -> str:
        return f"/models/{self.title}"


checkpoints: dict[str, Checkpoint] = {}
memory = SimpleNamespace(free=1e30, conditions_a_call=99)  # what a test leaves the program


class KModel(nn.Module):
    """Around the denoiser. What it gives back for a row is what the weight of a layer is in effect there."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.diffusion_model = denoiser
        layer = next(module for name, module in denoiser.named_modules() if name.endswith("attn1.to_q"))

        # No further arguments: not every denoiser bears with them.
        def forward(x: Any, t: Any, context: Any = None, control: Any = None, transformer_options: Any = None) -> Any:
            unit = torch.eye(layer.in_features, dtype=layer.weight.dtype)
            return layer(unit.expand(len(x), -1, -1)).mT

        denoiser.forward = forward

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Any = None, **more: Any) -> Any:
        return self.diffusion_model(x, t, context=c_crossattn, **more)


class CLIP:
    """The text encoders and their patcher."""

    def __init__(self, stage: Any, patcher: Any = None) -> None:
        self.cond_stage_model = stage
        self.patcher = ModelPatcher(stage) if patcher is None else patcher

    def clone(self) -> CLIP:
        return CLIP(self.cond_stage_model, self.patcher.clone())


def _width_of(encoder: nn.Module) -> int:
    return next(module.embedding_dim for module in encoder.modules() if isinstance(module, nn.Embedding))


class TextProcessingEngine:
    """Reads prompts for one text encoder."""

    def __init__(self, width: int) -> None:
        self.embeddings = EmbeddingDatabase(lambda text: [*map(ord, text)], width)


class ForgeObjects:
    """What paints."""

    def __init__(self, unet: Any, clip: Any, vae: Any = None, clipvision: Any = None) -> None:
        self.unet, self.clip, self.vae, self.clipvision = unet, clip, vae, clipvision

    def shallow_copy(self) -> ForgeObjects:
        return ForgeObjects(self.unet, self.clip, self.vae, self.clipvision)


class StableDiffusion:
    """An engine: no module of torch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        model = make_model(checkpoint.kind)
        model.load_state_dict(checkpoint.weights)
        if not shared.cmd_opts.no_half:
            model.half()
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
        stage = nn.Module()
        stage.clip_l = model.cond_stage_model  # type: ignore[assignment, unused-ignore]
        self.forge_objects = ForgeObjects(UnetPatcher(KModel(model.model.diffusion_model)), CLIP(stage))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.current_lora_hash = str([])
        self.sd_checkpoint_info = checkpoint
        self.text_processing_engine = TextProcessingEngine(_width_of(model.cond_stage_model))

    def get_learned_conditioning(self, text: str) -> Conditioning:
        """Encode a text; the text encoder is loaded for it."""
        with torch.inference_mode():
            self.forge_objects.clip.patcher.partially_load()
        weights = {name: w for name, w in self.weights().items() if not name.startswith("model.")}
        return Conditioning(text, weights, self.text_processing_engine.embeddings.read(text))

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights that are there now, by the names of the checkpoint."""
        objects = self.forge_objects_original
        found = {f"model.{name}": tensor for name, tensor in objects.unet.model.state_dict().items()}
        for name, tensor in objects.clip.cond_stage_model.state_dict().items():
            found[name.replace("clip_l.", "cond_stage_model.", 1)] = tensor
        return {name: tensor.detach().clone() for name, tensor in found.items()}


class FakeInitialModel:
    """Before the first checkpoint is loaded."""


class SdModelData:
    """The engine that is loaded."""

    def __init__(self) -> None:
        self.sd_model: Any = FakeInitialModel()
        self.forge_hash = ""

    def get_sd_model(self) -> Any:
        return self.sd_model

    def set_sd_model(self, model: Any) -> None:
        self.sd_model = model


model_data = SdModelData()


def chosen() -> Checkpoint:
    """Return the checkpoint that the user has chosen."""
    return checkpoints[str(shared.opts.sd_model_checkpoint).removesuffix(".safetensors")]


def forge_model_reload() -> Any:
    """Make an engine of the checkpoint that is chosen, unless it is there; the one before is dropped whole."""
    checkpoint = chosen()
    if model_data.forge_hash != checkpoint.name:
        model_data.sd_model = None
        model_data.set_sd_model(StableDiffusion(checkpoint))
        script_callbacks.model_loaded_callback(model_data.sd_model)
        model_data.forge_hash = checkpoint.name
    return model_data.sd_model
