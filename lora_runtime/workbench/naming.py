"""What files in circulation call a model's modules, where that is neither its own name nor a mere prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from lora_runtime.dialects import ANY, DENOISERS, WHOLE, Part
from lora_runtime.dialects.open_clip import OPEN_CLIP
from lora_runtime.errors import LoraFileError
from lora_runtime.families.cascade import CASCADE_NAMES
from lora_runtime.families.unet import UNET_NAMES
from lora_runtime.workbench.base_model import Model

__all__ = ["kohya_prefix", "names_in_files", "renamed"]

_IN_TEXT_MODEL = ("encoder.layers.", "embeddings.", "final_layer_norm")  # of CLIP; T5 has encoder.block


def renamed(component: str, model: Model) -> Mapping[str, str]:
    """Return other names for modules, where files have others than the model.

    diffusers' for an original UNet of SD 1 or 2: it reads the original names for SDXL alone, and the WebUI reads both.
    And those of a CLIP with its level `text_model`, which newer versions of transformers leave out.
    """
    weights = model.view.components[component].named_parameters(remove_duplicate=False)
    paths = [own.rpartition(".")[0] for own, _ in weights]
    if component.startswith("text_encoder"):
        return {path: f"text_model.{path}" for path in paths if path.startswith(_IN_TEXT_MODEL)}
    if component != "unet" or "text_encoder_2" in model.view.components:
        return {}
    return {path: theirs for path, theirs, part in UNET_NAMES.translations(paths) if part == WHOLE}


def names_in_files(component: str, root: nn.Module) -> Iterator[tuple[str, str, Part]]:
    """Yield (path, another name, what of the weight that is) of what every file calls so, whatever else its names are.

    Text encoders have transformers' names, also beside the original's UNet. And torch's attention has q, k and v in one
    parameter, for which no file has a name: transformers' names for them, and kohya's where it is Cascade's.
    """
    paths = []
    for own, _ in root.named_parameters(remove_duplicate=False):
        module, _, last = own.rpartition(".")
        paths.append(module if last in ("weight", "in_proj_weight") else own)
    paths = list(dict.fromkeys(paths))
    if component.startswith("text_encoder"):
        yield from OPEN_CLIP.translations(paths)
    else:
        for path, theirs, part in CASCADE_NAMES.translations(paths):
            if part.count > 1 and theirs.startswith(f"{path}."):
                yield path, theirs, part


def kohya_prefix(component: str, alone: bool) -> str:
    """Return what kohya's names begin with; `alone`: whether the model has one text encoder."""
    if component.startswith("text_encoder"):
        number = component.rpartition("_")[2]
        return f"lora_te{number if number.isdigit() else '' if alone else 1}_"
    if component not in (*DENOISERS, ANY):
        raise LoraFileError(f"{component}: no file of LoRAs has a name for this component")
    return "lora_unet_"
