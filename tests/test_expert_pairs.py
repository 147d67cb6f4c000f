"""Two files that one name means together: those that are trained for the two denoisers of Wan 2.2."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import LoraCatalog
from lora_runtime.errors import AmbiguousLoraError, UnknownLoraError
from lora_runtime.wildcards import draw_name


class Expert(nn.Module):
    """One layer by the name that it has in Wan."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})])
        self.weight.data.zero_()

    @property
    def weight(self) -> nn.Parameter:
        return self.blocks[0]["attn1"]["to_q"].weight  # type: ignore[index, union-attr, return-value]


def save(path: Path, value: float = 1.0, model: str = "wan2.2-t2v-a14b/lora") -> Path:
    """Write a LoRA whose change is `value` everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "diffusion_model.blocks.0.attn1.to_q.lora_A.weight": torch.full((1, 4), value),
        "diffusion_model.blocks.0.attn1.to_q.lora_B.weight": torch.ones(4, 1),
    }
    save_file(tensors, path, {"modelspec.architecture": model})
    return path


def pipe_of(*experts: nn.Module) -> Any:
    return SimpleNamespace(components=dict(zip(("transformer", "transformer_2"), experts, strict=False)))


def full(value: float) -> Tensor:
    return torch.full((4, 4), value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a pair for Wan 2.2: the change is 1 for much noise and 2 for little."""
    save(tmp_path / "style_high_noise.safetensors", 1.0)
    save(tmp_path / "style_low_noise.safetensors", 2.0)
    return tmp_path


@pytest.mark.parametrize(
    ("tag", "changes"),
    [
        ("<lora:style:1>", (1.0, 2.0)),
        ("<lora:style:0.5>", (0.5, 1.0)),
        ("<lora:style:1:high>", (1.0, 0.0)),
        ("<lora:style:1:low>", (0.0, 2.0)),
        ("<lora:style:0.5:high><lora:style:1:low>", (0.5, 2.0)),
        ("<lora:style_low_noise:1>", (2.0, 2.0)),
    ],
)
def test_each_file_goes_to_its_expert(folder: Path, tag: str, changes: tuple[float, float]) -> None:
    experts = Expert(), Expert()
    with lora_runtime.apply(pipe_of(*experts), tag, loras=folder, strict=True):
        for expert, change in zip(experts, changes, strict=True):
            assert torch.equal(expert.weight.detach(), full(change))
    assert all(torch.equal(expert.weight.detach(), full(0.0)) for expert in experts)


def test_it_is_said_which_file_goes_where(folder: Path) -> None:
    applied = lora_runtime.apply(pipe_of(Expert(), Expert()), "a <lora:style:1>", loras=folder)
    (told,) = applied.diagnostics
    assert (told.severity, told.span) == ("info", (2, 16))
    assert told.message == (
        '"style" is read as "style_high_noise" for transformer and "style_low_noise" for transformer_2'
    )
    assert sorted(report.name for report in applied.report.loras) == ["style_high_noise", "style_low_noise"]


def test_a_file_of_that_name_comes_first(folder: Path) -> None:
    save(folder / "style.safetensors", 4.0)
    experts = Expert(), Expert()
    with lora_runtime.apply(pipe_of(*experts), "<lora:style>", loras=folder) as applied:
        assert applied.diagnostics == ()
        assert all(torch.equal(expert.weight.detach(), full(4.0)) for expert in experts)


def test_a_model_with_one_denoiser_is_told_of_the_other_file(folder: Path) -> None:
    expert = Expert()
    with lora_runtime.apply(pipe_of(expert), "<lora:style>", loras=folder) as applied:
        assert torch.equal(expert.weight.detach(), full(1.0))
    (told,) = [d for d in applied.diagnostics if d.severity == "warning"]
    assert told.message.startswith('"style_low_noise" is for the denoiser "transformer_2", which this model does not')


