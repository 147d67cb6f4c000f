"""Files renamed, moved, thrown away and brought back: with all that belongs to them, or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import CatalogError
from lora_runtime.panel import moving
from lora_runtime.panel.moving import binned, folders_in, move_lora, rename_lora, restore_lora, throw_away

BESIDE = (".json", ".civitai.info", ".preview.png", ".txt", ".mp4", ".json.broken")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two LoRAs of almost one name, a set, and a folder."""
    folder = tmp_path / "Lora"
    (folder / "style").mkdir(parents=True)
    for name in ("ink", "ink.v2"):
        for ending in (".safetensors", *BESIDE):
            (folder / f"{name}{ending}").write_text(f"{name}{ending}")
    (folder / "ink.set.txt").write_text("<lora:ink:1>")
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Return all files below a folder with what is in them."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def named(name: str, content: str, folder: str = "") -> dict[str, str]:
    return {f"{folder}{name}{ending}": f"{content}{ending}" for ending in (".safetensors", *BESIDE)}


SET = {"ink.set.txt": "<lora:ink:1>"}


def test_a_rename_takes_all_that_belongs_to_the_file_along_and_nothing_else(root: Path) -> None:
    assert rename_lora(root / "ink.safetensors", "wash") == root / "wash.safetensors"
    assert tree(root) == {**named("wash", "ink"), **named("ink.v2", "ink.v2"), **SET}


def test_a_move_keeps_the_name(root: Path) -> None:
    assert move_lora(root / "ink.v2.safetensors", root, "style") == root / "style" / "ink.v2.safetensors"
    assert tree(root) == {**named("ink", "ink"), **named("ink.v2", "ink.v2", "style/"), **SET}
    assert move_lora(root / "style" / "ink.v2.safetensors", root, "") == root / "ink.v2.safetensors"
    assert tree(root) == {**named("ink", "ink"), **named("ink.v2", "ink.v2"), **SET}


def test_what_is_in_the_bin_is_no_lora_for_anybody_and_comes_back_as_it_was(root: Path) -> None:
    before = tree(root)
    thrown = throw_away(root / "ink.safetensors", root)
    assert (thrown.place, thrown.root) == ("ink", root)
    in_bin = {name: text for name, text in tree(root).items() if name.startswith(".lora-bin/")}
    assert {**named("ink.v2", "ink.v2"), **SET} == {k: v for k, v in tree(root).items() if k not in in_bin}
    # By their endings, which is all that programs go by; hidden folders are hidden for few of them.
    assert {Path(name).suffix for name in in_bin} == {".binned", ".json"}
    assert LoraCatalog(root / ".lora-bin").entries == ()
    assert [one.token for one in binned([root])] == [thrown.token]
    assert restore_lora([root], thrown.token) == root / "ink.safetensors"
    assert tree(root) == before
    assert not (root / ".lora-bin").exists()


def test_a_folder_that_is_gone_is_made_again(root: Path) -> None:
    moved = move_lora(root / "ink.safetensors", root, "style")
    thrown = throw_away(moved, root)
    (root / "style").rmdir()
    restore_lora([root], thrown.token)
    assert tree(root) == {**named("ink", "ink", "style/"), **named("ink.v2", "ink.v2"), **SET}


def test_nothing_is_overwritten(root: Path) -> None:
    (root / "WASH.png").write_text("mine")
    thrown = throw_away(root / "ink.v2.safetensors", root)
    (root / "ink.v2.txt").write_text("new")
    before = tree(root)
    with pytest.raises(CatalogError, match=r"ink\.v2\.txt is in .* already, and nothing is overwritten"):
        restore_lora([root], thrown.token)
    (root / "ink.png").write_text("x")
    with pytest.raises(CatalogError, match="wash"):  # on many systems Wash.png is wash.png
        (root / "wash.safetensors").write_text("other")
        rename_lora(root / "ink.safetensors", "Wash")
    (root / "wash.safetensors").unlink()
    with pytest.raises(CatalogError, match=r"WASH\.png"):
        rename_lora(root / "ink.safetensors", "WASH")
    (root / "ink.png").unlink()
    (root / "style" / "ink.txt").write_text("notes of another")
    with pytest.raises(CatalogError, match=r"ink\.txt"):
        move_lora(root / "ink.safetensors", root, "style")
    (root / "style" / "ink.txt").unlink()
    assert tree(root) == before


