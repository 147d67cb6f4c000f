"""Which LoRAs are asked for, what tags call them, and what the page says: nothing of a file is taken for markup."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from handmade import write

from lora_runtime import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS
from lora_runtime.panel.marks import Marks
from lora_runtime.prompt import Diagnostic
from lora_runtime.studio import words
from lora_runtime.studio.canvas import Step
from lora_runtime.studio.shelf import Wanted, families, find, folders, names_of, used_in

SDXL = {"ss_base_model_version": "sdxl_base_v1-0"}


def copied(folder: Path, *names: str) -> LoraCatalog:
    for name in names:
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(LORAS / "heart.safetensors", path)
    return LoraCatalog(folder)


def test_names_that_several_files_have_are_paths_and_those_that_no_tag_can_say_hashes(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "a/ink", "b/ink", "one > two")
    names = {path.relative_to(tmp_path).as_posix(): name for path, name in names_of(catalog).items()}
    assert names["a/ink.safetensors"] == "a/ink"
    assert names["b/ink.safetensors"] == "b/ink"
    hashed = names["one > two.safetensors"]
    assert hashed.startswith("#")
    assert len(hashed) == 13


def test_a_search_has_words_in_any_order(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "people/anna", "style/boat ink")
    assert [entry.relative for entry in find(catalog, Wanted("INK boat"))] == ["style/boat ink"]
    assert find(catalog, Wanted("nothing")) == []


def test_folders_are_counted_at_any_depth_and_hidden_by_name_or_path(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "a", "style/b", "style/old/c", "style/old/d", "older/e")
    assert folders(catalog) == {"older": 1, "style": 3, "style/old": 2}
    assert folders(catalog, ["old"]) == {"older": 1, "style": 1}
    assert families(catalog, ["style"]) == {"unknown": 2}
    assert [entry.relative for entry in find(catalog, Wanted(hidden=["style/o*"]))] == ["a", "older/e", "style/b"]
    assert [entry.relative for entry in find(catalog, Wanted(folder="old"))] == []


def test_favourites_families_and_what_was_used_last_can_be_asked_for(tmp_path: Path) -> None:
    catalog, marks = copied(tmp_path, "a", "b", "c"), Marks(tmp_path / "marks.json")
    write(tmp_path / "big.safetensors", {"x.lora_down.weight": ("F32", [1, 2], bytes(8))}, SDXL)
    _, b, big, _ = catalog.entries
    marks.star(b.path, "", True)
    marks.use([(big.path, "")], now=2000.0)
    marks.use([(b.path, "")], now=1000.0)

    def names(**wanted: Any) -> list[str]:
        return [entry.name for entry in find(catalog, Wanted(**wanted), marks.seen())]

    assert names(favourites=True) == ["b"]
    assert names(families=("SDXL",)) == ["big"]
    assert names(families=("SDXL", "unknown")) == ["a", "b", "big", "c"]
    assert names(last_used_first=True) == ["big", "b", "a", "c"]
    assert families(catalog) == {"unknown": 3, "SDXL": 1}  # what nobody can tell comes last
    last = [entry.name for entry in find(catalog, Wanted(), marks.seen(), lambda entry: entry.name == "a")]
    assert last == ["b", "big", "c", "a"]


def test_the_files_of_a_prompt_are_those_that_its_tags_mean(tmp_path: Path) -> None:
    catalog = copied(tmp_path, "ink", "a/wash", "b/wash")
    found = used_in(catalog, "x <lora:ink:1> <lora:ink:0.5> <lora:nobody:1> <lora:wash:1> <lora:a/wash:1>")
    assert [path for path, _ in found] == [tmp_path / "ink.safetensors", tmp_path / "a" / "wash.safetensors"]


EVIL = '"><script>alert(1)</script>'


def test_nothing_of_a_file_or_a_prompt_is_taken_for_markup() -> None:
    said = [
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
