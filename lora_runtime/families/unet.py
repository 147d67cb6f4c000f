"""UNets: Stable Diffusion 1, 2 and XL, its refiner, and what else is built as they are: AnimateDiff, Kandinsky, video.

Their layers have the latents' grid and halve it again and again. Layers over time see the frames of one pixel: their
batch has the pixels of each row, one row after the other, and no place among their tokens.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.animate_diff import MOTION_NAMES
from lora_runtime.families.base import Evidence, Family, Guidance, Mark, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.ldm_to_unet import diffusers_names
from lora_runtime.families.reading import planes, planes_of_frames
from lora_runtime.families.unet_to_ldm import original_names

__all__ = ["BY_TEXT_WIDTH", "FRAMES_FIRST", "SD1", "SD2", "SDXL", "SDXL_REFINER", "UNET", "UNET_NAMES"]

UNET_NAMES = Dialect("unet", spellings=original_names, translations=diffusers_names)
_NAMES = (UNET_NAMES, MOTION_NAMES)

_OVER_TIME = r"motion_modules|temp_attentions|transformer_in\b|temporal_transformer_blocks|time_pos_embed"
_EDITS = "it has a row for each edit that it makes"
_PIPELINES = MappingProxyType(
    {
        "StableDiffusionInstructPix2PixPipeline": Guidance(("positive", "negative", "negative")),
        "StableDiffusionXLInstructPix2PixPipeline": Guidance(("positive", "negative", "negative")),
        "LEditsPPPipelineStableDiffusion": Guidance(reason=_EDITS),
        "LEditsPPPipelineStableDiffusionXL": Guidance(reason=_EDITS),
        "SemanticStableDiffusionPipeline": Guidance(reason=_EDITS),
        "StableDiffusionPipelineSafe": Guidance(reason="it has a row for what it is to avoid"),
        "CycleDiffusionPipeline": Guidance(reason="it paints the source beside the picture"),
        "StableDiffusionDiffEditPipeline": Guidance(reason="it paints source and target in one batch"),
        "StableDiffusionParadigmsPipeline": Guidance(reason="it paints several steps in one batch"),
        "UniDiffuserPipeline": Guidance(reason="its rows are pictures and texts"),
        "DreamLitePipeline": Guidance(reason="its guidance has copies of its own kind"),
    }
)

BY_TEXT_WIDTH = MappingProxyType({768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner"})
_UNETS = ("attentions", "input.blocks", "middle.block", "output.blocks")  # transformers have such layers at the top
_CLIPS = ("lora.te.text.model.encoder.", "lora.te.encoder.", "text.encoder.text.model.", "text.encoder.encoder.")


def _reads(width: int) -> Mark:
    """Return the mark of a UNet's cross attention that reads text of this width: the inputs of its keys and values."""

    def found(evidence: Evidence) -> bool:
        reading = (
            inputs
            for key, inputs in evidence.widths.items()
            if ("attn2.to.k" in key or "attn2.to.v" in key) and any(piece in key for piece in _UNETS)
        )
        return next((True for inputs in reading if inputs in BY_TEXT_WIDTH and inputs == width), False)

    return found


def _encodes(width: int) -> Mark:
    """Return the mark of a file for a text encoder of this width alone, where it is CLIP."""

    def found(evidence: Evidence) -> bool:
        return any(
            "self.attn" in key and key.startswith(_CLIPS) and inputs == width for key, inputs in evidence.widths.items()
        )

    return found


def _unet(name: str, titles: tuple[str, ...] = (), marks: tuple[Mark, ...] = ()) -> Family:
    return Family(
        name,
        titles=titles,
        marks=marks,
        read=planes,
        no_place=_OVER_TIME,
        pipelines=_PIPELINES,
        dialects=_NAMES,
    )


SD1 = _unet("SD1", ("sd_v1", "sd1", "stable-diffusion-v1"), (_reads(768), _encodes(768)))
SD2 = _unet("SD2", ("sd_v2", "sd2", "stable-diffusion-v2"), (_reads(1024), _encodes(1024)))
_T5 = ("encoder.block.",)
SDXL = _unet(
    "SDXL",
    ("sdxl", "stable-diffusion-xl"),
    (pieces("lora.te2.", none=_T5), pieces("text.encoder.2.", none=_T5), _reads(2048)),
)
SDXL_REFINER = _unet("SDXL refiner")
# A UNet whose width of text is no known one.
UNET = Family(
    "unknown",
    classes=(
        "UNet2DConditionModel",
        "UNet2DModel",
        "UNetMotionModel",
        "UNet3DConditionModel",
        "I2VGenXLUNet",
        "Kandinsky3UNet",
        "UNetModel",
    ),
    read=planes,
    no_place=_OVER_TIME,
    pipelines=_PIPELINES,
    dialects=_NAMES,
)
FRAMES_FIRST = Family(
    "unknown",
    classes=("UNetSpatioTemporalConditionModel",),
    read=planes_of_frames,
    no_place=_OVER_TIME,
    dialects=_NAMES,
)
