"""`convert`: other names, and the same tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_dit
import tiny_ldm
import torch
from commands import Command
from safetensors.torch import load_file
from workbench.files import factors, written

from lora_runtime import apply
from lora_runtime.errors import LoraFileError
from lora_runtime.families.flux import FLUX_NAMES as FLUX
from lora_runtime.header import read_header
from lora_runtime.lora import load_lora
from lora_runtime.workbench import convert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline of diffusers as `diffusers`, the same layout in original names as `original.safetensors`."""
    tiny.pipeline().save_pretrained(tmp_path / "diffusers")
    written(tmp_path / "original.safetensors", tiny_ldm.state(tiny_ldm.model("sd1", hijacked=False)))
    return tmp_path


def kohya(path: Path, alpha: float | None = 2.0, dtype: torch.dtype = torch.float16, **options: Any) -> Path:
    tiny.write_kohya_lora(path, tiny.pipeline(), rank=2, alpha=alpha, dtype=dtype, metadata={"a": "b"}, **options)
    return path


@pytest.mark.quick(1)
@pytest.mark.parametrize("to", ["diffusers", "peft", "comfy"])
def test_there_and_back_is_equal_bit_for_bit(to: Any, folder: Path) -> None:
    components = ["unet", "text_encoder"] if to == "diffusers" else ["unet"]
    path = kohya(folder / "a.safetensors", components=components)
    model = folder / ("original.safetensors" if to == "comfy" else "diffusers")
    there = convert(path, folder / "b.safetensors", to=to, model=model)
    first = {"diffusers": ("unet.", "text_encoder."), "peft": ("base_model.model.",), "comfy": ("diffusion_model.",)}
    assert all(
        key.startswith(first[to]) and key.endswith((".lora_A.weight", ".lora_B.weight"))
        for key in load_file(there.path)
    )
    assert there.notes == ()
    back = convert(there.path, folder / "c.safetensors", to="kohya", model=folder / "diffusers")
    before, after = load_file(path), load_file(back.path)
    assert set(after) == set(before)
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(after[key], tensor)
    assert read_header(back.path).metadata["a"] == "b"


def same(path: Path, other: Path) -> bool:
    """Return whether two files have the same tensors by the same names, bit for bit."""
    one, two = load_file(path), load_file(other)
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


def test_a_file_of_sdxl_goes_to_the_original_names_and_back(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sdxl")
    pipe.save_pretrained(tmp_path / "diffusers")
    state = tiny_ldm.state(tiny_ldm.model("sdxl", hijacked=False))
    original = written(tmp_path / "original.safetensors", state)
    path = tmp_path / "a.safetensors"
    tiny.write_kohya_lora(
        path, pipe, rank=2, alpha=2.0, dtype=torch.float16, components=["unet", "text_encoder"], metadata={"a": "b"}
    )
    there = convert(path, tmp_path / "b.safetensors", to="kohya", model=original)
    prefix = "model.diffusion_model."
    weights = {
        "lora_unet_" + key.removeprefix(prefix).removesuffix(".weight").replace(".", "_"): tensor.shape
        for key, tensor in state.items()
        if key.startswith(prefix) and key.endswith(".weight")
    }
    new = load_file(there.path)
    stems = {key.partition(".")[0] for key in new if key.startswith("lora_unet_")}
    assert stems == {stem for stem, shape in weights.items() if len(shape) > 1}
    for stem in stems:  # no other weight: the sides fit
        assert new[f"{stem}.lora_up.weight"].shape[0] == weights[stem][0]
        assert new[f"{stem}.lora_down.weight"].shape[1:] == weights[stem][1:]
    assert any(key.startswith("lora_te1_text_model_encoder_layers_") for key in new)
    back = convert(there.path, tmp_path / "c.safetensors", to="kohya", model=tmp_path / "diffusers")
    assert same(path, back.path)
    paths = convert(there.path, tmp_path / "d.safetensors", to="diffusers", model=tmp_path / "diffusers")
    assert all(key.startswith(("unet.", "text_encoder.")) for key in load_file(paths.path))
    assert same(path, convert(paths.path, tmp_path / "e.safetensors", to="kohya", model=tmp_path / "diffusers").path)


# Black Forest Labs' names for what is one weight in both layouts.
FLUX_NAMES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
    "transformer_blocks.0.attn.to_add_out": "double_blocks.0.txt_attn.proj",
    "transformer_blocks.0.ff.net.0.proj": "double_blocks.0.img_mlp.0",
    "transformer_blocks.0.ff.net.2": "double_blocks.0.img_mlp.2",
    "transformer_blocks.0.ff_context.net.2": "double_blocks.0.txt_mlp.2",
    "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
    "single_transformer_blocks.0.norm.linear": "single_blocks.0.modulation.lin",
    "single_transformer_blocks.0.proj_out": "single_blocks.0.linear2",
}


