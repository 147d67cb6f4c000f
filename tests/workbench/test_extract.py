"""`extract`: a tuned model less its base, as factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_ldm
import torch
from commands import Command
from safetensors.torch import load_file
from torch import Tensor
from workbench.files import delta, written

from lora_runtime import apply
from lora_runtime.errors import LoraFileError
from lora_runtime.header import read_header
from lora_runtime.lora import load_lora
from lora_runtime.workbench import extract


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@torch.no_grad()
def tuned(pipe: Any, rank: int = 2) -> dict[str, Tensor]:
    """Change the matrices of a pipeline's UNet and text encoder by that rank; return the changes by parameter."""
    changes = {}
    for root in (pipe.unet, pipe.text_encoder):
        for index, (name, parameter) in enumerate(root.named_parameters()):
            if parameter.ndim >= 2 and "embedding.weight" not in name:
                flat = parameter.flatten(1)
                change = rand(flat.shape[0], rank, seed=index) @ rand(rank, flat.shape[1], seed=index) * 0.1
                parameter += change.reshape(parameter.shape)
                changes[name] = change.reshape(parameter.shape)
    return changes


def test_a_change_of_low_rank_comes_back_whole(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path / "base")
    before = {n: p.clone() for root in (pipe.unet, pipe.text_encoder) for n, p in root.named_parameters()}
    tuned(pipe)
    with torch.no_grad():
        pipe.unet.conv_in.bias += 0.5
    pipe.save_pretrained(tmp_path / "tuned")
    (tmp_path / "loras").mkdir()
    outcome = extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "loras/found.safetensors", rank=2)
    assert outcome.kept > 1 - 1e-10
    assert max(outcome.ranks) == 2
    assert sum(reason == "its change is exactly zero" for reason in outcome.left_out.values()) > 20
    fresh = tiny.pipeline()
    with apply(fresh, "<lora:found>", loras=tmp_path / "loras") as applied:
        assert not applied.diagnostics
        want = dict([*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters()])
        for root in (fresh.unet, fresh.text_encoder):
            for name, parameter in root.named_parameters():
                torch.testing.assert_close(parameter, want[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(want[name], old) for name, old in before.items())


def test_each_module_has_the_best_of_its_rank(tmp_path: Path) -> None:
    old, new = tiny_ldm.model("sd1", hijacked=False), tiny_ldm.model("sd1", hijacked=False)
    with torch.no_grad():
        for index, parameter in enumerate(new.parameters()):
            parameter += rand(*parameter.shape, seed=index) * 0.1
    base = written(tmp_path / "base.safetensors", tiny_ldm.state(old))
    path = written(tmp_path / "tuned.safetensors", tiny_ldm.state(new))
    outcome = extract(path, base, tmp_path / "a.safetensors", rank=3, conv_rank=1, exact=True)
    lora = load_lora(outcome.path)
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    # diffusers reads files of SD 1 by its own names alone.
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    change = tiny_ldm.state(new)[key].double() - tiny_ldm.state(old)[key].double()
    values = torch.linalg.svdvals(change).square()
    error = (delta(lora, stem, change.shape) - change).square().sum()
    assert float(error) == pytest.approx(float(values[3:].sum()), rel=1e-4)
    assert lora.adapters["lora_unet_down_blocks_0_resnets_0_conv1"][0].rank == 1
    whole = tiny_ldm.state(new)["model.diffusion_model.input_blocks.0.0.bias"] - tiny_ldm.state(old)["model.diffusion_model.input_blocks.0.0.bias"]  # fmt: skip # noqa: E501
    torch.testing.assert_close(load_file(outcome.path)["lora_unet_conv_in.diff_b"], whole)
    assert any(stem.startswith("lora_te_text_model") for stem in lora.adapters)


def test_files_of_sdxl_have_the_original_names(tmp_path: Path) -> None:
    old, new = tiny_ldm.model("sdxl", hijacked=False), tiny_ldm.model("sdxl", hijacked=False)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if name.endswith(("attn1.to_q.weight", "in_proj_weight", "q_proj.weight")):
                parameter += 0.1 * rand(*parameter.shape)
    base = written(tmp_path / "base.safetensors", tiny_ldm.state(old))
    path = written(tmp_path / "tuned.safetensors", tiny_ldm.state(new))
    outcome = extract(path, base, tmp_path / "a.safetensors", energy=1.0)
    stems = load_lora(outcome.path).adapters
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in stems
    assert {stem[:9] for stem in stems} == {"lora_unet", "lora_te1_", "lora_te2_"}
    assert outcome.kept > 1 - 1e-12


def test_modules_can_be_chosen_and_what_is_left_out_has_its_reason(tmp_path: Path) -> None:
    one = {"a.weight": rand(6, 6), "b.weight": rand(6, 6), "c.weight": rand(6, 4), "d.weight": rand(3, 3)}
    two = {name: tensor + 1 for name, tensor in one.items()} | {"c.weight": rand(6, 5), "e.weight": rand(2, 2)}
    one |= {"q.weight": torch.zeros(2, 2, dtype=torch.int8), "ids.weight": torch.arange(3)}
    two |= {"q.weight": torch.ones(2, 2, dtype=torch.int8), "ids.weight": torch.arange(3)}
    for tensors in (one, two):
        tensors["f.weight"] = rand(2, 2).to(torch.float8_e4m3fn)
    paths = written(tmp_path / "two.safetensors", two), written(tmp_path / "one.safetensors", one)
    outcome = extract(*paths, tmp_path / "x.safetensors", exclude=["*_b"], dtype="float16")
    assert set(load_lora(outcome.path).adapters) == {"lora_unet_a", "lora_unet_d"}
    assert dict(outcome.left_out) == {
        "lora_unet_b": "not among the modules that are asked for",
        "lora_unet_c": f"its shape is (6, 5), and (6, 4) in {paths[1]}",
        "lora_unet_e": f"{paths[1]} has nothing of that name",
        "lora_unet_q": "holds whole numbers (I8)",
        "lora_unet_ids": "its change is exactly zero",
        "lora_unet_f": "stored in 8 bits (F8_E4M3), and what they stand for a scale may tell",
    }
    assert load_file(outcome.path)["lora_unet_a.lora_up.weight"].dtype == torch.float16
    chosen = extract(*paths, tmp_path / "y.safetensors", include=["*_a", "*_d"], exclude=["*_d"])
    assert set(load_lora(chosen.path).adapters) == {"lora_unet_a"}
    note = json.loads(read_header(chosen.path).metadata["lora_runtime.made_from"])
    assert [(file["name"], file["role"]) for file in note["files"]] == [
        ("two.safetensors", "tuned"),
        ("one.safetensors", "base"),
    ]


def test_models_without_a_name_in_common_or_without_a_change_are_told(tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", {"a.weight": rand(6, 6)})
    other = written(tmp_path / "other.safetensors", {"b.weight": rand(6, 6)})
    with pytest.raises(LoraFileError, match=r"has no weight by a name that .* has: give two models of one layout"):
        extract(one, other, tmp_path / "x.safetensors")
    with pytest.raises(LoraFileError, match="its change is exactly zero"):
        extract(one, one, tmp_path / "x.safetensors")
    with pytest.raises(LoraFileError, match="no such file or folder"):
        extract(tmp_path / "none", one, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_the_command_prints_what_it_did(command: Command, tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", {"a.weight": rand(6, 6)})
    two = written(tmp_path / "two.safetensors", {"a.weight": rand(6, 6, seed=1)})
    result = command("extract", two, one, "-o", tmp_path / "x.safetensors", "--rank", 2)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[1] == "  1 modules, rank 2"
