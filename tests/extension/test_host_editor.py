"""The editor that opens from a card, over gradio's own HTTP: what it shows, what it writes, and what may go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import double
import pytest
from double import loras
from double.loras import plain
from PIL import Image

if TYPE_CHECKING:
    from double.webui import WebUI

TAGS = {"boats": {"boat": 7, "sea": 5}}
KOHYA = {
    "ss_output_name": "inkwash",
    "ss_tag_frequency": json.dumps(TAGS),
    "ss_base_model_version": "sd_v1",
    "ss_clip_skip": "2",
}


class Opened:
    """The editor, opened for a card as the program's script does it."""

    def __init__(self, webui: WebUI, name: str, tabname: str = "txt2img") -> None:
        self.browser, self.ui = webui.open_page(tabname)
        [self.editor] = self.ui.user_metadata_editors
        self.browser.enter(self.editor.edit_name_input, name)
        self.browser.click(self.editor.button_edit)

    def part(self, label: str) -> Any:
        """Return the component with that label."""
        return self.browser.named(label)

    def value(self, label: str) -> Any:
        return self.browser.value(self.part(label))

    def enter(self, label: str, value: Any) -> None:
        self.browser.enter(self.part(label), value)

    def save(self) -> str:
        """Click on Save; return what the editor says."""
        self.browser.click(self.editor.button_save)
        said: str = self.browser.value(self.editor.html_status)
        return said


@pytest.fixture
def ink(webui: WebUI) -> loras.File:
    return loras.write(webui.loras / "style" / "ink.safetensors", plain(), metadata=KOHYA)


def notes_of(file: loras.File) -> Any:
    return json.loads(file.path.with_suffix(".json").read_text(encoding="utf-8"))


def test_it_shows_notes_facts_and_captions(webui: WebUI, ink: loras.File) -> None:
    notes = {"description": "boats", "sd version": "SD1", "activation text": "ink wash", "preferred weight": 0.8}
    ink.path.with_suffix(".json").write_text(json.dumps({**notes, "negative text": "photo", "notes": "<b>mine</b>"}))
    opened = Opened(webui, "ink")
    browser, editor = opened.browser, opened.editor
    assert browser.visible(editor.box)
    assert browser.value(editor.edit_name) == "ink"
    shown = (
        "Description",
        "For models of the family",
        "Activation text",
        "Preferred weight",
        "Negative prompt",
        "Notes",
    )
    assert [opened.value(label) for label in shown] == ["boats", "SD1", "ink wash", 0.8, "photo", "<b>mine</b>"]
    table = browser.value(editor.html_filedata)
    for fact in ("style/ink.safetensors", "SD1", "rank", "inkwash", 'Clip skip: </th><td title="">2'):
        assert fact in table
    words = opened.value("Words in the training captions")
    # gradio 3 or 4
    words = [list(word.values()) if isinstance(word, dict) else word for word in words]
    assert words == [["boat", "7"], ["sea", "5"]]
    assert "boat" in opened.value("Random prompt")  # the most frequent one is drawn always
    assert browser.value(editor.html_status) == ""


def test_a_file_without_metadata_shows_no_captions(webui: WebUI) -> None:
    loras.write(webui.loras / "bare.safetensors", plain())
    opened = Opened(webui, "bare")
    assert not opened.browser.visible(opened.part("Words in the training captions"))
    assert not opened.browser.visible(opened.part("Random prompt"))
    assert opened.value("For models of the family") == "Unknown"
    assert opened.value("Preferred weight") == 0


def test_what_is_saved_is_written_beside_the_file_and_on_the_card(webui: WebUI, ink: loras.File) -> None:
    ink.path.with_suffix(".json").write_text('{"other tool": {"id": 3}}')
    opened = Opened(webui, "ink")
    opened.enter("Description", "boats")
    opened.enter("For models of the family", "SDXL")
    opened.enter("Activation text", "ink wash, sea")
    opened.enter("Preferred weight", 0.65)
    opened.enter("Negative prompt", "photo")
    opened.enter("Notes", "“mine”\nand more")
    assert opened.save() == ""
    assert notes_of(ink) == {
        "description": "boats",
        "sd version": "SDXL",
        "activation text": "ink wash, sea",
        "preferred weight": 0.65,
        "negative text": "photo",
        "notes": "“mine”\nand more",
        "other tool": {"id": 3},
    }
    # The window is closed by the page's script, which is told the name and what went wrong.
    [(script, given)] = [each for each in opened.browser.scripts if "saved" in each[0]]
    assert 'saved("txt2img", name, status)' in script
    assert given == ["ink", ""]
    card = webui.client().get("/lora-runtime/card", params={"name": "ink"}).json()["html"]
    assert 'data-activation="ink wash, sea"' in card
    assert 'data-weight="0.65"' in card
    assert 'data-negative="photo"' in card
    again = Opened(webui, "ink", "img2img")
    assert again.value("Notes") == "“mine”\nand more"


