"""Files written by diffusers and peft, and files that diffusers reads: the same module gets the same change."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.families.unet import UNET_NAMES
from lora_runtime.lora import Lora, load_lora
from lora_runtime.pipelines import view
from lora_runtime.targets import Targets

# peft adds x·A·B to x·W in each layer, here the sum is in the weight, so the two round differently in float32; through
# some 60 layers that grows to 2e-5 of the largest value. A wrong place or scale changes more than 1e-2 of it.
TOLERANCE = 2e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run on one thread: a second one only waits in models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _warnings_of_others() -> Iterator[None]:
    """Allow what diffusers and peft warn about in their own code."""
    with warnings.catch_warnings():
        for module in ("diffusers", "peft", "transformers"):
            warnings.filterwarnings("ignore", module=module)
        yield


def merge(pipe: Any, lora: Lora) -> int:
    """Add the whole file to the pipeline's weights; return how many keys found a place."""
    targets, used = Targets(view(pipe)), 0
    for stem, adapters in lora.adapters.items():
        target = targets.find(stem)
        assert target is not None, targets.reason(stem)
        weight = target.module.get_parameter("weight")
        assert [adapter.misfit(weight.shape) for adapter in adapters] == [None] * len(adapters)
        deltas = [adapter.delta(weight) for adapter in adapters]
        used += sum(len(adapter.keys) for adapter in adapters)
        with torch.no_grad():
            weight += sum(deltas)
    return used


@torch.no_grad()
def outputs(pipe: Any, kind: str) -> list[Tensor]:
    """Return what the text encoders and the UNet give for fixed inputs."""
    noise = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[62, 3, 4, 5, 63]])
    found = [pipe.text_encoder(tokens).last_hidden_state]
    condition: dict[str, Any] = {}
    if kind == "sdxl":
        second = pipe.text_encoder_2(tokens)
        found += [second.last_hidden_state, second.text_embeds]
        condition = {"text_embeds": second.text_embeds, "time_ids": torch.ones(1, 6)}
    text = torch.randn(1, 5, tiny.WIDTH[kind], generator=noise)  # type: ignore[index]
    image = torch.randn(1, 4, 16, 16, generator=noise)
    found.append(pipe.unet(image, 3, text, added_cond_kwargs=condition).sample)
    return found


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def assert_same_change(kind: tiny.Kind, path: Path, *, keys: int, untouched: int = 0) -> None:
    """Hold our merged weights against diffusers' live LoRA; the first outputs may be left as they were."""
    judge, ours = tiny.pipeline(kind), tiny.pipeline(kind)
    before = outputs(ours, kind)
    lora = load_lora(path)
    assert dict(lora.unused) == {}
    assert merge(ours, lora) == lora.key_count == keys
    judge.load_lora_weights(path)
    for index, (mine, theirs) in enumerate(zip(outputs(ours, kind), outputs(judge, kind), strict=True)):
        assert distance(mine, theirs) < TOLERANCE
        assert index < untouched or distance(before[index], theirs) > 50 * TOLERANCE


def in_some_blocks(path: str, module: nn.Module) -> bool:
    """Choose layers of every kind, but not all: peft takes long to wrap them."""
    # diffusers itself cannot read text_projection and, in its own spelling, add_embedding.
    top = "." not in path and path != "text_projection"
    return (
        top
        or path.startswith(("down_blocks.1", "mid_block", "up_blocks.1.upsamplers", "time_emb"))
        or "layers.1" in path
    )


@pytest.mark.parametrize(("kind", "alpha"), [("sd1", None), ("sd2", 1.0), ("sdxl", 4.0)])
def test_kohya_files_as_diffusers_reads_them(kind: tiny.Kind, alpha: float | None, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written = tiny.write_kohya_lora(path, tiny.pipeline(kind), 2, alpha=alpha, std=0.3, where=in_some_blocks)
    assert_same_change(kind, path, keys=len(written))


def test_kohya_sdxl_files_in_the_original_block_names(tmp_path: Path) -> None:
    unet = tiny.unet("sdxl")
    ldm = dict(UNET_NAMES.spellings(tiny.weighted_paths(unet)))
    tensors = tiny.kohya_tensors(unet, prefix="lora_unet_", std=0.3, rename=ldm.__getitem__, where=in_some_blocks)
    assert "lora_unet_output_blocks_5_2_conv.lora_up.weight" in tensors
    save_file(tensors, tmp_path / "a.safetensors")
    assert_same_change("sdxl", tmp_path / "a.safetensors", keys=len(tensors), untouched=3)


def adapted(model: Any, names: list[str], **settings: Any) -> dict[str, Tensor]:
    """Let peft wrap a copy of the model, and return its state with random factors."""
    model = copy.deepcopy(model)
    model.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False, **settings))
    return {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}


UNET_LAYERS = ["attn1.to_q", "attn2.to_out.0", "conv1", "proj_in", "time_emb_proj"]
TEXT_LAYERS = ["q_proj", "out_proj", "fc1"]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_files_that_diffusers_saves(kind: tiny.Kind, tmp_path: Path) -> None:
    pipe = tiny.pipeline(kind)
    saver = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    layers = {"unet_lora_layers": adapted(pipe.unet, UNET_LAYERS)}
    layers["text_encoder_lora_layers"] = adapted(pipe.text_encoder, TEXT_LAYERS)
    if kind == "sdxl":
        layers["text_encoder_2_lora_layers"] = adapted(pipe.text_encoder_2, TEXT_LAYERS)
    saver.save_lora_weights(tmp_path, **layers, weight_name="a.safetensors")
    assert_same_change(kind, tmp_path / "a.safetensors", keys=sum(map(len, layers.values())))


