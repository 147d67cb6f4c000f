"""Models of LDM, SGM and the WebUI: what of them can be patched, and that the whole line patches and restores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_ldm
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_open_clip_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime.pipelines import view

KINDS = ["sd1", "sd2", "sdxl", "refiner", "sd3"]
COMPONENTS = {
    "sd1": ["unet", "text_encoder"],
    "sd2": ["unet", "text_encoder"],
    "sdxl": ["unet", "text_encoder", "text_encoder_2"],
    "refiner": ["unet", "text_encoder_2"],
    "sd3": ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"],
}


@pytest.mark.parametrize("hijacked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_and_the_text_encoders_are_found_inside_the_module(kind: str, hijacked: bool) -> None:
    model: Any = tiny_ldm.model(kind, hijacked=hijacked)
    found = view(model)
    assert list(found.components) == COMPONENTS[kind]
    assert found.components[COMPONENTS[kind][0]] is model.model.diffusion_model
    assert found.kind == "checkpoint"
    named = "SD3: " if kind == "sd3" else ""
    assert found.description == f"{type(model).__name__} ({named}{', '.join(COMPONENTS[kind])})"


def test_the_text_encoders_are_those_inside_the_wrappers_of_the_webui() -> None:
    sd1: Any = tiny_ldm.model("sd1")
    assert view(sd1).components["text_encoder"] is sd1.cond_stage_model.wrapped.transformer
    sd2: Any = tiny_ldm.model("sd2")
    assert view(sd2).components["text_encoder"] is sd2.cond_stage_model.wrapped.model
    sdxl: Any = tiny_ldm.model("sdxl")
    first, second = (embedder.wrapped for embedder in sdxl.conditioner.embedders[:2])
    assert view(sdxl).components["text_encoder"] is first.transformer
    assert view(sdxl).components["text_encoder_2"] is second.model


def test_the_components_are_the_same_with_and_without_the_wrappers() -> None:
    model: Any = tiny_ldm.model("sd1")
    before = dict(view(model).components)
    model.cond_stage_model = model.cond_stage_model.wrapped
    assert dict(view(model).components) == before


@pytest.mark.parametrize(
    ("kind", "family"), [("sd1", "SD1"), ("sd2", "SD2"), ("sdxl", "SDXL"), ("refiner", "SDXL refiner")]
)
def test_the_family_is_read_from_the_width_of_the_text(kind: str, family: str) -> None:
    with torch.device("meta"):
        unet = tiny_ldm.unet(tiny_ldm.REAL[kind])
    model = tiny_ldm.LatentDiffusion(model=tiny_ldm.Tree(diffusion_model=unet))
    assert view(model).family == view(unet).family == family
    assert view(model).description == f"LatentDiffusion ({family}: unet)"
    assert view(unet).description == f"UNetModel ({family}: unet)"


def test_sgm_s_form_of_sd2_has_one_text_encoder() -> None:
    with torch.device("meta"):
        unet = tiny_ldm.unet(tiny_ldm.REAL["sd2"])
    embedders = nn.ModuleList([tiny_ldm.Tree(model=tiny_ldm.open_clip(8))])
    model = tiny_ldm.DiffusionEngine(
        model=tiny_ldm.Tree(diffusion_model=unet), conditioner=tiny_ldm.Tree(embedders=embedders)
    )
    assert list(view(model).components) == ["unet", "text_encoder"]


def test_a_compiled_denoiser_is_the_module_inside() -> None:
    model: Any = tiny_ldm.model("sd1")
    unet = model.model.diffusion_model
    model.model.diffusion_model = torch.compile(unet, backend="eager")
    assert view(model).components["unet"] is unet
    assert view(torch.compile(model, backend="eager")).components["unet"] is unet


def test_a_text_encoder_that_is_absent_is_no_component() -> None:
    model: Any = tiny_ldm.model("sd3")
    model.text_encoders.t5xxl = None
    assert list(view(model).components) == COMPONENTS["sd3"][:-1]
    del model.text_encoders
    assert list(view(model).components) == ["transformer"]


def test_sd3_s_text_encoders_are_found_by_either_of_their_names() -> None:
    model: Any = tiny_ldm.model("sd3")
    before = dict(view(model).components)
    encoders = model.text_encoders
    del model.text_encoders
    model.cond_stage_model = encoders
    assert dict(view(model).components) == before


def test_a_module_with_a_model_of_another_kind_is_just_a_module() -> None:
    module = tiny_ldm.Tree(model=nn.Linear(1, 1))
    assert dict(view(module).components) == {"model": module}


# ---- the whole line --------------------------------------------------------------------------------------------------


def as_in_diffusers(kind: tiny.Kind, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each component by the names of a pipeline, as diffusers' converters give them."""
    parts = view(model).components
    config = {"layers_per_block": 2, "addition_embed_type": "text_time" if kind == "sdxl" else None}
    found = {"unet": convert_ldm_unet_checkpoint(tiny_ldm.state(parts["unet"], "model.diffusion_model."), config)}
    for name, encoder in parts.items():
        if name == "unet":
            continue
        if hasattr(encoder, "ln_final"):
            prefix = "conditioner.embedders.1.model."
            found[name] = convert_open_clip_checkpoint(encoder, tiny_ldm.state(encoder, prefix), prefix)
        else:
            found[name] = tiny_ldm.state(encoder)
    return found


