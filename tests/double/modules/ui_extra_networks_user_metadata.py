"""The editor that opens from a card."""

from __future__ import annotations

from typing import Any

import gradio as gr

_BOX = getattr(gr, "Box", None) or gr.Group  # the Forges' gradio has no boxes any more


class UserMetadataEditor:
    """An editor's components; a page's own editor adds to them."""

    def __init__(self, ui: Any, tabname: str, page: Any) -> None:
        self.ui, self.tabname, self.page = ui, tabname, page
        self.id_part = f"{tabname}_{page.extra_networks_tabname}_edit_user_metadata"
        self.box: Any = None

    def create_extra_default_items_in_left_column(self) -> None:
        """Add something under the description."""

    def create_default_editor_elems(self) -> None:
        """Make what every editor has at its top."""
        with gr.Row():
            with gr.Column(scale=2):
                self.edit_name = gr.HTML()
                self.edit_description = gr.Textbox(label="Description", lines=4)
                self.html_filedata = gr.HTML()
                self.create_extra_default_items_in_left_column()
            with gr.Column(scale=1, min_width=0):
                self.html_preview = gr.HTML()

    def create_default_buttons(self) -> None:
        """Make what every editor has at its foot."""
        with gr.Row():
            self.button_cancel = gr.Button("Cancel")
            self.button_replace_preview = gr.Button("Replace preview", variant="primary")
            self.button_save = gr.Button("Save", variant="primary")
        self.html_status = gr.HTML()

    def create_editor(self) -> None:
        """Make all components."""
        self.create_default_editor_elems()
        self.create_default_buttons()

    def create_ui(self) -> None:
        """Make the editor's box, hidden, with what opens it."""
        with _BOX(visible=False, elem_id=self.id_part) as self.box:
            self.edit_name_input = gr.Textbox("", visible=False, elem_id=f"{self.id_part}_name")
            self.button_edit = gr.Button("Edit", visible=False, elem_id=f"{self.id_part}_button")
            self.create_editor()

    def setup_ui(self, gallery: Any) -> None:
        """Connect the editor with the tab's gallery."""
