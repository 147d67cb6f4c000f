"""`bake`: a checkpoint that is to the bit what `apply` makes of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import tiny_ldm
import torch
from commands import Command
from safetensors.torch import load_file
from workbench.files import delta, factors, written

from lora_runtime import apply
from lora_runtime.errors import LoraFileError, NoMatchError, StrengthError
from lora_runtime.header import read_header
from lora_runtime.lora import load_lora
from lora_runtime.workbench import bake, extract

PROMPT = "<lora:ink:te=0.5:unet=0.8:IN=0.3><lora:wash:-0.4><lora:dora:0.6>"


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """Two LoRAs by diffusers' names, and a DoRA by the original ones."""
    folder = tmp_path / "loras"
    folder.mkdir()
    pipe = tiny.pipeline()
    for seed, name in enumerate(("ink", "wash"), 1):
        tiny.write_kohya_lora(folder / f"{name}.safetensors", pipe, rank=2, seed=seed)
    stem = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    tensors = factors(stem, 2, shape=torch.Size((12, 12))) | {f"{stem}.dora_scale": torch.full((12, 1), 0.7)}
    written(folder / "dora.safetensors", tensors)
    return folder


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_to_the_bit_what_apply_makes(dtype: torch.dtype, loras: Path, tmp_path: Path) -> None:
    model = tiny_ldm.model("sd1", hijacked=False).to(dtype)
    before = tiny_ldm.state(model)
    source = written(tmp_path / "model.safetensors", before, {"modelspec.title": "tiny"})
    baked = bake(source, [PROMPT], tmp_path / "baked.safetensors", loras=[loras])
    with apply(model, PROMPT, loras=loras) as applied:
        assert not applied.diagnostics
        expected = tiny_ldm.state(model)
    found = load_file(baked.path)
    assert set(found) == set(before)
    for key, tensor in expected.items():
        assert found[key].dtype == dtype
        assert torch.equal(found[key], tensor), key
    changed = sum(not torch.equal(expected[key], tensor) for key, tensor in before.items())
    assert baked.weights >= changed > 100
    assert (baked.tensors, baked.size) == (len(before), baked.path.stat().st_size)
    assert baked.used["dora"] == (4, 4)
    metadata = read_header(baked.path).metadata
    assert metadata["modelspec.title"] == "tiny"
    note = json.loads(metadata["lora_runtime.made_from"])
    assert [file["name"] for file in note["files"]] == ["ink", "wash", "dora"]


def test_what_was_baked_can_be_extracted_again(loras: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False)))
    baked = bake(source, [f"{loras / 'ink'}:0.7"], tmp_path / "baked.safetensors")
    outcome = extract(baked.path, source, tmp_path / "again.safetensors", rank=2)
    assert outcome.kept > 1 - 1e-9
    again, ink = load_lora(outcome.path), load_lora(loras / "ink.safetensors")
    assert set(again.adapters) == set(ink.adapters)
    for stem in ink.adapters:
        shape = torch.Size(ink.adapters[stem][0].weight_shape or ())
        torch.testing.assert_close(delta(again, stem, shape), 0.7 * delta(ink, stem, shape), rtol=1e-4, atol=1e-5)


def test_one_component_of_a_pipeline_is_a_checkpoint_too(loras: Path, tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    pipe.unet.save_pretrained(tmp_path / "unet")
    source = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    baked = bake(source, ["<lora:ink:0.8>"], tmp_path / "baked.safetensors", loras=[loras])
    with apply(pipe, "<lora:ink:te=0:unet=0.8>", loras=loras):
        expected = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    found = load_file(baked.path)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert any("no module of that name" in reason for reason in baked.unused)


def test_weights_of_8_bits_are_refused(loras: Path, tmp_path: Path) -> None:
    state = tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False))
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    eight = state | {f"{key}.weight": state[f"{key}.weight"].to(torch.float8_e4m3fn)}
    source = written(tmp_path / "eight.safetensors", eight)
    with pytest.raises(LoraFileError, match=r"1 of the weights .* are stored in 8 bits or less \(float8_e4m3fn\)"):
        bake(source, ["<lora:dora>"], tmp_path / "x.safetensors", loras=[loras])
    scaled = written(tmp_path / "scaled.safetensors", state | {f"{key}.weight_scale": torch.tensor(2.0)})
    with pytest.raises(LoraFileError, match="codes with a scale"):
        bake(scaled, ["<lora:dora>"], tmp_path / "x.safetensors", loras=[loras])


