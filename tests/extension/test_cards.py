"""The HTML of the Lora tab: nothing in a file's name or notes can become markup or script."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from extension_package import module

cards = module("panel.cards")

LOOK = cards.Look("txt2img", "lora")
EVIL = ["\"'><img src=x onerror=alert(1)>", "</div><script>alert(1)</script>", "a\nb'\\\"&amp;<", "{tabname} {0}"]
OWN_TAGS = {"div", "img", "video", "span", "button", "ul", "li", "i", "details", "summary", "b"}


class Reader(HTMLParser):
    """Collects elements with their attributes, as a browser would read them, and whether all were closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def one(self, name: str) -> dict[str, str | None]:
        """Return the attributes of the one element with this class."""
        [found] = [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]
        return found


def card(**values: object) -> object:
    needed = {"name": "ink", "tag_name": "ink", "names": ("ink",), "path": "/loras/ink.safetensors", "place": "ink"}
    return cards.Card(**{**needed, **values})


def evil_card(text: str) -> object:
    texts = ("name", "tag_name", "path", "place", "activation_text", "negative_text", "description", "family")
    more = ("coverage", "preview", "film", "problem")
    return card(**dict.fromkeys(texts + more, text), names=(text,))


def test_a_card_has_what_a_click_writes() -> None:
    html = cards.card_html(card(weight=0.75, activation_text="a, b", negative_text="c", names=("ink", "wash")), LOOK)
    data = Reader(html).one("card")
    assert (data["data-name"], data["data-tag"], data["data-weight"]) == ("ink", "ink", "0.75")
    assert (data["data-activation"], data["data-negative"]) == ("a, b", "c")
    assert json.loads(data["data-names"] or "") == ["ink", "wash"]
    assert data["title"] == "ink"


@pytest.mark.parametrize(("weight", "text"), [(0.0, ""), (1.0, "1"), (0.7, "0.7"), (-0.5, "-0.5")])
def test_a_weight_is_written_as_a_person_would(weight: float, text: str) -> None:
    assert card(weight=weight).weight_text == text  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", EVIL)
def test_no_text_becomes_markup_or_script(text: str) -> None:
    pages = [
        cards.card_html(evil_card(text), LOOK),
        cards.files_html([evil_card(text)], 3, LOOK),
        cards.dirs_html({text: 1}, 1),
        cards.tree_html({f"/{text.replace('/', '')}": 1}),
        cards.refused_html([(text, text)]),
    ]
    for page in pages:
        reader = Reader(page)
        assert reader.open == []
        assert {tag for tag, _ in reader.elements} <= OWN_TAGS
        for _, attributes in reader.elements:
            assert set(attributes) <= {
                "class", "style", "title", "src", "loading", "alt", "onclick", "hidden",
                "data-name", "data-tag", "data-names", "data-weight", "data-activation", "data-negative",
                "data-clipboard-text", "data-folder", "data-files", "data-tree-entry-type",
                "role", "type", "tabindex", "aria-label", "aria-pressed",
                "poster", "preload", "muted", "loop", "playsinline",
            }  # fmt: skip
            assert "alert" not in (attributes.get("onclick") or "")
    shown = Reader(pages[0])
    assert shown.one("card")["data-name"] == shown.one("card")["data-tag"] == text
    assert json.loads(shown.one("card")["data-names"] or "") == [text]
    assert shown.one("copy-path-button")["data-clipboard-text"] == text


def test_a_card_is_chosen_by_a_button_that_lies_below_all_others() -> None:
    reader = Reader(cards.card_html(card(name="ink wash"), LOOK))
    choose = reader.one("lora-runtime-choose")
    assert (choose["type"], choose["aria-label"], choose["aria-pressed"]) == ("button", "ink wash", "false")
    assert (reader.one("card")["role"], reader.one("card")["aria-label"]) == ("group", "ink wash")
    order = [attrs.get("class") or "" for _, attrs in reader.elements]
    assert order.index("lora-runtime-choose") < order.index("button-row") < order.index("actions")
    # One card of thousands is in the way of Tab: the script says which.
    buttons = [attrs for name, attrs in reader.elements if name == "button" or attrs.get("role") == "button"]
    assert len(buttons) == 6
    assert all(attrs["tabindex"] == "-1" and (attrs.get("aria-label") or attrs.get("title")) for attrs in buttons)


def test_a_star_is_pressed_where_the_file_is_a_favourite() -> None:
    assert Reader(cards.card_html(card(), LOOK)).one("lora-runtime-star")["aria-pressed"] == "false"
    assert Reader(cards.card_html(card(favourite=True), LOOK)).one("lora-runtime-star")["aria-pressed"] == "true"


