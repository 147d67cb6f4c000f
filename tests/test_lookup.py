"""Tags to requests: what one apply reads, and how often it looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from handmade import write
from torch import nn

import lora_runtime
from lora_runtime import LoraCatalog, lookup
from lora_runtime.folder import LoraFolder
from lora_runtime.lora_cache import LoraCache

NAMES = ("ink", "wash", "oil")


class Model(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(4, 4)


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """Return a folder with three files of 4-wide factors."""
    for number, name in enumerate(NAMES):
        raw = torch.full((4,), float(number + 1)).numpy().tobytes()
        write(
            tmp_path / f"loras/{name}.safetensors",
            {"x.lora_up.weight": ("F32", [4, 1], raw), "x.lora_down.weight": ("F32", [1, 4], raw)},
        )
    return tmp_path / "loras"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that says how often a folder was looked through since it was last asked."""
    count = 0

    def scan(self: LoraFolder, *arguments: object) -> object:
        nonlocal count
        count += 1
        return original(self, *arguments)  # type: ignore[arg-type]

    def since() -> int:
        nonlocal count
        before, count = count, 0
        return before

    original = LoraFolder.scan
    monkeypatch.setattr(LoraFolder, "scan", scan)
    lora_runtime.clear_cache()
    return since


def test_the_default_folders_are_looked_through_once(
    loras: Path, scans: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_RUNTIME_PATH", str(loras))
    model, prompts = Model(), ["a <lora:ink:.5><lora:wash:.5>", "b <lora:oil:.5><lora:ink>"]
    assert len(lora_runtime.apply(model, prompts).report.loras) == 4
    assert scans() == 1
    lora_runtime.apply(model, prompts)
    assert scans() == 0


def test_another_default_folder_is_another_catalog(loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = Model(), loras.parent / "other"
    monkeypatch.setenv("LORA_RUNTIME_PATH", str(loras))
    assert not lora_runtime.apply(model, "<lora:ink>").diagnostics
    (other / "empty").mkdir(parents=True)
    monkeypatch.setenv("LORA_RUNTIME_PATH", str(other))
    assert lora_runtime.apply(model, "<lora:ink>").diagnostics[0].message.startswith('no LoRA named "ink"')


def test_unknown_names_are_looked_for_once_together(loras: Path, scans: Callable[[], int]) -> None:
    model, catalog = Model(), LoraCatalog(loras)
    assert len(catalog.entries) == 3
    scans()
    prompts = ["".join(f"<lora:nope{number}>" for number in range(20)), "<lora:ink><lora:nope7><lora:other>"]
    applied = lora_runtime.apply(model, prompts, loras=catalog)
    assert scans() == 1
    assert len([told for told in applied.diagnostics if told.severity == "error"]) == 22
    assert [report.name for report in applied.report.loras] == ["ink"]


def test_a_new_file_among_unknown_names_works_at_once(loras: Path, scans: Callable[[], int]) -> None:
    model, catalog = Model(), LoraCatalog(loras)
    assert catalog.entries
    (loras / "ink.safetensors").rename(loras / "new.safetensors")
    applied = lora_runtime.apply(model, "<lora:nope><lora:new>", loras=catalog)
    assert [report.name for report in applied.report.loras] == ["new"]


def test_files_in_use_that_are_larger_than_the_cache_are_read_once(
    loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def load(path: Path, **rest: object) -> object:
        read.append(path.stem)
        return original(path, **rest)  # type: ignore[arg-type]

    original = lora_runtime.load_lora
    monkeypatch.setattr("lora_runtime.lora_cache.load_lora", load)
    monkeypatch.setattr(lookup, "_cache", LoraCache(limit=1))
    model = Model()
    for strength in (0.1, 0.2, 0.3):
        lora_runtime.apply(model, f"a <lora:ink:{strength}><lora:wash:{strength}>", loras=loras)
    assert read == ["ink", "wash"]
    lora_runtime.apply(model, "a <lora:oil>", loras=loras)
    lora_runtime.apply(model, "a <lora:ink>", loras=loras)
    assert read == ["ink", "wash", "oil", "ink"]


def test_a_caller_sets_how_much_of_files_stays_in_memory(loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, size = LoraCache(), (loras / "ink.safetensors").stat().st_size
    monkeypatch.setattr(lookup, "_cache", cache)
    model = Model()

    def kept(limit: int | str) -> set[str]:
        lora_runtime.limit_cache(limit)
        for name in NAMES:
            lora_runtime.apply(model, f"<lora:{name}>", loras=loras)
        return {path.stem for path in cache._loras}

    assert kept("1GiB") == set(NAMES)
    assert kept(2 * size) == {"wash", "oil"}
    assert kept(0) == {"oil"}  # what was used last
    lora_runtime.limit_cache(0)
    assert cache._loras == {}
    for wrong in ("much", -1, None):
        with pytest.raises(ValueError, match=r"size=.*: give a number of bytes"):
            lora_runtime.limit_cache(wrong)  # type: ignore[arg-type]


def test_thousands_of_broken_tags_are_told_in_time(loras: Path) -> None:
    """Linear: of 4,000 it was 3 s when each was looked up among all before it."""
    start = time.process_time()
    applied = lora_runtime.apply(Model(), "<lora:a:x>" * 8000, loras=loras)
    assert len(applied.diagnostics) == 8000
    assert time.process_time() - start < 6


def test_clearing_the_cache_leaves_what_acts(loras: Path) -> None:
    model = Model()
    before = model.x.weight.detach().clone()
    with lora_runtime.apply(model, "<lora:ink:0.5>", loras=loras):
        patched = model.x.weight.detach().clone()
        lora_runtime.clear_cache()
        assert torch.equal(model.x.weight, patched)
        assert not torch.equal(patched, before)
    assert torch.equal(model.x.weight, before)


def test_a_pipeline_gets_its_prompt_without_the_brackets_that_switch_tags(loras: Path) -> None:
    applied = lora_runtime.apply(Model(), "a boat [<lora:ink>:<lora:wash>:0.5]", loras=loras, scope="edit")
    assert applied.prompt == "a boat "
    assert [d.message for d in applied.diagnostics if "[" in d.message] == []
    both = lora_runtime.apply(Model(), ["[cat <lora:ink>:dog:0.5]", "x [<lora:oil>::5]"], loras=loras, scope="edit")
    assert both.prompt == ["[cat :dog:0.5]", "x "]
    (told,) = (d for d in both.diagnostics if "step to step" in d.message)
    assert told.message.startswith('the text in "[cat :dog:0.5]" cannot change from step to step here')
    assert told.span == (5, 15)
    assert lora_runtime.apply(Model(), "a [<lora:ink>::0.5]", loras=loras).prompt == "a [::0.5]"


def test_a_name_with_other_dividers_is_said(loras: Path) -> None:
    (loras / "ink.safetensors").rename(loras / "my_ink.safetensors")
    model = Model()
    applied = lora_runtime.apply(model, "<lora:my ink:1>", loras=loras)
    assert [(d.severity, d.message) for d in applied.diagnostics] == [("info", '"my ink" is read as "my_ink"')]
    assert [lora.used for lora in applied.report.loras] == [2]
