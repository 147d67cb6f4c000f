"""The pages of cards, and the routes that browsers ask about them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from modules import errors, shared, ui_extra_networks_user_metadata

extra_pages: list[Any] = []
allowed_dirs: set[str] = set()
# What gradio calls the script of an event: its fourth version, which the Forges have, dropped the underscore.
_SCRIPT = "_js" if gr.__version__.startswith("3.") else "js"
default_allowed_preview_extensions = ["png", "jpg", "jpeg", "webp", "gif"]


def initialize() -> None:
    """Forget all pages."""
    extra_pages.clear()


def register_page(page: Any) -> None:
    """Add a page; its folders are those out of which pictures may be fetched."""
    extra_pages.append(page)
    allowed_dirs.clear()
    for known in extra_pages:
        allowed_dirs.update(known.allowed_directories_for_previews())


class ExtraNetworksPage:
    """A page of cards."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.name = title.lower()
        self.extra_networks_tabname = self.name.replace(" ", "_")
        self.allow_prompt, self.allow_negative_prompt = True, False
        self.items: Any = {}
        self.metadata: Any = {}
        self.pane_tpl = shared.html("extra-networks-pane.html")
        self.pane_content_tree_tpl = shared.html("extra-networks-pane-tree.html")
        self.pane_content_dirs_tpl = shared.html("extra-networks-pane-dirs.html")

    def refresh(self) -> None:
        """Look at the files again."""

    def allowed_directories_for_previews(self) -> list[str]:
        """Return the folders of the files."""
        return []

    def create_html(self, tabname: str, *, empty: bool = False) -> str:
        """Return the page."""
        return ""

    def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
        """Return the editor that opens from a card."""
        return ui_extra_networks_user_metadata.UserMetadataEditor(ui, tabname, self)


class ExtraNetworksUi:
    """What is made of the pages in one tab."""

    def __init__(self, tabname: str) -> None:
        self.tabname = tabname
        self.stored_extra_pages: list[Any] = []
        self.pages: list[Any] = []
        self.pages_contents: list[str] = []
        self.user_metadata_editors: list[Any] = []
        self.buttons_refresh: list[Any] = []
        self.gallery: Any = None


def create_ui(tabname: str) -> ExtraNetworksUi:
    """Make the components of every page, in the Blocks that are being made; their contents come when it is opened."""
    ui = ExtraNetworksUi(tabname)
    ui.stored_extra_pages = list(extra_pages)

    def create_html() -> None:
        ui.pages_contents = [page.create_html(tabname) for page in ui.stored_extra_pages]

    def contents() -> Any:
        # The program has several pages; gradio takes a list for one output as its value.
        return ui.pages_contents if len(ui.pages_contents) > 1 else ui.pages_contents[0]

    def pages_html() -> Any:
        if not ui.pages_contents:
            create_html()
        return contents()

    def refresh() -> Any:
        for page in ui.stored_extra_pages:
            page.refresh()
        create_html()
        return contents()

    names = [f"{tabname}_{page.extra_networks_tabname}" for page in extra_pages]
    tabs = []
    for page, name in zip(extra_pages, names, strict=True):
        with gr.Tab(page.title, elem_id=name, elem_classes=["extra-page"]) as tab:
            ui.pages.append(gr.HTML(page.create_html(tabname, empty=True), elem_id=f"{name}_cards_html"))
            editor = page.create_user_metadata_editor(ui, tabname)
            editor.create_ui()
            ui.user_metadata_editors.append(editor)
            ui.buttons_refresh.append(gr.Button("Refresh", elem_id=f"{name}_extra_refresh_internal", visible=False))
        tabs.append(tab)
    for tab, button, name in zip(tabs, ui.buttons_refresh, names, strict=True):
        script = {_SCRIPT: f"function() {{ applyExtraNetworkFilter('{name}'); }}"}
        tab.select(fn=None, inputs=[], outputs=[], **script)
        button.click(fn=refresh, inputs=[], outputs=ui.pages).then(fn=None, inputs=[], outputs=[], **script)
    ui.gallery = gr.Gallery()
    for editor in ui.user_metadata_editors:
        editor.setup_ui(ui.gallery)
    gr.context.Context.root_block.load(fn=pages_html, inputs=[], outputs=ui.pages)
    return ui


def _page(name: str) -> Any:
    return next((page for page in extra_pages if page.name == name), None)


def add_pages_to_demo(app: Any) -> None:
    """Add the routes."""

    def thumb(filename: str = "") -> Any:
        path = Path(filename).absolute()
        if not path.is_file():
            raise HTTPException(404)
        if not any(Path(folder).absolute() in path.parents for folder in allowed_dirs):
            raise ValueError(f"{filename} is in no folder of a page")
        if path.suffix[1:].lower() not in {*default_allowed_preview_extensions, shared.opts.samples_format}:
            raise ValueError(f"{filename} is no picture")
        return FileResponse(path)

    def cover_images(page: str = "", item: str = "", index: int = 0) -> Any:
        metadata = _page(page).metadata.get(item) if _page(page) else None
        if metadata is None:
            raise HTTPException(404)
        pictures = json.loads(metadata.get("ssmd_cover_images", "[]"))
        if index >= len(pictures):
            raise HTTPException(404)
        return Response(base64.b64decode(pictures[index]), media_type="image/png")

    def metadata(page: str = "", item: str = "") -> Any:
        found = _page(page).metadata.get(item) if _page(page) else None
        if found is None:
            return JSONResponse({})
        shown = {key: found[key] for key in found if key != "ssmd_cover_images"}
        return JSONResponse({"metadata": json.dumps(shown, indent=4, ensure_ascii=False)})

    def single_card(page: str = "", tabname: str = "", name: str = "") -> Any:
        owner = _page(page)
        try:
            item = owner.items[name] = owner.create_item(name, enable_filter=False)
        except Exception as error:
            errors.display(error, "making a card")
            item = owner.items.get(name)
        owner.read_user_metadata(item, use_cache=False)
        return JSONResponse({"html": owner.create_item_html(tabname, item, shared.html("extra-networks-card.html"))})

    routes = {"thumb": thumb, "cover-images": cover_images, "metadata": metadata, "get-single-card": single_card}
    for path, function in routes.items():
        app.add_api_route(f"/sd_extra_networks/{path}", function, methods=["GET"])
