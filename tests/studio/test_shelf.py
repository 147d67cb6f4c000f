"""The LoRAs as cards, and what the page says of them: nothing of a file is taken for markup."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

from handmade import write
from PIL import Image

from lora_runtime import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS
from lora_runtime.panel.marks import Marks
from lora_runtime.prompt import Diagnostic
from lora_runtime.studio import words
from lora_runtime.studio.canvas import Step
from lora_runtime.studio.shelf import MOST_CARDS, Card, Wanted, cards, families, names_of, used_in

SDXL = {"ss_base_model_version": "sdxl_base_v1-0"}


def copied(folder: Path, *names: str) -> LoraCatalog:
    for name in names:
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(LORAS / "heart.safetensors", path)
    return LoraCatalog(folder)


def test_a_card_has_the_tag_the_words_and_the_picture_beside_the_file(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "style/ink")
    Image.new("RGB", (800, 400), (1, 200, 3)).save(tmp_path / "style" / "ink.preview.png")
    [card], total = cards(catalog, Wanted())
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
    assert [card.name for card in cards(catalog, Wanted("INK boat"))[0]] == ["style/boat ink"]
    found, total = cards(catalog, Wanted("many"))
    assert (len(found), total) == (MOST_CARDS, MOST_CARDS + 5)
    assert f"{MOST_CARDS} of {MOST_CARDS + 5}" in words.gallery(found, total)
    assert "No LoRA" in words.gallery(*cards(catalog, Wanted("nothing")))


def test_a_picture_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "ink")
    (tmp_path / "ink.png").write_bytes(b"no picture")
    [card], _ = cards(catalog, Wanted())
    assert card.picture == ""


def test_favourites_families_and_what_was_used_last_can_be_asked_for(tmp_path: Path) -> None:
    catalog, marks = copied(tmp_path, "a", "b", "c"), Marks(tmp_path / "marks.json")
    write(tmp_path / "big.safetensors", {"x.lora_down.weight": ("F32", [1, 2], bytes(8))}, SDXL)
    _, b, big, _ = catalog.entries
    marks.star(b.path, "", True)
    marks.use([(big.path, "")], now=2000.0)
    marks.use([(b.path, "")], now=1000.0)

    def names(**wanted: Any) -> list[str]:
        return [card.name for card in cards(catalog, Wanted(**wanted), marks.seen())[0]]

    assert names(favourites=True) == ["b"]
    assert names(family="SDXL") == ["big"]
    assert names(last_used_first=True) == ["big", "b", "a", "c"]
    assert families(catalog) == ["SDXL", "unknown"]  # what nobody can tell comes last
    assert [card.favourite for card in cards(catalog, Wanted(), marks.seen())[0]] == [False, True, False, False]


def test_a_card_has_the_film_the_words_and_the_page_of_what_lies_beside_the_file(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "ink")
    (tmp_path / "ink.webm").touch()
    (tmp_path / "ink.civitai.info").write_text('{"id": 2, "modelId": 1, "trainedWords": ["ink wash"]}')
    [card], _ = cards(catalog, Wanted())
    assert (card.film, card.words) == (True, ("ink wash",))
    assert card.page == "https://civitai.com/models/1?modelVersionId=2"
    html = words.gallery([card], 1)
    assert '<video src="lora-runtime/film?name=ink"' in html
    assert f'href="{card.page}" target="_blank" rel="noopener noreferrer"' in html


def test_the_files_of_a_prompt_are_those_that_its_tags_mean(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "ink", "a/wash", "b/wash")
    found = used_in(catalog, "x <lora:ink:1> <lora:ink:0.5> <lora:nobody:1> <lora:wash:1> <lora:a/wash:1>")
    assert [path for path, _ in found] == [tmp_path / "ink.safetensors", tmp_path / "a" / "wash.safetensors"]


EVIL = '"><script>alert(1)</script>'


def test_nothing_of_a_file_or_a_prompt_is_taken_for_markup() -> None:
    said = [
        words.gallery([Card(EVIL, f"<lora:{EVIL}:1>", EVIL, (EVIL,), "", film=True, page=EVIL)], 1),
        words.notices([Diagnostic("error", (0, 1), EVIL, EVIL)]),
        words.status(EVIL, "error"),
    ]
    assert not any("<script" in each or ('">&lt;' not in each and EVIL in each) for each in said)


def test_progress_counts_all_steps_of_all_pictures() -> None:
    said = words.progress(Step(3, 10, 1, 1, 4))
    assert 'max="40" value="13"' in said
    assert "picture 2 of 4, step 3 of 10<" in said
    said = words.progress(Step(3, 10, 1, 2, 4, others=2))
    assert 'max="40" value="16"' in said
    assert "pictures 2 to 3 of 4, step 3 of 10, together with 2 of others" in said
