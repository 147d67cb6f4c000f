"""The layers in training: where they are, that a file of them does what they do in every reader, and that they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train.runs import bytes_of, config, painted, pipeline

import lora_runtime
from lora_runtime.errors import TrainingError
from lora_runtime.train import Config
from lora_runtime.train.folders import find_pictures
from lora_runtime.train.layers import wrap
from lora_runtime.train.models import model_of
from lora_runtime.train.run import Run

BOTH = {"train_text_encoder": True}


def started(pipe: Any, told: Config, factor: float = 1.0) -> Run:
    """Return a run whose layers have numbers as after some steps: none is zero."""
    run = Run(pipe, told, find_pictures(told), PartialState())
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in run.learner.parameters.values():
            parameter += 0.3 * factor * torch.randn(parameter.shape, generator=generator)
    return run


def effect(pipe: Any, told: Config, folder: Path) -> tuple[Tensor, Tensor, Path]:
    """Return what the pipeline paints without the layers and with them, and the file of them; they are off again."""
    before = painted(pipe)
    run = started(pipe, told)
    inside = painted(pipe)
    path = folder / "dot.safetensors"
    save_file(run.tensors(torch.float32), path)
    run.close()
    return before, inside, path


def titled(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(value) or "plain"


KINDS = [
    ("sd1", BOTH),
    ("sd1", {**BOTH, "conv_dim": 3, "conv_alpha": 2.0}),
    ("sd1", {"use_rslora": True, "network_alpha": 3.0, "network_dim": 4}),
    ("sd1", {**BOTH, "use_dora": True, "conv_dim": 2}),
    ("sd1", {**BOTH, "network_module": "loha", "conv_dim": 2, "conv_alpha": 1.0}),
    ("sd1", {**BOTH, "network_module": "lokr", "network_dim": 2, "conv_dim": 1}),
    ("sd1", {"network_module": "lokr", "network_dim": 64, "factor": 2}),
    ("sd2", {}),
    ("sdxl", {**BOTH, "conv_dim": 2}),
    ("sd3", BOTH),
    ("flux", BOTH),
]


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    ("kind", "over"), KINDS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_file_does_what_the_layers_did(kind: str, over: dict[str, Any], tmp_path: Path) -> None:
    pipe = pipeline(kind)
    before, inside, path = effect(pipe, config(tmp_path, **over), tmp_path)
    change = float((inside - before).abs().max())
    assert change > 2e-3
    with lora_runtime.apply(pipe, "a dot <lora:dot:1>", loras=tmp_path, strict=True) as applied:
        assert not applied.report.loras[0].unused
        torch.testing.assert_close(painted(pipe), inside, rtol=0, atol=1e-3 * change + 2e-6)
    assert path.exists()


DIFFUSERS = [("sd1", BOTH), ("sd1", {**BOTH, "conv_dim": 3}), ("sdxl", BOTH), ("sd3", {}), ("flux", {})]
LYCORIS: list[dict[str, Any]] = [
    {**BOTH, "network_module": "loha", "conv_dim": 2},
    {**BOTH, "network_module": "lokr", "network_dim": 2},
    {**BOTH, "use_dora": True},  # diffusers leaves the magnitudes of such a file out, and warns of it
]


@pytest.mark.quick(2)
@pytest.mark.parametrize(("kind", "over"), DIFFUSERS, ids=titled)
def test_a_file_does_the_same_in_diffusers(kind: str, over: dict[str, Any], tmp_path: Path) -> None:
    pipe = pipeline(kind)
    before, inside, path = effect(pipe, config(tmp_path, **over), tmp_path)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    change = float((inside - before).abs().max())
    torch.testing.assert_close(painted(pipe), inside, rtol=0, atol=1e-3 * change + 2e-6)


@pytest.mark.quick(1)
@pytest.mark.parametrize("over", LYCORIS, ids=lambda over: over.get("network_module", "dora"))
def test_a_file_does_the_same_in_lycoris(over: dict[str, Any], tmp_path: Path) -> None:
    from lycoris.wrapper import create_lycoris_from_weights

    pipe = pipeline("sd1")
    before, inside, path = effect(pipe, config(tmp_path, **over), tmp_path)
    for prefix, part in (("lora_unet_", pipe.unet), ("lora_te_", pipe.text_encoder)):
        level = "" if hasattr(pipe.text_encoder, "text_model") else "text_model_"  # which transformers 5 does not have
        state = {
            key.replace(prefix, "lycoris_", 1).replace(level, ""): tensor
            for key, tensor in load_file(path).items()
            if key.startswith(prefix)
        }
        network, _ = create_lycoris_from_weights(1.0, "", part, weights_sd=state)
        network.apply_to()
        said = network.load_state_dict(state, strict=False)
        assert not said.unexpected_keys
    change = float((inside - before).abs().max())
    torch.testing.assert_close(painted(pipe), inside, rtol=0, atol=1e-3 * change + 2e-6)


def test_a_file_of_a_transformer_does_the_same_in_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    pipe = pipeline("flux")
    before, inside, path = effect(pipe, config(tmp_path), tmp_path)
    state = {key.removeprefix("transformer."): tensor for key, tensor in load_file(path).items()}
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=names), pipe.transformer)
    said = set_peft_model_state_dict(pipe.transformer, state)
    assert not said.unexpected_keys
    change = float((inside - before).abs().max())
    torch.testing.assert_close(painted(pipe), inside, rtol=0, atol=1e-3 * change + 2e-6)


def keys(pipe: Any, folder: Path, **over: Any) -> set[str]:
    run = started(pipe, config(folder, **over))
    found = {key.partition(".")[0] if key.startswith("lora_") else key for key in run.tensors(torch.float32)}
    run.close()
    return found


def test_modules_are_those_of_kohyas_trainer_by_its_names(tmp_path: Path) -> None:
    plain = keys(pipeline("sd1"), tmp_path)
    # sd-scripts, networks/lora.py: Linear and 1 × 1 convolutions in Transformer2DModel
    unet = pipeline("sd1").unet
    wanted = {
        "lora_unet_" + name.replace(".", "_")
        for name, module in unet.named_modules()
        if ".attentions." in name
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)))
    }
    assert plain == wanted
    wide = keys(pipeline("sd1"), tmp_path, conv_dim=1, train_text_encoder=True)
    assert {
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_te_text_model_encoder_layers_1_mlp_fc2",
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
    } <= wide
    assert not any("conv_in" in name or "time_embedding" in name or "token_embedding" in name for name in wide)
    xl = keys(pipeline("sdxl"), tmp_path, train_text_encoder=True)
    assert {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_proj_in",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    } <= xl
    flux = keys(pipeline("flux"), tmp_path, train_text_encoder=True)
    assert {
        "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight",
        "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    } <= flux
    assert not any("norm" in key or "text_encoder_2" in key for key in flux)


def test_an_alpha_says_the_scale_of_rslora(tmp_path: Path) -> None:
    told = config(tmp_path, use_rslora=True, network_dim=4, network_alpha=3.0)
    pipe = pipeline("small")
    run = started(pipe, told)
    alphas = [tensor for key, tensor in run.tensors(torch.float32).items() if key.endswith(".alpha")]
    run.close()
    # Δ = α/√r · U·D = (α·√r)/r · U·D: Kalajdzievski 2023, arXiv:2312.03732
    assert {float(alpha) for alpha in alphas} == {3.0 * 4.0**0.5}


def test_the_first_numbers_follow_from_the_seed_and_leave_the_callers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pipe, told = pipeline("small"), config(tmp_path)
    state = torch.get_rng_state()
    first = wrap(model_of(pipe), told)
    assert torch.equal(torch.get_rng_state(), state)
    one = {name: value.clone() for name, value in first.parameters("unet").items()}
    first.take_off()
    torch.manual_seed(99)
    second = wrap(model_of(pipe), told)
    two = second.parameters("unet")
    second.take_off()
    assert before is not None
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    third = wrap(model_of(pipe), config(tmp_path, seed=3))
    assert not all(torch.equal(one[name], value) for name, value in third.parameters("unet").items())
    third.take_off()


def test_a_pipeline_is_what_it_was_once_the_layers_are_off(tmp_path: Path) -> None:
    pipe = pipeline("small")
    pipe.unet.conv_in.requires_grad_(True)
    before, modules = bytes_of(pipe), [*pipe.unet.modules()]
    tokenizer = pipe.tokenizer
    run = started(pipe, config(tmp_path, **BOTH, token_string="dot", gradient_checkpointing=True), 0.1)
    assert not pipe.unet.conv_in.weight.requires_grad
    run.begin()
    assert pipe.unet.training
    run.close()
    assert [*pipe.unet.modules()] == modules
    assert not pipe.unet.training
    assert not pipe.unet.is_gradient_checkpointing
    assert pipe.tokenizer is tokenizer
    assert pipe.unet.conv_in.weight.requires_grad
    assert not hasattr(pipe.unet, "peft_config")
    after = bytes_of(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_aside_of_the_layers_a_pipeline_paints_as_before(tmp_path: Path) -> None:
    pipe = pipeline("small")
    before = painted(pipe)
    run = started(pipe, config(tmp_path, **BOTH, token_string="dot", gradient_checkpointing=True))
    run.begin()
    inside = painted(pipe)
    with run.aside():
        assert torch.equal(painted(pipe), before)
        assert not pipe.unet.training
    assert torch.equal(painted(pipe), inside)
    run.close()
    assert torch.equal(painted(pipe), before)
    assert not torch.equal(inside, before)


def test_what_fails_after_the_layers_are_on_takes_them_off(tmp_path: Path) -> None:
    pipe = pipeline("small")
    modules = [*pipe.unet.modules()]
    with pytest.raises(TrainingError, match=r"optimizer_type nothing\.Here"):
        started(pipe, config(tmp_path, optimizer_type="nothing.Here"))
    assert [*pipe.unet.modules()] == modules


def test_a_pipeline_with_layers_of_peft_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig

    pipe = pipeline("small")
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    with pytest.raises(TrainingError, match="has layers of PEFT already: unload_lora_weights"):
        started(pipe, config(tmp_path))


def test_what_a_dtype_cannot_hold_is_an_error(tmp_path: Path) -> None:
    pipe = pipeline("small")
    run = started(pipe, config(tmp_path), 1e7)
    with pytest.raises(TrainingError, match=r"beyond what torch.float16 can hold; give save_precision float32"):
        run.tensors(torch.float16)
    run.close()
