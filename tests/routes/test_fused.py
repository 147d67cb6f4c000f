"""Layers that attention does not call any more, since it runs a fused one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime.dialects import Part
from lora_runtime.pipelines import view
from lora_runtime.routes import fused_parts
from lora_runtime.targets import Targets, look_at

NAMES = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def file_for(model: nn.Module, path: Path, *, biases: bool = False) -> None:
    """Write a LoRA, or differences with biases, for all queries, keys and values."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(NAMES):
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator) * 0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator) * 0.5
            if biases and module.bias is not None:
                tensors[f"{name}.diff_b"] = torch.randn(module.out_features, generator=generator)
    save_file(tensors, path)


def unet() -> tuple[Any, Callable[[Any], Tensor]]:
    model = tiny.unet()
    width = model.config.cross_attention_dim
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 7, width)
    return model, lambda model: model(*inputs).sample


def flux() -> tuple[Any, Callable[[Any], Tensor]]:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, lambda model: model(**inputs).sample


def wan() -> tuple[Any, Callable[[Any], Tensor]]:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        image_dim=16,
        added_kv_proj_dim=24,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 4, 4),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "encoder_hidden_states_image": torch.randn(1, 3, 16),
    }
    return model, lambda model: model(**inputs).sample


MODELS = {"unet": unet, "flux": flux, "wan": wan}


@pytest.mark.parametrize("strength", ["0.5", "0.5@0,0.5@1"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_lora_acts_on_fused_projections_as_on_separate_ones(kind: str, strength: str, tmp_path: Path) -> None:
    model, call = MODELS[kind]()
    file_for(model, tmp_path / "qkv.safetensors", biases=strength == "0.5")
    with torch.no_grad():
        with lora_runtime.apply(model, "<lora:qkv:0.5>", loras=tmp_path):
            wanted = call(model)
        model.fuse_qkv_projections()
        before = call(model)
        assert not torch.allclose(wanted, before, atol=1e-3)
        with lora_runtime.apply(model, f"<lora:qkv:{strength}>", loras=tmp_path) as applied:
            line = applied.report.loras[0]
            assert line.used == line.keys
            torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(call(model), before)
        model.unfuse_qkv_projections()
        with lora_runtime.apply(model, f"<lora:qkv:{strength}>", loras=tmp_path):
            torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize("originals", ["device", "host"])
@pytest.mark.parametrize("kind", MODELS)
def test_fusing_within_a_block_leaves_nothing_behind(kind: str, originals: Any, tmp_path: Path) -> None:
    model, call = MODELS[kind]()
    file_for(model, tmp_path / "qkv.safetensors", biases=True)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = call(model)
        with lora_runtime.apply(model, "<lora:qkv:0.5>", loras=tmp_path, originals=originals):
            wanted = call(model)
            model.fuse_qkv_projections()
            torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(call(model), before, rtol=1e-4, atol=1e-4)
        with lora_runtime.apply(model, "<lora:qkv:0.5>", loras=tmp_path, originals=originals):
            torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)
        model.unfuse_qkv_projections()
        torch.testing.assert_close(call(model), before, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())


def test_another_apply_after_fusing_within_a_block_starts_from_the_originals(tmp_path: Path) -> None:
    model, call = unet()
    file_for(model, tmp_path / "qkv.safetensors")
    with torch.no_grad():
        before = call(model)
        with lora_runtime.apply(model, "<lora:qkv:0.5>", loras=tmp_path):
            wanted = call(model)
        lora_runtime.apply(model, "<lora:qkv:2>", loras=tmp_path)
        model.fuse_qkv_projections()
        lora_runtime.apply(model, "<lora:qkv:0.5>", loras=tmp_path)
        torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)
        lora_runtime.restore(model)
        torch.testing.assert_close(call(model), before, rtol=1e-4, atol=1e-4)


