"""Flux, Chroma, Flux 2, AuraFlow and SD3: files in the names of the originals and of diffusers, on models of both.

The models have the rows of the real ones and two columns. What of an original weight is where in diffusers, its
converters of checkpoints say, which know nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

WIDTH = 3072  # diffusers' converters have it as a number
COLUMNS = 2


def attention(block: str, qkv: int = 3) -> dict[str, int]:
    return {f"{block}.qkv": qkv * WIDTH, f"{block}.proj": WIDTH}


FLUX_BLOCKS = {
    **attention("double_blocks.0.img_attn"),
    **attention("double_blocks.0.txt_attn"),
    "double_blocks.0.img_mlp.0": 4 * WIDTH,
    "double_blocks.0.img_mlp.2": WIDTH,
    "double_blocks.0.txt_mlp.0": 4 * WIDTH,
    "double_blocks.0.txt_mlp.2": WIDTH,
    "single_blocks.0.linear1": 7 * WIDTH,
    "single_blocks.0.linear2": WIDTH,
    "img_in": WIDTH,
    "txt_in": WIDTH,
    "final_layer.linear": 64,
}
FLUX_NORMS = [
    *(f"double_blocks.0.{side}_attn.norm.{name}_norm" for side in ("img", "txt") for name in ("query", "key")),
    *(f"single_blocks.0.norm.{name}_norm" for name in ("query", "key")),
]
FLUX_2_ROWS = {
    **FLUX_BLOCKS,
    "double_blocks.0.img_mlp.0": 6 * WIDTH,
    "double_blocks.0.txt_mlp.0": 6 * WIDTH,
    "single_blocks.0.linear1": 9 * WIDTH,
    "final_layer.adaLN_modulation.1": 2 * WIDTH,
    "double_stream_modulation_img.lin": 6 * WIDTH,
    "double_stream_modulation_txt.lin": 6 * WIDTH,
    "single_stream_modulation.lin": 3 * WIDTH,
    **{f"{name}_in.{layer}_layer": WIDTH for name in ("time", "guidance") for layer in ("in", "out")},
}
AURA_ROWS = {
    "init_x_linear": WIDTH,
    "cond_seq_linear": WIDTH,
    "t_embedder.mlp.0": WIDTH,
    "t_embedder.mlp.2": WIDTH,
    "modF.1": 2 * WIDTH,
    "final_linear": 16,
    **{f"double_layers.0.{name}.1": 6 * WIDTH for name in ("modX", "modC")},
    **{f"double_layers.0.attn.w{side}{name}": WIDTH for side in "12" for name in "qkvo"},
    **{f"double_layers.0.{mlp}.c_{name}": 8192 for mlp in ("mlpX", "mlpC") for name in ("fc1", "fc2", "proj")},
    "single_layers.0.modCX.1": 6 * WIDTH,
    **{f"single_layers.0.attn.w1{name}": WIDTH for name in "qkvo"},
    **{f"single_layers.0.mlp.c_{name}": 8192 for name in ("fc1", "fc2", "proj")},
}


@dataclass(frozen=True)
class Family:
    """The original's modules with their rows, and diffusers' converter of its checkpoints."""

    rows: Mapping[str, int]
    convert: Callable[..., Any]
    norms: tuple[str, ...] = ()
    biased: Callable[[str], bool] = lambda name: True
    also: tuple[str, ...] = ()  # other parameters that the converter wants

    def state(self) -> dict[str, Tensor]:
        """Return random values for the original."""
        state = {f"{name}.weight": layouts.rand(rows, COLUMNS) for name, rows in self.rows.items()}
        state |= {f"{name}.bias": layouts.rand(rows) for name, rows in self.rows.items() if self.biased(name)}
        state |= {f"{name}.scale": layouts.rand(4) for name in self.norms}
        return state | {name: torch.zeros(1) for name in self.also}

    def converted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of the original in diffusers' layout."""
        found: dict[str, Tensor] = self.convert(dict(state))
        return {name: tensor for name, tensor in found.items() if tensor is not None}


