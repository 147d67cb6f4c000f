"""Pipelines with two experts, and denoisers by other names: which of them a tag changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lora_runtime


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})])

    @property
    def weight(self) -> nn.Parameter:
        return self.blocks[0]["attn1"]["to_q"].weight  # type: ignore[index, union-attr, return-value]


def write(folder: Path, *prefixes: str) -> None:
    """Write a LoRA whose change is one everywhere."""
    tensors = {}
    for prefix in prefixes:
        tensors[f"{prefix}blocks.0.attn1.to_q.lora_A.weight"] = torch.full((1, 4), 0.5)
        tensors[f"{prefix}blocks.0.attn1.to_q.lora_B.weight"] = torch.full((4, 1), 2.0)
    save_file(tensors, folder / "ink.safetensors")


@pytest.mark.parametrize("prefixes", [("diffusion_model.",), ("transformer.",), ("",)])
@pytest.mark.parametrize(("tag", "changes"), [
    ("<lora:ink:0.5>", (0.5, 0.5)),
    ("<lora:ink:0.5:high>", (0.5, 0.0)),
    ("<lora:ink:0.5:low>", (0.0, 0.5)),
    ("<lora:ink:0.5:module=transformer_2>", (0.0, 0.5)),
    ("<lora:ink:1:high><lora:ink:0.25:low>", (1.0, 0.25)),
])  # fmt: skip
def test_a_file_reaches_the_experts_that_its_tag_names(
    prefixes: tuple[str, ...], tag: str, changes: tuple[float, float], tmp_path: Path
) -> None:
    write(tmp_path, *prefixes)
    experts = [Expert(), Expert()]
    before = [expert.weight.detach().clone() for expert in experts]
    pipe = SimpleNamespace(components={"transformer": experts[0], "transformer_2": experts[1]})
    with lora_runtime.apply(pipe, tag, loras=tmp_path) as applied:
        for expert, old, change in zip(experts, before, changes, strict=True):
            torch.testing.assert_close(expert.weight.detach(), old + change)
        assert [d for d in applied.diagnostics if d.severity != "info"] == []
        for report in applied.report.loras:
            assert (report.used, report.keys) == (2, 2)
    reached = {name for report in applied.report.loras for name in report.targets}
    assert reached == {name for name, change in zip(pipe.components, changes, strict=True) if change}
    for expert, old in zip(experts, before, strict=True):
        assert torch.equal(expert.weight, old)


def test_a_file_that_names_the_second_expert_means_just_it(tmp_path: Path) -> None:
    write(tmp_path, "transformer_2.")
    experts = [Expert(), Expert()]
    before = [expert.weight.detach().clone() for expert in experts]
    pipe = SimpleNamespace(components={"transformer": experts[0], "transformer_2": experts[1]})
    with lora_runtime.apply(pipe, "<lora:ink>", loras=tmp_path):
        assert torch.equal(experts[0].weight, before[0])
        torch.testing.assert_close(experts[1].weight.detach(), before[1] + 1)


@pytest.mark.parametrize("name", ["transformer_2", "prior_prior", "unet_2"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_", ""])
def test_an_only_denoiser_by_another_name_is_what_a_file_means(name: str, prefix: str, tmp_path: Path) -> None:
    write(tmp_path, prefix)
    expert = Expert()
    before = expert.weight.detach().clone()
    pipe = SimpleNamespace(components={name: expert, "text_encoder": nn.Linear(1, 1)})
    with lora_runtime.apply(pipe, "<lora:ink>", loras=tmp_path) as applied:
        assert applied.diagnostics == ()
        torch.testing.assert_close(expert.weight.detach(), before + 1)
