"""Which file a name means, and what is said where it means none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from handmade import LONG_AGO, write

import lora_runtime.folder
from lora_runtime import LoraCatalog
from lora_runtime.errors import (
    AmbiguousLoraError,
    CatalogError,
    CorruptFileError,
    LoraFileError,
    RefusedFileError,
    UnknownLoraError,
)
from lora_runtime.file_index import cache_folder


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder `loras` with the files ink, style/ink, style/wash (alias "water colour") and style/deep/oil."""
    folder = tmp_path / "loras"
    write(folder / "ink.safetensors", {"a": ("U8", [1], b"1")})
    write(folder / "style/ink.safetensors", {"a": ("U8", [1], b"2")})
    write(folder / "style/wash.safetensors", {"a": ("U8", [1], b"3")}, {"ss_output_name": "water colour"})
    write(folder / "style/deep/oil.safetensors", {"a": ("U8", [1], b"4")})
    return folder


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers are read from now on."""
    names: list[str] = []

    def read(path: Path) -> object:
        names.append(path.name)
        return original(path)

    original = lora_runtime.folder.read_header
    monkeypatch.setattr(lora_runtime.folder, "read_header", read)
    return names


def link(path: Path, target: Path | str, *, folder: bool = False) -> None:
    """Make a symbolic link, or skip the test where the user may not (Windows)."""
    try:
        path.symlink_to(target, target_is_directory=folder)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


def failure(catalog: LoraCatalog, name: str, kind: type[Exception] = UnknownLoraError) -> str:
    """Return the message with which `name` fails; it is one line."""
    with pytest.raises(kind) as caught:
        catalog.resolve(name)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestEntries:
    def test_folders_are_searched_to_the_bottom(self, loras: Path) -> None:
        entries = LoraCatalog(loras).entries
        assert [entry.relative for entry in entries] == ["ink", "style/ink", "style/wash", "style/deep/oil"]
        assert [entry.name for entry in entries] == ["ink", "ink", "wash", "oil"]
        assert {entry.folder for entry in entries} == {loras}

    def test_an_entry_holds_what_the_header_tells(self, tmp_path: Path) -> None:
        key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
        path = write(tmp_path / "a.safetensors", {key: ("F16", [4, 768])}, {"ss_output_name": "b"})
        (entry,) = LoraCatalog(tmp_path).entries
        assert (entry.path, entry.alias, entry.family) == (path, "b", "SD1")
        assert (entry.algorithms, entry.ranks) == (("lora",), (4,))
        assert (entry.size, entry.mtime_ns) == (path.stat().st_size, LONG_AGO * 10**9)

    def test_other_files_and_hidden_ones_are_left_out(self, loras: Path) -> None:
        (loras / "ink.png").touch()
        (loras / "._ink.safetensors").touch()
        write(loras / ".trash/old.safetensors")
        catalog = LoraCatalog(loras)
        assert len(catalog.entries) == 4
        assert not catalog.refused

    def test_the_suffix_may_be_in_capitals(self, tmp_path: Path) -> None:
        write(tmp_path / "Ink.SAFETENSORS")
        catalog = LoraCatalog(tmp_path)
        assert catalog.resolve("Ink").path.name == "Ink.SAFETENSORS"
        assert len(catalog.hashes(catalog.resolve("Ink")).sha256) == 64

    def test_nothing_is_read_before_the_first_question(self, loras: Path, headers_read: list[str]) -> None:
        catalog = LoraCatalog(loras)
        assert headers_read == []
        assert catalog.entries
        assert len(headers_read) == 4


class TestNames:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("ink", "ink"),
            ("style/ink", "style/ink"),
            ("style\\ink", "style/ink"),
            ("./style//ink", "style/ink"),
            ("style/ink.safetensors", "style/ink"),
            ("wash", "style/wash"),
            ("wash.safetensors", "style/wash"),
            ("water colour", "style/wash"),
            ("oil", "style/deep/oil"),
        ],
    )
    def test_a_path_a_stem_and_an_alias_lead_to_the_file(self, loras: Path, name: str, file: str) -> None:
        assert LoraCatalog(loras).resolve(name).relative == file

    def test_a_dot_in_a_stem_is_part_of_the_name(self, tmp_path: Path) -> None:
        write(tmp_path / "ink.v1.5.safetensors")
        write(tmp_path / "x.safetensors.safetensors")
        assert LoraCatalog(tmp_path).resolve("ink.v1.5").name == "ink.v1.5"
        assert LoraCatalog(tmp_path).resolve("x.safetensors").name == "x.safetensors"

    @pytest.mark.parametrize(
        "name", ["water-colour", "water_colour", "water  colour", "style/my ink", "my-ink", "my_ink.safetensors"]
    )
    def test_blanks_underscores_and_hyphens_count_as_one_where_nothing_else_fits(self, loras: Path, name: str) -> None:
        write(loras / "style/my_ink.safetensors", {"a": ("U8", [1], b"5")})
        catalog = LoraCatalog(loras)
        expected = "wash" if name.startswith("water") else "my_ink"
        assert catalog.resolve(name).name == expected
        assert catalog.is_loose(name) == (name != "my_ink.safetensors")

    def test_an_exact_name_comes_before_a_loose_one(self, loras: Path) -> None:
        write(loras / "a b.safetensors", {"a": ("U8", [1], b"5")})
        write(loras / "a_b.safetensors", {"a": ("U8", [1], b"6")})
        catalog = LoraCatalog(loras)
        assert (catalog.resolve("a b").name, catalog.resolve("a_b").name) == ("a b", "a_b")
        assert not catalog.is_loose("a_b")
        assert "fits 2 files" in failure(catalog, "a-b", AmbiguousLoraError)

    def test_a_stem_comes_before_an_alias(self, loras: Path) -> None:
        write(loras / "other.safetensors", None, {"ss_output_name": "oil"})
        assert LoraCatalog(loras).resolve("oil").relative == "style/deep/oil"

    def test_an_accent_may_be_composed_or_not(self, tmp_path: Path) -> None:
        write(tmp_path / (unicodedata.normalize("NFD", "encre_séchée") + ".safetensors"))
        catalog = LoraCatalog(tmp_path)
        for form in ("NFC", "NFD"):
            assert catalog.resolve(unicodedata.normalize(form, "encre_séchée"))

    def test_of_several_folders_all_are_searched(self, loras: Path, tmp_path: Path) -> None:
        write(tmp_path / "more/pen.safetensors")
        catalog = LoraCatalog(loras, str(tmp_path / "more"))
        assert catalog.resolve("pen").folder == tmp_path / "more"
        assert catalog.resolve("oil").folder == loras

    def test_a_file_that_two_folders_both_show_is_one(self, loras: Path) -> None:
        catalog = LoraCatalog(loras, loras / "style")
        assert catalog.resolve("wash").folder == loras / "style"
        assert catalog.resolve("deep/oil").path == loras / "style/deep/oil.safetensors"


class TestHashNames:
    def test_either_hash_leads_to_the_file(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        whole = hashlib.sha256((loras / "style/wash.safetensors").read_bytes()).hexdigest()
        for digits in (whole[:8], whole, hashlib.sha256(b"3").hexdigest()[:12].upper()):
            assert catalog.resolve(f"#{digits}").name == "wash"

    def test_no_file_is_hashed_for_another_name(self, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lora_runtime.folder, "hashes", None)
        assert LoraCatalog(loras).resolve("style/ink")

    def test_hashes_are_remembered_in_the_index(self, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "#" + hashlib.sha256(b"4").hexdigest()[:10]
        assert LoraCatalog(loras).resolve(name).name == "oil"
        monkeypatch.setattr(lora_runtime.folder, "hashes", None)
        catalog = LoraCatalog(loras)
        assert catalog.resolve(name).name == "oil"
        assert catalog.hashes(catalog.resolve("oil")).sha256_of_tensors == hashlib.sha256(b"4").hexdigest()

    def test_a_changed_file_has_new_hashes(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        old = catalog.hashes(catalog.resolve("oil"))
        stale = catalog.resolve("oil")
        write(loras / "style/deep/oil.safetensors", {"a": ("U8", [1], b"9")}, age=LONG_AGO + 5)
        assert catalog.hashes(stale).sha256_of_tensors == hashlib.sha256(b"9").hexdigest()
        new = catalog.hashes(catalog.resolve("oil"))
        assert new.sha256_of_tensors == hashlib.sha256(b"9").hexdigest() != old.sha256_of_tensors
        assert catalog.hashes(stale) == new
        assert failure(catalog, f"#{old.sha256[:8]}").startswith(f'no LoRA named "#{old.sha256[:8]}"')

    def test_a_file_still_warm_is_hashed_each_time(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.safetensors", {"a": ("U8", [1], b"1")})
        os.utime(path)  # now
        catalog = LoraCatalog(tmp_path)
        stamp = path.stat().st_mtime_ns
        assert catalog.hashes(catalog.resolve("a")).sha256_of_tensors == hashlib.sha256(b"1").hexdigest()
        write(path, {"a": ("U8", [1], b"2")})
        os.utime(path, ns=(stamp, stamp))  # a clock too coarse to tell the two
        assert catalog.hashes(catalog.resolve("a")).sha256_of_tensors == hashlib.sha256(b"2").hexdigest()

    def test_equal_files_are_one_under_their_hash(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write(tmp_path / f"{name}.safetensors", {"a": ("U8", [1], b"1")})
        catalog = LoraCatalog(tmp_path)
        for entry in catalog.entries:
            catalog.hashes(entry)
        assert catalog.resolve("#" + hashlib.sha256(b"1").hexdigest()[:8]).name == "a"

    def test_files_that_share_the_digits_are_ambiguous(self, tmp_path: Path) -> None:
        # Same tensors, other metadata: the hash of the tensors is the same, the files are not.
        write(tmp_path / "a.safetensors", {"a": ("U8", [1], b"1")})
        write(tmp_path / "b.safetensors", {"a": ("U8", [1], b"1")}, {"k": "v"})
        catalog = LoraCatalog(tmp_path)
        for entry in catalog.entries:
            catalog.hashes(entry)
        assert 'write one of "a" or "b"' in failure(
            catalog, "#" + hashlib.sha256(b"1").hexdigest()[:8], AmbiguousLoraError
        )

    def test_too_few_digits_are_no_hash(self, loras: Path) -> None:
        assert failure(LoraCatalog(loras), "#1a2b").endswith("(4 files). A hash needs 8 or more digits")

    def test_a_file_that_cannot_be_read_now_is_passed_over(self, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = lora_runtime.folder.hashes

        def fail_once(path: Path) -> object:
            if path.name == "ink.safetensors":
                raise LoraFileError("gone")
            return original(path)

        monkeypatch.setattr(lora_runtime.folder, "hashes", fail_once)
        assert LoraCatalog(loras).resolve("#" + hashlib.sha256(b"3").hexdigest()[:8]).name == "wash"


class TestAmbiguous:
    def test_two_stems_are_listed_by_paths_that_each_lead_to_one(self, loras: Path) -> None:
        (loras / "ink.safetensors").rename(loras / "style/deep/ink.safetensors")
        catalog = LoraCatalog(loras)
        with pytest.raises(AmbiguousLoraError) as caught:
            catalog.resolve("ink")
        assert str(caught.value) == f'"ink" fits 2 files in {loras}; write one of "style/ink" or "style/deep/ink"'
        assert caught.value.name == "ink"
        assert [catalog.resolve(name).relative for name in caught.value.candidates] == ["style/ink", "style/deep/ink"]

    def test_an_alias_of_several_files_is_ambiguous_unless_a_stem_fits(self, tmp_path: Path) -> None:
        for step in ("0001", "0002"):
            write(tmp_path / f"ink-{step}.safetensors", None, {"ss_output_name": "ink"})
        catalog = LoraCatalog(tmp_path)
        assert '"ink-0001" or "ink-0002"' in failure(catalog, "ink", AmbiguousLoraError)
        write(tmp_path / "ink.safetensors", None, {"ss_output_name": "ink"})
        assert catalog.resolve("ink").name == "ink"

    def test_the_same_path_in_two_folders_is_told_apart_by_hash(self, tmp_path: Path) -> None:
        contents = {"one": b"1", "two": b"2"}
        for folder, raw in contents.items():
            write(tmp_path / folder / "ink.safetensors", {"a": ("U8", [1], raw)})
        catalog = LoraCatalog(tmp_path / "one", tmp_path / "two")
        with pytest.raises(AmbiguousLoraError) as caught:
            catalog.resolve("ink")
        assert caught.value.candidates == tuple("#" + hashlib.sha256(raw).hexdigest()[:12] for raw in contents.values())
        assert [catalog.resolve(name).folder.name for name in caught.value.candidates] == ["one", "two"]

    def test_it_ends_when_one_of_the_files_has_gone(self, loras: Path) -> None:
        (loras / "ink.safetensors").rename(loras / "style/deep/ink.safetensors")
        catalog = LoraCatalog(loras)
        failure(catalog, "ink", AmbiguousLoraError)
        (loras / "style/ink.safetensors").unlink()
        assert catalog.resolve("ink").relative == "style/deep/ink"


class TestUnknown:
    def test_the_nearest_name_is_suggested(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "models/Lora/ink-wash.safetensors")
        write(tmp_path / "models/Lora/oil.safetensors")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UnknownLoraError) as caught:
            LoraCatalog("models/Lora").resolve("inkwash")
        folder = Path("models/Lora")
        assert str(caught.value) == f'no LoRA named "inkwash" in {folder} (2 files). Did you mean "ink-wash"?'
        assert caught.value.candidates == ("ink-wash",)
        assert caught.value.name == "inkwash"

    def test_a_name_in_another_case_is_suggested_and_not_taken(self, loras: Path) -> None:
        assert failure(LoraCatalog(loras), "WASH").endswith('Did you mean "wash"?')
        assert failure(LoraCatalog(loras), "Style/Ink").endswith('Did you mean "style/ink"?')
        assert failure(LoraCatalog(loras), "Water Colour").endswith('Did you mean "water colour"?')

    def test_a_file_is_suggested_by_one_of_its_names(self, tmp_path: Path) -> None:
        for name in ("style/watercolour", "style/watercolour-2", "old/water"):
            write(tmp_path / f"{name}.safetensors")
        assert failure(LoraCatalog(tmp_path), "watercolor").endswith(
            'Did you mean "watercolour", "watercolour-2" or "water"?'
        )
        assert failure(LoraCatalog(tmp_path), "style/watercolor").endswith(
            '"style/watercolour" or "style/watercolour-2"?'
        )

    def test_where_nothing_is_near_nothing_is_suggested(self, loras: Path, tmp_path: Path) -> None:
        write(tmp_path / "more/pen.safetensors")
        message = failure(LoraCatalog(loras, tmp_path / "more"), "zzzzzz")
        assert message == f'no LoRA named "zzzzzz" in {loras} and {tmp_path / "more"} (5 files)'

    def test_folders_below_the_current_one_are_shown_short(
        self, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert failure(LoraCatalog(loras), "zzzzzz") == 'no LoRA named "zzzzzz" in loras (4 files)'

    def test_one_file_is_not_plural_and_no_folder_says_what_to_do(self, tmp_path: Path) -> None:
        write(tmp_path / "pen.safetensors")
        assert failure(LoraCatalog(tmp_path), "zzzzzz").endswith("(1 file)")
        assert failure(LoraCatalog(), "a") == (
            'no LoRA named "a" in any folder; make models/Lora or loras here, or set LORA_RUNTIME_PATH'
        )

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("../secret", "it leads out of the folders with '..'"),
            ("style/../../secret", "it leads out of the folders with '..'"),
            ("style\\..\\ink", "it leads out of the folders with '..'"),
            ("/etc/passwd", "it is an absolute path"),
            ("\\\\server\\share\\x", "it is an absolute path"),
            ("C:\\x", "it is an absolute path"),
            ("c:x", "it is an absolute path"),
            ("ink\0", "it contains a NUL"),
        ],
    )
    def test_a_name_cannot_leave_the_folders(self, loras: Path, name: str, reason: str) -> None:
        write(loras.parent / "secret.safetensors")
        assert f"is no name of a LoRA: {reason}" in failure(LoraCatalog(loras), name)

    def test_an_absolute_path_to_a_file_of_the_folder_is_no_name_either(self, loras: Path) -> None:
        assert "absolute path" in failure(LoraCatalog(loras), str(loras / "ink.safetensors"))

    @pytest.mark.parametrize("name", ["", ".", "a\nb", "\ud800", "x" * 5000])
    def test_any_string_gives_a_message_in_one_line(self, loras: Path, name: str) -> None:
        assert failure(LoraCatalog(loras), name).startswith("no LoRA named ")


class TestRefused:
    def test_files_that_cannot_be_used_are_listed_with_their_reasons(self, loras: Path) -> None:
        for name in ("a.pt", "style/b.CKPT", "c.bin", "d.pth"):
            (loras / name).write_bytes(b"never read")
        (loras / "torn.safetensors").write_bytes(b"torn")
        (loras / "dir.safetensors").mkdir()
        refused = LoraCatalog(loras).refused
        assert refused == {
            loras / "a.pt": ".pt files are pickles, which can run code when read; never opened.",
            loras / "c.bin": ".bin files are pickles, which can run code when read; never opened.",
            loras / "d.pth": ".pth files are pickles, which can run code when read; never opened.",
            loras / "torn.safetensors": "not a valid safetensors file: it is only 4 bytes long",
            loras / "style/b.CKPT": ".ckpt files are pickles, which can run code when read; never opened.",
        }

    @pytest.mark.parametrize("name", ["old", "old.pt", "style/old"])
    def test_naming_a_pickle_says_how_to_convert_it(self, loras: Path, name: str) -> None:
        (loras / "style/old.pt").touch()
        message = failure(LoraCatalog(loras), name, RefusedFileError)
        assert "To convert it, in a place that you trust: python -c" in message

    def test_naming_a_broken_file_says_what_is_wrong_with_it(self, loras: Path) -> None:
        (loras / "torn.safetensors").write_bytes(b"torn")
        assert "it is only 4 bytes long" in failure(LoraCatalog(loras), "torn", CorruptFileError)

    def test_a_mended_file_works_at_once(self, loras: Path) -> None:
        (loras / "torn.safetensors").write_bytes(b"torn")
        catalog = LoraCatalog(loras)
        failure(catalog, "torn", CorruptFileError)
        write(loras / "torn.safetensors")
        assert catalog.resolve("torn").name == "torn"

    def test_a_file_that_cannot_be_opened_is_tried_again_next_time(
        self, loras: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def locked(path: Path) -> object:
            raise LoraFileError(f"{path}: cannot be read: locked")

        with monkeypatch.context() as patch:
            patch.setattr(lora_runtime.folder, "read_header", locked)
            catalog = LoraCatalog(loras)
            assert set(catalog.refused.values()) == {"cannot be read: locked"}
            # It can be read by now, and is still not in the list.
            assert failure(catalog, "oil", LoraFileError).endswith("cannot be read: locked")
        assert catalog.resolve("oil").name == "oil"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_is_refused_and_not_waited_for(self, loras: Path) -> None:
        os.mkfifo(loras / "pipe.safetensors")
        catalog = LoraCatalog(loras)
        assert catalog.refused == {loras / "pipe.safetensors": "not a regular file"}
        failure(catalog, "pipe", LoraFileError)

    def test_a_folder_that_cannot_be_listed_costs_only_itself(
        self, loras: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scandir(path: Path) -> object:
            if Path(path).name == "deep":
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        original = os.scandir
        monkeypatch.setattr(lora_runtime.folder.os, "scandir", scandir)
        catalog = LoraCatalog(loras)
        assert len(catalog.entries) == 3
        assert [*catalog.refused.values()] == ["this folder cannot be listed: Permission denied"]

    def test_a_file_that_vanishes_while_the_folder_is_listed_is_said(
        self, loras: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Vanished:
            name = "gone.safetensors"
            path = str(loras / name)

            def is_dir(self) -> bool:
                return False

            def is_symlink(self) -> bool:
                return False

            def stat(self) -> object:
                raise FileNotFoundError(2, "No such file or directory")

        refusal = lora_runtime.folder._file(Vanished(), ())  # type: ignore[arg-type]
        assert refusal == lora_runtime.folder.Refusal(
            loras / "gone.safetensors", "cannot be read: No such file or directory"
        )


class TestNamesThatNoTagCanSay:
    def test_they_come_with_the_hash_of_the_file(self, tmp_path: Path) -> None:
        write(tmp_path / "ratio 16:9.safetensors", {"a": ("U8", [1], b"7")})
        catalog = LoraCatalog(tmp_path)
        known = hashlib.sha256(b"7").hexdigest()[:12]
        message = failure(catalog, "ratio 16")
        assert message.endswith(f'Did you mean "#{known}" (the file "ratio 16:9", which no tag can name)?')
        assert catalog.resolve(f"#{known}").name == "ratio 16:9"

    @pytest.mark.parametrize("name", [" lead", "trail ", "sub/both "])
    def test_blanks_around_a_file_are_no_matter(self, name: str, tmp_path: Path) -> None:
        write(tmp_path / f"{name}.safetensors")
        assert LoraCatalog(tmp_path).resolve(name.strip()).relative == name

    def test_a_file_without_blanks_comes_before_one_with_them(self, tmp_path: Path) -> None:
        write(tmp_path / "ink .safetensors", {"a": ("U8", [1], b"1")})
        write(tmp_path / "ink.safetensors", {"a": ("U8", [1], b"2")})
        assert LoraCatalog(tmp_path).resolve("ink").relative == "ink"

    def test_escaped_brackets_and_a_suffix_too_few_are_understood(self, tmp_path: Path) -> None:
        write(tmp_path / "cat (anime).safetensors", {"a": ("U8", [1], b"1")})
        write(tmp_path / "v2.safetensors.safetensors", {"a": ("U8", [1], b"2")})
        catalog = LoraCatalog(tmp_path)
        assert catalog.resolve("cat \\(anime\\)").name == "cat (anime)"
        assert catalog.resolve("v2").name == "v2.safetensors"

    def test_hidden_files_are_said_to_be_left_out(self, loras: Path) -> None:
        write(loras / ".ink.safetensors")
        assert 'Files and folders that begin with "." are left out' in failure(LoraCatalog(loras), ".ink")


class TestLinks:
    def test_links_may_lead_out_of_the_folder(self, loras: Path, tmp_path: Path) -> None:
        target = write(tmp_path / "elsewhere" / "mine.safetensors")
        write(tmp_path / "elsewhere/deep/pen.safetensors", {"a": ("U8", [1], b"5")})
        link(loras / "one.safetensors", target)
        link(loras / "away", target.parent, folder=True)
        catalog = LoraCatalog(loras)
        assert not catalog.refused
        assert catalog.resolve("one").path == loras / "one.safetensors"
        assert catalog.resolve("away/deep/pen").path == loras / "away/deep/pen.safetensors"
        assert catalog.resolve("pen").relative == "away/deep/pen"
        target.unlink()
        with pytest.raises(UnknownLoraError):
            catalog.resolve("one")

    def test_links_can_be_kept_within_the_folder(self, loras: Path, tmp_path: Path) -> None:
        target = write(tmp_path / "elsewhere/secret.safetensors")
        link(loras / "leak.safetensors", target)
        link(loras / "away", target.parent, folder=True)
        catalog = LoraCatalog(loras, links_out=False)
        assert len(catalog.entries) == 4
        assert set(catalog.refused) == {loras / "leak.safetensors", loras / "away"}
        assert all("outside the folder" in reason for reason in catalog.refused.values())
        assert "outside the folder" in failure(catalog, "leak")
        failure(catalog, "away/secret")

    def test_linked_folders_make_no_loops(self, loras: Path, tmp_path: Path) -> None:
        away = tmp_path / "elsewhere"
        write(away / "pen.safetensors", {"a": ("U8", [1], b"5")})
        link(loras / "away", away, folder=True)
        link(away / "again", away, folder=True)
        link(away / "home", loras, folder=True)
        link(away / "all", tmp_path, folder=True)
        catalog = LoraCatalog(loras)
        assert [entry.relative for entry in catalog.entries] == [
            *("ink", "away/pen", "style/ink", "style/wash", "style/deep/oil")
        ]
        assert catalog.refused == {loras / "away/all": f"a link to {tmp_path}, which this folder lies in"}

    def test_a_name_never_leaves_the_folder_though_a_link_may(self, loras: Path, tmp_path: Path) -> None:
        target = write(tmp_path / "elsewhere" / "mine.safetensors")
        link(loras / "away", target.parent, folder=True)
        for name in ("../elsewhere/mine", "away/../../elsewhere/mine", "style/../away/mine"):
            assert "it leads out of the folders with '..'" in failure(LoraCatalog(loras), name)

    def test_a_link_into_another_folder_of_the_catalog_is_followed(self, loras: Path, tmp_path: Path) -> None:
        target = write(tmp_path / "more/pen.safetensors")
        link(loras / "quill.safetensors", target)
        link(loras / "more", target.parent, folder=True)
        catalog = LoraCatalog(loras, tmp_path / "more")
        assert not catalog.refused
        assert catalog.resolve("quill").path == loras / "quill.safetensors"

    def test_a_file_and_a_link_to_it_are_one_file(self, loras: Path) -> None:
        link(loras / "style/deep/wash.safetensors", loras / "style/wash.safetensors")
        assert LoraCatalog(loras).resolve("wash").relative == "style/wash"

    def test_loops_and_broken_links_do_no_harm(self, loras: Path) -> None:
        link(loras / "style/up", "..", folder=True)
        link(loras / "self.safetensors", "self.safetensors")
        link(loras / "broken.safetensors", "nowhere.safetensors")
        catalog = LoraCatalog(loras)
        assert len(catalog.entries) == 4
        assert set(catalog.refused.values()) == {"a link that leads nowhere"}
        assert "a link that leads nowhere" in failure(catalog, "broken")

    def test_a_file_replaced_by_a_link_out_is_noticed(self, loras: Path, tmp_path: Path) -> None:
        catalog = LoraCatalog(loras, links_out=False)
        path = catalog.resolve("oil").path
        path.replace(tmp_path / "oil.safetensors")  # keeps size and mtime
        link(path, tmp_path / "oil.safetensors")
        assert "outside the folder" in failure(catalog, "oil")

    def test_the_folder_itself_may_be_a_link(self, loras: Path, tmp_path: Path) -> None:
        link(tmp_path / "linked", loras, folder=True)
        entry = LoraCatalog(tmp_path / "linked").resolve("style/wash")
        assert entry.path == tmp_path / "linked/style/wash.safetensors"


class TestFilesOfFolders:
    """What programs call every file that they save goes by the name of its folder."""

    @pytest.mark.parametrize("stem", ["adapter_model", "adapters", "pytorch_lora_weights"])
    def test_such_a_file_has_the_name_of_its_folder(self, stem: str, loras: Path) -> None:
        write(loras / f"new/watercolour/{stem}.safetensors", {"a": ("U8", [1], b"5")})
        catalog = LoraCatalog(loras)
        for name in ("watercolour", "new/watercolour", f"new/watercolour/{stem}", stem):
            entry = catalog.resolve(name)
            assert (entry.name, entry.relative) == ("watercolour", f"new/watercolour/{stem}")

    def test_two_such_files_share_no_name_but_that_of_their_program(self, loras: Path) -> None:
        for number, folder in enumerate(("one", "two")):
            write(loras / folder / "pytorch_lora_weights.safetensors", {"a": ("U8", [1], bytes([number]))})
        catalog = LoraCatalog(loras)
        assert catalog.resolve("two").relative == "two/pytorch_lora_weights"
        message = failure(catalog, "pytorch_lora_weights", AmbiguousLoraError)
        assert message.endswith('write one of "one/pytorch_lora_weights" or "two/pytorch_lora_weights"')

    @pytest.mark.parametrize("given", ["", "snapshots", "snapshots/COMMIT"])
    def test_the_cache_of_huggingface_hub_goes_by_the_name_of_the_repository(self, given: str, tmp_path: Path) -> None:
        root, commit = tmp_path / "models--someone--ink-style", "0" * 40
        blob = write(root / "blobs" / ("ab" * 32), {"a": ("U8", [1], b"5")})
        (root / "snapshots" / commit).mkdir(parents=True)
        link(root / "snapshots" / commit / "pytorch_lora_weights.safetensors", f"../../blobs/{blob.name}")
        catalog = LoraCatalog(root / given.replace("COMMIT", commit))
        for name in ("ink-style", "pytorch_lora_weights"):
            assert catalog.resolve(name).name == "ink-style"

    @staticmethod
    def revisions(hub: Path, *, main: str | None) -> tuple[Path, ...]:
        """Make a repository with the file ink in two commits, "1…" and "2…", as copies, which Windows has."""
        root = hub / "models--someone--style"
        commits = tuple(root / "snapshots" / (digit * 40) for digit in "12")
        for commit in commits:
            write(commit / "sub/ink.safetensors", {"a": ("U8", [1], commit.name[:1].encode())})
        if main is not None:
            (root / "refs").mkdir()
            (root / "refs" / "main").write_text(main, encoding="ascii")
        return commits

    def test_of_two_revisions_in_the_cache_of_huggingface_hub_that_of_main_counts(self, tmp_path: Path) -> None:
        _, second = self.revisions(tmp_path, main="2" * 40)
        catalog = LoraCatalog(tmp_path)
        assert catalog.resolve("ink").path == second / "sub/ink.safetensors"
        older = f"models--someone--style/snapshots/{'1' * 40}/sub/ink"
        assert catalog.resolve(older).path.is_relative_to(tmp_path / f"models--someone--style/snapshots/{'1' * 40}")

    @pytest.mark.parametrize("main", [None, "3" * 40])
    def test_where_main_is_neither_of_them_both_are_named(self, main: str | None, tmp_path: Path) -> None:
        self.revisions(tmp_path, main=main)
        assert "2 files" in failure(LoraCatalog(tmp_path), "ink", AmbiguousLoraError)

    def test_another_file_of_that_name_is_no_revision(self, tmp_path: Path) -> None:
        self.revisions(tmp_path, main="2" * 40)
        write(tmp_path / "mine/ink.safetensors", {"a": ("U8", [1], b"9")})
        assert "2 files" in failure(LoraCatalog(tmp_path), "ink", AmbiguousLoraError)


class TestChanges:
    def test_a_new_file_works_at_once(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        failure(catalog, "pen")
        write(loras / "new/pen.safetensors")
        assert catalog.resolve("pen").relative == "new/pen"

    def test_a_retrained_file_is_read_again(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        old = catalog.resolve("wash")
        write(loras / "style/wash.safetensors", None, {"ss_output_name": "gouache"}, age=LONG_AGO + 1)
        new = catalog.resolve("wash")
        assert (old.alias, new.alias) == ("water colour", "gouache")
        assert new.mtime_ns == old.mtime_ns + 10**9

    def test_a_deleted_file_is_unknown(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        catalog.resolve("oil").path.unlink()
        assert "(3 files)" in failure(catalog, "oil")

    def test_refresh_looks_again(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        assert len(catalog.entries) == 4
        write(loras / "pen.safetensors")
        (loras / "x.pt").touch()
        assert (len(catalog.entries), len(catalog.refused)) == (4, 0)
        catalog.refresh()
        assert (len(catalog.entries), len(catalog.refused)) == (5, 1)

    def test_known_files_are_not_read_again(self, loras: Path, headers_read: list[str]) -> None:
        catalog = LoraCatalog(loras)
        assert catalog.entries
        headers_read.clear()
        write(loras / "pen.safetensors")
        catalog.refresh()
        assert headers_read == ["pen.safetensors"]

    def test_threads_share_one_catalog(self, loras: Path, headers_read: list[str]) -> None:
        catalog = LoraCatalog(loras)
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(catalog.resolve("wash").relative)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["style/wash"] * 8
        assert len(headers_read) == 4


class TestFolders:
    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match=r"the LoRA folder .*nowhere does not exist"):
            LoraCatalog(tmp_path / "nowhere")

    def test_a_file_is_no_folder(self, loras: Path) -> None:
        with pytest.raises(CatalogError, match="is a file; give the folder that it is in"):
            LoraCatalog(loras / "ink.safetensors")

    def test_a_folder_that_has_gone_since_is_named(self, loras: Path) -> None:
        catalog = LoraCatalog(loras)
        shutil.rmtree(loras)
        with pytest.raises(CatalogError, match="does not exist"):
            catalog.resolve("ink")

    def test_a_folder_that_cannot_be_listed_is_named(self, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def scandir(path: Path) -> object:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(lora_runtime.folder.os, "scandir", scandir)
        with pytest.raises(CatalogError, match="cannot be listed: Permission denied"):
            _ = LoraCatalog(loras).entries

    def test_the_default_is_the_path_in_the_environment(
        self, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "more/pen.safetensors")
        monkeypatch.setenv("LORA_RUNTIME_PATH", os.pathsep.join([str(loras), "", str(tmp_path / "more")]))
        assert LoraCatalog.default().folders == (loras, tmp_path / "more")
        monkeypatch.setenv("LORA_RUNTIME_PATH", str(tmp_path / "nowhere"))
        with pytest.raises(CatalogError, match="does not exist"):
            LoraCatalog.default()

    def test_else_the_default_is_what_is_there_of_the_usual_folders(
        self, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LORA_RUNTIME_PATH", raising=False)
        monkeypatch.chdir(tmp_path)
        assert LoraCatalog.default().folders == (Path("loras"),)
        (tmp_path / "models/Lora").mkdir(parents=True)
        assert LoraCatalog.default().folders == (Path("models/Lora"), Path("loras"))
        assert LoraCatalog.default().resolve("oil").relative == "style/deep/oil"


class TestIndex:
    def test_a_second_process_reads_no_header(self, loras: Path, headers_read: list[str]) -> None:
        (loras / "torn.safetensors").write_bytes(b"torn")
        os.utime(loras / "torn.safetensors", (LONG_AGO, LONG_AGO))
        first = LoraCatalog(loras)
        before = first.entries, first.refused
        headers_read.clear()
        second = LoraCatalog(loras)
        assert (second.entries, second.refused) == before
        assert headers_read == []

    def test_a_changed_file_is_read_again(self, loras: Path, headers_read: list[str]) -> None:
        assert LoraCatalog(loras).entries
        headers_read.clear()
        write(loras / "style/wash.safetensors", {"b": ("U8", [1])}, age=LONG_AGO + 1)  # by mtime
        write(loras / "ink.safetensors", {"b": ("U8", [7])})  # by size
        assert LoraCatalog(loras).entries
        assert headers_read == ["ink.safetensors", "wash.safetensors"]

    def test_a_file_still_warm_is_not_remembered(self, loras: Path, headers_read: list[str]) -> None:
        os.utime(loras / "ink.safetensors")
        assert LoraCatalog(loras).entries
        headers_read.clear()
        assert LoraCatalog(loras).entries
        assert headers_read == ["ink.safetensors"]

    def test_what_was_read_before_an_interruption_is_kept(
        self, loras: Path, headers_read: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reading = lora_runtime.folder.read_header

        def interrupted(path: Path) -> object:
            if path.name == "oil.safetensors":
                raise KeyboardInterrupt
            return reading(path)

        with monkeypatch.context() as patch:
            patch.setattr(lora_runtime.folder, "read_header", interrupted)
            with pytest.raises(KeyboardInterrupt):
                _ = LoraCatalog(loras).entries
        headers_read.clear()
        assert len(LoraCatalog(loras).entries) == 4
        assert headers_read == ["oil.safetensors"]

    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"\xff\xfe",
            b"[]",
            b"[" * 100_000,
            b'{"version": 0}',
            b'{"version": 1, "folder": "another", "files": {}}',
        ],
    )
    def test_a_damaged_cache_is_ignored_and_mended(self, loras: Path, damage: bytes, headers_read: list[str]) -> None:
        expected = LoraCatalog(loras).entries
        (index,) = cache_folder().iterdir()
        index.write_bytes(damage)
        headers_read.clear()
        assert LoraCatalog(loras).entries == expected
        assert len(headers_read) == 4
        headers_read.clear()
        assert LoraCatalog(loras).entries == expected
        assert headers_read == []

    @pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 5, 6, 7, 8, None])
    def test_a_row_of_another_form_is_ignored(self, loras: Path, place: int | None) -> None:
        expected = LoraCatalog(loras).entries
        (index,) = cache_folder().iterdir()
        content = json.loads(index.read_text("ascii"))
        if place is None:
            content["files"]["ink.safetensors"] = [1]
        else:
            content["files"]["ink.safetensors"][place] = {"x": 1} if place != 5 else ["x"]
        index.write_text(json.dumps(content))
        found = LoraCatalog(loras).entries
        assert [entry.path for entry in found] == [entry.path for entry in expected]

    def test_a_cache_folder_that_cannot_be_made_is_ignored(
        self, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("LORA_RUNTIME_CACHE", str(tmp_path / "file/cache"))
        assert len(LoraCatalog(loras).entries) == 4

    def test_a_write_that_fails_leaves_the_old_cache_and_no_draft(
        self, loras: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def replace(self: Path, target: Path) -> None:
            raise PermissionError(13, "in use")

        assert LoraCatalog(loras).entries
        (index,) = cache_folder().iterdir()
        before = index.read_bytes()
        write(loras / "pen.safetensors")
        monkeypatch.setattr(Path, "replace", replace)
        assert len(LoraCatalog(loras).entries) == 5
        assert [*cache_folder().iterdir()] == [index]
        assert index.read_bytes() == before

    @pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are always Unicode")
    def test_a_name_that_is_not_utf8_is_kept(self, tmp_path: Path, headers_read: list[str]) -> None:
        name = os.fsdecode(b"ink\xff.safetensors")
        write(tmp_path / name)
        assert LoraCatalog(tmp_path).resolve(os.fsdecode(b"ink\xff")).path.name == name
        headers_read.clear()
        assert LoraCatalog(tmp_path).entries
        assert headers_read == []

    @pytest.mark.parametrize(
        ("platform", "environment", "expected"),
        [
            ("linux", {"LORA_RUNTIME_CACHE": "/given", "XDG_CACHE_HOME": "/xdg"}, "/given"),
            ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/lora-runtime"),
            ("linux", {}, "~/.cache/lora-runtime"),
            ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "~/Library/Caches/lora-runtime"),
            ("win32", {"LOCALAPPDATA": "/local"}, "/local/lora-runtime"),
            ("win32", {}, "~/AppData/Local/lora-runtime"),
        ],
    )
    def test_the_cache_lies_where_the_platform_wants_it(
        self, platform: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("LORA_RUNTIME_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == Path(expected).expanduser()

    def test_a_user_without_a_home_has_no_cache_and_loses_nothing(
        self, loras: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_home(self: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        for name in ("LORA_RUNTIME_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "expanduser", no_home)
        with pytest.raises(OSError, match="home"):
            cache_folder()
        assert len(LoraCatalog(loras).entries) == 4