def test_a_picture_that_nobody_has_does_not_become_another_file_s(root: Path) -> None:
    (root / "wash.jpg").write_text("of a file that is gone")
    with pytest.raises(CatalogError, match=r"wash\.jpg"):
        rename_lora(root / "ink.safetensors", "wash")
    # That of `ink.v2` is not in the way of `ink`.
    (root / "style" / "ink.v2.safetensors").touch()
    (root / "style" / "ink.v2.png").touch()
    move_lora(root / "ink.safetensors", root, "style")


def test_another_case_is_another_name(root: Path) -> None:
    rename_lora(root / "ink.safetensors", "Ink")
    assert {name for name in tree(root) if name.lower().startswith("ink.safe")} == {"Ink.safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        "", " ", " ink", "ink ", ".ink", "ink.", "..", "a/b", "a\\b", "../ink", "a:b", "a*b", "a?b", 'a"b', "a<b",
        "a>b", "a|b", "a\nb", "a\0b", "con", "NUL", "com1", "lpt9.v2", "aux .x", "COM²", "wash.safetensors",
        "wash.PT", "wash.binned", "wash.set", "wash.SET", "x" * 201, "é" * 101, "a\u202eb", "\ud83d",
    ],
)  # fmt: skip
def test_names_that_some_system_cannot_have_are_refused(root: Path, name: str) -> None:
    before = tree(root)
    with pytest.raises(CatalogError, match="is no name for a file"):
        rename_lora(root / "ink.safetensors", name)
    assert tree(root) == before


@pytest.mark.parametrize("name", ["Café 2", "墨", "a.b.c", "console", "com10", "(v2) [x] {y}", "-_-"])
def test_other_names_are_not(root: Path, name: str) -> None:
    assert rename_lora(root / "ink.safetensors", name).is_file()


@pytest.mark.parametrize("folder", ["..", "../..", "/", "style/..", "nowhere", ".lora-bin", "style\\", "C:"])
def test_only_folders_of_the_root_are_moved_to(root: Path, folder: str) -> None:
    throw_away(root / "ink.v2.safetensors", root)
    with pytest.raises(CatalogError, match="there is no folder"):
        move_lora(root / "ink.safetensors", root, folder)
    assert folders_in(root) == ["", "style"]


def test_what_would_belong_to_another_file_there_does_not_go(root: Path) -> None:
    """`ink.v2.png` is that of `ink.safetensors` only as long as there is no `ink.v2.safetensors`."""
    (root / "style" / "ink.v2.safetensors").write_text("another")
    throw_away(root / "ink.v2.safetensors", root)
    (root / "ink.v2.png").write_text("of ink")
    before = tree(root)
    with pytest.raises(CatalogError, match=r"ink\.v2\.png would belong to another file"):
        move_lora(root / "ink.safetensors", root, "style")
    assert tree(root) == before


def test_where_one_file_cannot_go_none_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(root)
    rename = Path.rename

    def stubborn(self: Path, target: Path) -> Path:
        if self.name == "ink.txt" and "ink.txt" not in target.name[:4]:
            raise PermissionError(13, "held by another program")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    for act in (
        lambda: rename_lora(root / "ink.safetensors", "wash"),
        lambda: move_lora(root / "ink.safetensors", root, "style"),
        lambda: throw_away(root / "ink.safetensors", root),
    ):
        with pytest.raises(PermissionError):
            act()
        assert tree(root) == before
    assert not (root / ".lora-bin").exists()


def test_nothing_is_copied_to_another_volume(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: Path, target: Path) -> Path:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", elsewhere)
    with pytest.raises(CatalogError, match="lies on another volume, and nothing is copied"):
        throw_away(root / "ink.safetensors", root)


def test_files_that_go_by_their_folder_stay_with_it(root: Path) -> None:
    (root / "style" / "adapter_model.safetensors").touch()
    (root / "style" / "adapter_config.json").touch()
    with pytest.raises(CatalogError, match="move the folder"):
        throw_away(root / "style" / "adapter_model.safetensors", root)


