"""Forge Neo: it keeps the weights itself, and is given a patch of ours for each.

a generation         tags.py → session → weights.py: clones of the host's patchers with our patches
                     embeddings.py: words that files bring along
                     denoiser.py, sdwebui/encoding.py: where strengths differ between pictures, or from step to step
a checkpoint swap    nothing: the host builds a new engine, which has no patches
"""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, shared

from lora_runtime.catalog import Entry

from ...engine.explaining import Coverage
from ...engine.loading import Loader
from ...engine.models import Models
from ...engine.session import Session
from ...library.shelf import Shelf
from ..sdwebui.encoding import PromptEncoding
from ..sdwebui.folders import lora_folders
from ..sdwebui.page import LoraPage
from ..sdwebui.presets import Presets
from ..sdwebui.registration import Parts, register
from ..sdwebui.settings import Settings
from .denoiser import ForgeDenoising, before_denoising
from .embeddings import BundledEmbeddings
from .models import family_of_loaded, loaded_model
from .tags import LoraTags
from .weights import Weights


def start() -> type[Any]:
    """Register everything; return the Script class that the WebUI looks for in the module that calls this."""
    shelf, settings, denoising = Shelf(lora_folders()), Settings(shared.opts), ForgeDenoising()
    weights = Weights(lambda: denoising.watched)
    models = Models(weights.view, weights.hold, parameters_stay=False)
    session = Session(models, denoising)
    tags = LoraTags(session, weights, models, Loader(shelf), settings, Presets(), BundledEmbeddings())
    coverage = Coverage(models)

    def coverage_of(entry: Entry) -> str | None:
        model = loaded_model()
        return None if model is None else coverage(model, entry)

    return register(
        Parts(
            shelf,
            settings,
            tags,
            LoraPage(shelf, settings, family_of_loaded, coverage_of),
            wrappers=(PromptEncoding(session, tags.is_shown_for, tags.say),),
            callbacks=((script_callbacks.on_cfg_denoiser, before_denoising(denoising)),),
        )
    )
