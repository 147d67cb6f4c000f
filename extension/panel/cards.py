"""The cards of the Lora tab, and the folders beside them, as HTML.

The markup has the WebUI's class names, so that its style sheet and its functions (copy the path, show the metadata,
open the editor) work on it. What a click writes stands in data attributes, which javascript/lora_runtime.js reads: no
text of a file or of a user is ever put into a script. All text goes through `html.escape`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = [
    "Card",
    "Look",
    "card_html",
    "dirs_html",
    "files_html",
    "nothing_found_html",
    "refused_html",
    "tree_html",
]


@dataclass(frozen=True)
class Card:
    """One file as it is shown and as a click uses it.

    `names` are all the names that mean the file in a tag. `weight` 0 stands for the WebUI's default multiplier.
    `coverage` says what of the file fits the model that is loaded, "" where all does; `other_family` whether the file
    is known to be for another one. `terms` are what the WebUI searches, and what other extensions find a file by.
    `preview` and `film` are addresses, or "".
    """

    name: str
    tag_name: str
    names: tuple[str, ...]
    path: str
    place: str
    weight: float = 0.0
    activation_text: str = ""
    negative_text: str = ""
    description: str = ""
    family: str = ""
    coverage: str = ""
    other_family: bool = False
    preview: str = ""
    film: str = ""
    favourite: bool = False
    blurred: bool = False
    problem: str = ""
    terms: tuple[str, ...] = ()

    @property
    def weight_text(self) -> str:
        """The preferred weight as it is written in a tag, or "" for the default."""
        return f"{self.weight:g}" if self.weight else ""


@dataclass(frozen=True)
class Look:
    """How cards look, and where: the WebUI's tab ("txt2img"), its page ("lora"), and what its options say."""

    tab: str
    page: str
    style: str = ""
    show_description: bool = True
    description_is_html: bool = False


def card_html(card: Card, look: Look) -> str:
    """Return one card."""
    classes = ["card"]
    if card.other_family:
        classes.append("lora-runtime-other")
    if card.blurred:
        classes.append("lora-runtime-blurred")
    description = card.description if look.show_description else ""
    if not look.description_is_html:
        description = escape(description)
    return (
        f'<div class="{" ".join(classes)}" style="{escape(look.style)}" {_attributes(card)} title="{_title(card)}" '
        f'role="group" aria-label="{escape(card.name)}">{_preview(card)}'
        # Below all that others put on a card, and as large as the card: what the keyboard chooses a file by.
        '<button type="button" class="lora-runtime-choose" tabindex="-1" aria-pressed="false" '
        f'aria-label="{escape(card.name)}"></button>'
        f'<div class="button-row">{_buttons(card, look)}</div>{_star(card)}{_badge(card)}'
        f'<div class="actions"><div class="additional">{_terms(card)}</div>'
        f'<span class="name">{escape(card.name)}</span>'
        f'<span class="description">{description}</span></div></div>'
    )


def dirs_html(folders: Mapping[str, int], total: int, *, slash: bool = False) -> str:
    """Return a button for each folder, after one for all; nothing where there are no folders."""
    if not folders:
        return ""
    buttons = [_dir_button("", "all", total, "search-all")]
    buttons += [_dir_button(folder, f"{'/' if slash else ''}{folder}/", count) for folder, count in folders.items()]
    return "\n".join(buttons)  # a blank between them, as between the WebUI's own


def tree_html(folders: Mapping[str, int]) -> str:
    """Return the folders ("/Lora/style": number of files directly in it) as a tree; its files come when it is opened.

    Folders must be given after those that hold them.
    """
    below: dict[str, list[str]] = {}
    for folder in folders:
        below.setdefault(folder.rpartition("/")[0], []).append(folder)
    # Built from the leaves up: a hostile depth of folders must not meet the limit of recursion.
    built: dict[str, str] = {}
    for folder in sorted(folders, key=lambda name: name.count("/"), reverse=True):
        inner = "".join(built.pop(child) for child in below.get(folder, []))
        built[folder] = _tree_folder(folder, folders[folder], inner)
    return f"<ul class='tree-list tree-list--tree'>{''.join(built[folder] for folder in below.get('', []))}</ul>"


def files_html(cards: Iterable[Card], left_out: int, look: Look) -> str:
    """Return the files of one folder of the tree, and how many are left to the cards."""
    files = [_tree_file(card, look) for card in cards]
    if left_out:
        files.append(f"<li class='tree-list-item lora-runtime-note'>and {left_out:,} more, among the cards</li>")
    return "".join(files)


def nothing_found_html(words: str, folder: str) -> str:
    """Return what stands in place of cards where a search finds none."""
    searched = f" for “{escape(words.strip())}”" if words.strip() else ""
    where = f" in {escape(folder)}" if folder else ""
    return f'<div class="lora-runtime-note">Nothing found{searched}{where}.</div>'


def refused_html(reasons: Sequence[tuple[str, str]], limit: int = 100) -> str:
    """Return what files are there and cannot be used, and why; "" where all can."""
    if not reasons:
        return ""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in reasons[:limit])
    more = f"<li>and {len(reasons) - limit:,} more</li>" if len(reasons) > limit else ""
    count = "1 file" if len(reasons) == 1 else f"{len(reasons):,} files"
    summary = f"<summary>{count} cannot be used</summary>"
    return f'<details class="lora-runtime-refused">{summary}<ul>{items}{more}</ul></details>'