def test_what_cannot_be_baked_is_told_and_nothing_is_left(loras: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False).half()))
    out = tmp_path / "x.safetensors"
    with pytest.raises(LoraFileError, match="this is a folder; give the one file"):
        bake(tmp_path, ["<lora:ink>"], out, loras=[loras])
    with pytest.raises(LoraFileError, match="its strength depends on the step"):
        bake(source, ["<lora:ink:0@0,1@1>"], out, loras=[loras])
    with pytest.raises(StrengthError, match="use a lower strength"):
        bake(source, ["<lora:ink:1e7>"], out, loras=[loras])
    other = written(tmp_path / "other.safetensors", factors("lora_unet_nowhere", 2, shape=torch.Size((4, 4))))
    with pytest.raises(NoMatchError, match="none of its 3 keys has a place in"):
        bake(source, [other], out)
    with pytest.raises(ValueError, match="there is nothing to bake"):
        bake(source, [], out)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".x", "x"))]


@pytest.mark.parametrize("field", ["high", "low", "module=nosuch"])
def test_keys_that_did_nothing_are_not_claimed(field: str, loras: Path, tmp_path: Path) -> None:
    state = tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False))
    source = written(tmp_path / "model.safetensors", state)
    baked = bake(source, [f"<lora:ink:te=0:unet=1:{field}>"], tmp_path / "x.safetensors", loras=[loras])
    found = load_file(baked.path)
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    keys = len(load_file(loras / "ink.safetensors"))
    assert (baked.weights, baked.used) == (0, {"ink": (0, keys)})
    assert sum(baked.unused.values()) == keys
    assert "its strength is 0" in baked.unused
    assert [note.partition('"ink" is for the denoiser')[0] for note in baked.notes] == [""]


def test_keys_of_blocks_at_0_did_nothing(loras: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False)))
    baked = bake(source, ["<lora:ink:te=0:unet=1:OUT=0:D00=0>"], tmp_path / "x.safetensors", loras=[loras])
    keys = [*load_file(loras / "ink.safetensors")]
    idle = [key for key in keys if key.startswith("lora_te") or "_up_blocks_" in key]
    assert (baked.used["ink"], baked.unused["its strength is 0"]) == ((len(keys) - len(idle), len(keys)), len(idle))
    assert baked.notes == ('"ink": no module of the file is meant by D00',)


def test_a_region_is_refused_as_steps_are(loras: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False)))
    with pytest.raises(LoraFileError, match="depends on the step, the image or the place"):
        bake(source, ["<lora:ink:1:box=0,0,0.5,1>"], tmp_path / "x.safetensors", loras=[loras])


def test_words_of_a_file_have_no_place(loras: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False)))
    tensors = load_file(loras / "dora.safetensors") | {"bundle_emb.moss.clip_l": torch.ones(2, 12)}
    written(loras / "words.safetensors", tensors)
    baked = bake(source, ["<lora:words>"], tmp_path / "x.safetensors", loras=[loras])
    assert baked.notes == ("words brings words along (moss); a checkpoint has no place for them",)


def test_the_command_prints_what_it_did(command: Command, loras: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False)))
    out = tmp_path / "x.safetensors"
    result = command("bake", source, "--prompt", "<lora:dora:0.5>", "--loras", loras, "-o", out)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[1].startswith("  1 of ")
    assert result.out.splitlines()[2] == "  dora: 4 of 4 keys"
    assert command("bake", source, "-o", tmp_path / "y.safetensors").status == 2
    found = json.loads(command("bake", source, loras / "dora", "-o", out, "--force", "--json").out)
    assert found["weights"] == 1