def test_a_family_and_a_weight_that_somebody_wrote_by_hand_are_kept(webui: WebUI, ink: loras.File) -> None:
    ink.path.with_suffix(".json").write_text('{"sd version": "Pony", "preferred weight": 3.5}')
    opened = Opened(webui, "ink")
    assert opened.value("For models of the family") == "Pony"
    choices = opened.browser.prop(opened.part("For models of the family"), "choices")
    assert "Pony" in [choice if isinstance(choice, str) else choice[1] for choice in choices]  # gradio 3 or 4
    assert opened.browser.prop(opened.part("Preferred weight"), "maximum") == 3.5
    assert opened.save() == ""
    assert (notes_of(ink)["sd version"], notes_of(ink)["preferred weight"]) == ("Pony", 3.5)


def test_a_click_on_a_caption_writes_it_and_takes_it_out_again(webui: WebUI, ink: loras.File) -> None:
    opened = Opened(webui, "ink")
    opened.enter("Activation text", "ink wash")
    words = opened.part("Words in the training captions")
    opened.browser.select(words, 0, ["boat", "7"])
    opened.browser.select(words, 1, ["sea", "5"])
    assert opened.value("Activation text") == "ink wash, boat, sea"
    opened.browser.select(words, 0, ["boat", "7"])
    assert opened.value("Activation text") == "ink wash, sea"


def test_another_random_prompt_is_drawn_from_the_captions(webui: WebUI, ink: loras.File) -> None:
    opened = Opened(webui, "ink")
    drawn = set()
    for _ in range(60):
        opened.browser.click(opened.part("Generate"))
        drawn.add(opened.value("Random prompt"))
    assert drawn == {"boat", "boat, sea"}  # 7 of 7 and 5 of 7: sixty draws miss one of them once in 10⁹


def test_broken_notes_are_said_and_kept_aside_when_somebody_saves(webui: WebUI, ink: loras.File) -> None:
    notes = ink.path.with_suffix(".json")
    notes.write_text('{"description": "boats",}')
    opened = Opened(webui, "ink")
    assert "ink.json is not valid: line 1, column" in opened.browser.value(opened.editor.html_status)
    opened.enter("Description", "new")
    assert opened.save() == ""
    assert notes_of(ink)["description"] == "new"
    assert Path(f"{notes}.broken").read_text() == '{"description": "boats",}'


def test_what_cannot_be_written_is_said_and_reported(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(webui, "ink")

    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "<ink>.json")

    monkeypatch.setattr(opened.editor.page.shelf.notes, "write", fail)
    assert opened.save() == "Not saved: [Errno 13] Permission denied: &#x27;&lt;ink&gt;.json&#x27;"
    [given] = [given for script, given in opened.browser.scripts if "saved" in script]
    assert given == ["ink", opened.browser.value(opened.editor.html_status)]  # so that the window stays open
    ((message, error),) = webui.errors
    assert "the notes on" in message
    assert isinstance(error, PermissionError)


def test_a_file_that_is_gone_is_said_and_nothing_is_written(webui: WebUI, ink: loras.File) -> None:
    opened = Opened(webui, "ink")
    ink.path.unlink()
    webui.client().post("/sdapi/v1/refresh-loras")
    assert "there is no LoRA ink any more" in opened.save()
    assert not ink.path.with_suffix(".json").exists()
    again = Opened(webui, "<ink>")
    assert "There is no LoRA &lt;ink&gt; any more" in again.browser.value(again.editor.html_status)
    assert again.value("Description") == ""
    assert again.value("Random prompt") == ""


def test_a_file_that_cannot_be_read_any_more_says_so_in_place_of_its_hash(webui: WebUI, ink: loras.File) -> None:
    loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    webui.client().post("/sdapi/v1/refresh-loras")
    (webui.loras / "wash.safetensors").write_bytes(b"gone")
    opened = Opened(webui, "wash")
    assert "wash.safetensors" in opened.browser.value(opened.editor.html_filedata)
    assert opened.value("Words in the training captions") in ([], None)


