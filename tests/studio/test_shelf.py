"""The LoRAs as cards, and what the page says of them: nothing of a file is taken for markup."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

from PIL import Image

from lora_runtime import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS
from lora_runtime.prompt import Diagnostic
from lora_runtime.studio import words
from lora_runtime.studio.painting import Step
from lora_runtime.studio.shelf import MOST_CARDS, Card, cards, names_of


def copied(folder: Path, *names: str) -> LoraCatalog:
    for name in names:
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(LORAS / "heart.safetensors", path)
    return LoraCatalog(folder)


def test_a_card_has_the_tag_the_words_and_the_picture_beside_the_file(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "style/ink")
    Image.new("RGB", (800, 400), (1, 200, 3)).save(tmp_path / "style" / "ink.preview.png")
    [card], total = cards(catalog)
    assert (card.name, card.tag, total) == ("style/ink", "<lora:ink:1>", 1)
    assert "heart" in card.words
    with Image.open(io.BytesIO(base64.b64decode(card.picture.partition(",")[2]))) as small:
        assert small.size == (192, 96)


def test_names_that_several_files_have_are_paths_and_those_that_no_tag_can_say_hashes(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "a/ink", "b/ink", "one > two")
    names = {path.relative_to(tmp_path).as_posix(): name for path, name in names_of(catalog).items()}
    assert names["a/ink.safetensors"] == "a/ink"
    assert names["b/ink.safetensors"] == "b/ink"
    hashed = names["one > two.safetensors"]
    assert hashed.startswith("#")
    assert len(hashed) == 13


def test_a_search_has_words_in_any_order_and_shows_a_first_part(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "people/anna", "style/boat ink", *(f"many/{n:03}" for n in range(MOST_CARDS + 5)))
    assert [card.name for card in cards(catalog, "INK boat")[0]] == ["style/boat ink"]
    found, total = cards(catalog, "many")
    assert (len(found), total) == (MOST_CARDS, MOST_CARDS + 5)
    assert f"{MOST_CARDS} of {MOST_CARDS + 5}" in words.gallery(found, total)
    assert "No LoRA" in words.gallery(*cards(catalog, "nothing"))


def test_a_picture_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "ink")
    (tmp_path / "ink.png").write_bytes(b"no picture")
    [card], _ = cards(catalog)
    assert card.picture == ""


EVIL = '"><script>alert(1)</script>'


def test_nothing_of_a_file_or_a_prompt_is_taken_for_markup() -> None:
    said = [
        words.gallery([Card(EVIL, f"<lora:{EVIL}:1>", EVIL, (EVIL,), "")], 1),
        words.notices([Diagnostic("error", (0, 1), EVIL, EVIL)]),
        words.status(EVIL, "error"),
    ]
    assert not any("<script" in each or ('">&lt;' not in each and EVIL in each) for each in said)


def test_progress_counts_all_steps_of_all_pictures() -> None:
    said = words.progress(Step(3, 10, 2, 4))
    assert 'max="40" value="13"' in said
    assert "picture 2 of 4, step 3 of 10" in said
