"""The editor that opens from a card: a person's notes on a file, beside what its trainer wrote into it."""

from __future__ import annotations

import datetime
import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from modules import errors, images, infotext_utils, shared, sysinfo, ui_extra_networks_user_metadata

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError

from ...library.training_info import Fact, facts, random_prompt, tag_counts, toggle_tag

__all__ = ["LoraEditor"]

_FAMILIES = ["SD1", "SD2", "SDXL", "SD3", "Unknown"]
_SHOWN_TAGS = 24
_WEIGHTS = (0.0, 2.0)
# What gradio calls the script of an event: its fourth version dropped the underscore.
_SCRIPT = "_js" if gr.__version__.startswith("3.") else "js"


class LoraEditor(ui_extra_networks_user_metadata.UserMetadataEditor):
    """One editor for each of the WebUI's tabs."""

    def __init__(self, ui: Any, tabname: str, page: Any) -> None:
        super().__init__(ui, tabname, page)
        self.family: Any = None

    # --- its components ---

    def create_extra_default_items_in_left_column(self) -> None:
        """Add the choice of the model family under the description."""
        self.family = gr.Dropdown(
            _FAMILIES, value="Unknown", label="For models of the family", allow_custom_value=True, interactive=True
        )

    def create_editor(self) -> None:
        """Make the components, and what they do."""
        self.create_default_editor_elems()
        tags = gr.HighlightedText(label="Words in the training captions")
        activation = gr.Textbox(label="Activation text", info="A click on the card writes it after the tag")
        weight = gr.Slider(
            label="Preferred weight",
            info="The strength that a click writes; 0 for the default multiplier",
            minimum=_WEIGHTS[0],
            maximum=_WEIGHTS[1],
            step=0.01,
        )
        negative = gr.Textbox(label="Negative prompt", info="A click writes it into the negative prompt")
        with gr.Row() as random_row:
            with gr.Column(scale=8):
                random_text = gr.Textbox(label="Random prompt", lines=4, max_lines=4, interactive=False)
            with gr.Column(scale=1, min_width=120):
                generate = gr.Button("Generate", size="lg", scale=1)
        self.edit_notes = gr.Textbox(label="Notes", lines=4)
        self.create_default_buttons()

        name = self.edit_name_input
        generate.click(fn=self.random_prompt, inputs=[name], outputs=[random_text], show_progress=False)
        tags.select(fn=_toggle_selected, inputs=[activation], outputs=[activation], show_progress=False)
        left = [self.edit_name, self.edit_description, self.html_filedata, self.html_preview, self.edit_notes]
        shown = [*left, self.family, tags, activation, weight, negative, random_row, random_text, self.html_status]
        self.button_edit.click(fn=self.show, inputs=[name], outputs=shown).then(
            fn=lambda: gr.update(visible=True), inputs=[], outputs=[self.box]
        )
        edited = [self.edit_description, self.family, activation, weight, negative, self.edit_notes]
        self.button_save.click(fn=self.save, inputs=[name, *edited], outputs=[self.html_status]).then(
            # Closed only if it was saved: what somebody wrote must not vanish with the window.
            fn=None,
            **{_SCRIPT: f"function(name, status) {{ {_call('saved', self.tabname)} }}"},
            inputs=[name, self.html_status],
            outputs=[],
        )

    def setup_ui(self, gallery: Any) -> None:
        """Connect "Replace preview" with the gallery of this tab."""
        chosen = f"selected_gallery_index_id({json.dumps(self.tabname + '_gallery_container')})"
        self.button_replace_preview.click(
            fn=self.save_preview,
            **{_SCRIPT: f"function(index, gallery, name) {{ return [{chosen}, gallery, name]; }}"},
            inputs=[self.edit_name_input, gallery, self.edit_name_input],
            outputs=[self.html_preview, self.html_status],
        ).then(
            fn=None,
            **{_SCRIPT: f"function(name) {{ {_call('refreshCard', self.tabname)} }}"},
            inputs=[self.edit_name_input],
            outputs=[],
        )

    # --- what they do ---

    def show(self, name: str) -> list[Any]:
        """Return the values of all components for a card's file."""
        entry = self.page.shelf.entry(name)
        if entry is None:
            gone = f"There is no LoRA {html.escape(name)} any more; refresh the page."
            return [html.escape(name), "", "", "", "", "Unknown", gr.update(value=[], visible=False), "", 0.0, "",
                    gr.update(visible=False), "", gone]  # fmt: skip
        notes = self.page.shelf.notes.of(entry)
        tags = tag_counts(self.page.metadata_of(name) or {})
        weight = notes.preferred_weight
        family = notes.sd_version or "Unknown"
        return [
            html.escape(name),
            notes.description or self.page.card(entry).description,
            self.table_html(entry),
            self.get_card_html(name),
            notes.notes,
            gr.update(value=family, choices=list(dict.fromkeys([*_FAMILIES[:-1], family, "Unknown"]))),
            gr.update(value=[(tag, str(count)) for tag, count in tags[:_SHOWN_TAGS]], visible=bool(tags)),
            notes.activation_text,
            # The slider would cut a weight that was written by hand.
            gr.update(value=weight, minimum=min(weight, _WEIGHTS[0]), maximum=max(weight, _WEIGHTS[1])),
            notes.negative_text,
            gr.update(visible=bool(tags)),
            gr.update(value=random_prompt(tags), visible=bool(tags)),
            html.escape(notes.problem),
        ]

    def save(
        self, name: str, description: str, family: str, activation: str, weight: float, negative: str, notes: str
    ) -> str:
        """Write the notes; return "" or what is wrong, as HTML."""
        shelf = self.page.shelf
        entry = shelf.entry(name)
        if entry is None:
            return f"Not saved: there is no LoRA {html.escape(name)} any more; refresh the page."
        changed = replace(
            shelf.notes.of(entry),
            description=description or "",
            sd_version=family or "Unknown",
            activation_text=activation or "",
            preferred_weight=float(weight or 0),
            negative_text=negative or "",
            notes=notes or "",
        )
        try:
            shelf.notes.write(entry, changed)
        except OSError as error:
            errors.report(f"the notes on {entry.path} could not be written", exc_info=True)
            return f"Not saved: {html.escape(str(error))}"
        self.page.items.pop(name, None)
        return ""

    def save_preview(self, index: Any, gallery: Any, name: str) -> tuple[str, str]:
        """Write the chosen picture of the gallery beside the file; return its HTML, and what is wrong or ""."""
        entry = self.page.shelf.entry(name)
        if not gallery:
            return self.get_card_html(
                name
            ), "The gallery is empty: paint a picture first, then it can become the preview."
        if entry is None:
            return "", "There is no such LoRA any more; refresh the page."
        chosen = min(max(0, int(index)), len(gallery) - 1)
        target = str(entry.path.with_suffix(f".{shared.opts.samples_format}"))
        try:
            with infotext_utils.image_from_url_text(gallery[chosen]) as image:
                about, _ = images.read_info_from_image(image)
                images.save_image_with_geninfo(image, about, target)
        except OSError as error:
            return self.get_card_html(name), f"Not saved: {html.escape(str(error))}"
        self.page.items.pop(name, None)
        return self.get_card_html(name), ""

    def random_prompt(self, name: str) -> str:
        """Return another random prompt from the captions of a file's pictures."""
        return random_prompt(tag_counts(self.page.metadata_of(name) or {}))

    def get_card_html(self, name: str) -> str:
        """Return the preview beside the description."""
        entry = self.page.shelf.entry(name)
        url = self.page.preview_url(entry) if entry else ""
        picture = f'<img src="{html.escape(url)}" class="preview">' if url else ""
        return f'<div class="card standalone-card-preview">{picture}</div>'

    def table_html(self, entry: Entry) -> str:
        """Return the facts on a file, and those on its training, as a table."""
        told = [*self._file_facts(entry), *facts(self.page.metadata_of(self.page.shelf.name_of(entry)) or {})]
        cells = "".join(
            f"<tr><th>{html.escape(fact.label)}: </th>"
            f'<td title="{html.escape(fact.hint)}">{html.escape(fact.text)}</td></tr>'
            for fact in told
            if fact.text
        )
        return f'<table class="file-metadata">{cells}</table>'

    def _file_facts(self, entry: Entry) -> list[Fact]:
        shelf = self.page.shelf
        try:
            digits = shelf.hashes.short(entry)
        except LoraError as error:
            digits = str(error)
        kind = ", ".join(entry.algorithms)
        ranks = ", ".join(map(str, entry.ranks[:4])) + (", …" if len(entry.ranks) > 4 else "")
        return [
            Fact("Filename", Path(shelf.place_of(entry) + entry.path.suffix).as_posix()),
            Fact("File size", sysinfo.pretty_bytes(entry.size)),
            Fact("Hash", digits),
            Fact("Modified", datetime.datetime.fromtimestamp(entry.mtime_ns / 1e9).strftime("%Y-%m-%d %H:%M")),
            Fact("Made for", "" if entry.family == "unknown" else entry.family),
            Fact("Kind", f"{kind}, rank {ranks}" if kind and ranks else kind),
        ]


def _toggle_selected(text: str, event: gr.SelectData) -> str:
    """Return the activation text with the clicked tag added or taken out."""
    return toggle_tag(text or "", event.value[0])


def _call(function: str, tabname: str) -> str:
    """Return the JavaScript that calls our script, where it is loaded."""
    status = ", status" if function == "saved" else ""
    return f"window.loraRuntime && window.loraRuntime.{function}({json.dumps(tabname)}, name{status});"