GUIDANCE = "distilled_guidance_layer"
FAMILIES = {
    "flux": Family(
        {
            **FLUX_BLOCKS,
            "double_blocks.0.img_mod.lin": 6 * WIDTH,
            "double_blocks.0.txt_mod.lin": 6 * WIDTH,
            "single_blocks.0.modulation.lin": 3 * WIDTH,
            "final_layer.adaLN_modulation.1": 2 * WIDTH,
            **{f"{name}_in.{layer}_layer": WIDTH for name in ("time", "vector", "guidance") for layer in ("in", "out")},
        },
        single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
        tuple(FLUX_NORMS),
    ),
    "chroma": Family(
        {
            **FLUX_BLOCKS,
            f"{GUIDANCE}.in_proj": 16,
            f"{GUIDANCE}.out_proj": WIDTH,
            f"{GUIDANCE}.layers.0.in_layer": 16,
            f"{GUIDANCE}.layers.0.out_layer": 16,
        },
        single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers,
        (*FLUX_NORMS, f"{GUIDANCE}.norms.0"),
    ),
    "flux 2": Family(
        FLUX_2_ROWS,
        single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
        tuple(FLUX_NORMS),
        biased=lambda name: False,
    ),
    "aura flow": Family(
        AURA_ROWS,
        single_file_utils.convert_auraflow_transformer_checkpoint_to_diffusers,
        biased=lambda name: name.startswith(("init_x", "t_embedder")),
        also=("register_tokens", "positional_encoding"),
    ),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def changes(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a file's tensors for all matrices and biases of a state, by stem, and the state changed in float64."""
    tensors, changed = {}, {name: tensor.double() for name, tensor in state.items()}
    for index, (name, tensor) in enumerate(state.items()):
        stem, _, role = name.rpartition(".")
        if role == "weight" and tensor.ndim == 2:
            up, down = layouts.rand(tensor.shape[0], 1, seed=index), layouts.rand(1, tensor.shape[1], seed=index)
            tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
            changed[name] += up.double() @ down.double()
        elif role == "bias":
            tensors[f"{stem}.diff_b"] = layouts.rand(tensor.shape[0], seed=index)
            changed[name] += tensors[f"{stem}.diff_b"]
    return tensors, changed


def named(tensors: Mapping[str, Tensor], prefix: str, separator: str = ".") -> dict[str, Tensor]:
    """Return a file's tensors under a prefix."""
    return {
        prefix + key[: key.index(mark)].replace(".", separator) + key[key.index(mark) :]: tensor
        for key, tensor in tensors.items()
        for mark in (".diff_b" if key.endswith("diff_b") else ".lora_",)
    }


@families
@pytest.mark.parametrize(
    ("prefix", "separator"),
    [("lora_unet_", "_"), ("diffusion_model.", "."), ("model.diffusion_model.", "."), ("", ".")],
)
def test_a_file_in_the_original_s_names_fits_both_models(
    family: Family, prefix: str, separator: str, tmp_path: Path
) -> None:
    original = family.state()
    tensors, changed = changes(original)
    file = layouts.written(named(tensors, prefix, separator), tmp_path)
    for state, expected in ((original, changed), (family.converted(original), family.converted(changed))):
        found, (report,) = layouts.patched(layouts.tree(state), [file])
        assert dict(report.unused) == {}
        assert report.used == report.keys == len(tensors)
        layouts.assert_same(found, expected)


@families
@pytest.mark.parametrize(("prefix", "separator"), [("transformer.", "."), ("lora_transformer_", "_")])
def test_a_file_in_diffusers_names_fits_both_models(
    family: Family, prefix: str, separator: str, tmp_path: Path
) -> None:
    original = family.state()
    theirs = family.converted(original)
    tensors, changed = changes(theirs)
    file = layouts.written(named(tensors, prefix, separator), tmp_path)
    found, (report,) = layouts.patched(layouts.tree(theirs), [file])
    assert (dict(report.unused), report.used) == ({}, len(tensors))
    layouts.assert_same(found, changed)
    found, (report,) = layouts.patched(layouts.tree(original), [file])
    assert (dict(report.unused), report.used) == ({}, len(tensors))
    layouts.assert_same(family.converted(found), changed)
