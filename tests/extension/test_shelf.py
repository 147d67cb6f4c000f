"""Names, search and hashes of the files as a user of the WebUI knows them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from extension_package import module
from handmade import write

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import AmbiguousLoraError, RefusedFileError, UnknownLoraError

shelf_module = module("library.shelf")
Shelf = shelf_module.Shelf

ONE_TENSOR = b"\x01\x02\x03\x04\x05\x06\x07\x08"  # what `lora` writes, unless told otherwise: two float32


def lora(path: Path, alias: str | None = None, content: bytes = ONE_TENSOR) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"ss_output_name": alias} if alias else None
    return write(path, {"x.lora_down.weight": ("F32", [1, len(content) // 4], content)}, metadata)


def note(path: Path, **notes: Any) -> None:
    path.with_suffix(".json").write_text(json.dumps({key.replace("_", " "): value for key, value in notes.items()}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "Lora"
    path.mkdir()
    return path


# --- names ---


def test_a_file_is_named_by_its_stem_and_by_its_path_where_another_has_that(folder: Path) -> None:
    for name in ("wash", "photo/ink", "style/ink"):
        lora(folder / f"{name}.safetensors")
    assert Shelf([folder]).names() == ["wash", "photo/ink", "style/ink"]


def test_names_are_in_the_order_of_a_walk_with_numbers_as_numbers(folder: Path) -> None:
    for name in ("b/x1", "a/y", "ink 10", "ink 9", "Hat", "b 2/z", "b 10/z2"):
        lora(folder / f"{name}.safetensors")
    assert Shelf([folder]).names() == ["Hat", "ink 9", "ink 10", "y", "x1", "z", "z2"]


def test_every_name_means_its_own_file(tmp_path: Path) -> None:
    names = [f"one/Lora/{name}" for name in ("ink", "style/ink", "Lora/ink")]
    names += ["two/Lora/ink", "two/Lora/style/ink", "three/ink"]
    for number, name in enumerate(names):
        lora(tmp_path / f"{name}.safetensors", content=bytes([number] * 8))
    shelf = Shelf([tmp_path / "one/Lora", tmp_path / "two/Lora", tmp_path / "three"])
    found = [shelf.entry(name) for name in shelf.names()]
    assert len({entry.path for entry in found}) == len(names) == len(set(shelf.names()))
    assert [shelf.name_of(entry) for entry in found] == shelf.names()
    assert [shelf.find(shelf.tag_name(entry, False)) for entry in found] == [(entry, "") for entry in found]


def test_the_root_file_of_several_has_a_name_of_its_own(folder: Path) -> None:
    root, below = lora(folder / "ink.safetensors"), lora(folder / "style/ink.safetensors")
    shelf = Shelf([folder])
    assert shelf.names() == ["./ink", "style/ink"]
    assert [shelf.find(name)[0].path for name in ("./ink", "style/ink")] == [root, below]


def test_a_folder_inside_another_lists_its_files_once(folder: Path) -> None:
    lora(folder / "style/ink.safetensors")
    assert Shelf([folder, folder / "style"]).names() == ["ink"]


def test_a_folder_that_is_not_there_counts_from_the_next_refresh_on(tmp_path: Path) -> None:
    shelf = Shelf([tmp_path / "later"])
    assert shelf.names() == []
    lora(tmp_path / "later/ink.safetensors")
    shelf.refresh()
    assert shelf.names() == ["ink"]


# --- what a tag means ---


def test_of_several_files_with_a_stem_the_last_is_taken_as_in_the_webui(folder: Path) -> None:
    for name in ("photo/ink", "style/ink"):
        lora(folder / f"{name}.safetensors")
    entry, remark = Shelf([folder]).find("ink")
    assert entry.relative == "style/ink"
    assert remark == '2 files are called "ink": took style/ink; write <lora:photo/ink> for the other'


def test_a_file_in_the_folder_itself_comes_before_those_below(folder: Path) -> None:
    for name in ("ink", "a/ink"):
        lora(folder / f"{name}.safetensors")
    entry, remark = Shelf([folder]).find("ink")
    assert entry.relative == "a/ink"
    assert remark == '2 files are called "ink": took a/ink; write <lora:./ink> for the other'


def test_of_two_folders_the_last_decides(tmp_path: Path) -> None:
    lora(tmp_path / "Lora/ink.safetensors")
    last = lora(tmp_path / "LyCORIS/ink.safetensors")
    assert Shelf([tmp_path / "Lora", tmp_path / "LyCORIS"]).find("ink")[0].path == last


def test_a_stem_goes_before_an_alias(folder: Path) -> None:
    own = lora(folder / "ink.safetensors")
    lora(folder / "zebra.safetensors", alias="ink")
    assert Shelf([folder]).find("ink")[0].path == own


def test_an_alias_of_two_files_is_an_error(folder: Path) -> None:
    for name in ("a", "b"):
        lora(folder / f"{name}.safetensors", alias="wash")
    with pytest.raises(AmbiguousLoraError):
        Shelf([folder]).find("wash")


def test_what_is_not_there_is_the_catalogs_error(folder: Path) -> None:
    lora(folder / "wash.safetensors")
    (folder / "old.pt").touch()
    with pytest.raises(UnknownLoraError, match='Did you mean "wash"'):
        Shelf([folder]).find("wahs")
    with pytest.raises(RefusedFileError):
        Shelf([folder]).find("old")
    with pytest.raises(UnknownLoraError, match="leads out"):
        Shelf([folder]).find("../wash")


def test_new_changed_and_lost_files_are_seen_without_a_refresh(folder: Path) -> None:
    first = lora(folder / "photo/ink.safetensors")
    shelf = Shelf([folder])
    assert shelf.find("ink")[0].path == first
    write(first, {"x.lora_down.weight": ("F32", [2, 2])}, age=1_700_000_000)
    assert shelf.find("ink")[0].stamp == (first.stat().st_size, first.stat().st_mtime_ns)
    new = lora(folder / "wash.safetensors")
    assert shelf.find("wash")[0].path == new
    assert shelf.names() == ["wash", "ink"]
    first.unlink()
    with pytest.raises(UnknownLoraError):
        shelf.find("ink")


def test_accents_are_one_letter_however_the_disk_keeps_them(folder: Path) -> None:
    path = lora(folder / "cafe\u0301.safetensors")
    assert Shelf([folder]).find("caf\u00e9")[0].path == path


# --- what a click writes ---


@pytest.mark.parametrize(
    ("alias", "written"),
    [
        ("wash", "wash"),
        ("taken", "ink"),  # another file's stem
        ("TAKEN", "ink"),
        ("shared", "ink"),  # another file's alias
        ("a:b", "ink"),
        ("a>b", "ink"),
        ("#12345678", "ink"),
        (" wash", "ink"),
        ("None", "ink"),  # what trainers write for no name
        ("", "ink"),
    ],
)
def test_the_alias_is_written_where_it_means_this_file_alone(folder: Path, alias: str, written: str) -> None:
    lora(folder / "ink.safetensors", alias=alias)
    lora(folder / "taken.safetensors")
    lora(folder / "other.safetensors", alias="shared")
    shelf = Shelf([folder])
    assert shelf.tag_name(shelf.entry("ink"), prefer_alias=True) == written
    assert shelf.tag_name(shelf.entry("ink"), prefer_alias=False) == "ink"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
@pytest.mark.parametrize("name", ["a:b", "a>b", "a\nb", "a=b", "#a"])
def test_a_name_that_no_tag_can_hold_is_written_as_a_hash(folder: Path, name: str) -> None:
    path = lora(folder / f"{name}.safetensors")
    shelf = Shelf([folder])
    written = shelf.tag_name(shelf.entry(name), prefer_alias=False)
    assert written == hashlib.sha256(ONE_TENSOR).hexdigest()[:12]
    assert shelf.find(written)[0].path == path


def test_all_names_of_a_file_and_only_those(folder: Path) -> None:
    for name in ("photo/ink", "style/ink"):
        lora(folder / f"{name}.safetensors", alias={"style/ink": "wash"}.get(name))
    shelf = Shelf([folder])
    assert shelf.names_for(shelf.entry("style/ink")) == ["style/ink", "ink", "wash"]
    assert shelf.names_for(shelf.entry("photo/ink")) == ["photo/ink"]


# --- hidden and linked folders ---


def test_hidden_folders_count_as_in_the_webui(folder: Path) -> None:
    path = lora(folder / ".secret/deep/ink.safetensors")
    shelf = Shelf([folder])
    assert shelf.names() == ["ink"]
    assert shelf.find("ink")[0].path == path
    assert shelf.place_of(shelf.entry("ink")) == ".secret/deep/ink"
    assert shelf.search("") == shelf.search("ink") == shelf.search("ink.", hidden="Never") == []
    assert shelf.search("deep") == shelf.search("", hidden="Always") == ["ink"]


links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


@links
def test_a_linked_folder_is_entered(folder: Path, tmp_path: Path) -> None:
    lora(tmp_path / "elsewhere/style/ink.safetensors")
    (folder / "shared").symlink_to(tmp_path / "elsewhere")
    shelf = Shelf([folder])
    assert shelf.names() == ["ink"]
    path = folder / "shared/style/ink.safetensors"
    assert shelf.find("ink")[0].path == shelf.find("shared/style/ink")[0].path == path
    assert shelf.refused == {}


@links
def test_links_within_and_upwards_add_nothing(folder: Path) -> None:
    lora(folder / "style/ink.safetensors")
    (folder / "again").symlink_to(folder / "style")
    (folder / "style/up").symlink_to(folder)
    (folder / "further up").symlink_to(folder.parent)
    assert Shelf([folder]).names() == ["ink"]


# --- searching ---


def test_all_words_must_occur_in_any_order_and_case(folder: Path) -> None:
    for name in ("style/Ink wash", "photo/ink", "style/wash"):
        lora(folder / f"{name}.safetensors")
    shelf = Shelf([folder])
    assert shelf.search("WASH ink") == ["Ink wash"]
    assert shelf.search("ink") == ["ink", "Ink wash"]
    assert shelf.search("style") == ["Ink wash", "wash"]
    assert shelf.search("  ") == shelf.names()


def test_aliases_notes_and_hashes_are_searched_too(folder: Path) -> None:
    path = lora(folder / "a1.safetensors", alias="Aquarelle")
    lora(folder / "b.safetensors", content=bytes(8))
    shelf = Shelf([folder])
    assert shelf.search("aquar") == ["a1"]
    assert shelf.search("boat") == []
    note(path, description="For boats", activation_text="watercolor")
    shelf.refresh()
    assert shelf.search("boat watercolor") == ["a1"]
    digits = hashlib.sha256(ONE_TENSOR).hexdigest()
    assert shelf.search(digits[:8]) == []  # never read
    shelf.hashes.short(shelf.entry("a1"))
    assert shelf.search(digits[:8]) == ["a1"]
    assert shelf.search(digits[1:9]) == []


def test_saved_notes_are_found_at_once(folder: Path) -> None:
    lora(folder / "ink.safetensors")
    shelf = Shelf([folder])
    shelf.search("x")
    shelf.notes.write(shelf.entry("ink"), module("library.sidecar").Sidecar(description="boats"))
    assert shelf.search("boats") == ["ink"]
    assert shelf.notes.of(shelf.entry("ink")).description == "boats"


def test_notes_that_another_program_changes_are_read_again(folder: Path) -> None:
    path = lora(folder / "ink.safetensors")
    shelf = Shelf([folder])
    for age, text in enumerate(("first", "second")):
        note(path, notes=text)
        os.utime(path.with_suffix(".json"), (1_600_000_000 + age,) * 2)
        assert shelf.notes.of(shelf.entry("ink")).notes == text
    path.with_suffix(".json").unlink()
    assert shelf.notes.of(shelf.entry("ink")).notes == ""


def test_a_folder_holds_what_is_below_it_and_no_neighbour(tmp_path: Path) -> None:
    for name in ("Lora/style/a", "Lora/style/deep/b", "Lora/styles/c", "LyCORIS/style/d"):
        lora(tmp_path / f"{name}.safetensors")
    shelf = Shelf([tmp_path / "Lora", tmp_path / "LyCORIS"])
    assert shelf.search(folder="style/") == ["a", "b", "d"]
    assert shelf.search(folder="/LyCORIS/style") == ["d"]
    assert shelf.search("b", folder="style") == ["b"]
    assert shelf.subfolders() == {"style": 3, "style/deep": 1, "styles": 1}
    assert shelf.tree() == {
        "/Lora": 0, "/Lora/style": 1, "/Lora/style/deep": 1, "/Lora/styles": 1, "/LyCORIS": 0, "/LyCORIS/style": 1,
    }  # fmt: skip
    assert shelf.files_in("/Lora/style") == ["a"]


def test_orders(folder: Path) -> None:
    for name, age in (("B", 3), ("a", 2), ("sub/0", 1)):
        write(lora(folder / f"{name}.safetensors"), age=1_600_000_000 + age)
    shelf = Shelf([folder])
    assert shelf.search() == ["a", "B", "0"]
    assert shelf.search(descending=True) == ["0", "B", "a"]
    assert shelf.search(sort="name") == ["0", "a", "B"]
    assert shelf.search(sort="date_modified") == ["0", "a", "B"]
    assert shelf.search(sort="date_modified", descending=True) == ["B", "a", "0"]
    assert shelf.search(descending=True, last=lambda entry, _: entry.name == "B") == ["0", "a", "B"]
    assert shelf.search(family=lambda entry, _: entry.name != "B") == ["a", "0"]


# --- hashes ---


def test_a_file_is_found_by_either_hash(folder: Path) -> None:
    path = lora(folder / "ink.safetensors")
    shelf = Shelf([folder])
    of_file, of_tensors = hashlib.sha256(path.read_bytes()).hexdigest(), hashlib.sha256(ONE_TENSOR).hexdigest()
    assert shelf.hashes.short(shelf.entry("ink")) == of_tensors[:12]
    for digits in (of_file, of_file[:8], of_tensors, of_tensors[:12].upper()):
        assert shelf.hashes.find(digits).path == path
    for digits in (of_file[:7], of_file + "0", "", "not a hash", of_file[1:9]):
        assert shelf.hashes.find(digits) is None


def test_the_hash_of_nothing_finds_nothing(folder: Path) -> None:
    lora(folder / "empty.safetensors", content=b"")
    shelf = Shelf([folder])
    digits = hashlib.sha256(b"").hexdigest()
    assert shelf.hashes.short(shelf.entry("empty")) == digits[:12]
    assert shelf.hashes.find(digits[:12]) is shelf.hashes.find(digits) is None


def test_an_unknown_hash_never_costs_more_than_its_time(folder: Path) -> None:
    for number in range(5):
        lora(folder / f"{number}.safetensors", content=bytes([number] * 8))
    impatient = shelf_module.Patience(seconds_to_hash=0)
    shelf = Shelf([folder])
    digits = hashlib.sha256(bytes([3] * 8)).hexdigest()
    assert shelf.hashes.find(digits, impatient) is None
    with pytest.raises(UnknownLoraError, match="5 files were not read for it yet"):
        shelf.find(f"#{digits}", impatient)
    shelf.hashes.short(shelf.entry("3"))
    assert shelf.hashes.find(digits).name == "3"
    # Another process of the same user knows it too.
    assert Shelf([folder]).hashes.find(digits).name == "3"


def test_a_file_that_has_changed_is_not_found_by_its_old_hash(folder: Path) -> None:
    path = lora(folder / "ink.safetensors")
    shelf = Shelf([folder])
    old = shelf.hashes.short(shelf.entry("ink"))
    write(path, {"x.lora_down.weight": ("F32", [2, 2])}, age=1_700_000_000)
    shelf.refresh()
    assert shelf.hashes.known_short(shelf.entry("ink")) == ""
    assert shelf.hashes.find(old) is None


def test_digits_of_a_hash_mean_the_file_without_a_sign_that_begins_a_comment(folder: Path) -> None:
    """The WebUI takes "#" and the rest of the line out of a prompt."""
    odd = lora(folder / "a#1.safetensors", content=b"odd.file")
    digits = hashlib.sha256(b"odd.file").hexdigest()[:12]
    shelf = Shelf([folder])
    entry = shelf.entry("a#1")
    assert shelf.tag_name(entry, False) == digits
    assert {digits, f"#{digits}"} <= set(shelf.names_for(entry))
    for written in (digits, digits.upper(), digits[:8], f"#{digits}"):
        assert shelf.find(written)[0].path == odd


def test_a_name_of_digits_comes_before_a_hash(folder: Path) -> None:
    odd = lora(folder / "a#1.safetensors", content=b"odd.file")
    digits = hashlib.sha256(b"odd.file").hexdigest()[:12]
    named = lora(folder / f"{digits}.safetensors", content=b"another.")
    shelf = Shelf([folder])
    assert shelf.tag_name(shelf.entry("a#1"), False) == f"#{digits}"
    assert shelf.find(digits)[0].path == named
    assert shelf.find(f"#{digits}")[0].path == odd


def test_files_are_not_read_for_what_may_be_a_date(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora(folder / "ink.safetensors")
    monkeypatch.setattr("lora_runtime.folder.hashes", lambda path: pytest.fail("read"))
    with pytest.raises(UnknownLoraError, match='no LoRA named "20231201"'):
        Shelf([folder]).find("20231201")


def test_a_name_may_begin_and_end_with_blanks(folder: Path) -> None:
    odd = lora(folder / " ink .safetensors")
    shelf = Shelf([folder])
    assert shelf.find(" ink ")[0].path == odd
    plain = lora(folder / "ink.safetensors", content=b"x" * 8)
    shelf.refresh()
    assert [shelf.find(name)[0].path for name in ("ink", "  ink", " ink ")] == [plain, plain, odd]


def test_the_names_of_one_question_look_through_the_folders_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora(folder / "ink.safetensors")
    shelf = Shelf([folder])
    shelf.names()
    scans, nearest = [], []
    scan, near = LoraCatalog._scan, LoraCatalog._nearest
    monkeypatch.setattr(LoraCatalog, "_scan", lambda self: (scans.append(1), scan(self)))
    monkeypatch.setattr(LoraCatalog, "_nearest", lambda self, name: nearest.append(1) or near(self, name))
    patience = shelf_module.Patience(suggestions=3)
    for number in range(8):
        with pytest.raises(UnknownLoraError):
            shelf.find(f"imk{number}", patience)
    assert (len(scans), len(nearest)) == (1, 3)
    new = lora(folder / "wash.safetensors", content=b"y" * 8)
    assert shelf.find("wash")[0].path == new


def test_others_ask_for_names_while_a_file_is_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ink", "wash"):
        lora(folder / f"{name}.safetensors", content=name.encode().ljust(8))
    shelf = Shelf([folder])
    shelf.names()
    reading, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> Any:
        reading.set()
        assert go_on.wait(30)
        return hashes(path)

    hashes = sys.modules["lora_runtime.folder"].hashes
    monkeypatch.setattr("lora_runtime.folder.hashes", slow)
    for ask in (lambda: shelf.hashes.short(shelf.entry("ink")), lambda: shelf.hashes.find("0123456789ab")):
        reading.clear()
        go_on.clear()
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            assert reading.wait(30)
            assert shelf.search("wash") == ["wash"]
            assert shelf.find("ink")[0].name == "ink"
            shelf.refresh()
        finally:
            go_on.set()
            thread.join(30)
    assert not thread.is_alive()


def test_a_refresh_sees_new_pictures_in_a_folder_that_keeps_its_time(folder: Path) -> None:
    path = lora(folder / "ink.safetensors")
    shelf = Shelf([folder])
    entry = shelf.entry("ink")
    assert shelf.notes.neighbours(entry) == {"ink.safetensors"}
    before = folder.stat().st_mtime_ns
    path.with_suffix(".png").write_bytes(b"")
    os.utime(folder, ns=(before, before))
    shelf.refresh()
    assert shelf.notes.neighbours(entry) == {"ink.safetensors", "ink.png"}


# --- what trainers wrote ---


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files whose header is read for their metadata."""
    store = module("library.metadata")
    read: list[str] = []
    original = store.read_header
    monkeypatch.setattr(store, "read_header", lambda path: (read.append(path.stem), original(path))[1])
    return read


