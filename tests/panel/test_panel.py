"""A prompt as rows, changes as texts and spans, what may stand at the cursor: all without a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_runtime import LoraCatalog
from lora_runtime.blocks import FLUX, UNET, blocks_in
from lora_runtime.errors import UnknownLoraError
from lora_runtime.panel import CatalogLibrary, PanelFile, complete, edit, tags, web_file, web_hash
from lora_runtime.prompt import parse_prompt

INK = PanelFile("ink", "ink", "style/ink", "./ink.png", "SD1", weight=0.8, words=("ink wash", "sea"))


class OneFile:
    """A library of one file."""

    def find(self, name: str) -> PanelFile:
        if name != "ink":
            raise UnknownLoraError(f'no LoRA named "{name}"', name, ("ink", "a:b"))
        return INK

    def search(self, words: str, limit: int) -> list[PanelFile]:
        return [INK][:limit] if all(word in INK.place for word in words.split()) else []


LIBRARY = OneFile()


def units(text: str) -> list[str]:
    """Return a text as a browser counts it: its UTF-16 code units."""
    data = text.encode("utf-16-le", "surrogatepass")
    return [data[place : place + 2].decode("utf-16-le", "surrogatepass") for place in range(0, len(data), 2)]


def spliced(prompt: str, change: dict[str, Any]) -> str:
    """Return the prompt as the browser has it after a change."""
    assert "error" not in change, change
    text, (start, end) = units(prompt), change["span"]
    whole = "".join([*text[:start], change["text"], *text[end:]])
    return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def rows(prompt: str, **how: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tags(prompt, LIBRARY, **how)["tags"]
    return found


# --- rows ---


def test_a_row_has_what_its_tag_and_its_file_say() -> None:
    [row] = rows("a 🐱 <lora:ink:0.5:1@0,0@50%:hr=0.3:start=5:lbw=MIDD:IN04=0.2:foo=1> at Sea", blocks=["IN04", "M00"])
    assert (row["te"], row["unet"], row["muted"]) == ("0.5", "1@0,0@0.5", False)
    assert row["curves"] == {"te": None, "unet": {"unit": "fraction", "keys": [[0.0, 1.0], [0.5, 0.0]]}}
    assert {name: text for name, text in row["fields"].items() if text} == {"hr": "0.3", "start": "5"}
    assert (row["preset"], row["ratios"], row["others"]) == ("MIDD", {"IN04": "0.2", "M00": "1"}, ["foo=1"])
    assert row["words"] == [{"word": "ink wash", "present": False}, {"word": "sea", "present": True}]
    assert row["range"] == [-0.8, 1.6]  # as far below and twice above the strength that the file is made for
    assert row["file"]["picture"] == "./ink.png"
    assert [said["message"] for said in row["notices"]] == ['there is no argument "foo="; it is ignored']


def test_spans_are_those_of_a_text_area() -> None:
    prompt = "🐱🐱 <lora:ink:1> 🐱 <lora:ink:0.5>"
    assert ["".join(units(prompt)[slice(*row["span"])]) for row in rows(prompt)] == ["<lora:ink:1>", "<lora:ink:0.5>"]


def test_words_within_tags_do_not_count_as_words_of_the_prompt() -> None:
    [row] = rows("<lora:ink:1> <hypernet:sea:1> seaside")
    assert [each["present"] for each in row["words"]] == [False, False]


def test_a_row_has_the_part_of_the_picture_that_its_tag_is_for() -> None:
    found = [
        row["region"] for row in rows("<lora:ink:1:box=0,0.25,0.5,1:soft=0.1> <lora:ink:1:mask=a b.png> <lora:ink>")
    ]
    assert found == [
        {"box": (0.0, 0.25, 0.5, 1.0), "mask": "", "soft": 0.1},
        {"box": None, "mask": "a b.png", "soft": 0.0},
        None,
    ]


def test_a_muted_tag_shows_what_it_will_be() -> None:
    [row] = rows("<lora:ink:0:was=te 0.5 unet 0.9>")
    assert (row["muted"], row["te"], row["unet"], row["notices"]) == (True, "0.5", "0.9", [])


def test_what_a_muted_tag_was_may_be_damaged() -> None:
    [row] = rows("<lora:ink:0:was=nothing>")
    assert (row["muted"], row["te"]) == (True, "0")
    assert "is not a number" in row["notices"][0]["message"]


def test_a_strength_beyond_the_usual_widens_the_sliders() -> None:
    assert rows("<lora:ink:5:-3>")[0]["range"] == [-3.0, 5.0]
    assert rows("<lora:ink:1e308>")[0]["range"] == [-0.8, 100.0]


@pytest.mark.parametrize(
    ("prompt", "mended"),
    [
        ("a <lora:imk:0.7:lbw=MIDD> b", "a <lora:ink:0.7:lbw=MIDD> b"),
        ("a <lora:ink:0,5> b", "a <lora:ink:0.5> b"),
        ("a <lora:ink:70%> b", "a <lora:ink:0.7> b"),
        ("a <lora:ink:1:clip=0.5> b", "a <lora:ink:1:te=0.5> b"),
        ("a <lora:ink:1:lbw=MIDDD> b", "a <lora:ink:1:lbw=MIDD> b"),
        ("a <lroa:ink:1> b", "a <lora:ink:1> b"),
        ("a < lora:ink:1> b", "a <lora:ink:1> b"),
        ("a <lora:ink:1", "a <lora:ink:1>"),
        ("a {lora:ink:1} b", "a <lora:ink:1> b"),
    ],
)
def test_a_button_mends_what_is_mistyped(prompt: str, mended: str) -> None:
    answer = tags(prompt, LIBRARY)
    said = [*answer["notices"], *(said for row in answer["tags"] for said in row["notices"])]
    [fix] = [fix for each in said for fix in each["fixes"]]
    assert spliced(prompt, fix) == mended
    after = tags(mended, LIBRARY)
    assert [*after["notices"], *(said for row in after["tags"] for said in row["notices"])] == []


@pytest.mark.parametrize("prompt", ["<lora:ink:abc>", "<lora::1>", "<lora:ink:1:step=5-2>", "<lora:ink:1:box=1>"])
def test_where_no_text_would_mend_it_there_is_no_button(prompt: str) -> None:
    answer = tags(prompt, LIBRARY)
    said = [*answer["notices"], *(said for row in answer["tags"] for said in row["notices"])]
    assert [each["fixes"] for each in said] == [[]]
    assert said[0]["hint"]


def test_one_file_of_a_folder_is_a_row_that_says_so() -> None:
    [row] = rows("a <lora:style/*:0.7>")
    assert (row["name"], row["unet"], row["file"]["title"], row["words"]) == ("style/*", "0.7", "style/*", [])
    assert [(said["severity"], said["message"]) for said in row["notices"]] == [
        ("info", "one file of this folder, drawn by the seed of the picture")
    ]
    assert (
        spliced("a <lora:style/*:0.7>", edit("a <lora:style/*:0.7>", 0, "unet", "0.5"))
        == "a <lora:style/*:te=0.7:unet=0.5>"
    )


def test_presets_are_those_for_the_models_blocks() -> None:
    assert "FLUXALL" not in tags("", LIBRARY, blocks=UNET)["presets"]
    assert "MIDD" not in tags("", LIBRARY, blocks=FLUX)["presets"]
    assert {"FLUXALL", "MIDD", "ATTNDEEPOFF"} <= set(tags("", LIBRARY)["presets"])


def test_of_a_text_of_many_tags_the_first_are_rows() -> None:
    answer = tags("<lora:ink:1>" * 100, LIBRARY)
    assert (len(answer["tags"]), answer["more"]) == (60, 40)


# --- changes ---


@pytest.mark.parametrize(
    ("prompt", "tag", "field", "value", "after"),
    [
        ("🐱 <lora:ink:0.7>, sea", 0, "te", 0.5, "🐱 <lora:ink:te=0.5:unet=0.7>, sea"),
        ("🐱 <lora:ink:0.5:0.7>", 0, "strength", "1", "🐱 <lora:ink:1>"),
        ("<lora:a:1><lora:b:1>", 1, "unet", "0@0,1@1", "<lora:a:1><lora:b:te=1:unet=0@0,1@1>"),
        (
            "<lora:a:1>",
            0,
            "unet",
            {"unit": "step", "keys": [[0, 1], [10, 0.5]]},
            "<lora:a:te=1:unet=1@0,0.5@10>",
        ),
        ("<lora:a:1>", 0, "strength", {"unit": "fraction", "keys": [[0.3, 0.5]]}, "<lora:a:0.5>"),
        ("<lora:a:0:was=0.7>", 0, "te", "0.5", "<lora:a:0:was=te 0.5 unet 0.7>"),
        ("<lora:a:0:was=lost>", 0, "strength", "0.5", "<lora:a:0.5>"),
        ("<lora:a:0.7>", 0, "mute", True, "<lora:a:0:was=0.7>"),
        ("<lora:a:0:was=0.7>", 0, "mute", True, "<lora:a:0:was=0.7>"),
        ("<lora:a:0:was=0.7>", 0, "mute", False, "<lora:a:0.7>"),
        ("<lora:a:1:IN04=0.5:lbw=MIDD>", 0, "preset", "OUTALL", "<lora:a:1:lbw=OUTALL>"),
        ("<lora:a:1:IN04=0.5>", 0, "preset", "ATTNDEEPOFF", "<lora:a:1:lbwe=ATTNDEEPOFF>"),
        ("<lora:a:1:lbw=MIDD>", 0, "preset", "", "<lora:a:1>"),
        ("<lora:a:1:lbw=MIDD>", 0, "block:M00", "0.5", "<lora:a:1:lbw=MIDD:M00=0.5>"),
        ("<lora:a:1:lbw=OUTALL:M00=0.5>", 0, "block:M00", "0", "<lora:a:1:lbw=OUTALL>"),
        ("<lora:a:1:stop=10>", 0, "stop", "", "<lora:a:1>"),
        ("<lora:a:1>", 0, "name", "style/b", "<lora:style/b:1>"),
        ("<lora:a:1>", 0, "box", "0,0,0.5,1", "<lora:a:1:box=0,0,0.5,1>"),
        ("<lora:a:1:box=0,0,1,0.5:stop=5>", 0, "box", "0,0,0.5,1", "<lora:a:1:box=0,0,0.5,1:stop=5>"),
        ("<lora:a:1:box=0,0,0.5,1:soft=0.1:mask=m.png>", 0, "box", "", "<lora:a:1:mask=m.png>"),
        ("<lora:a:1:box=0,0,0.5,1>", 0, "soft", 0.1, "<lora:a:1:box=0,0,0.5,1:soft=0.1>"),
        ("<lora:a:1:mask=m.png>", 0, "mask", "left half.png", "<lora:a:1:mask=left half.png>"),
        ("<lora:a:1:mask=m.png>", 0, "mask", "", "<lora:a:1>"),
        ("x <lora:a:1>, y", 0, "delete", None, "x, y"),
        ("x, <lora:a:1>", 0, "delete", None, "x"),
        ("x, <lora:a:1>, y", 0, "delete", None, "x, y"),
        ("<lora:a:1>, y", 0, "delete", None, "y"),
        ("<lora:a:1> y", 0, "delete", None, "y"),
        ("(<lora:a:1>)", 0, "delete", None, "()"),
        ("x <lora:a:1>\ny", 0, "delete", None, "x\ny"),
        ("<lora:a:1> x <lora:b:1>, <lora:c:1>", 0, "move", "2", "<lora:b:1> x <lora:c:1>, <lora:a:1>"),
        ("<lora:a:1> x <lora:b:1>, <lora:c:1>", 2, "move", "1", "<lora:a:1> x <lora:c:1>, <lora:b:1>"),
        ("<lora:a:1>, y", 0, "word", "ink wash", "<lora:a:1> ink wash, y"),
        ("<lora:a:1> y", 0, "word", "ink wash", "<lora:a:1> ink wash, y"),
        ("<lora:a:1>", 0, "word", "ink wash", "<lora:a:1> ink wash"),
        ("<lora:a:1> Ink wash, y", 0, "no-word", "ink wash", "<lora:a:1>, y"),
    ],
)
def test_a_change_is_one_text_in_one_place(prompt: str, tag: int, field: str, value: Any, after: str) -> None:
    assert spliced(prompt, edit(prompt, tag, field, value)) == after


@pytest.mark.parametrize(
    ("tag", "field", "value", "why"),
    [
        (1, "te", "1", "there is no tag 2: the prompt has 1"),
        (-1, "te", "1", "there is no tag 0"),
        (0, "colour", "1", 'there is nothing called "colour" in a tag'),
        (0, "te", "1:x", "a sign that ends a field"),
        (0, "te", [1], "a value is a text"),
        (0, "te", {"unit": "step", "keys": []}, "1 to 1000 keyframes"),
        (0, "te", {"unit": "step", "keys": [[0, "x"]]}, "two numbers"),
        (0, "te", {"unit": "step", "keys": [[0, float("nan")]]}, "finite"),
        (0, "preset", "NOSUCH", 'no preset "NOSUCH"'),
        (0, "block:*", "0>", "a sign that ends a field"),
        (0, "move", "5", 'there is no place "5"'),
        (0, "word", "a <lora:b>", "cannot come into a prompt"),
        (0, "no-word", "sea", "is not in the prompt"),
        (0, "name", "a:b", "cannot stand in a tag as a name"),
        (0, "box", "0,0,0,1", "is not inside the picture"),
        (0, "box", "0,0,1", "is not four numbers"),
        (0, "mask", "a:b.png", "a sign that ends a field"),
        (0, "soft", "2", "is not a number from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_said(tag: int, field: str, value: Any, why: str) -> None:
    assert why in edit("<lora:ink:1>", tag, field, value)["error"]


FIELDS = st.sampled_from(
    [
        "strength",
        "te",
        "unet",
        "hr",
        "start",
        "stop",
        "curve",
        "module",
        "mute",
        "block:IN04",
        "block:M00",
        "preset",
        "delete",
        "move",
        "word",
        "no-word",
        "name",
        "dyn",
        "step",
        "box",
        "mask",
        "soft",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [*["0.5", "-1", "1@0,0@1", "[1@0,0@1]", "10%", "ease", "high", "MIDD", "ATTNDEEPOFF", "0", "1", "sea"], ""]
    ),
    st.booleans(),
    st.floats(),
    st.none(),
    st.text(max_size=8),
    st.fixed_dictionaries(
        {
            "unit": st.sampled_from(["fraction", "step", "sigma", "share", "x"]),
            "keys": st.lists(st.lists(st.floats() | st.text(max_size=2), max_size=3), max_size=4),
        }
    ),
)
PIECES = """
    a 🐱 , sea <lora:ink:0.7> <lora:ink:te=0.5:unet=1@0,0@1:hr=1> <lora:x:0:was=0.7> <lora:y:1:MIDD:IN04=0.5>
    <lora:z:[1@0,0@1]> ( ) [ | <hypernet:h:1> <lora:
"""
PROMPTS = st.lists(st.sampled_from([*PIECES.split(), " ", ", ", "\n"]), max_size=8).map("".join)


@given(PROMPTS, st.integers(0, 3), FIELDS, VALUES)
def test_a_change_changes_no_other_tag(prompt: str, tag: int, field: str, value: Any) -> None:
    change = edit(prompt, tag, field, value)
    json.dumps(change)
    if "error" in change:
        return
    before, after = parse_prompt(prompt).tags, parse_prompt(spliced(prompt, change)).tags
    if field == "delete":
        assert [each.raw for each in after] == [each.raw for index, each in enumerate(before) if index != tag]
    elif field == "move":
        assert sorted(each.raw for each in after) == sorted(each.raw for each in before)
    else:
        assert [each.raw for index, each in enumerate(after) if index != tag] == [
            each.raw for index, each in enumerate(before) if index != tag
        ]
        assert len(after) == len(before)


@given(PROMPTS, st.integers(0, 40))
def test_any_prompt_has_rows_and_completions(prompt: str, cursor: int) -> None:
    json.dumps(tags(prompt, LIBRARY, blocks=UNET), allow_nan=False)
    json.dumps(complete(prompt, cursor, LIBRARY, blocks=UNET), allow_nan=False)


# --- completion ---


def at_cursor(text: str, **how: Any) -> tuple[list[str], list[str]]:
    """Return the prompts that the suggestions at "|" make, and what is called what."""
    prompt = text.replace("|", "")
    cursor = len(units(text[: text.index("|")]))
    answer = complete(prompt, cursor, LIBRARY, **how)
    made = [spliced(prompt, {**item, "span": answer["span"]}) for item in answer["items"]]
    return made, [item["label"] for item in answer["items"]]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("🐱 <lora:|", ["🐱 <lora:ink:0.8>"]),
        ("<lora:nk sty|", ["<lora:ink:0.8>"]),
        ("<lora:i|mk:0.5> x", ["<lora:ink:0.5> x"]),
        ("<lora:style/|", ["<lora:style/*:1>", "<lora:ink:0.8>"]),
        ("<lora:none|", []),
        ("<lora:ink:0.7:stop|", ["<lora:ink:0.7:stop="]),
        ("<lora:ink:lbw=outs|", ["<lora:ink:lbw=OUTS"]),
        ("<lora:ink:OUTS|>", ["<lora:ink:lbw=OUTS>"]),
        ("<lora:ink:attndeepon|", ["<lora:ink:lbwe=ATTNDEEPON"]),
        ("<lora:ink:module=h|", ["<lora:ink:module=high"]),
        ("<lora:ink:curve=ease-|", ["<lora:ink:curve=ease-in", "<lora:ink:curve=ease-out"]),
        ("<lora:ink:m0|", ["<lora:ink:M00="]),
        ("<lora:ink:0.7|", []),
        ("<lora:ink> |", []),
        ("lora:|", []),
        ("|", []),
    ],
)
def test_what_may_stand_at_the_cursor(text: str, made: list[str]) -> None:
    assert at_cursor(text, blocks=["M00"])[0] == made


def test_behind_a_colon_every_field_is_offered_once() -> None:
    _, labels = at_cursor("<lora:ink:|")
    assert {"te=", "unet=", "lbw=", "start=", "curve="} <= set(labels)
    assert len(labels) == len(set(labels))


# --- files and modules ---


@pytest.fixture
def catalog(tmp_path: Path) -> LoraCatalog:
    weights = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 1)}
    weights["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"] = torch.zeros(1, 4)
    for name in ("style/ink", "people/ink", "wash of water"):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(weights, path, metadata={"modelspec.trigger_phrase": f"by {name}"})
    return LoraCatalog(tmp_path)


def test_a_catalog_is_searched_by_words_in_any_order_and_names_mean_one_file(catalog: LoraCatalog) -> None:
    library = CatalogLibrary(catalog, picture=lambda entry: f"/{entry.name}.png", fit=lambda _: "1 of 2 keys")
    assert [file.name for file in library.search("water wa", 9)] == ["wash of water"]
    assert [file.name for file in library.search("INK", 9)] == ["people/ink", "style/ink"]
    assert [file.name for file in library.search("", 2)] == ["people/ink", "style/ink"]
    found = library.find("wash_of_water")
    assert found.remark == '"wash_of_water" is read as "wash of water"'
    assert (found.words, found.picture, found.fit) == (("by wash of water",), "/wash of water.png", "1 of 2 keys")


def test_an_ambiguous_name_has_a_button_for_each_file(catalog: LoraCatalog) -> None:
    [row] = tags("<lora:ink:0.5>", CatalogLibrary(catalog))["tags"]
    [said] = row["notices"]
    assert {fix["text"] for fix in said["fixes"]} == {"<lora:style/ink:0.5>", "<lora:people/ink:0.5>"}


def test_blocks_are_those_that_modules_lie_in() -> None:
    modules = [
        ("text_encoder", "text_model.encoder"),
        ("unet", "down_blocks.0.attentions.1"),
        ("unet", "mid_block"),
        ("unet", "time_embedding"),
        ("unet", "up_blocks.3.attentions.2"),
    ]
    assert blocks_in(modules) == ["BASE", "IN02", "M00", "OUT11"]


def test_modules_are_served_under_the_hash_of_what_they_are() -> None:
    found = web_file(web_hash(), "stack.js")
    assert found is not None and found[1] == "text/javascript"
    assert b"customElements.define" in found[0]
    for digest, name in ((web_hash(), "../rows.py"), (web_hash(), "__init__.py"), ("0" * 16, "stack.js"), ("", "")):
        assert web_file(digest, name) is None


def test_modules_import_only_each_other() -> None:
    folder = Path(__file__).parents[2] / "lora_runtime" / "panel" / "web"
    for path in folder.glob("*.js"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("import "):
                assert (folder / line.rpartition('"./')[2].rstrip('";')).is_file(), line
