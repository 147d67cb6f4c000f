"""AUTOMATIC1111's WebUI, 1.10: everything that is registered with it, and in which order.

script is loaded     start(): options; callbacks are registered; checkpoint swaps are bracketed
before_ui, last      takeover: the tags `lora` and `lyco`, the page, in place of the built-in extension's
app_started          API routes
a generation         network.py: activate → session → weights
                     encoding.py, denoiser.py: where strengths differ between pictures, or from step to step
Reload UI            script_unloaded: weights and the WebUI's functions are as they were; the script is loaded anew
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from modules import errors, script_callbacks, sd_models, shared

from ...console import say
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
    """Register everything; return the Script class that the WebUI looks for in the module that calls this.

    All or nothing: first everything is made and looked at, and where a later step fails, here or before the UI is
    built, the earlier ones are undone, so that the built-in extension stays as it was.
    """
    shelf = Shelf(lora_folders())
    session = Session(shelf)
    settings = Settings(shared.opts)
    network = LoraNetwork(session, settings, BundledEmbeddings(), presets.Presets())
    swaps = CheckpointSwaps(session, network.show_again)
    encoding = PromptEncoding(session, network.is_shown_for, network.say)
    cfg_denoiser = before_denoising(session.denoising)
    page = LoraPage(shelf, settings, network.coverage)
    page.check()
    script = script_class(network)
    undo = ExitStack()

    def before_ui() -> None:
        try:
            options.define(shelf, undo)
            takeover.take_tags(network, undo)
            takeover.take_page(page, undo)
            takeover.calm_builtin(sd_models.model_data.loaded_sd_models)
            axes.add(shelf, settings, undo)
            takeover.tell_owner()
        except Exception as error:
            errors.report("[lora-runtime] could not take the place of the built-in Lora extension", exc_info=True)
            undo.close()
            say(f"not started, the built-in Lora extension stays: {type(error).__name__}: {error}")

    def app_started(_: Any, app: Any) -> None:
        routes.add(app, network, page)

    def pasted(_: str, fields: dict[str, Any]) -> None:
        pasting.paste(fields, shelf, settings)

    def unload() -> None:
        swaps.remove()
        encoding.remove()
        script_callbacks.remove_callbacks_for_function(cfg_denoiser)
        network.stop()

    with ExitStack() as failed:
        failed.push(undo)
        undo.callback(network.stop)
        options.define(shelf, undo)
        for register, function in (
            (script_callbacks.on_before_ui, before_ui),
            (script_callbacks.on_app_started, app_started),
            (script_callbacks.on_infotext_pasted, pasted),
            (script_callbacks.on_script_unloaded, unload),
            (script_callbacks.on_cfg_denoiser, cfg_denoiser),
        ):
            undo.callback(script_callbacks.remove_callbacks_for_function, function)
            register(function)
        takeover.run_last("before_ui", before_ui)
        for wrapper in (swaps, encoding):
            undo.callback(wrapper.remove)
            wrapper.install()
        failed.pop_all()
    return script