def test_a_name_without_a_prompt_means_the_pair_too(folder: Path) -> None:
    experts = Expert(), Expert()
    with lora_runtime.apply(pipe_of(*experts), adapters={"style": 1}, loras=folder) as applied:
        applied.set("style", 0.25)
        assert [float(expert.weight[0, 0].detach()) for expert in experts] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("high", "low", "name"),
    [
        ("ink_high", "ink_low", "ink"),
        ("ink-HIGH-v2", "ink-LOW-v2", "ink-v2"),
        ("inkHighNoise", "inkLowNoise", "ink"),
        ("BounceHighWan2_2", "BounceLowWan2_2", "BounceWan2_2"),
        ("HIGH_ink", "low_ink", "ink"),
        ("ink HN 000002500", "ink LN 000002500", "ink 000002500"),
        ("wan2.2_i2v_high_noise_ink", "wan2.2_i2v_low_noise_ink", "wan2.2_i2v_ink"),
        ("ink.high.noise", "ink.low.noise", "ink"),
        ("Ink/high_noise_model", "Ink/low_noise_model", "Ink"),
        ("some/ink_high", "some/ink_low", "some/ink"),
        ("some/ink_high", "some/ink_low", "ink"),
        ("some/high/ink", "some/low/ink", "some/ink"),
        ("ink_high/pytorch_lora_weights", "ink_low/pytorch_lora_weights", "ink"),
        ("ink_v1_high_noise", "ink_v1_low_noise", "ink v1"),
    ],
)
def test_the_names_in_circulation_are_pairs(high: str, low: str, name: str, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{stem}.safetensors") for stem in (high, low)]
    pair = LoraCatalog(tmp_path).pair(name)
    assert pair is not None
    assert [entry.path for entry in pair] == paths


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("highlight", "lowlight", "light"),
        ("ink_high", "ink_low_v2", "ink"),
        ("a/ink_high", "b/ink_low", "ink"),
        ("ink_high", "ink_highnoise", "ink"),
        ("thigh", "tlow", "t"),
        ("ink_h", "ink_l", "ink"),
    ],
)
def test_other_names_are_none(first: str, second: str, name: str, tmp_path: Path) -> None:
    for stem in (first, second):
        save(tmp_path / f"{stem}.safetensors")
    assert LoraCatalog(tmp_path).pair(name) is None


@pytest.mark.parametrize("model", ["stable-diffusion-xl-v1-base/lora", "flux-1-dev/lora"])
def test_files_for_models_with_one_denoiser_are_no_pair(model: str, tmp_path: Path) -> None:
    for side in ("high", "low"):
        save(tmp_path / f"{side}_contrast.safetensors", model=model)
    applied = lora_runtime.apply(pipe_of(Expert(), Expert()), "<lora:contrast>", loras=tmp_path)
    assert applied.diagnostics[0].message.startswith('no LoRA named "contrast"')


def test_two_pairs_of_one_name_are_ambiguous_and_a_path_tells_them_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        for side in ("high", "low"):
            save(tmp_path / f"{place}/ink_{side}.safetensors")
    catalog = LoraCatalog(tmp_path)
    with pytest.raises(AmbiguousLoraError, match=r'"ink" fits 2 pairs of files .*"a/ink_high", "a/ink_low"'):
        catalog.pair("ink")
    pair = catalog.pair("b/ink")
    assert pair is not None
    assert pair.high.relative == "b/ink_high"


def test_a_pair_that_comes_later_works_at_once_and_one_that_goes_is_unknown(tmp_path: Path) -> None:
    catalog, pipe = LoraCatalog(tmp_path), pipe_of(Expert(), Expert())
    assert lora_runtime.apply(pipe, "<lora:style>", loras=catalog).diagnostics[0].severity == "error"
    paths = [save(tmp_path / f"style_{side}_noise.safetensors") for side in ("high", "low")]
    assert [d.severity for d in lora_runtime.apply(pipe, "<lora:style>", loras=catalog).diagnostics] == ["info"]
    paths[0].unlink()
    with pytest.raises(UnknownLoraError, match='no LoRA named "style"'):
        lora_runtime.apply(pipe, "<lora:style>", loras=catalog, strict=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_pair_is_drawn_as_one(tmp_path: Path, seed: int) -> None:
    for name, value in {"ink": 1.0, "oil": 4.0}.items():
        save(tmp_path / f"styles/{name}_high_noise.safetensors", value)
        save(tmp_path / f"styles/{name}_low_noise.safetensors", 2 * value)
    high, low = Expert(), Expert()
    name = draw_name("styles/*", ["styles/ink", "styles/oil"], seed)
    value = {"styles/ink": 1.0, "styles/oil": 4.0}[name]
    with lora_runtime.apply(pipe_of(high, low), "<lora:styles/*>", loras=tmp_path, seeds=seed):
        assert torch.equal(high.weight, full(value))
        assert torch.equal(low.weight, full(2 * value))