# --- the preview ---


def picture(path: Path, colour: str, caption: str | None = None) -> Any:
    """Write a picture and return it as an item of the gallery, as this gradio has them."""
    import gradio as gr
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("parameters", colour)
    Image.new("RGB", (8, 8), colour).save(path, pnginfo=about)
    if gr.__version__.startswith("3."):
        return [{"name": str(path), "data": None, "is_file": True}, caption]
    return {"image": {"path": str(path), "meta": {"_type": "gradio.FileData"}}, "caption": caption}


@pytest.fixture
def painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of pictures that gradio has handed out; it takes no others back."""
    folder = tmp_path / "painted"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


def replace(opened: Opened, index: int) -> str:
    """Click on "Replace preview" while that picture of the gallery is chosen; return what the editor says."""
    opened.browser.click(opened.editor.button_replace_preview, lambda _, gallery, name: [index, gallery, name])
    said: str = opened.browser.value(opened.editor.html_status)
    return said


@pytest.mark.parametrize(("index", "chosen"), [(1, "blue"), (-1, "red"), (9, "blue")])
def test_the_chosen_picture_becomes_the_preview(
    webui: WebUI, ink: loras.File, painted: Path, index: int, chosen: str
) -> None:
    from PIL import Image

    pictures = [picture(painted / "red.png", "red", "a caption"), picture(painted / "blue.png", "blue")]
    opened = Opened(webui, "ink")
    assert "<img" not in opened.browser.value(opened.editor.html_preview)
    opened.browser.enter(opened.ui.gallery, pictures)
    assert replace(opened, index) == ""
    with Image.open(ink.path.with_suffix(".png")) as written:
        pixel = written.getpixel((0, 0))
    assert pixel == {"red": (255, 0, 0), "blue": (0, 0, 255)}[chosen]
    assert "sd_extra_networks/thumb?filename=" in opened.browser.value(opened.editor.html_preview)
    scripts = [script for script, _ in opened.browser.scripts]
    assert any('refreshCard("txt2img", name)' in script for script in scripts)
    assert any('selected_gallery_index_id("txt2img_gallery_container")' in script for script in scripts)
    card = webui.client().get("/lora-runtime/card", params={"name": "ink"}).json()["html"]
    assert "ink.png" in card


def test_without_pictures_the_editor_says_what_to_do(webui: WebUI, ink: loras.File) -> None:
    opened = Opened(webui, "ink")
    assert "paint a picture first" in replace(opened, -1)
    assert not ink.path.with_suffix(".png").exists()


def test_a_preview_of_a_file_that_is_gone_or_that_cannot_be_written_is_said(
    webui: WebUI, ink: loras.File, painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(webui, "ink")
    opened.browser.enter(opened.ui.gallery, [picture(painted / "red.png", "red")])

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(webui.module("images"), "save_image_with_geninfo", fail)
        assert replace(opened, 0) == "Not saved: the disk is full"
    ink.path.unlink()
    webui.client().post("/sdapi/v1/refresh-loras")
    assert "no such LoRA" in replace(opened, 0)
    assert not ink.path.with_suffix(".png").exists()


def test_a_trained_file_has_its_picture_its_words_and_its_numbers_on_the_page(webui: WebUI) -> None:
    metadata = json.loads((Path(double.__file__).parent / "trained.json").read_text(encoding="utf-8"))
    dot = loras.write(webui.loras / "dot.safetensors", plain(), metadata=metadata)
    Image.new("RGB", (8, 8), "red").save(dot.path.with_suffix(".png"))
    dot.path.with_suffix(".json").write_text('{"activation text": "dot"}')
    card = webui.client().get("/lora-runtime/card", params={"name": "dot"}).json()["html"]
    assert 'data-activation="dot"' in card
    assert "dot.png" in card
    opened = Opened(webui, "dot")
    table = opened.browser.value(opened.editor.html_filedata)
    for fact in ("dot", "networks.lora", "32x32, 16x48"):
        assert fact in table
    done = webui.generate("a dot <lora:dot:1>")
    assert done.comments == []
    assert sorted(webui.changed(done.passes[0].weights)) == sorted(dot.places)