def test_metadata_are_read_once_for_each_content(folder: Path, headers_read: list[str]) -> None:
    for name in ("ink", "wash"):
        lora(folder / f"{name}.safetensors", f"the {name}")
    shelf = Shelf([folder])
    ink, wash = shelf.entry("ink"), shelf.entry("wash")
    for _ in range(3):
        found = [shelf.metadata.of(entry) for entry in (ink, wash)]
        assert found == [{"ss_output_name": "the ink"}, {"ss_output_name": "the wash"}]
    assert headers_read == ["ink", "wash"]
    lora(ink.path, "another ink")
    assert shelf.metadata.of(ink) == {"ss_output_name": "another ink"}
    ink.path.write_bytes(b"damaged")
    assert shelf.metadata.of(ink) is None
    ink.path.unlink()
    assert shelf.metadata.of(ink) is None


def test_of_metadata_only_so_many_are_kept(folder: Path, headers_read: list[str]) -> None:
    for name in "abc":
        lora(folder / f"{name}.safetensors", name)
    shelf = Shelf([folder])
    kept = module("library.metadata").Metadata(most_characters=2 * len("ss_output_name" + "a"))
    for name in ("a", "b", "a", "c", "a", "b"):
        assert kept.of(shelf.entry(name)) == {"ss_output_name": name}
    assert headers_read == ["a", "b", "c", "b"]  # the one that was asked for longest ago goes