def test_a_film_has_the_picture_as_its_still_and_waits_for_somebody_who_looks() -> None:
    reader = Reader(cards.card_html(card(film="./film", preview="./picture"), LOOK))
    [film] = [attrs for name, attrs in reader.elements if name == "video"]
    assert (film["src"], film["poster"], film["preload"]) == ("./film", "./picture", "none")
    assert "muted" in film and "autoplay" not in film
    assert not [name for name, _ in reader.elements if name == "img"]
    [alone] = [attrs for name, attrs in Reader(cards.card_html(card(film="./film"), LOOK)).elements if name == "video"]
    assert "poster" not in alone


def test_a_blurred_card_says_so_to_the_style_sheet() -> None:
    assert "lora-runtime-blurred" in cards.card_html(card(blurred=True), LOOK)
    assert "lora-runtime-blurred" not in cards.card_html(card(), LOOK)


def test_a_description_is_html_only_where_the_option_says_so() -> None:
    described = card(description="<i>wet</i>")
    assert "&lt;i&gt;wet" in cards.card_html(described, LOOK)
    assert "<i>wet</i>" in cards.card_html(described, cards.Look("txt2img", "lora", description_is_html=True))
    assert "wet" not in cards.card_html(described, cards.Look("txt2img", "lora", show_description=False))


def test_the_badge_says_for_what_a_file_is_and_how_much_of_it_fits() -> None:
    assert "lora-runtime-badge" not in cards.card_html(card(), LOOK)
    fits = Reader(cards.card_html(card(family="SD1"), LOOK))
    assert "lora-runtime-misfit" not in fits.one("lora-runtime-badge")["class"] and "SD1" in fits.text
    partly = Reader(cards.card_html(card(family="SDXL", coverage="812 of 844 keys fit"), LOOK))
    assert "lora-runtime-misfit" in partly.one("lora-runtime-badge")["class"]
    assert "812 of 844 keys fit" in partly.text
    assert "lora-runtime-other" not in partly.one("card")["class"]
    other = Reader(cards.card_html(card(family="Flux", other_family=True), LOOK))
    assert "lora-runtime-other" in other.one("card")["class"].split()


def test_the_buttons_find_their_card_as_the_webui_looks_for_it() -> None:
    """Its functions read data-name two elements above the button."""

    class Parents(Reader):
        path: list[dict[str, str | None]]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.path = [*getattr(self, "path", []), dict(attrs)]
            if "edit-button" in (dict(attrs).get("class") or ""):
                self.named = self.path[-3].get("data-name")
            super().handle_starttag(tag, attrs)

        def handle_endtag(self, tag: str) -> None:
            self.path = self.path[:-1]
            super().handle_endtag(tag)

    assert Parents(cards.card_html(card(), LOOK)).named == "ink"
    assert Parents(cards.files_html([card()], 0, LOOK)).named == "ink"


def test_folders_become_buttons_after_one_for_all() -> None:
    reader = Reader(cards.dirs_html({"style": 2, "style/wet": 1}, 5))
    assert reader.text.split("\n") == ["all", "style/", "style/wet/"]  # a gap between them
    assert [attrs["data-folder"] for _, attrs in reader.elements] == ["", "style", "style/wet"]
    assert cards.dirs_html({}, 5) == ""
    assert Reader(cards.dirs_html({"style": 2}, 5, slash=True)).text == "all\n/style/"


def test_a_tree_has_each_folder_in_its_own() -> None:
    html = cards.tree_html({"/Lora": 1, "/Lora/style": 0, "/Lora/style/wet": 4, "/Lyco": 2})
    reader = Reader(html)
    assert [attrs["data-folder"] for _, attrs in reader.elements if "data-folder" in attrs] == [
        "/Lora", "/Lora/style", "/Lora/style/wet", "/Lyco",
    ]  # fmt: skip
    assert html.index("/Lora/style/wet") < html.index("</ul></li>", html.index("/Lora/style"))


def test_a_very_deep_tree_is_no_error() -> None:
    folders = {"/a" * depth: 0 for depth in range(1, 1500)}
    assert cards.tree_html(folders).count("<li") == 1499


def test_what_cannot_be_used_is_counted() -> None:
    assert cards.refused_html([]) == ""
    assert "1 file cannot be used" in cards.refused_html([("old.pt", "a pickle")])
    many = cards.refused_html([(f"{n}.pt", "a pickle") for n in range(1200)])
    assert "1,200 files cannot be used" in many and "and 1,100 more" in many


def test_a_card_has_the_terms_that_the_program_s_own_cards_have() -> None:
    """By which other extensions find the file of a card."""
    html = cards.card_html(card(terms=("Lora/style/ink.safetensors", "0123456789ab", EVIL[1])), LOOK)
    read = Reader(html)
    assert len([attrs for _, attrs in read.elements if attrs.get("class") == "hidden search_terms"]) == 3
    assert "Lora/style/ink.safetensors0123456789ab" in read.text


def test_a_search_that_finds_nothing_says_so() -> None:
    for text in EVIL:
        read = Reader(cards.nothing_found_html(text, text))
        assert [name for name, _ in read.elements] == ["div"]
        assert read.text == f"Nothing found for “{text.strip()}” in {text}."
    assert "Nothing found." in cards.nothing_found_html(" ", "")