def fill(pipe: Any, weights: dict[str, dict[str, Tensor]]) -> None:
    """Give a pipeline these weights; transformers 5 has no level `text_model`, and SD2 no projection."""
    for name, tensors in weights.items():
        component = getattr(pipe, name)
        own = component.state_dict()
        levelled = {key if key in own else key.removeprefix("text_model."): value for key, value in tensors.items()}
        kept = {key: value for key, value in levelled.items() if key in own}
        assert len(tensors) - len(kept) == ("text_projection.weight" not in own and "text_projection.weight" in tensors)
        component.load_state_dict(kept)


def weights_of(pipe: Any, name: str, key: str) -> Tensor:
    own: dict[str, Tensor] = getattr(pipe, name).state_dict()
    return own[key] if key in own else own[key.removeprefix("text_model.")]


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl"])
def test_a_file_does_to_the_original_model_what_it_does_to_the_pipeline(kind: tiny.Kind, tmp_path: Path) -> None:
    pipe, model = tiny.pipeline(kind), tiny_ldm.model(kind)
    fill(pipe, as_in_diffusers(kind, model))
    written = tiny.write_kohya_lora(tmp_path / "a.safetensors", pipe, std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (
        lora_runtime.apply(pipe, "<lora:a:0.7>", loras=tmp_path, strict=True) as theirs,
        lora_runtime.apply(model, "<lora:a:0.7>", loras=tmp_path, strict=True) as ours,
    ):
        assert ours.report.loras[0].used == theirs.report.loras[0].used == len(written)
        changed = 0
        for name, tensors in as_in_diffusers(kind, model).items():
            for key, tensor in tensors.items():
                if key == "text_projection.weight" and kind == "sd2":
                    continue
                expected = weights_of(pipe, name, key)
                torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6, msg=f"{name}.{key}")
                changed += 1
        assert changed > 300
        assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("originals", ["device", "host"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_weights_and_biases_are_restored_bit_for_bit(originals: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model: Any = tiny_ldm.model("sd3").to(dtype)
    names = {"to_q": 8, "to_k": 8, "to_v": 8, "add_q_proj": 8, "add_k_proj": 8, "add_v_proj": 8}
    tensors: dict[str, Tensor] = {}
    for name, width in names.items():
        stem = f"transformer.transformer_blocks.0.attn.{name}"
        tensors |= {f"{stem}.lora_B.weight": torch.randn(width, 2), f"{stem}.lora_A.weight": torch.randn(2, width)}
    save_file(tensors, tmp_path / "a.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    with lora_runtime.apply(model, "<lora:a>", loras=tmp_path, strict=True, originals=originals) as applied:
        assert applied.report.loras[0].used == len(tensors)
        assert applied.report.weights == 2
        exact = before["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"].double() + torch.cat(
            [
                tensors[f"transformer.transformer_blocks.0.attn.{name}.lora_B.weight"].double()
                @ tensors[f"transformer.transformer_blocks.0.attn.{name}.lora_A.weight"].double()
                for name in ("to_q", "to_k", "to_v")
            ]
        )
        torch.testing.assert_close(fused.weight.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
        lora_runtime.apply(model, "<lora:a:-2>", loras=tmp_path, originals=originals)
        lora_runtime.apply(model, "<lora:a>", loras=tmp_path, originals=originals)
        torch.testing.assert_close(fused.weight.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    lora_runtime.restore(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wrapping_the_table_of_tokens_between_two_applies_is_seen(tmp_path: Path) -> None:
    model: Any = tiny_ldm.model("sd2", hijacked=False)
    stem = "text_encoder.text_model.embeddings.token_embedding"
    save_file(
        {f"{stem}.lora_B.weight": torch.randn(64, 1), f"{stem}.lora_A.weight": torch.randn(1, 16)},
        tmp_path / "a.safetensors",
    )
    encoder, table = model.cond_stage_model.model, model.cond_stage_model.model.token_embedding
    before = table.weight.clone()
    for wrapped in (False, True):
        if wrapped:
            encoder.token_embedding = tiny_ldm.Tree(wrapped=table)
        with lora_runtime.apply(model, "<lora:a>", loras=tmp_path, strict=True):
            assert not torch.equal(table.weight, before)
        assert torch.equal(table.weight, before)
