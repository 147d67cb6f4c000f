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
from lora_runtime.workbench import bake, extract


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


def test_the_second_text_encoder_has_the_names_that_all_programs_read(tmp_path: Path) -> None:
    old, new = tiny_ldm.model("sdxl", hijacked=False), tiny_ldm.model("sdxl", hijacked=False)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if "resblocks" in name or name.endswith(("text_projection", "positional_embedding")):
                parameter += 0.1 * rand(*parameter.shape)
    states = [tiny_ldm.state(each) for each in (new, old)]
    paths = [written(tmp_path / f"{number}.safetensors", state) for number, state in enumerate(states)]
    outcome = extract(*paths, tmp_path / "a.safetensors", energy=1.0)
    assert outcome.kept > 1 - 1e-12
    lora = load_lora(outcome.path)
    clip = "lora_te2_text_model_"
    # transformers' names as kohya spells them; those of OpenCLIP are in no file.
    assert all(stem.startswith(clip) or stem == "lora_te2_text_projection" for stem in lora.adapters)
    prefix = "conditioner.embedders.1.model."
    changes = {name.removeprefix(prefix): states[0][name].double() - states[1][name] for name in states[0]}
    rows = changes["transformer.resblocks.0.attn.in_proj_weight"].chunk(3)
    biases = changes["transformer.resblocks.0.attn.in_proj_bias"].chunk(3)
    want = {f"{clip}encoder_layers_0_self_attn_{name}_proj": row for name, row in zip("qkv", rows, strict=True)}
    want[f"{clip}encoder_layers_0_mlp_fc1"] = changes["transformer.resblocks.0.mlp.c_fc.weight"]
    want["lora_te2_text_projection"] = changes["text_projection"].mT  # the other way round in OpenCLIP
    want[f"{clip}embeddings_position_embedding"] = changes["positional_embedding"]
    for stem, change in want.items():
        torch.testing.assert_close(delta(lora, stem, change.shape), change, rtol=1e-4, atol=1e-5)
    for name, change in zip("qkv", biases, strict=True):
        found = delta(lora, f"{clip}encoder_layers_0_self_attn_{name}_proj", change.shape, "bias")
        torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-5)
    baked = load_file(bake(paths[1], [str(outcome.path)], tmp_path / "again.safetensors").path)
    for name, tensor in states[0].items():
        torch.testing.assert_close(baked[name], tensor, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("size", [9_000, 13_000])
def test_a_size_is_kept_and_what_is_left_is_less_than_a_rank(tmp_path: Path, size: int) -> None:
    shapes = {"a": (40, 30), "b": (60, 20), "c": (8, 4, 3, 3)}
    one = {f"{name}.weight": rand(*shape) for name, shape in shapes.items()} | {"a.bias": rand(40)}
    two = {name: tensor + rand(*tensor.shape, seed=5) for name, tensor in one.items()}
    paths = written(tmp_path / "two.safetensors", two), written(tmp_path / "one.safetensors", one)
    outcome = extract(*paths, tmp_path / "x.safetensors", size=size, exact=True)
    room = size - outcome.size
    assert 0 <= room < 4 * max(70, 80, 44) + 512  # hashes, and digits that ranks do not have
    ranks = {stem[-1]: adapters[0].rank for stem, adapters in load_lora(outcome.path).adapters.items()}
    # No rank that was left out has more of ‖Δ‖² to a byte than one that was taken.
    values = {n: torch.linalg.svdvals((two[f"{n}.weight"] - one[f"{n}.weight"]).double().flatten(1)) for n in shapes}
    gains = {n: values[n].square() / sum(values_shape(shapes[n])) for n in shapes}
    taken = min(float(gains[n][rank - 1]) for n, rank in ranks.items() if n in gains and rank > 0)
    left = max(float(gains[n][ranks.get(n, 0)]) for n in shapes if ranks.get(n, 0) < len(gains[n]))
    assert taken >= left * (1 - 1e-6)


def values_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the sides of a weight as a matrix."""
    return shape[0], int(torch.Size(shape[1:]).numel())


def test_a_size_that_nothing_fits_in_is_told(tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", {"a.weight": rand(6, 6)})
    two = written(tmp_path / "two.safetensors", {"a.weight": rand(6, 6, seed=1)})
    with pytest.raises(LoraFileError, match="bytes more than the size allows; give more"):
        extract(two, one, tmp_path / "x.safetensors", size=500)
    with pytest.raises(ValueError, match="size and energy exclude each other"):
        extract(two, one, tmp_path / "x.safetensors", size=50_000, energy=0.5)


@torch.no_grad()
def taught(pipe: Any, words: list[str]) -> Tensor:
    """Give a pipeline these tokens with rows of their own; return the rows."""
    assert pipe.tokenizer.add_tokens(words) == len(words)
    first = pipe.text_encoder.get_input_embeddings().num_embeddings
    old = pipe.text_encoder.get_input_embeddings().weight
    rows = rand(len(words), old.shape[1], seed=3)
    pipe.text_encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.cat([old, rows])))
    pipe.text_encoder.config.vocab_size = first + len(words)
    return rows


@torch.no_grad()
def read(pipe: Any, prompt: str) -> Tensor:
    found = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("key", ["a.weight", "a.bias"])
@pytest.mark.parametrize("role", ["tuned", "base"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_named(role: str, key: str, value: float, command: Command, tmp_path: Path) -> None:
    tensors = {
        "base": {"a.weight": rand(6, 6), "a.bias": rand(6)},
        "tuned": {"a.weight": rand(6, 6), "a.bias": rand(6)},
    }
    tensors[role][key].view(-1)[1] = value
    paths = {name: written(tmp_path / f"{name}.safetensors", each) for name, each in tensors.items()}
    result = command("extract", paths["tuned"], paths["base"], "-o", tmp_path / "x.safetensors")
    assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert f"{paths[role]}: {key} has NaN or infinity in it" in result.err


def test_new_words_come_along_and_mean_the_same(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path / "base")
    tuned(pipe)
    rows = taught(pipe, ["zqx", "zqx_1", "vlk"])
    pipe.save_pretrained(tmp_path / "tuned")
    (tmp_path / "loras").mkdir()
    out = tmp_path / "loras" / "found.safetensors"
    outcome = extract(tmp_path / "tuned", tmp_path / "base", out, rank=2, textual_inversion=True)
    assert "3 new tokens of the text_encoder are taken along: zqx, vlk" in outcome.notes
    tensors = load_file(out)
    assert torch.equal(tensors["bundle_emb.zqx.string_to_param.*"], rows[:2])
    assert torch.equal(tensors["bundle_emb.vlk.string_to_param.*"], rows[2:])
    fresh, plain = tiny.pipeline(), tiny.pipeline()
    with apply(fresh, "a vlk boat <lora:found>", loras=tmp_path / "loras") as applied:
        found = read(fresh, applied.prompt)
    torch.testing.assert_close(found, read(pipe, "a vlk boat"), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, read(plain, "a vlk boat"), rtol=1e-2, atol=1e-2)


def test_words_of_a_checkpoint_have_to_be_named(command: Command, tmp_path: Path) -> None:
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    unet = "model.diffusion_model.input_blocks.0.0.weight"
    base = {key: rand(9, 4), unet: rand(3, 4, 3, 3)}
    grown = {key: torch.cat([base[key], rand(2, 4, seed=1)]), unet: base[unet] + 1}
    grown[key][1] += 1
    paths = written(tmp_path / "two.safetensors", grown), written(tmp_path / "one.safetensors", base)
    without = extract(*paths, tmp_path / "a.safetensors")
    assert [reason for reason in without.left_out.values() if "shape" in reason]
    with pytest.raises(LoraFileError, match=r"names the new token 9 of its text_encoder: say what .* WORD"):
        extract(*paths, tmp_path / "x.safetensors", textual_inversion=True)
    with pytest.raises(LoraFileError, match="no dot may be in it"):
        extract(*paths, tmp_path / "x.safetensors", textual_inversion="a.b")
    result = command("extract", *paths, "-o", tmp_path / "x.safetensors", "--textual-inversion", "zqx")
    assert (result.status, result.err) == (0, "")
    assert torch.equal(load_lora(tmp_path / "x.safetensors").embeddings["zqx"]["string_to_param.*"], grown[key][9:])
    assert "1 of its old rows changed, which a table that grew has no place for" in result.out


def test_the_command_prints_what_it_did(command: Command, tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", {"a.weight": rand(6, 6)})
    two = written(tmp_path / "two.safetensors", {"a.weight": rand(6, 6, seed=1)})
    result = command("extract", two, one, "-o", tmp_path / "x.safetensors", "--rank", 2)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[1] == "  1 modules, rank 2"