# --- parts --------------------------------------------------------------------------------------------------------


def _attributes(card: Card) -> str:
    values = {
        "data-name": card.name,
        "data-tag": card.tag_name,
        "data-names": json.dumps(card.names, ensure_ascii=False),
        "data-weight": card.weight_text,
        "data-activation": card.activation_text,
        "data-negative": card.negative_text,
    }
    return " ".join(f'{key}="{escape(value)}"' for key, value in values.items())


def _preview(card: Card) -> str:
    """Return the picture, or the film, which begins when somebody looks at the card."""
    if card.film:
        # Without a picture the film's own first moment stands there.
        still = f'poster="{escape(card.preview)}" preload="none"' if card.preview else 'preload="metadata"'
        return f'<video src="{escape(card.film)}" class="preview" {still} muted loop playsinline></video>'
    return f'<img src="{escape(card.preview)}" class="preview" loading="lazy" alt="">' if card.preview else ""


def _star(card: Card) -> str:
    pressed = "true" if card.favourite else "false"
    return (
        f'<button type="button" class="lora-runtime-star card-button" tabindex="-1" aria-pressed="{pressed}" '
        'title="Favourite" aria-label="Favourite"></button>'
    )


def _terms(card: Card) -> str:
    return "".join(f'<span class="hidden search_terms">{escape(term)}</span>' for term in card.terms)


def _title(card: Card) -> str:
    lines = [card.place]
    lines += [line for line in (card.coverage, card.problem) if line]
    return escape("\n".join(lines))


def _badge(card: Card) -> str:
    """Return the model family that the file is for; with what fits, where that is not all of it."""
    misfit = card.other_family or bool(card.coverage)
    parts = []
    if card.family and not card.coverage.endswith(f"made for {card.family}"):
        parts.append(f'<span class="lora-runtime-family">{escape(card.family)}</span>')
    if card.coverage:
        parts.append(f'<span class="lora-runtime-coverage">{escape(card.coverage)}</span>')
    if not parts:
        return ""
    return f'<div class="lora-runtime-badge{" lora-runtime-misfit" if misfit else ""}">{"".join(parts)}</div>'


def _buttons(card: Card, look: Look) -> str:
    # The tab and the page are the WebUI's own words, not a user's.
    return (
        '<button type="button" class="lora-runtime-details-button card-button" tabindex="-1" '
        'title="Large picture, words, file" aria-label="Large picture, words, file"></button>'
        '<div class="copy-path-button card-button" role="button" tabindex="-1" title="Copy the path of the file" '
        f'onclick="extraNetworksCopyCardPath(event)" data-clipboard-text="{escape(card.path)}"></div>'
        '<div class="metadata-button card-button" role="button" tabindex="-1" '
        'title="What the trainer wrote into the file" '
        f"onclick=\"extraNetworksRequestMetadata(event, '{escape(look.page)}')\"></div>"
        '<div class="edit-button card-button" role="button" tabindex="-1" title="Your notes on this file" '
        f"onclick=\"extraNetworksEditUserMetadata(event, '{escape(look.tab)}', '{escape(look.page)}')\"></div>"
    )


def _dir_button(folder: str, text: str, count: int, extra: str = "") -> str:
    return (
        f'<button class="lg secondary gradio-button custom-button lora-runtime-dir {extra}" '
        f'data-folder="{escape(folder)}" title="{count:,} files">{escape(text)}</button>'
    )


def _tree_folder(folder: str, files: int, inner: str) -> str:
    name = folder.rpartition("/")[2]
    return (
        "<li class='tree-list-item tree-list-item--has-subitem' data-tree-entry-type='dir'>"
        f"<div class='tree-list-content tree-list-content-dir' data-folder=\"{escape(folder)}\" data-files='{files}'>"
        "<span class='tree-list-item-action tree-list-item-action--leading'>"
        "<i class='tree-list-item-action-chevron'></i></span>"
        "<span class='tree-list-item-visual tree-list-item-visual--leading'>🗀</span>"
        f"<span class='tree-list-item-label tree-list-item-label--truncate'>{escape(name)}</span></div>"
        f"<ul class='tree-list tree-list--subgroup' hidden>{inner}</ul></li>"
    )


def _tree_file(card: Card, look: Look) -> str:
    return (
        "<li class='tree-list-item tree-list-item--subitem' data-tree-entry-type='file'>"
        f"<div class='tree-list-content tree-list-content-file' {_attributes(card)} title=\"{_title(card)}\">"
        "<span class='tree-list-item-visual tree-list-item-visual--leading'>🗎</span>"
        f"<span class='tree-list-item-label tree-list-item-label--truncate'>{escape(card.name)}</span>"
        # The WebUI's functions look for the name at the parent of the row of buttons.
        f"<span class='tree-list-item-action tree-list-item-action--trailing' data-name=\"{escape(card.name)}\">"
        f"<div class='button-row'>{_buttons(card, look)}</div></span></div></li>"
    )