def test_a_file_of_flux_goes_to_the_original_names_and_back(tmp_path: Path) -> None:
    state = tiny_dit.narrow_state(tiny_dit.meta_model("FluxTransformer2DModel", num_layers=1, num_single_layers=1))
    (tmp_path / "transformer").mkdir()
    diffusers = written(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", state).parent
    original = written(tmp_path / "flux.safetensors", tiny_dit.original_state(state, FLUX))
    tensors: dict[str, torch.Tensor] = {}
    for seed, own in enumerate(FLUX_NAMES):
        stem = "lora_unet_" + own.replace(".", "_")
        tensors |= factors(stem, 2, alpha=2.0, seed=seed, shape=state[f"{own}.weight"].shape)
    path = written(tmp_path / "a.safetensors", tensors)
    comfy = convert(path, tmp_path / "b.safetensors", to="comfy", model=original)
    names = {key.removesuffix(".lora_A.weight") for key in load_file(comfy.path) if "lora_A" in key}
    assert names == {f"diffusion_model.{name}" for name in FLUX_NAMES.values()}
    for own, name in FLUX_NAMES.items():
        up = load_file(comfy.path)[f"diffusion_model.{name}.lora_B.weight"]
        assert torch.equal(up, tensors[f"lora_unet_{own.replace('.', '_')}.lora_up.weight"])
    kohyas = convert(comfy.path, tmp_path / "c.safetensors", to="kohya", model=original)
    stems = {key.partition(".")[0] for key in load_file(kohyas.path)}
    assert stems == {"lora_unet_" + name.replace(".", "_") for name in FLUX_NAMES.values()}
    paths = convert(kohyas.path, tmp_path / "d.safetensors", to="diffusers", model=diffusers)
    assert {key.partition(".lora_")[0] for key in load_file(paths.path)} == {f"transformer.{own}" for own in FLUX_NAMES}
    assert same(path, convert(paths.path, tmp_path / "e.safetensors", to="kohya", model=diffusers).path)


def flux_models(folder: Path) -> tuple[dict[str, torch.Tensor], Path, Path]:
    """Return a narrow Flux in diffusers' names, and where it lies in both layouts: a folder and a file."""
    state = tiny_dit.narrow_state(tiny_dit.meta_model("FluxTransformer2DModel", num_layers=1, num_single_layers=1))
    (folder / "transformer").mkdir()
    diffusers = written(folder / "transformer" / "diffusion_pytorch_model.safetensors", state).parent
    return state, diffusers, written(folder / "flux.safetensors", tiny_dit.original_state(state, FLUX))


QKV = [f"transformer_blocks.0.attn.to_{name}" for name in "qkv"]
SINGLE = [*(f"single_transformer_blocks.0.attn.to_{name}" for name in "qkv"), "single_transformer_blocks.0.proj_mlp"]


def product(tensors: dict[str, torch.Tensor], stem: str) -> torch.Tensor:
    up, down = (tensors[f"{stem}.lora_{name}.weight"].double() for name in ("up", "down"))
    return up @ down * float(tensors[f"{stem}.alpha"]) / len(down)


@pytest.mark.parametrize("modules", [QKV, SINGLE, QKV[::2]], ids=["q, k and v", "with the MLP", "q and v alone"])
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "one inner factor"])
def test_what_the_original_has_in_one_weight_is_put_together_and_cut_apart_again(
    modules: list[str], shared: bool, tmp_path: Path
) -> None:
    state, diffusers, original = flux_models(tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for seed, own in enumerate(modules):
        stem = "lora_unet_" + own.replace(".", "_")
        tensors |= factors(stem, 3, alpha=1.0, seed=seed, shape=state[f"{own}.weight"].shape)
        if shared:
            tensors[f"{stem}.lora_down.weight"] = tensors[f"lora_unet_{modules[0].replace('.', '_')}.lora_down.weight"]
    path = written(tmp_path / "a.safetensors", tensors)
    there = convert(path, tmp_path / "b.safetensors", to="kohya", model=original)
    whole = load_file(there.path)
    name = "lora_unet_single_blocks_0_linear1" if modules is SINGLE else "lora_unet_double_blocks_0_img_attn_qkv"
    assert {key.partition(".")[0] for key in whole} == {name}
    assert len(whole[f"{name}.lora_down.weight"]) == 3 if shared else 3 * len(modules)
    # The rows of the original are those of q, k, v and the MLP one below the other.
    order = SINGLE if modules is SINGLE else QKV
    judged = [
        product(tensors, "lora_unet_" + own.replace(".", "_"))
        if own in modules
        else torch.zeros(state[f"{own}.weight"].shape, dtype=torch.float64)
        for own in order
    ]
    torch.testing.assert_close(product(whole, name), torch.cat(judged), rtol=1e-6, atol=1e-9)
    assert there.notes == ("1 weights of the model are several modules: they were put together, which is exact",)
    back = convert(there.path, tmp_path / "c.safetensors", to="kohya", model=diffusers)
    assert same(path, back.path)
    assert same(there.path, convert(back.path, tmp_path / "d.safetensors", to="kohya", model=original).path)


def test_a_file_that_was_trained_fused_goes_to_diffusers_and_back(tmp_path: Path) -> None:
    state, diffusers, original = flux_models(tmp_path)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    columns = state[f"{QKV[0]}.weight"].shape[1]
    rows = sum(state[f"{own}.weight"].shape[0] for own in QKV)
    path = written(tmp_path / "a.safetensors", factors(name, 4, alpha=4.0, shape=torch.Size((rows, columns))))
    there = convert(path, tmp_path / "b.safetensors", to="diffusers", model=diffusers)
    apart, whole = load_file(there.path), load_file(path)
    assert {key.partition(".lora_")[0] for key in apart} == {f"transformer.{own}" for own in QKV}
    for own, up in zip(QKV, whole[f"{name}.lora_up.weight"].chunk(3), strict=True):
        assert torch.equal(apart[f"transformer.{own}.lora_B.weight"], up)
        assert torch.equal(apart[f"transformer.{own}.lora_A.weight"], whole[f"{name}.lora_down.weight"])
    assert same(path, convert(there.path, tmp_path / "c.safetensors", to="kohya", model=original).path)


def test_modules_of_several_scales_in_one_weight_are_told(tmp_path: Path) -> None:
    state, _, original = flux_models(tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for seed, own in enumerate(QKV):
        stem = "lora_unet_" + own.replace(".", "_")
        tensors |= factors(stem, 2, alpha=2.0 + seed, seed=seed, shape=state[f"{own}.weight"].shape)
    path = written(tmp_path / "a.safetensors", tensors)
    there = convert(path, tmp_path / "b.safetensors", to="kohya", model=original)
    expected = torch.cat([product(tensors, "lora_unet_" + own.replace(".", "_")) for own in QKV])
    found = product(load_file(there.path), "lora_unet_double_blocks_0_img_attn_qkv")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (
        "1 weights are put together of modules with several scales, which are multiplied into their factors"
        in there.notes
    )


def test_a_folder_of_diffusers_gives_the_originals_names_where_these_are_asked_for(folder: Path) -> None:
    path = kohya(folder / "a.safetensors", components=["unet"])
    bare = load_file(convert(path, folder / "b.safetensors", to="original", model=folder / "diffusers").path)
    by_checkpoint = convert(path, folder / "c.safetensors", to="original", model=folder / "original.safetensors")
    assert bare.keys() == load_file(by_checkpoint.path).keys()
    assert "middle_block.1.transformer_blocks.0.attn1.to_q.lora_A.weight" in bare
    comfy = load_file(convert(path, folder / "d.safetensors", to="comfy", model=folder / "diffusers").path)
    assert comfy.keys() == {f"diffusion_model.{key}" for key in bare}
    assert same(
        path, convert(by_checkpoint.path, folder / "e.safetensors", to="kohya", model=folder / "diffusers").path
    )


def test_the_second_text_encoder_of_sdxl_goes_both_ways(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sdxl")
    pipe.save_pretrained(tmp_path / "diffusers")
    original = written(tmp_path / "original.safetensors", tiny_ldm.state(tiny_ldm.model("sdxl", hijacked=False)))
    path = tmp_path / "a.safetensors"
    tiny.write_kohya_lora(path, pipe, rank=2, alpha=2.0, dtype=torch.float16, components=["text_encoder_2"])
    there = convert(path, tmp_path / "b.safetensors", to="kohya", model=original)
    # Files have transformers' names for text encoders, also where they have the original ones for the UNet.
    assert same(path, there.path)
    paths = convert(path, tmp_path / "c.safetensors", to="diffusers", model=tmp_path / "diffusers")
    back = convert(paths.path, tmp_path / "d.safetensors", to="kohya", model=original)
    assert same(path, back.path)


def test_the_new_file_does_the_same_and_diffusers_reads_it(folder: Path) -> None:
    kohya(folder / "ink.safetensors", alpha=1.0, dtype=torch.float32, components=["unet"])
    outcome = convert(
        folder / "ink.safetensors", folder / "new.safetensors", to="diffusers", model=folder / "diffusers"
    )
    count = len(load_lora(outcome.path).adapters)
    assert outcome.notes == (
        f"{count} modules had another alpha than their rank, which is multiplied into their factors: names of "
        "diffusers have no alpha",
    )
    pipe = tiny.pipeline()
    weights = []
    for name in ("ink", "new"):
        with apply(pipe, f"<lora:{name}:0.7>", loras=folder) as applied:
            assert not applied.diagnostics
            weights.append({key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()})
    for key, weight in weights[0].items():
        torch.testing.assert_close(weights[1][key], weight, rtol=1e-5, atol=1e-6)
    pipe.load_lora_weights(str(folder), weight_name="new.safetensors")
    pipe.fuse_lora(components=["unet"], lora_scale=0.7)
    pipe.unload_lora_weights()
    for key, tensor in pipe.unet.state_dict().items():
        torch.testing.assert_close(tensor, weights[0][key], rtol=1e-4, atol=1e-5)


def test_what_names_alone_cannot_make_is_told(folder: Path) -> None:
    out, to_q = folder / "x.safetensors", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    diffusers, original = folder / "diffusers", folder / "original.safetensors"
    nowhere = written(folder / "nowhere.safetensors", factors("lora_unet_x", shape=torch.Size((4, 4))))
    dora = factors(to_q, shape=torch.Size((12, 12))) | {f"{to_q}.dora_scale": torch.ones(12, 1)}
    both = kohya(folder / "both.safetensors", components=["unet", "text_encoder"])
    tuned = written(folder / "dora.safetensors", dora)
    for path, to, model, reason in [
        (nowhere, "kohya", diffusers, "no module of that name in unet"),
        (tuned, "diffusers", diffusers, r"\(dora\) has no names that both programs"),
        (both, "peft", diffusers, "a file of PEFT is for one model, and this one is for several components"),
        (both, "comfy", original, "names of comfy are for denoisers; of text encoders take kohya's"),
    ]:
        with pytest.raises(LoraFileError, match=reason):
            convert(path, out, to=to, model=model)  # type: ignore[arg-type]
    large = {key: tensor * 1e4 for key, tensor in factors(to_q, shape=torch.Size((12, 12))).items()}
    large = {key: tensor.half() for key, tensor in large.items()} | {f"{to_q}.alpha": torch.tensor(4e4)}
    with pytest.raises(LoraFileError, match=r"times its scale 10000 it is beyond torch.float16"):
        convert(written(folder / "large.safetensors", large), out, to="diffusers", model=diffusers)
    with pytest.raises(ValueError, match="to a1111: give one of kohya, diffusers, peft, comfy, original"):
        convert(nowhere, out, to="a1111", model=diffusers)  # type: ignore[arg-type]
    assert not out.exists()


def test_the_command_prints_what_it_did(command: Command, folder: Path) -> None:
    path = kohya(folder / "a.safetensors", components=["unet"])
    arguments = ("convert", path, "--to", "kohya", "--model", folder / "diffusers", "-o", folder / "b.safetensors")
    result = command(*arguments)
    assert result.status == 0
    assert result.out.splitlines()[-1].endswith(" unchanged: renamed, bit for bit")
    assert json.loads(command(*arguments, "--force", "--json").out)["kept"] == 1
