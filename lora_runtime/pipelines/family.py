"""Which family a live denoiser is of: its class tells, and of a UNet the width of the text that it attends to."""

from __future__ import annotations

from torch import nn

__all__ = ["family_of", "is_mmdit"]

_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner"}
# Classes of diffusers; one that several families have (Cosmos and Anima) is not among them.
_BY_CLASS = {
    "SD3Transformer2DModel": "SD3",
    "FluxTransformer2DModel": "Flux",
    "Flux2Transformer2DModel": "Flux2",
    "ChromaTransformer2DModel": "Chroma",
    "AuraFlowTransformer2DModel": "AuraFlow",
    "WanTransformer3DModel": "Wan",
    "WanVACETransformer3DModel": "Wan",
    "WanAnimateTransformer3DModel": "Wan",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "HunyuanVideoTransformer3DModel": "HunyuanVideo",
    "HunyuanVideoFramepackTransformer3DModel": "HunyuanVideo",
    "HunyuanImageTransformer2DModel": "HunyuanImage",
    "HunyuanDiT2DModel": "HunyuanDiT",
    "PixArtTransformer2DModel": "PixArt",
    "LTXVideoTransformer3DModel": "LTX",
    "LTX2VideoTransformer3DModel": "LTX",
    "MochiTransformer3DModel": "Mochi",
    "Lumina2Transformer2DModel": "Lumina2",
    "ZImageTransformer2DModel": "Z-Image",
    "HiDreamImageTransformer2DModel": "HiDream",
    "SanaTransformer2DModel": "Sana",
    "Krea2Transformer2DModel": "Krea2",
    "Ideogram4Transformer2DModel": "Ideogram4",
    "AceStepTransformer1DModel": "ACE-Step",
    "MiniMaxH3Transformer3DModel": "MiniMax-H3",
    "StableCascadeUNet": "Cascade",
}


def family_of(denoiser: nn.Module | None) -> str:
    """Return "SD1", "SDXL", "Wan", … as `metadata.family` calls it, "SDXL refiner", or "unknown"."""
    if is_mmdit(denoiser):
        return "SD3"
    title = type(denoiser).__name__
    if title in _BY_CLASS:
        return _BY_CLASS[title]
    if "Transformer" in title:
        return "unknown"  # some have that width too, and it tells nothing
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
