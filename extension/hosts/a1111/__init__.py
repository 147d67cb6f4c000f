"""AUTOMATIC1111's WebUI, 1.10: its checkpoints are modules of torch, whose weights are patched.

a generation         tags.py: what is asked for → session → weights
                     sdwebui/encoding.py, denoiser.py: where strengths differ between pictures, or from step to step
a checkpoint swap    swaps.py: the old weights are whole before, the new ones are patched after it
"""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, sd_models, shared

from lora_runtime.catalog import Entry

from ...engine.explaining import Coverage
from ...engine.loading import Loader
from ...engine.session import Session
from ...library.shelf import Shelf
from ..sdwebui.encoding import PromptEncoding
from ..sdwebui.folders import lora_folders
from ..sdwebui.page import LoraPage
from ..sdwebui.presets import Presets
from ..sdwebui.registration import Parts, register
from ..sdwebui.settings import Settings
from .builtin import calm_builtin
from .denoiser import before_denoising
from .embeddings import BundledEmbeddings
from .models import chosen_family, chosen_model
from .swaps import CheckpointSwaps
from .tags import LoraTags


def start() -> type[Any]:
    """Register everything; return the Script class that the WebUI looks for in the module that calls this."""
    shelf, settings, session = Shelf(lora_folders()), Settings(shared.opts), Session()
    tags = LoraTags(session, Loader(shelf), settings, Presets(), BundledEmbeddings())
    coverage = Coverage()

    def coverage_of(entry: Entry) -> str | None:
        model = chosen_model()
        return None if model is None else coverage(model, entry)

    return register(
        Parts(
            shelf,
            settings,
            tags,
            LoraPage(shelf, settings, chosen_family, coverage_of),
            wrappers=(CheckpointSwaps(session, tags.show_again), PromptEncoding(session, tags.is_shown_for, tags.say)),
            callbacks=((script_callbacks.on_cfg_denoiser, before_denoising(session.denoising)),),
            calm_builtin=lambda: calm_builtin(sd_models.model_data.loaded_sd_models),
        )
    )
