"""ComfyUI: nodes that give clones of a model and of its text encoders, each with patches of ours.

a node runs          nodes.py → tags.py: a text to what is asked, and that to clones
                     patches.py: one patch object a weight, which the program carries out when it loads the weight
                     words.py: embeddings that are bundled in LoRA files
                     beside.py: what acts beside modules, while a clone is the one that is loaded
a model is sampled   denoiser.py: which step, image and side each call of the denoiser is about

Nothing is remembered of a model: what a clone shows is with the clone, and several may be alive.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import reduce
from typing import Any

__all__ = ["start"]

# What is used of the program beside what every version of the last years has: modules, and names in them.
_NEEDED = (
    ("comfy.model_patcher", "ModelPatcher.set_injections"),
    ("comfy.patcher_extension", "PatcherInjection"),
    ("comfy.patcher_extension", "WrappersMP.APPLY_MODEL"),
    ("comfy.patcher_extension", "WrappersMP.SAMPLER_SAMPLE"),
    ("comfy.weight_adapter", "WeightAdapterBase.calculate_weight"),
)


def start() -> dict[str, type[Any]]:
    """Return the nodes by the names that workflows have for them.

    Raises ImportError where a package is missing or the program is too old.
    """
    if importlib.util.find_spec("lark") is None:
        raise ImportError(
            "LoRA Runtime reads tags with the package lark, which is not installed: run install.py of its folder with "
            "ComfyUI's Python, then start ComfyUI again"
        )
    for module, names in _NEEDED:
        try:
            reduce(getattr, names.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"LoRA Runtime needs ComfyUI 0.3.64 or later: this one has no {module}.{names}; update ComfyUI"
            ) from error
    from .nodes import NODES

    return NODES
