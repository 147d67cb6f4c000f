"""Which family a live denoiser is of: the width of the text that it attends to tells."""

from __future__ import annotations

from torch import nn

__all__ = ["family_of", "is_mmdit"]

_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner"}


def family_of(denoiser: nn.Module | None) -> str:
    """Return "SD1", "SD2", "SDXL", "SDXL refiner", "SD3" (in its original form) or "unknown"."""
    if is_mmdit(denoiser):
        return "SD3"
    width = getattr(getattr(denoiser, "config", None), "cross_attention_dim", None)
    if isinstance(width, (list, tuple)) and len(set(width)) == 1:
        width = width[0]
    if width is None and isinstance(denoiser, nn.Module) and hasattr(denoiser, "input_blocks"):
        width = _text_width(denoiser)
    return _BY_TEXT_WIDTH.get(width, "unknown") if isinstance(width, int) else "unknown"


def is_mmdit(denoiser: nn.Module | None) -> bool:
    """Return whether this is SD3's denoiser in its original form."""
    return isinstance(getattr(denoiser, "joint_blocks", None), nn.ModuleList)


def _text_width(unet: nn.Module) -> int | None:
    """Return the inputs of the first cross attention's keys in an original UNet, which has no config."""
    for path, module in unet.named_modules():
        if path.endswith("attn2.to_k"):
            return getattr(module, "in_features", None)
    return None
