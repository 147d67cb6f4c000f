"""Published models by their family, without a file: the names and shapes of their weights, for `convert`.

They are made by diffusers and transformers in the published configurations, on torch's meta device, which takes no
memory for weights. The original's names come from the families' records, forward, as everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.errors import LoraFileError
from lora_runtime.families.flux import FLUX_NAMES
from lora_runtime.families.unet import UNET_NAMES
from lora_runtime.pipelines import view
from lora_runtime.targets import Target, Targets
from lora_runtime.workbench.base_model import Model

__all__ = ["KNOWN", "known_model"]

_CLIP_L = ("CLIPTextModel", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12})
_CLIP_H = (
    "CLIPTextModel",
    {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23},
)
_CLIP_G = (
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
)
_SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_UNET = "UNet2DConditionModel"

KNOWN: Mapping[str, Mapping[str, tuple[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        "SD1": {"unet": (_UNET, {"cross_attention_dim": 768}), "text_encoder": _CLIP_L},
        "SD2": {"unet": (_UNET, _SD2_UNET), "text_encoder": _CLIP_H},
        "SDXL": {"unet": (_UNET, _SDXL_UNET), "text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
        "Flux": {"transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}), "text_encoder": _CLIP_L},
    }
)
_ORIGINAL_WITH_KOHYA = ("SDXL", "Flux")  # whose files by kohya have the original names, and others diffusers'


class _Known(Model):
    """A model of which only names and shapes are known."""

    def __init__(self, family: str, components: Mapping[str, nn.Module]) -> None:
        self._model = _Pipeline(dict(components))  # targets refer to its modules weakly
        looked_at = view(self._model)
        super().__init__(looked_at, Targets(looked_at))
        self._family = family

    def __str__(self) -> str:
        """Return the family."""
        return f"{self._family} as it was published"

    def sizes(self, place: Target, name: str) -> torch.Size | None:
        """Return the shape."""
        own = place.module._parameters.get(name)
        return None if own is None else own.shape

    def value(self, place: Target, name: str) -> Tensor | None:
        """Return None: nobody has the values."""
        return None


class _Pipeline:
    """Enough of a pipeline to be looked at."""

    def __init__(self, components: dict[str, nn.Module]) -> None:
        self.components = components


def known_model(family: str, spelling: str) -> Model:
    """Return the model of a family in the layout that files of that spelling have the names of.

    LoraFileError where the family is not known here, or the libraries that know its modules are not installed.
    """
    if family not in KNOWN:
        raise LoraFileError(
            f"its model is {family}, and names are known of {', '.join(KNOWN)} alone: give it, --model DIR or FILE"
        )
    try:
        made = {name: _made(kind, config) for name, (kind, config) in KNOWN[family].items()}
    except ImportError as error:
        raise LoraFileError(
            f"names of {family} are made by diffusers and transformers ({error}): install them, or give the model, "
            "--model DIR or FILE"
        ) from error
    if spelling == "comfy" or (spelling == "kohya" and family in _ORIGINAL_WITH_KOHYA):
        made = {name: root if name.startswith("text_encoder") else _original(root) for name, root in made.items()}
    return _Known(family, made)


def _made(kind: str, config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        if kind.startswith("CLIP"):
            import transformers

            found: nn.Module = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            return found
        import diffusers

        model: nn.Module = getattr(diffusers, kind)(**config)
        return model


def _original(root: nn.Module) -> nn.Module:
    """Return the same weights under the original's names: what it has in one, one below the other."""
    shapes = {name: parameter.shape for name, parameter in root.named_parameters()}
    paths = list(dict.fromkeys(name.rpartition(".")[0] for name in shapes))
    names: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for pieces, name in FLUX_NAMES.fusions(paths):
        names[pieces].append(name)
    fused = {piece for pieces in names for piece in pieces}
    for path, name, _ in FLUX_NAMES.translations(paths):
        if path not in fused:
            names[path,].append(name)
    for path, name in UNET_NAMES.spellings(paths):
        names[path,].append(name)
    tree: dict[str, Any] = {}
    for path in paths:
        if path not in fused:
            names.setdefault((path,), [path])
    for pieces, known in names.items():
        for role in ("weight", "bias", "scale"):
            if f"{pieces[0]}.{role}" in shapes:
                first = shapes[f"{pieces[0]}.{role}"]
                rows = sum(shapes[f"{piece}.{role}"][0] for piece in pieces)
                branch = tree
                for part in known[0].split("."):
                    branch = branch.setdefault(part, {})
                branch[role] = torch.Size((rows, *first[1:]))
    return _grown(tree)


def _grown(tree: Mapping[str, Any]) -> nn.Module:
    module = nn.ModuleList() if tree and all(name.isdigit() for name in tree) else nn.Module()
    for name, branch in tree.items():
        if isinstance(branch, dict):
            module._modules[name] = _grown(branch)
        else:
            module._parameters[name] = nn.Parameter(torch.empty(branch, device="meta"), requires_grad=False)
    return module
