"""Stable Cascade: diffusers' converter tells where the parts of the original's attention belong."""

from __future__ import annotations

from pathlib import Path

import layouts
import pytest
import tiny_dit
import torch
from diffusers.loaders.single_file_utils import convert_stable_cascade_unet_single_file_to_diffusers as to_diffusers
from torch import Tensor

from lora_runtime.dialects import component_of, prefixes

CONFIG = {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "clip_text_in_channels": 1280}
ROLES = {"weight": "diff", "bias": "diff_b"}


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return stage C's weights in diffusers' layout and in the original's, by the names that its authors gave."""
    ours = tiny_dit.narrow_state(tiny_dit.meta_model("StableCascadeUNet", **CONFIG))
    originals: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        head, _, role = name.rpartition(".")
        if head.endswith(".attention.to_q"):
            rows = [ours[f"{head[:-1]}{side}.{role}"] for side in "qkv"]
            originals[f"{head.removesuffix('to_q')}attn.in_proj_{role}"] = torch.cat(rows)
        elif not head.endswith((".attention.to_k", ".attention.to_v")):
            originals[name.replace(".attention.to_out.0.", ".attention.attn.out_proj.")] = tensor
    converted = to_diffusers({**originals})
    assert set(converted) == set(ours)
    assert all(torch.equal(converted[name], ours[name]) for name in ours)
    return ours, originals


def file(state: dict[str, Tensor], prefix: str, level: str) -> dict[str, Tensor]:
    """Return a file of differences in diffusers' names, or with kohya's level in the attention."""
    found = {}
    for name, tensor in state.items():
        path, _, role = name.rpartition(".")
        path = path.replace(".attention.to_out.0", f".attention.{level}out_proj") if level else path
        path = path.replace(".attention.to_", f".attention.{level}to_")
        found[f"{prefix}{path.replace('.', '_')}.{ROLES[role]}"] = tensor
    return found


@pytest.mark.parametrize("prefix", ["lora_prior_unet_", "lora_unet_"])
@pytest.mark.parametrize("level", ["", "attn."])
@pytest.mark.parametrize("original", [False, True])
def test_every_name_finds_its_weight_in_both_layouts(prefix: str, level: str, original: bool, tmp_path: Path) -> None:
    ours, originals = states()
    expected = originals if original else ours
    model = layouts.tree({name: torch.zeros_like(tensor) for name, tensor in expected.items()})
    tensors = file(ours, prefix, level)
    found, (report,) = layouts.patched(model, [layouts.written(tensors, tmp_path)], component="prior")
    assert dict(report.unused) == {}
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_the_prefixes_of_stage_c() -> None:
    assert component_of("lora_prior_unet_down_blocks_0_2_attention_attn_to_q") == "prior"
    assert component_of("lora_prior_te_text_model_encoder_layers_0_mlp_fc1") == "text_encoder"
    assert "lora_prior_unet_" not in prefixes("decoder", ["decoder", "text_encoder"])
