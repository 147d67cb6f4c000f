"""Files anywhere, by names that the caller gives them: loras={"ink": PATH}."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from handmade import LONG_AGO, write
from torch import nn

import lora_runtime
from lora_runtime import LoraCatalog
from lora_runtime.errors import CorruptFileError, RefusedFileError, UnknownLoraError


class Model(nn.Module):
    """One layer whose weight is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(4, 4)
        self.x.weight.data.zero_()


def ones(path: Path, value: float, age: int = LONG_AGO) -> Path:
    """Write a LoRA of rank 1 whose Δ is `value` in every place."""
    up, down = (torch.full((4,), number).numpy().tobytes() for number in (value, 1.0))
    tensors = {"x.lora_up.weight": ("F32", [4, 1], up), "x.lora_down.weight": ("F32", [1, 4], down)}
    return write(path, tensors, age=age)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return a file that lies in no folder of LoRAs."""
    return ones(tmp_path / "downloads/final_v3 (1).safetensors", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files ink and wash."""
    ones(tmp_path / "loras/ink.safetensors", 2.0)
    ones(tmp_path / "loras/wash.safetensors", 4.0)
    return tmp_path / "loras"


@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_anywhere_has_the_name_that_it_is_given(elsewhere: Path, as_text: bool) -> None:
    model = Model()
    given = {"ink": str(elsewhere) if as_text else elsewhere}
    with lora_runtime.apply(model, "a boat <lora:ink:0.5>", loras=given, strict=True) as applied:
        assert torch.equal(model.x.weight, torch.full((4, 4), 0.5))
        assert applied.report.loras[0].name == "ink"
        assert applied.prompt == "a boat "
    assert torch.equal(model.x.weight, torch.zeros(4, 4))


def test_a_path_is_taken_from_where_the_program_runs(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere.parent)
    model = Model()
    with lora_runtime.apply(model, "<lora:ink>", loras={"ink": elsewhere.name}, strict=True):
        assert torch.equal(model.x.weight, torch.ones(4, 4))


def test_files_and_folders_go_together_and_the_given_name_comes_first(elsewhere: Path, folder: Path) -> None:
    model = Model()
    for loras in ([{"ink": elsewhere}, folder], [folder, {"ink": elsewhere}]):
        with lora_runtime.apply(model, "<lora:ink><lora:wash>", loras=loras, strict=True):
            assert torch.equal(model.x.weight, torch.full((4, 4), 1.0 + 4.0))


def test_of_two_files_with_one_name_the_first_counts(elsewhere: Path, folder: Path) -> None:
    model = Model()
    with lora_runtime.apply(model, "<lora:a>", loras=[{"a": elsewhere}, {"a": folder / "ink.safetensors"}]):
        assert torch.equal(model.x.weight, torch.ones(4, 4))


def test_a_file_that_is_not_there_costs_its_own_tag(elsewhere: Path, folder: Path) -> None:
    model, missing = Model(), elsewhere.with_name("gone.safetensors")
    loras = [{"ink": missing}, folder]  # and not the folder's ink, which was not meant
    with lora_runtime.apply(model, "<lora:ink><lora:wash>", loras=loras) as applied:
        assert torch.equal(model.x.weight, torch.full((4, 4), 4.0))
    (told,) = applied.diagnostics
    assert (told.severity, told.span) == ("error", (0, 10))
    assert told.message == f'"ink" is to be the file {missing}: there is no such file; correct the path'
    with pytest.raises(UnknownLoraError, match="there is no such file"):
        lora_runtime.apply(model, "<lora:ink>", loras=loras, strict=True)


def test_a_file_that_comes_later_works_at_once(elsewhere: Path) -> None:
    catalog, late = (
        LoraCatalog(files={"ink": elsewhere.with_name("late.safetensors")}),
        elsewhere.with_name("late.safetensors"),
    )
    with pytest.raises(UnknownLoraError):
        catalog.resolve("ink")
    ones(late, 3.0)
    assert catalog.resolve("ink").path == late


def test_a_file_written_anew_is_read_again(elsewhere: Path) -> None:
    model = Model()
    for value, age in ((1.0, LONG_AGO), (3.0, LONG_AGO + 1)):
        ones(elsewhere, value, age)
        with lora_runtime.apply(model, "<lora:ink>", loras={"ink": elsewhere}, strict=True):
            assert torch.equal(model.x.weight, torch.full((4, 4), value))


def test_what_cannot_be_used_says_why(elsewhere: Path, tmp_path: Path) -> None:
    pickle, broken = tmp_path / "x.ckpt", tmp_path / "y.safetensors"
    pickle.write_bytes(b"\x80\x02.")
    broken.write_bytes(b"short")
    catalog = LoraCatalog(files={"pickle": pickle, "broken": broken, "folder": elsewhere.parent, "ink": elsewhere})
    with pytest.raises(RefusedFileError, match="never opened"):
        catalog.resolve("pickle")
    with pytest.raises(CorruptFileError):
        catalog.resolve("broken")
    with pytest.raises(UnknownLoraError, match=r"this is a folder; give the \.safetensors file in it"):
        catalog.resolve("folder")
    assert set(catalog.refused) == {pickle, broken, elsewhere.parent}
    assert [entry.name for entry in catalog.entries] == ["ink"]


def test_a_name_that_nobody_gave_is_unknown_and_near_ones_are_said(elsewhere: Path) -> None:
    with pytest.raises(UnknownLoraError) as raised:
        LoraCatalog(files={"watercolour": elsewhere}).resolve("watercolor")
    assert raised.value.candidates == ("watercolour",)
    assert str(raised.value).startswith('no LoRA named "watercolor" in the files with a name of their own (1 file)')


def test_a_given_file_has_hashes_and_is_found_by_them(elsewhere: Path, folder: Path) -> None:
    catalog = LoraCatalog(folder, files={"mine": elsewhere})
    entry = catalog.resolve("mine")
    digits = catalog.hashes(entry).sha256
    assert digits == LoraCatalog(elsewhere.parent).hashes(LoraCatalog(elsewhere.parent).entries[0]).sha256
    assert catalog.resolve(f"#{digits[:12]}") == entry


def test_an_absolute_path_in_a_tag_tells_of_the_way(elsewhere: Path) -> None:
    with pytest.raises(UnknownLoraError, match=r'loras={"NAME": PATH} gives a file elsewhere a name'):
        LoraCatalog(elsewhere.parent).resolve(str(elsewhere))
