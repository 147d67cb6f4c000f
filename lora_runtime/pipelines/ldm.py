"""A model of LDM, SGM or the WebUI: one module with the denoiser and the text encoders inside. None is imported.

Where they are, with or without the WebUI's wrappers round the text encoders (`.wrapped`):

    all     model.diffusion_model
    SD1     cond_stage_model.transformer                a CLIPTextModel of transformers
    SD2     cond_stage_model.model                      OpenCLIP
    SDXL    conditioner.embedders[0].transformer, [1].model; the refiner has only OpenCLIP
    SD3     text_encoders.clip_l/clip_g/t5xxl.transformer; the WebUI calls it cond_stage_model too
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from torch import nn

from lora_runtime.pipelines.base import ModelView, compiled_later, plain
from lora_runtime.pipelines.family import family_of, is_mmdit

__all__ = ["view_ldm"]

# Beside weights stored as fp8 the WebUI can keep what they were rounded from.
_PRECISE = MappingProxyType({"weight": "fp16_weight", "bias": "fp16_bias"})
_SD3_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}


def view_ldm(model: Any) -> ModelView | None:
    """Return the denoiser and the text encoders of an LDM model, the denoiser first."""
    if not isinstance(model, nn.Module):
        return None
    root = plain(model)
    denoiser = _child(_child(root, "model"), "diffusion_model")
    if denoiser is None:
        return None
    family = family_of(denoiser)
    found = {"transformer" if is_mmdit(denoiser) else "unet": denoiser}
    for name, encoder in sorted(_text_encoders(root, family), key=lambda pair: pair[0]):
        found.setdefault(name, encoder)
    listed = ", ".join(found)
    title = type(root).__name__
    description = f"{title} ({listed})" if family == "unknown" else f"{title} ({family}: {listed})"
    return ModelView(
        MappingProxyType(found), description, "checkpoint", family, _PRECISE, compiled=compiled_later(model)
    )


def _text_encoders(root: nn.Module, family: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield (component, module) for each text encoder."""
    embedders = _child(_child(root, "conditioner"), "embedders")
    if embedders is not None:
        for embedder in embedders.children():
            clip, open_clip = _encoders_in(embedder)
            if clip is not None:
                yield "text_encoder", clip
            elif open_clip is not None:  # SGM has SD2 as well, in which it is the only one
                yield "text_encoder" if family == "SD2" else "text_encoder_2", open_clip
        return
    stage = _child(root, "cond_stage_model") or _child(root, "text_encoders")
    if stage is None:
        return
    several = {name: _child(_child(stage, place), "transformer") for place, name in _SD3_ENCODERS.items()}
    yield from ((name, encoder) for name, encoder in several.items() if encoder is not None)
    for encoder in _encoders_in(stage):
        if encoder is not None:
            yield "text_encoder", encoder


def _encoders_in(embedder: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Return what an embedder holds: an encoder of transformers, or one of OpenCLIP, or neither."""
    inner = _child(embedder, "wrapped") or embedder
    open_clip = _child(inner, "model")
    if _child(_child(open_clip, "transformer"), "resblocks") is None:
        open_clip = None
    return _child(inner, "transformer"), open_clip


def _child(module: nn.Module | None, name: str) -> nn.Module | None:
    """Return a module that is an attribute of another, without the wrappers around it."""
    child = getattr(module, name, None)
    return plain(child) if isinstance(child, nn.Module) else None
