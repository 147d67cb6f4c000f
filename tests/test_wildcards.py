"""One LoRA of a folder by the seed of the picture."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lora_runtime
from lora_runtime import UnknownLoraError, read_infotext
from lora_runtime.wildcards import draw_name, is_wildcard


class Layer(nn.Module):
    """One layer of zeros, so that a weight shows what was added."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.layer.weight.data.zero_()

    @property
    def shown(self) -> float:
        return float(self.layer.weight.detach().mean())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with styles whose changes are 1, 2 and 3 everywhere, and one beside them of 9."""
    for name, value in {"styles/ink": 1.0, "styles/wash": 2.0, "styles/old/oil": 3.0, "other": 9.0}.items():
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"layer.lora_A.weight": torch.full((1, 4), value), "layer.lora_B.weight": torch.ones(4, 1)}
        save_file(tensors, path)
    return tmp_path


def drawn(seed: int, tag: str, paths: list[str]) -> str:
    """Return what docs/syntax.md says: SHA-256 of seed, line break, name; its first 48 bits as a part of the list."""
    share = int(hashlib.sha256(f"{seed}\n{tag}".encode()).hexdigest()[:12], 16) / 2**48
    return sorted(paths)[int(share * len(paths))]


STYLES = ["styles/ink", "styles/wash", "styles/old/oil"]
VALUES = {"styles/ink": 1.0, "styles/wash": 2.0, "styles/old/oil": 3.0, "other": 9.0}


@pytest.mark.parametrize("seed", range(6))
def test_the_seed_of_the_picture_decides(folder: Path, seed: int) -> None:
    model = Layer()
    applied = lora_runtime.apply(model, "a <lora:styles/*:0.5>", loras=folder, seeds=seed)
    name = drawn(seed, "styles/*", STYLES)
    assert model.shown == 0.5 * VALUES[name]
    assert applied.prompt == "a "
    assert [said.message for said in applied.diagnostics] == [f'"styles/*" is "{name}" for the seed {seed}']
    read = read_infotext(
        applied.infotext(seed=seed, width=64, height=64, num_inference_steps=2)
    )  # so that the picture can be painted again from what it says
    assert read.prompt == f"a <lora:{name}:0.5>"
    assert list(read.loras.values()) != [""]


def test_all_are_drawn_alike() -> None:
    counts = Counter(draw_name("styles/*", STYLES, seed) for seed in range(3000))
    assert all(900 < counts[name] < 1100 for name in STYLES)  # 1000 ± 4 σ


@pytest.mark.parametrize(
    ("tag", "seeds", "reason"), [("<lora:none/*>", 1, "a folder"), ("<lora:styles/*>", None, "the seed of the picture")]
)
def test_what_cannot_be_drawn_is_said_and_costs_its_tag_alone(
    folder: Path, tag: str, seeds: int | None, reason: str
) -> None:
    model = Layer()
    applied = lora_runtime.apply(model, f"{tag} <lora:other>", loras=folder, seeds=seeds, strict=False)
    assert model.shown == 9
    assert [reason in said.message for said in applied.diagnostics if said.severity == "error"] == [True]
    with pytest.raises(UnknownLoraError, match=reason):
        lora_runtime.apply(model, tag, loras=folder, seeds=seeds, strict=True)


def test_what_is_named_is_drawn_too(folder: Path) -> None:
    for prompt in ("x", None):
        model = Layer()
        applied = lora_runtime.apply(model, prompt, adapters={"styles/*": 0.7}, loras=folder, seeds=1)
        assert torch.equal(model.layer.weight, torch.full((4, 4), 0.7) * VALUES[drawn(1, "styles/*", STYLES)])
        assert [said.severity for said in applied.diagnostics] == ["info"]


def test_a_generator_is_as_the_seed_that_it_began_with(folder: Path) -> None:
    model = Layer()
    lora_runtime.apply(model, "<lora:styles/*>", loras=folder, seeds=torch.Generator().manual_seed(4))
    assert model.shown == VALUES[drawn(4, "styles/*", STYLES)]
    with pytest.raises(TypeError, match="a seed is a whole number"):
        lora_runtime.apply(model, "<lora:styles/*>", loras=folder, seeds=1.5)  # type: ignore[arg-type]


def test_a_folder_that_is_new_is_found(folder: Path) -> None:
    catalog = lora_runtime.LoraCatalog(folder)
    assert catalog.entries
    (folder / "new").mkdir()
    (folder / "other.safetensors").rename(folder / "new/other.safetensors")
    model = Layer()
    lora_runtime.apply(model, "<lora:new/*>", loras=catalog, seeds=1)
    assert model.shown == 9


def test_a_name_that_no_tag_can_have_is_not_drawn(folder: Path) -> None:
    try:
        (folder / "styles/wash.safetensors").rename(folder / "styles/a:b.safetensors")
    except OSError:
        pytest.skip("this system has no such names")
    for seed in range(20):
        model = Layer()
        lora_runtime.apply(model, "<lora:styles/*>", loras=folder, seeds=seed)
        assert model.shown in (1, 3)


@pytest.mark.parametrize(("name", "whether"), [("*", True), ("a/b/*", True), ("a*", False), ("ink", False)])
def test_only_a_whole_folder_is_a_wildcard(name: str, whether: bool) -> None:
    assert is_wildcard(name) == whether
