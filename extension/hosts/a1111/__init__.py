"""AUTOMATIC1111's WebUI, 1.10: everything that is registered with it, and in which order.

script is loaded     start(): options; callbacks are registered; checkpoint swaps are bracketed
before_ui, last      takeover: the tags `lora` and `lyco`, the page, in place of the built-in extension's
app_started          API routes
a generation         network.py: activate → session → weights
                     encoding.py, denoiser.py: where strengths differ between pictures, or from step to step
Reload UI            script_unloaded: weights and the WebUI's functions are as they were; the script is loaded anew
"""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, sd_models, shared

from ...session import Session
from ...shelf import Shelf
from . import axes, options, pasting, presets, routes, takeover
from .denoiser import before_denoising
from .embeddings import BundledEmbeddings
from .encoding import PromptEncoding
from .folders import lora_folders
from .network import LoraNetwork
from .page import LoraPage
from .script import script_class
from .settings import Settings
from .swaps import CheckpointSwaps


def start() -> type[Any]:
    """Register everything; return the Script class that the WebUI looks for in the module that calls this."""
    shelf = Shelf(lora_folders())
    session = Session(shelf)
    settings = Settings(shared.opts)
    network = LoraNetwork(session, settings, BundledEmbeddings(), presets.Presets())
    swaps = CheckpointSwaps(session, network.show_again)
    encoding = PromptEncoding(session, network.is_shown_for)
    cfg_denoiser = before_denoising(session.denoising)
    page = LoraPage(shelf, settings, network.coverage)

    def before_ui() -> None:
        options.define(shelf)
        takeover.take_tags(network)
        takeover.take_page(page)
        takeover.calm_builtin(sd_models.model_data.loaded_sd_models)
        axes.add(shelf, settings)
        takeover.tell_owner()

    def app_started(_: Any, app: Any) -> None:
        routes.add(app, network, page)

    def unload() -> None:
        swaps.remove()
        encoding.remove()
        script_callbacks.remove_callbacks_for_function(cfg_denoiser)
        network.stop()

    options.define(shelf)
    script_callbacks.on_before_ui(before_ui)
    takeover.run_last("before_ui", before_ui)
    script_callbacks.on_app_started(app_started)
    script_callbacks.on_infotext_pasted(lambda infotext, fields: pasting.paste(fields, shelf, settings))
    script_callbacks.on_script_unloaded(unload)
    script_callbacks.on_cfg_denoiser(cfg_denoiser)
    swaps.install()
    encoding.install()
    return script_class(network)
