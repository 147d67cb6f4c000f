"""What of a host's model can be patched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from lora_runtime.errors import ModelError
from lora_runtime.families import FAMILIES
from lora_runtime.pipelines import view


def named(title: str, **config: Any) -> nn.Module:
    """Return an empty module whose class has that name."""
    module: nn.Module = type(title, (nn.Module,), {})()
    module.config = SimpleNamespace(**config)  # type: ignore[assignment]
    return module


def test_a_pipeline_has_its_denoiser_and_text_encoders() -> None:
    pipe = tiny.pipeline("sdxl")
    found = view(pipe)
    assert list(found.components) == ["unet", "text_encoder", "text_encoder_2"]
    assert found.components["unet"] is pipe.unet
    assert found.kind == "pipeline"
    assert found.family == "unknown"
    assert found.description == "StableDiffusionXLPipeline (unet, text_encoder, text_encoder_2)"


def test_other_networks_of_a_pipeline_are_left_out() -> None:
    others = ["vae", "audio_vae", "vqgan", "movq", "safety_checker", "image_encoder", "vocoder", "controlnet"]
    components = {name: nn.Linear(1, 1) for name in others} | {"unet": nn.Linear(1, 1), "tokenizer": object()}
    assert list(view(SimpleNamespace(components=components)).components) == ["unet"]


def test_a_component_that_is_none_is_absent() -> None:
    found = view(SimpleNamespace(components={"text_encoder": None, "text_encoder_2": nn.Linear(1, 1)}))
    assert list(found.components) == ["text_encoder_2"]


def test_a_pipeline_without_networks_is_an_error() -> None:
    with pytest.raises(ModelError, match="SimpleNamespace has no denoiser and no text encoder that is loaded"):
        view(SimpleNamespace(components={"vae": nn.Linear(1, 1), "unet": None}))


@pytest.mark.parametrize(
    ("width", "family"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL"), (1280, "SDXL refiner"), (32, "unknown")]
)
def test_the_family_is_read_from_the_width_of_the_text(width: int, family: str) -> None:
    unet = named("UNet2DConditionModel", cross_attention_dim=width)
    assert view(SimpleNamespace(components={"unet": unet})).family == family
    assert view(unet).family == family
    if family != "unknown":
        assert view(unet).description == f"UNet2DConditionModel ({family}: unet)"
        assert view(SimpleNamespace(components={"unet": unet})).description == f"SimpleNamespace ({family}: unet)"


@pytest.mark.parametrize(("width", "family"), [([768, 768], "SD1"), ([768, 1024], "unknown"), (None, "unknown")])
def test_a_width_for_each_block(width: Any, family: str) -> None:
    assert view(named("UNet2DConditionModel", cross_attention_dim=width)).family == family


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_family_of_the_real_models(kind: tiny.Kind) -> None:
    assert view(tiny.real_unet(kind)).family == kind.upper()


@pytest.mark.parametrize(
    ("title", "family"),
    [
        ("WanTransformer3DModel", "Wan"),
        ("HunyuanDiT2DModel", "HunyuanDiT"),
        ("StableCascadeUNet", "Cascade"),
        ("LTXVideoTransformer3DModel", "LTX"),
        ("CosmosTransformer3DModel", "unknown"),  # Anima's too
        ("SanaVideoTransformer3DModel", "unknown"),
    ],
)
def test_the_family_of_a_transformer_is_read_from_its_class(title: str, family: str) -> None:
    transformer = named(title, cross_attention_dim=2048)
    assert view(SimpleNamespace(components={"transformer": transformer})).family == family


def test_the_families_name_classes_of_diffusers() -> None:
    import diffusers

    titles = [title for family in FAMILIES for title in family.classes]
    assert len(titles) == len(set(titles))
    others = {"MMDiT", "UNetModel", "I2VGenXLUNet"}  # the originals', and what diffusers keeps to itself
    assert [title for title in titles if not hasattr(diffusers, title) and title not in others] == []


@pytest.mark.parametrize(
    ("title", "config", "component"),
    [
        ("UNet2DConditionModel", {}, "unet"),
        ("CosmosTransformer3DModel", {}, "transformer"),
        ("CLIPTextModel", {"hidden_size": 768}, "text_encoder"),
        ("CLIPTextModelWithProjection", {"hidden_size": 768}, "text_encoder"),
        ("CLIPTextModelWithProjection", {"hidden_size": 1280}, "text_encoder_2"),
        ("LlamaForCausalLM", {}, "model"),
    ],
)
def test_a_module_is_the_component_that_its_class_says(title: str, config: dict[str, Any], component: str) -> None:
    module = named(title, **config)
    found = view(module)
    assert dict(found.components) == {component: module}
    assert found.kind == "model"
    assert found.description == f"{title} ({component})"


def test_a_compiled_module_is_the_module_inside() -> None:
    unet = named("UNet2DConditionModel")
    compiled = torch.compile(unet, backend="eager")
    assert view(compiled).components["unet"] is unet
    assert view(SimpleNamespace(components={"unet": compiled})).components["unet"] is unet


def test_a_module_with_an_odd_attribute_is_itself() -> None:
    module = named("UNet2DConditionModel")
    module._orig_mod = "no module"  # type: ignore[assignment]
    assert view(module).components["unet"] is module


@pytest.mark.parametrize("model", ["a string", None, 3, SimpleNamespace(components=[1])])
def test_anything_else_is_refused_with_what_is_accepted(model: object) -> None:
    with pytest.raises(ModelError, match=r"give a diffusers pipeline .* or a torch\.nn\.Module"):
        view(model)