def test_what_is_not_there_is_said(root: Path) -> None:
    with pytest.raises(CatalogError, match="not there any more"):
        throw_away(root / "nobody.safetensors", root)
    with pytest.raises(CatalogError, match="in no bin"):
        restore_lora([root], "20260101-000000-00000000")
    with pytest.raises(CatalogError, match="is not in"):
        throw_away(root / "ink.safetensors", root / "style")


def test_a_bin_leads_nowhere_but_back(root: Path, tmp_path: Path) -> None:
    thrown = throw_away(root / "ink.safetensors", root)
    note = root / ".lora-bin" / thrown.token / "bin.json"
    content = json.loads(note.read_text())
    for change in (
        {"place": "../ink"},
        {"place": "/ink"},
        {"place": ""},
        {"place": "style/../../ink"},
        {"place": 3},
        {"files": []},
        {"files": ["../ink.safetensors"]},
        {"files": ["ink.safetensors", "../ink.json"]},
        {"files": ["ink.safetensors", "other.safetensors"]},
        {"files": ["other.safetensors"]},
        {"files": "ink"},
        {"version": 2},
        {"when": "soon"},
        {"when": float("inf")},
        {"when": float("nan")},
        {"when": 10**400},
    ):
        note.write_text(json.dumps({**content, **change}))
        assert binned([root]) == [], change
        with pytest.raises(CatalogError):
            restore_lora([root], thrown.token)
    for text in ("", "{", "[]", "[" * 5000):
        note.write_text(text)
        assert binned([root]) == []
    with pytest.raises(CatalogError):
        restore_lora([root], "../../Lora")
    note.write_text(json.dumps(content))
    assert restore_lora([root], thrown.token).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_link_that_came_in_between_is_not_followed_out(root: Path, tmp_path: Path) -> None:
    moved = move_lora(root / "ink.safetensors", root, "style")
    thrown = throw_away(moved, root)
    (root / "style").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "style").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogError, match="leads out"):
        restore_lora([root], thrown.token)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_link_is_moved_itself_unless_it_counts_from_its_folder(root: Path) -> None:
    (root / "near.safetensors").symlink_to("ink.safetensors")
    (root / "far.png").symlink_to(root / "ink.preview.png")
    (root / "ink.v2.jpg").symlink_to("ink.preview.png")
    with pytest.raises(CatalogError, match=r"ink\.v2\.jpg is a link that counts from its folder"):
        move_lora(root / "ink.v2.safetensors", root, "style")
    (root / "far.safetensors").symlink_to(root / "ink.safetensors")
    with pytest.raises(CatalogError, match="counts from its folder"):
        move_lora(root / "near.safetensors", root, "style")
    assert move_lora(root / "far.safetensors", root, "style").read_text() == "ink.safetensors"
    thrown = throw_away(root / "near.safetensors", root)
    assert restore_lora([root], thrown.token).read_text() == "ink.safetensors"


@pytest.mark.skipif(sys.platform == "win32", reason="such names are not allowed there")
def test_odd_names_of_a_posix_system_come_back_too(root: Path) -> None:
    for name in ("a: b", "back\\slash", "caf\udce9", "..."):
        path = root / f"{name}.safetensors"
        path.write_text("x")
        assert restore_lora([root], throw_away(path, root).token) == path


def test_a_folder_belongs_to_no_file(root: Path) -> None:
    for name in ("ink.old", "wash.new"):
        (root / name).mkdir()
        (root / name / "other.safetensors").write_text("another LoRA")
    rename_lora(root / "ink.safetensors", "wash")
    throw_away(root / "wash.safetensors", root)
    assert (root / "ink.old" / "other.safetensors").is_file()
    assert not list((root / ".lora-bin").rglob("*.safetensors"))


def test_folders_are_listed_without_hidden_ones(root: Path) -> None:
    (root / "style" / "Water").mkdir()
    (root / ".hidden").mkdir()
    assert folders_in(root) == ["", "style", "style/Water"]
    assert moving.BIN not in folders_in(root)