class Attention(nn.Module):
    """Queries of more heads than keys and values have."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(4, 8), nn.Linear(4, 2), nn.Linear(4, 2)
        self.to_qkv = nn.Linear(4, 12)
        self.fused_projections = True

    def unfuse_projections(self) -> None:
        self.fused_projections = False


def test_uneven_queries_keys_and_values_have_their_own_rows() -> None:
    attention = Attention()
    parts = {name: found.part for name, found in fused_parts(attention).items()}
    assert parts == {"to_q": Part(0, 6, span=4), "to_k": Part(4, 6), "to_v": Part(5, 6)}
    targets = Targets(view(attention))
    target = targets.find("to_k")
    assert target is not None
    assert target.module is attention.to_qkv
    assert target.role("bias") == ("bias", Part(4, 6))
    attention.unfuse_projections()
    assert not targets.fits(look_at(view(attention)))
    assert fused_parts(attention) == {}


WRAPPED = {  # algorithms whose change of a part depends on that part's shape, as files have them
    "dora": lambda rows, columns: {
        "lora_A.weight": torch.randn(2, columns) * 0.3,
        "lora_B.weight": torch.randn(rows, 2) * 0.3,
        "lora_magnitude_vector": torch.rand(rows) + 0.5,
    },
    "dora by input": lambda rows, columns: {
        "lora_down.weight": torch.randn(2, columns) * 0.3,
        "lora_up.weight": torch.randn(rows, 2) * 0.3,
        "dora_scale": torch.rand(1, columns) + 0.5,
    },
    "loha": lambda rows, columns: {
        "hada_w1_a": torch.randn(rows, 2),
        "hada_w1_b": torch.randn(2, columns),
        "hada_w2_a": torch.randn(rows, 2),
        "hada_w2_b": torch.randn(2, columns),
    },
    "lokr": lambda rows, columns: {
        "lokr_w1": torch.randn(2, 2) * 0.3,
        "lokr_w2": torch.randn(rows // 2, columns // 2),
    },
    "oft": lambda rows, columns: {"oft_blocks": torch.randn(2, rows // 2, rows // 2) * 0.2, "alpha": torch.tensor(0.0)},
    "ia3": lambda rows, columns: {"weight": torch.randn(rows, 1) * 0.3, "on_input": torch.tensor(False)},
    "full": lambda rows, columns: {"diff": torch.randn(rows, columns) * 0.3},
}


@pytest.mark.parametrize("name", ["to_q", "to_v"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_every_form_acts_on_its_rows_of_a_fused_layer(kind: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    attention = FusedLater()
    layer = getattr(attention, name)
    tensors = WRAPPED[kind](layer.out_features, layer.in_features)
    save_file({f"{name}.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "one.safetensors")
    x = torch.randn(5, 4)
    with lora_runtime.apply(attention, "<lora:one:0.5>", loras=tmp_path) as applied:
        assert applied.report.loras[0].used == applied.report.loras[0].keys
        wanted = attention(x)
    before = attention(x)
    attention.fuse_projections()
    with lora_runtime.apply(attention, "<lora:one:0.5@0,0.5@1>", loras=tmp_path) as applied:
        line = applied.report.loras[0]
        assert (line.used, line.live) == (line.keys, 1)
        torch.testing.assert_close(attention(x), wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(wanted, before, atol=1e-2)


class FusedLater(nn.Module):
    """Attention as diffusers has it, as far as its layers go: their outputs side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(4, 8), nn.Linear(4, 4), nn.Linear(4, 4)
        self.fused_projections = False
        self.requires_grad_(False)

    def fuse_projections(self) -> None:
        self.to_qkv = nn.Linear(4, 16)
        layers = self.to_q, self.to_k, self.to_v
        self.to_qkv.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        self.to_qkv.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
        self.fused_projections = True

    def unfuse_projections(self) -> None:
        del self.to_qkv
        self.fused_projections = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_projections:
            return self.to_qkv(x)
        return torch.cat([layer(x) for layer in (self.to_q, self.to_k, self.to_v)], -1)
