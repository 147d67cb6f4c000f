"""The Lora tab: the WebUI's own page of cards, filled from the shelf.

Only the first cards are in the page's HTML; javascript/lora_runtime.js fetches the others while the user scrolls, and
what a search finds (card_routes.py). So a page takes about as long with 10,000 files as with 100.

Which files are shown. The built-in extension hides what it takes for another model's. Here a guess never hides: a file
whose family is known to differ from the loaded model's comes after the others, dimmed, with its family on it, and any
file that fits only in part says how much. Hidden are, unless `lora_show_all` is on, files whose side-car names another
family under "sd version" (somebody said so), and files of unknown family where `lora_hide_unknown_for_versions` lists
the loaded model's.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modules import shared, ui_extra_networks

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError, UnknownLoraError
from lora_runtime.families import UNKNOWN
from lora_runtime.panel.covers import Covers, find_cover
from lora_runtime.panel.filing import Filing
from lora_runtime.panel.patterns import has_one, in_folders
from lora_runtime.panel.sidecars import FILMS, film_beside, origin_of, words_of

from ...library.pictures import find_preview
from ...library.shelf import Shelf
from ...library.sidecar import Sidecar, find_description
from ...panel.cards import Card, Look, card_html, dirs_html, files_html, refused_html, tree_html
from ...whole import shown_path, whole
from . import takeover
from .editor import LoraEditor
from .on_demand import OnDemand
from .settings import Settings

__all__ = ["LoraPage"]

FIRST_CARDS = 60
_TREE_FILES = 200
_SECONDS_TO_FIT = 1.0
_SORT_KEYS = {
    "Path": "default",
    "Name": "name",
    "Date Created": "date_created",
    "Date Modified": "date_modified",
}


class LoraPage(ui_extra_networks.ExtraNetworksPage):
    """The page "Lora"; the WebUI builds it once for each of its tabs."""

    def __init__(
        self,
        shelf: Shelf,
        settings: Settings,
        family: Callable[[], str],
        coverage: Callable[[Entry], str | None],
    ) -> None:
        """Show `shelf`; `family` is that of the chosen model, "" where it is not known.

        `coverage` says what of a file fits the chosen model, or None where all of it does.
        """
        super().__init__("Lora")
        self.shelf = shelf
        self.settings = settings
        self.family = family
        self.coverage = coverage
        # The WebUI's routes and other extensions look things up here by the cards' names.
        self.items = OnDemand(lambda name: self.create_item(name, enable_filter=False), shelf.names)
        self.metadata = OnDemand(self.metadata_of, shelf.names)
        self.filing = Filing(shelf, self.refresh, lambda: settings.changes_files)
        self._warm = False
        self._covers = Covers()

    def check(self) -> None:
        """Raise AttributeError where this WebUI does not have what a page is made of."""
        for name in ("pane_tpl", "pane_content_tree_tpl", "pane_content_dirs_tpl", "extra_networks_tabname"):
            if not hasattr(self, name):
                raise AttributeError(f"this WebUI's pages have no {name}; those of versions 1.9.4 and later have")

    # --- what the WebUI calls ---

    def refresh(self) -> None:
        """Look at the folders again."""
        self.shelf.refresh()
        self.items.clear()
        self.metadata.clear()
        takeover.renew_builtin_list(self.shelf.paths())

    def allowed_directories_for_previews(self) -> list[str]:
        """Return the folders out of which the WebUI may hand pictures to the browser."""
        return [str(folder) for folder in self.shelf.folders]

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any] | None:
        """Return what the WebUI and other extensions expect to know of a card; None where there is no such file."""
        entry = self.shelf.entry(name)
        if entry is None:
            return None
        notes = self.shelf.notes.of(entry)
        if enable_filter and not self._counts(entry, notes):
            return None
        card = self.card(entry)
        weight = card.weight_text or "opts.extra_networks_default_multiplier"
        prompt = f"{_js(f'<lora:{card.tag_name}:')} + {weight} + {_js('>')}"
        if card.activation_text:
            prompt += f" + {_js(' ' + card.activation_text)}"
        stem = str(entry.path.with_suffix(""))
        return {
            "name": name,
            "filename": str(entry.path),
            "shorthash": self.shelf.hashes.known_short(entry),
            "preview": card.preview or None,
            "description": card.description,
            "search_terms": [*card.terms, entry.alias or ""],
            "local_preview": f"{stem}.{shared.opts.samples_format}",
            "metadata": dict(self.metadata_of(name) or {}),
            "sort_keys": {"default": index, "name": entry.path.name.lower(), "path": str(entry.path).lower()},
            "sd_version": _stated(notes) or entry.family,
            "user_metadata": {
                **whole(dict(notes.rest)),
                "description": notes.description,
                "sd version": notes.sd_version,
                "activation text": notes.activation_text,
                "preferred weight": notes.preferred_weight,
                "negative text": notes.negative_text,
                "notes": notes.notes,
            },
            "prompt": prompt,
            "negative_prompt": _js(f"({card.negative_text}:1)" if card.negative_text else ""),
        }

    def list_items(self) -> Iterator[dict[str, Any]]:
        """Yield an item for every file that is shown; this reads the header of each."""
        for index, name in enumerate(self.search()):
            item = self.create_item(name, index)
            if item is not None:
                yield item

    def read_user_metadata(self, item: dict[str, Any] | None, use_cache: bool = True) -> None:
        """Do nothing: an item is made from the side-car as it is at that moment."""

    def create_item_html(self, tabname: str, item: dict[str, Any], template: str | None = None) -> Any:
        """Return the card of an item; the WebUI asks for it after an edit."""
        entry = self.shelf.entry(item["name"]) if item else None
        return card_html(self.card(entry), self.look(tabname)) if entry else ""

    def create_html(self, tabname: str, *, empty: bool = False) -> str:
        """Return the whole page with its first cards; `empty` stands for it until the browser asks."""
        opts = shared.opts
        cards = "Loading..."
        if empty:
            self._warm_up()
        else:
            self.items.clear()
            self.metadata.clear()
            names = self.search(
                sort=_SORT_KEYS.get(opts.extra_networks_card_order_field, "default"),
                descending=opts.extra_networks_card_order == "Descending",
            )
            cards = self.cards_html(tabname, names[:FIRST_CARDS]) or self.nothing_html()
        shown = bool(opts.extra_networks_tree_view_default_enabled)
        values: dict[str, Any] = {
            "tabname": tabname,
            "extra_networks_tabname": self.extra_networks_tabname,
            "items_html": cards,
            "data_sortdir": opts.extra_networks_card_order,
            "extra_networks_tree_view_default_width": opts.extra_networks_tree_view_default_width,
            "tree_view_btn_extra_class": "extra-network-control--enabled" if shown else "",
            "tree_view_div_default_display_class": "" if shown else "extra-network-dirs-hidden",
        }
        for field, key in _SORT_KEYS.items():
            active = opts.extra_networks_card_order_field == field
            name = "path" if key == "default" else key
            values[f"sort_{name}_active"] = " extra-network-control--enabled" if active else ""
        folders = "" if empty else self.folders_html(tabname)
        if opts.extra_networks_tree_view_style == "Tree":
            values["pane_content"] = self.pane_content_tree_tpl.format(**values, tree_html=folders)
        else:
            values["pane_content"] = self.pane_content_dirs_tpl.format(**values, dirs_html=folders)
        # The mark by which the script knows our page from the built-in's, which has the same ids.
        return '<div class="lora-runtime-page" hidden></div>' + self.pane_tpl.format(**values)

    def folders_html(self, tabname: str) -> str:
        """Return the folders beside the cards, as the options want them: a tree, or buttons."""
        is_tree = shared.opts.extra_networks_tree_view_style == "Tree"
        return self.create_tree_view_html(tabname) if is_tree else self.create_dirs_view_html(tabname)

    def create_tree_view_html(self, tabname: str) -> str:
        """Return the folders as a tree; the files in them are fetched when one is opened."""
        folders = self.shelf.tree(hidden=self._shows_hidden_folders())
        hides = self._hides()
        # Each begins with the name of a user's own folder, which no pattern is about.
        shown = (name for name in folders if not hides(name[1:].partition("/")[2]))
        return tree_html({name: folders[name] for name in shown})

    def create_dirs_view_html(self, tabname: str) -> str:
        """Return a button for each folder."""
        folders = self.shelf.subfolders(hidden=self._shows_hidden_folders())
        hides = self._hides()
        folders = {name: files for name, files in folders.items() if not hides(name)}
        return dirs_html(folders, len(self.shelf.names()), slash=bool(shared.opts.extra_networks_dir_button_function))

    def create_user_metadata_editor(self, ui: Any, tabname: str) -> LoraEditor:
        """Return the editor that opens from a card."""
        return LoraEditor(ui, tabname, self)

    def find_preview(self, path: str) -> str | None:
        """Return the address of the picture beside a file, which is given with or without its suffix."""
        stem = path.removesuffix(".safetensors")
        found = find_preview(Path(f"{stem}.safetensors"), self._picture_types())
        return _picture_url(found) if found else None

    # --- what our routes and the editor call ---

    def search(
        self,
        words: str = "",
        *,
        families: Collection[str] = (),
        fits: bool = False,
        favourites: bool = False,
        **options: Any,
    ) -> list[str]:
        """Return the names of the files that are shown, as `Shelf.search` orders them.

        `families` are those that count, `UNKNOWN` among them; `fits` and `favourites` ask for these files alone.
        """
        hidden = shared.opts.extra_networks_hidden_models
        if not getattr(shared.opts, "list_hidden_files", True):
            hidden = "Never"
        seen, shown = self.shelf.marks.seen(), self._shown()

        def counts(entry: Entry, notes: Sidecar | None) -> bool:
            if not shown(entry, notes):
                return False
            if families and (_family(entry, notes) or UNKNOWN) not in families:
                return False
            return not favourites or self.shelf.mark_of(entry, seen).favourite

        found = self.shelf.search(
            words,
            hidden=hidden,
            family=counts,
            last=self._is_for_another,
            used=lambda entry: self.shelf.mark_of(entry, seen).used,
            **options,
        )
        # Not within the search, which others wait for: headers are read.
        return list(filter(self._fitting(), found)) if fits else found

    def families(self) -> dict[str, int]:
        """Return how many of the files that are shown each family has, `UNKNOWN` last."""
        shown = self._shown()

        def family(entry: Entry, notes: Sidecar | None) -> str | None:
            return (_family(entry, notes) or UNKNOWN) if shown(entry, notes) else None

        found = self.shelf.count(family)
        return dict(sorted(found.items(), key=lambda item: item[0] == UNKNOWN))

    def details(self, name: str, _: str = "") -> dict[str, Any] | None:
        """Return what there is to know of a file, as JSON can hold it; None where it is gone.

        It is about the checkpoint that is loaded, whichever the page names.
        """
        entry = self.shelf.entry(name)
        if entry is None:
            return None
        files = self.shelf.notes.neighbours(entry)
        card, mark = self.card(entry), self.shelf.mark_of(entry)
        noted = [word.strip() for word in card.activation_text.split(",") if word.strip()]
        found: dict[str, Any] = {
            "name": name,
            "stem": entry.path.stem,
            "place": card.place,
            "family": card.family,
            "coverage": card.coverage,
            "description": card.description,
            "words": list(dict.fromkeys([*noted, *words_of(entry, files)])),
            "page": origin_of(entry.path, files).page,
            "preview": card.preview,
            "film": card.film,
            "favourite": card.favourite,
            "used": mark.used,
            "allowed": self.filing.allowed(),
            **(self.filing.folders(entry) if self.filing.allowed() else {}),
        }
        told: dict[str, Any] = whole(found)
        return told

    def star(self, name: str, favourite: bool) -> dict[str, Any]:
        """Make a file a favourite, or no more; raises LoraError or OSError."""
        entry = self.shelf.entry(name)
        if entry is None:
            raise UnknownLoraError(f'there is no LoRA "{name}" any more; refresh the page', name)
        self.shelf.star(entry, favourite)
        return {"favourite": favourite}

    def bin(self) -> dict[str, Any]:
        """Return what is in the bins, and whether files may be changed."""
        found: dict[str, Any] = whole({"bin": self.filing.bin(), "allowed": self.filing.allowed()})
        return found

    def change(self, action: object, given: Mapping[str, object]) -> dict[str, Any]:
        """Give a file another name or place, as `Filing.do`; raises LoraError or OSError."""
        answer: dict[str, Any] = whole(self.filing.do(action, given))
        return answer

    def film(self, name: str) -> tuple[Path, str] | None:
        """Return the film beside a file and its media type, or None."""
        entry = self.shelf.entry(name)
        found = film_beside(entry.path, self.shelf.notes.neighbours(entry)) if entry else None
        return (found, FILMS[found.suffix[1:]]) if found else None

    def cards_html(self, tabname: str, names: Iterable[str]) -> str:
        """Return the cards of these files."""
        look = self.look(tabname)
        return "".join(card_html(self.card(entry), look) for entry in map(self.shelf.entry, names) if entry)

    def tree_files_html(self, tabname: str, folder: str) -> str:
        """Return what lies directly in a folder of the tree, as far as it is reasonable there."""
        names = self.shelf.files_in(folder)
        shown = [entry for entry in map(self.shelf.entry, names[:_TREE_FILES]) if entry]
        return files_html(map(self.card, shown), max(0, len(names) - _TREE_FILES), self.look(tabname))

    def refused_html(self) -> str:
        """Return which files cannot be used, and why."""
        folders = self.shelf.folders
        refused = []
        for path, reason in self.shelf.refused.items():
            top = next((folder for folder in folders if path.is_relative_to(folder)), None)
            shown = path.relative_to(top).as_posix() if top else path.name
            refused.append((shown_path(shown), whole(reason)))
        return refused_html(refused)

    def nothing_html(self) -> str:
        """Return what stands in an empty page: where to put files."""
        template: str = shared.html("extra-networks-no-cards.html")
        folders = map(shown_path, self.shelf.folders)
        return template.format(dirs="".join(f"<li>{html.escape(folder)}</li>" for folder in folders))

    def card(self, entry: Entry) -> Card:
        """Return the card of a file, with its notes as they are now."""
        notes = self.shelf.notes.of(entry)
        files = self.shelf.notes.neighbours(entry)
        try:
            tag_name = self.shelf.tag_name(entry, self.settings.prefer_alias)
        except LoraError:  # its name cannot be written, and it is gone, so that its hash cannot either
            tag_name = self.shelf.name_of(entry)
        return Card(
            name=self.shelf.name_of(entry),
            tag_name=tag_name,
            names=tuple(dict.fromkeys([tag_name, *self.shelf.names_for(entry)])),
            path=shown_path(entry.path),
            place=self.shelf.place_of(entry),
            weight=notes.preferred_weight,
            activation_text=notes.activation_text,
            negative_text=notes.negative_text,
            description=notes.description or find_description(entry.path, files),
            family=_family(entry, notes),
            coverage=self.coverage(entry) or "",
            other_family=self._differs(entry, notes),
            preview=self.preview_url(entry),
            film=self._film_url(entry, files),
            favourite=self.shelf.mark_of(entry).favourite,
            blurred=self._is_blurred(entry, notes),
            problem=notes.problem,
            terms=self._terms(entry),
        )

    def _terms(self, entry: Entry) -> tuple[str, ...]:
        digits = self.shelf.hashes.known_short(entry)
        return (self.shelf.path_from_root(entry), *([digits] if digits else []))

    def look(self, tabname: str) -> Look:
        """Return how the options want cards to look."""
        opts = shared.opts
        sizes = [("height", opts.extra_networks_card_height), ("width", opts.extra_networks_card_width)]
        style = "".join(f"{side}: {size}px; " for side, size in sizes if size)
        return Look(
            tab=tabname,
            page=self.extra_networks_tabname,
            style=f"{style}font-size: {opts.extra_networks_card_text_scale * 100:g}%",
            show_description=bool(opts.extra_networks_card_show_desc),
            description_is_html=bool(opts.extra_networks_card_description_is_html),
        )

    def preview_url(self, entry: Entry) -> str:
        """Return the address of a file's picture: the one beside it, else one in its metadata, else ""."""
        found = find_preview(entry.path, self._picture_types(), self.shelf.notes.neighbours(entry))
        if found:
            return _picture_url(found)
        if self._covers.has(entry):
            name = urllib.parse.quote(self.shelf.name_of(entry), safe="")
            return f"./lora-runtime/cover?name={name}&mtime={entry.mtime_ns}"
        return ""

    def cover(self, name: str) -> tuple[bytes, str] | None:
        """Return a picture from a file's metadata and its media type, or None."""
        entry = self.shelf.entry(name)
        return find_cover(self.metadata_of(name) or {}) if entry and self._covers.has(entry) else None

    def metadata_of(self, name: str) -> Mapping[str, str] | None:
        """Return what a file's header says in words; None where it cannot be read."""
        entry = self.shelf.entry(name)
        return self.shelf.metadata.of(entry) if entry else None

    def _warm_up(self) -> None:
        """Read the folders while the WebUI goes on starting: its first page then waits for less, or not at all."""

        def read() -> None:
            with contextlib.suppress(LoraError):  # the page will say so
                self.search()

        if not self._warm:
            self._warm = True
            threading.Thread(target=read, name="lora-runtime-warm-up", daemon=True).start()

    # --- which files are shown ---

    def _counts(self, entry: Entry, notes: Sidecar | None) -> bool:
        model = "" if self.settings.show_all else self.family()
        if not model:
            return True
        if stated := _stated(notes):
            return stated == model
        return bool(_family(entry, notes)) or model not in self.settings.hide_unknown_for

    def _is_for_another(self, entry: Entry, notes: Sidecar | None) -> bool:
        return not self.settings.show_all and self._differs(entry, notes)

    def _differs(self, entry: Entry, notes: Sidecar | None) -> bool:
        model, known = self.family(), _family(entry, notes)
        return bool(model and known) and model != known

    def _fitting(self) -> Callable[[str], bool]:
        """Return whether a file is made for the model that is chosen. Files that do not say are looked at for a second.

        What is found out is remembered; those that are left over stay, and asking again goes further.
        """
        model, end = self.family(), time.monotonic() + _SECONDS_TO_FIT

        def fits(name: str) -> bool:
            entry = self.shelf.entry(name)
            if entry is None or not model:
                return entry is not None
            known = _family(entry, self.shelf.notes.of(entry))
            return known == model if known else time.monotonic() >= end or self.coverage(entry) is None

        return fits

    def _hides(self) -> Callable[[str], bool]:
        """Return whether a folder, or one that it is in, is among those that the settings hide now."""
        return in_folders(self.settings.hidden_folders)

    def _shown(self) -> Callable[[Entry, Sidecar | None], bool]:
        """Return whether a file has a card, as the settings are now."""
        hides = self._hides()

        def shown(entry: Entry, notes: Sidecar | None) -> bool:
            return self._counts(entry, notes) and not hides(self.shelf.place_of(entry).rpartition("/")[0])

        return shown

    def _is_blurred(self, entry: Entry, notes: Sidecar | None) -> bool:
        patterns = self.settings.blurred
        if not patterns:
            return False
        told = (notes.description, notes.activation_text, notes.notes) if notes else ()
        return has_one(patterns, (self.shelf.place_of(entry), entry.alias or "", *told))

    def _film_url(self, entry: Entry, files: Collection[str]) -> str:
        found = film_beside(entry.path, files)
        if found is None:
            return ""
        name = urllib.parse.quote(self.shelf.name_of(entry), safe="")
        return f"./lora-runtime/film?name={name}&mtime={_mtime(found)}"

    def _shows_hidden_folders(self) -> bool:
        return bool(shared.opts.extra_networks_show_hidden_directories)

    # --- pictures ---

    def _picture_types(self) -> list[str]:
        # "Replace preview" writes in this format, and what was replaced last is to be seen.
        first = str(shared.opts.samples_format).lower()
        return list(dict.fromkeys([first, *ui_extra_networks.default_allowed_preview_extensions]))


def _stated(notes: Sidecar | None) -> str:
    """Return the family that somebody has chosen in the editor, or ""."""
    stated = notes.sd_version if notes else ""
    return "" if stated == "Unknown" else stated


def _family(entry: Entry, notes: Sidecar | None) -> str:
    return _stated(notes) or ("" if entry.family == "unknown" else entry.family)


def _picture_url(path: Path) -> str:
    """Return the WebUI's address for a picture; the time makes browsers fetch a new one."""
    return f"./sd_extra_networks/thumb?filename={urllib.parse.quote(os.fsencode(path.as_posix()))}&mtime={_mtime(path)}"


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _js(text: str) -> str:
    """Return a text as a string of JavaScript, which may also stand in HTML."""
    return json.dumps(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
