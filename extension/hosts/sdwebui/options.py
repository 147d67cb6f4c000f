"""The options: those of the built-in extension under the same keys, so that a user's values stay."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import gradio as gr
from modules import shared

from ...library.shelf import Shelf
from . import takeover
from .settings import BUILTIN_KEY, FIELDS, NEGATIVE_TAGS, SCOPES

_MARK = "lora_runtime_option"  # on each of ours


def _put_back(options: dict[str, Any], before: dict[str, Any]) -> None:
    """Make what we have defined what it was; options that others have defined since stay."""
    for key in [key for key, option in options.items() if getattr(option, _MARK, False)]:
        if key in before:
            options[key] = before[key]
        else:
            del options[key]


def define(shelf: Shelf, undo: ExitStack) -> None:
    """Put the options into the settings; done again before the UI is built, since the built-in may come after us."""
    undo.callback(_put_back, shared.options_templates, dict(shared.options_templates))

    def names() -> dict[str, list[str]]:
        return {"choices": ["None", *shelf.names()]}

    def option(*args: Any, **kwargs: Any) -> Any:
        made = shared.OptionInfo(*args, **kwargs)
        setattr(made, _MARK, True)
        return made

    shared.options_templates.update(
        shared.options_section(
            ("extra_networks", "Extra Networks"),
            {
                "sd_lora": option(
                    "None",
                    "Always-on LoRA",
                    gr.Dropdown,
                    names,
                    refresh=shelf.refresh,
                    infotext=FIELDS["sd_lora"],
                ).info("added to every prompt at the default multiplier"),
                "lora_preferred_name": option(
                    "Alias from file",
                    "A click on a LoRA's card writes",
                    gr.Radio,
                    {"choices": ["Alias from file", "Filename"]},
                ),
                "lora_add_hashes_to_infotext": option(True, "Write the hashes of LoRAs into the infotext"),
                "lora_bundled_ti_to_infotext": option(
                    True, "Write a LoRA's name as the hash of the embeddings bundled in it"
                ).info("where hashes of embeddings are written at all"),
                "lora_show_all": option(False, "List LoRAs for other models among the rest").info(
                    "otherwise they come last and dimmed; those that you have marked for another version are hidden"
                ),
                "lora_hide_unknown_for_versions": option(
                    [],
                    "Hide LoRAs for an unknown model when the checkpoint is",
                    gr.CheckboxGroup,
                    {"choices": ["SD1", "SD2", "SDXL", "SD3"]},
                ),
                "lora_runtime_hide_folders": option("", "Folders whose LoRAs have no cards", gr.Textbox).info(
                    "names or paths with commas between, such as: old, style/trial*; tags find these files all the same"
                ),
                "lora_runtime_blur": option(
                    "", "Blur the pictures of LoRAs that have in their path or notes", gr.Textbox
                ).info("words with commas between, such as: private, nsfw; a card under the pointer is not blurred"),
                "lora_runtime_file_operations": option(
                    True, "Rename, move and throw away LoRA files in their cards' details"
                ).info("what is thrown away lies in .lora-bin, in the folder of LoRAs, and can be put back"),
                "lora_runtime_negative_tags": option(
                    NEGATIVE_TAGS[0],
                    "LoRA tags in the negative prompt",
                    gr.Radio,
                    {"choices": list(NEGATIVE_TAGS)},
                    infotext=FIELDS["lora_runtime_negative_tags"],
                ),
                "lora_runtime_scope": option(
                    next(iter(SCOPES)),
                    "A LoRA tag inside of [prompt:editing:0.5] or of a part with AND acts on",
                    gr.Radio,
                    {"choices": list(SCOPES)},
                    infotext=FIELDS["lora_runtime_scope"],
                ),
                "lora_runtime_stand_back": option(False, "Leave LoRA tags to loractl where it is installed").info(
                    "otherwise LoRA Runtime reads its syntax"
                ),
                BUILTIN_KEY: option(
                    False, "Do not load the built-in Lora extension", onchange=takeover.switch_builtin
                ).info(
                    "from the next start, which then reads thousands of files once instead of twice; switch this off "
                    "before you remove LoRA Runtime, and where another extension needs the built-in"
                ),
                "lora_in_memory_limit": option(0, "LoRA files to keep in memory", gr.Number, {"precision": 0}).info(
                    "0: as many as fit into 1 GB"
                ),
                "lora_not_found_warning_console": option(False, "Print LoRA notices in the console"),
                "lora_not_found_gradio_warning": option(False, "Show LoRA errors in a popup"),
            },
        )
    )
    shared.options_templates.update(
        shared.options_section(
            ("compatibility", "Compatibility"),
            {
                "lora_functional": option(False, "LoRA: the old, slower method").info(
                    "without effect: LoRA Runtime adds all LoRAs up before rounding"
                )
            },
        )
    )
