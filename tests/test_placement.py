"""Where the adapters of a file go, and what is said of those that find no place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime


def conv_unet(inputs: int) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=inputs,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def flux(inputs: int) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=inputs,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def wan(inputs: int) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=inputs,
        out_channels=16,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
    ).eval()


def applied_to(model: nn.Module, file: dict[str, Tensor], folder: Path, component: str = "transformer") -> Any:
    save_file(file, folder / "x.safetensors")
    return lora_runtime.apply(SimpleNamespace(components={component: model}), "<lora:x>", loras=folder)


@pytest.mark.parametrize(
    ("make", "name", "inputs", "latents"),
    [
        *((conv_unet, "conv_in", inputs, 4) for inputs in (5, 7, 8, 9, 36)),
        (flux, "x_embedder", 128, 64),
        (flux, "x_embedder", 384, 64),
        (wan, "patch_embedding", 36, 16),
    ],
)
def test_a_file_for_the_plain_model_changes_the_latents_of_one_with_more_inputs(
    make: Any, name: str, inputs: int, latents: int, tmp_path: Path
) -> None:
    model = make(inputs)
    layer = model.get_submodule(name)
    before = layer.weight.detach().clone()
    shape = (before.shape[0], latents, *before.shape[2:])
    difference = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    component = "unet" if make is conv_unet else "transformer"
    applied = applied_to(model, {f"{component}.{name}.diff": difference}, tmp_path, component)
    assert torch.equal(layer.weight[:, :latents], before[:, :latents] + difference)
    assert torch.equal(layer.weight[:, latents:], before[:, latents:])
    assert f"{name}: acts on the first {latents} of {inputs} inputs, those of the latents" in str(applied.report)
    applied.restore()
    assert torch.equal(layer.weight, before)


def test_a_low_rank_file_for_the_plain_model_changes_the_latents_too(tmp_path: Path) -> None:
    model = flux(384)
    before = model.x_embedder.weight.detach().clone()
    up, down = torch.randn(before.shape[0], 2), torch.randn(2, 64)
    applied_to(
        model,
        {"transformer.x_embedder.lora_B.weight": up, "transformer.x_embedder.lora_A.weight": down},
        tmp_path,
    )
    torch.testing.assert_close(model.x_embedder.weight[:, :64], before[:, :64] + up @ down)
    assert torch.equal(model.x_embedder.weight[:, 64:], before[:, 64:])


def test_a_file_with_more_inputs_than_the_model_is_refused(tmp_path: Path) -> None:
    file = {"unet.conv_in.diff": torch.ones(8, 9, 3, 3), "unet.conv_out.diff": torch.ones(4, 8, 3, 3)}
    applied = applied_to(conv_unet(4), file, tmp_path, "unet")
    assert applied.report.loras[0].unused == {"unet.conv_in.diff": "made for (8, 9, 3, 3), the weight is (8, 4, 3, 3)"}
    (said,) = applied.diagnostics
    assert said.severity == "warning"
    assert said.message == (
        'LoRA "x": 1 of its 2 keys change nothing: 1 (made for (8, 9, 3, 3), the weight is (8, 4, 3, 3))'
    )


def test_a_file_that_fits_in_part_says_how_much_and_why(tmp_path: Path) -> None:
    file = {f"unet.missing_{i}.diff": torch.ones(2, 2) for i in range(5)}
    file |= {"unet.conv_out.diff": torch.ones(4, 8, 3, 3), "unet.conv_in.diff": torch.ones(3, 3)}
    (said,) = applied_to(conv_unet(4), file, tmp_path, "unet").diagnostics
    assert said.severity == "warning"
    assert said.message.startswith(
        'LoRA "x": 6 of its 7 keys change nothing: 5 (no module of that name in unet); 1 (made'
    )


def test_what_belongs_to_a_component_that_is_not_there_is_no_more_than_noted(tmp_path: Path) -> None:
    file = {
        "unet.conv_out.diff": torch.ones(4, 8, 3, 3),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.diff": torch.ones(2, 2),
    }
    (said,) = applied_to(conv_unet(4), file, tmp_path, "unet").diagnostics
    assert said.severity == "info"
    assert "1 of its 2 keys change nothing: 1 for text_encoder_2, which this pipeline does not have" in said.message


def test_places_are_looked_for_anew_once_a_weight_is_stored_otherwise(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).requires_grad_(False)
    save_file({"0.diff": torch.ones(4, 4)}, tmp_path / "x.safetensors")
    for dtype, merged in ((torch.float32, 1), (torch.float8_e4m3fn, 0), (torch.float16, 1)):
        model.to(dtype)
        applied = lora_runtime.apply(model, "<lora:x>", loras=tmp_path)
        assert (applied.report.loras[0].merged, applied.report.live) == (merged, 1 - merged)
        applied.restore()