@pytest.mark.quick(1)
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn1.to_q": 3}}])
def test_the_alpha_in_the_metadata_of_diffusers(settings: dict[str, Any], tmp_path: Path) -> None:
    unet = copy.deepcopy(tiny.unet())
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=UNET_LAYERS, init_lora_weights=False, **settings))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=_metadata(unet),
        weight_name="a.safetensors",
    )
    lora = load_lora(tmp_path / "a.safetensors")
    scale = {adapter.scale for adapters in lora.adapters.values() for adapter in adapters}
    assert scale == ({6 / 2**0.5} if "use_rslora" in settings else {3.0, 1.5} if settings else {3.0})
    assert_same_change("sd1", tmp_path / "a.safetensors", keys=lora.key_count, untouched=1)


def _metadata(model: Any) -> dict[str, Any]:
    config = model.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


OLD_NAMES = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}


def old_diffusers_tensors() -> dict[str, Tensor]:
    """Return a file of the time of attention processors, for the UNet and the text encoder."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for path, module in tiny.unet().named_modules():
        for new, old in OLD_NAMES.items():
            if path.startswith(("down_blocks.0", "mid_block")) and path.endswith(f".{new}"):
                up, down = tiny.factors(module.weight, 2, generator, 0.3)
                stem = f"unet.{path.removesuffix(f'.{new}')}.processor.{old}"
                tensors |= {f"{stem}.up.weight": up, f"{stem}.down.weight": down}
    for path, module in tiny.text_encoder().named_modules():
        for new, old in {"q_proj": "to_q_lora", "out_proj": "to_out_lora"}.items():
            if path.endswith(f".{new}"):
                up, down = tiny.factors(module.weight, 2, generator, 0.3)
                stem = f"text_encoder.text_model.{path.removesuffix(f'.{new}').removeprefix('text_model.')}.{old}"
                tensors |= {f"{stem}.up.weight": up, f"{stem}.down.weight": down}
    return tensors


def test_files_of_attention_processors(tmp_path: Path) -> None:
    tensors = old_diffusers_tensors()
    save_file(tensors, tmp_path / "a.safetensors")
    assert_same_change("sd1", tmp_path / "a.safetensors", keys=len(tensors))


def test_text_encoder_files_of_diffusers(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for path, module in tiny.text_encoder().named_modules():
        if path.endswith(("q_proj", "out_proj", "fc1")):
            up, down = tiny.factors(module.weight, 2, generator, 0.3)
            stem = f"text_encoder.text_model.{path.removeprefix('text_model.')}.lora_linear_layer"
            tensors |= {f"{stem}.up.weight": up, f"{stem}.down.weight": down}
    tensors |= {key: tensor for key, tensor in old_diffusers_tensors().items() if key.startswith("unet.")}
    save_file(tensors, tmp_path / "a.safetensors")
    assert_same_change("sd1", tmp_path / "a.safetensors", keys=len(tensors))


def test_files_that_peft_saves_for_a_model(tmp_path: Path) -> None:
    from peft import get_peft_model

    config = LoraConfig(r=2, lora_alpha=2, target_modules=UNET_LAYERS, init_lora_weights=False)
    judge = get_peft_model(tiny.unet(), config)
    judge.save_pretrained(tmp_path)
    ours = tiny.unet()
    lora = load_lora(tmp_path / "adapter_model.safetensors")
    assert merge(ours, lora) == lora.key_count > 100
    merged = judge.merge_and_unload()
    for (name, mine), theirs in zip(ours.named_parameters(), merged.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_wan_files_in_the_originals_names_paint_what_diffusers_paints(tmp_path: Path) -> None:
    from diffusers import WanPipeline, WanTransformer3DModel

    torch.manual_seed(0)
    ours = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=16, num_layers=2
    ).eval()
    judge = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for block in range(2):
        for layer in (*(f"{kind}_attn.{side}" for kind in ("self", "cross") for side in "qkvo"), "ffn.0", "ffn.2"):
            out, inputs = {"ffn.0": (16, 24), "ffn.2": (24, 16)}.get(layer, (24, 24))
            stem = f"diffusion_model.blocks.{block}.{layer}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(3, inputs, generator=generator) * 0.3
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 3, generator=generator) * 0.3
    save_file(tensors, tmp_path / "a.safetensors")
    judge.load_lora_adapter(WanPipeline.lora_state_dict(tmp_path / "a.safetensors"), prefix="transformer")
    inputs = {
        "hidden_states": torch.randn(1, 16, 1, 4, 4, generator=generator),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 4, 8, generator=generator),
    }
    with torch.no_grad():
        before = ours(**inputs).sample
        assert merge(SimpleNamespace(components={"transformer": ours}), load_lora(tmp_path / "a.safetensors")) == 40
        assert distance(ours(**inputs).sample, judge(**inputs).sample) < 1e-5
        assert distance(before, judge(**inputs).sample) > 1e-2
