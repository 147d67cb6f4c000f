"""`convert` of every family whose original has other names: through all spellings and back, bit for bit.

The original's weights are made of diffusers' by `tiny_dit.original_state`, which tests/dialects hold to diffusers'
converters and to a person's reading of the original's code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_dit
import torch
from safetensors.torch import load_file
from torch import Tensor
from workbench.files import written

from lora_runtime.dialects import Dialect
from lora_runtime.families import FAMILIES
from lora_runtime.families.ace_step import ACE_STEP_NAMES
from lora_runtime.families.aura_flow import AURA_FLOW_NAMES
from lora_runtime.families.chroma import CHROMA_NAMES
from lora_runtime.families.cosmos import COSMOS_NAMES
from lora_runtime.families.flux import FLUX_NAMES
from lora_runtime.families.flux_2 import FLUX_2_NAMES
from lora_runtime.families.flux_3 import FLUX_3_NAMES
from lora_runtime.families.hunyuan_dit import HUNYUAN_DIT_NAMES
from lora_runtime.families.hunyuan_video import HUNYUAN_VIDEO_NAMES
from lora_runtime.families.ideogram_4 import IDEOGRAM_4_NAMES
from lora_runtime.families.krea_2 import KREA_2_NAMES
from lora_runtime.families.ltx import LTX_NAMES
from lora_runtime.families.lumina_2 import LUMINA_2_NAMES
from lora_runtime.families.minimax_h3 import MINIMAX_H3_NAMES
from lora_runtime.families.mochi import MOCHI_NAMES
from lora_runtime.families.pixart import PIXART_NAMES
from lora_runtime.families.qwen_image import QWEN_IMAGE_NAMES
from lora_runtime.families.sana import SANA_NAMES
from lora_runtime.families.sd3 import SD3_NAMES
from lora_runtime.families.wan import WAN_NAMES
from lora_runtime.families.z_image import Z_IMAGE_NAMES
from lora_runtime.workbench import convert

State = dict[str, Tensor]
XLABS = ".processor."  # their names for what is a part of a weight of the original


@dataclass(frozen=True)
class Case:
    """A model of diffusers, and the family's names; the original has its `layout`-th."""

    model: str
    dialect: Dialect
    config: Mapping[str, Any] = field(default_factory=lambda: {"num_layers": 1})
    layout: int = 0


_TWO = {"num_layers": 1, "num_single_layers": 1}
CASES = {
    "ace-step": Case("AceStepTransformer1DModel", ACE_STEP_NAMES, {"num_hidden_layers": 1}),
    "aura flow": Case(
        "AuraFlowTransformer2DModel", AURA_FLOW_NAMES, {"num_mmdit_layers": 1, "num_single_dit_layers": 1}
    ),
    "chroma": Case("ChromaTransformer2DModel", CHROMA_NAMES, _TWO),
    "cosmos 2": Case("CosmosTransformer3DModel", COSMOS_NAMES),
    "cosmos 1": Case("CosmosTransformer3DModel", COSMOS_NAMES, layout=1),
    "flux": Case("FluxTransformer2DModel", FLUX_NAMES, _TWO),
    "flux 2": Case("Flux2Transformer2DModel", FLUX_2_NAMES, _TWO),
    "flux 3": Case("Flux3Transformer2DModel", FLUX_3_NAMES, _TWO),
    "hunyuan dit": Case("HunyuanDiT2DModel", HUNYUAN_DIT_NAMES, {"num_layers": 2, "in_channels": 4, "patch_size": 2}),
    "hunyuan image": Case("HunyuanImageTransformer2DModel", HUNYUAN_VIDEO_NAMES, _TWO),
    "hunyuan video": Case("HunyuanVideoTransformer3DModel", HUNYUAN_VIDEO_NAMES, _TWO),
    "hunyuan video 1.5": Case("HunyuanVideo15Transformer3DModel", HUNYUAN_VIDEO_NAMES),
    "ideogram 4": Case("Ideogram4Transformer2DModel", IDEOGRAM_4_NAMES),
    "krea 2": Case("Krea2Transformer2DModel", KREA_2_NAMES),
    "ltx": Case("LTXVideoTransformer3DModel", LTX_NAMES),
    "ltx 2": Case("LTX2VideoTransformer3DModel", LTX_NAMES),
    "lumina 2": Case("Lumina2Transformer2DModel", LUMINA_2_NAMES),
    "minimax h3": Case("MiniMaxH3Transformer3DModel", MINIMAX_H3_NAMES),
    "mochi": Case("MochiTransformer3DModel", MOCHI_NAMES, {"num_layers": 2}),
    "pixart": Case("PixArtTransformer2DModel", PIXART_NAMES, {"num_layers": 1, "caption_channels": 4096}),
    "qwen-image 2.1": Case("QwenImage21Transformer2DModel", QWEN_IMAGE_NAMES),
    "sana": Case("SanaTransformer2DModel", SANA_NAMES),
    "sd 3": Case("SD3Transformer2DModel", SD3_NAMES, {"num_layers": 2}),
    "sd 3.5": Case("SD3Transformer2DModel", SD3_NAMES, {"num_layers": 2, "dual_attention_layers": (0,)}),
    "wan": Case("WanTransformer3DModel", WAN_NAMES),
    "wan vace": Case("WanVACETransformer3DModel", WAN_NAMES, {"num_layers": 1, "vace_layers": [0]}),
    "z-image": Case("ZImageTransformer2DModel", Z_IMAGE_NAMES, {"n_layers": 1}),
}
OWN = {"cascade", "unet", "animatediff"}  # below; in test_convert.py and test_known_models.py; other names, one layout


def test_every_family_with_names_of_its_own_has_a_case() -> None:
    names = {dialect.name for family in FAMILIES for dialect in family.dialects}
    assert {case.dialect.name for case in CASES.values()} | OWN == names


@pytest.fixture(autouse=True)
def _warnings_of_others() -> Iterator[None]:
    """Allow what diffusers warns about in its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="diffusers")
        yield


def kohyas(state: Mapping[str, Tensor]) -> State:
    """Return a LoRA on all matrices and kernels of a model of diffusers, in its names as kohya spells them."""
    generator = torch.Generator().manual_seed(1)
    found: State = {}
    for name, weight in state.items():
        if not name.endswith(".weight") or weight.ndim < 2:
            continue
        stem = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        ones = (1,) * (weight.ndim - 2)
        found |= {
            f"{stem}.lora_up.weight": torch.randn(len(weight), 2, *ones, generator=generator).half(),
            f"{stem}.lora_down.weight": torch.randn(2, *weight.shape[1:], generator=generator).half(),
            f"{stem}.alpha": torch.tensor(2.0).half(),
        }
    return found


def deltas(tensors: State) -> Iterator[tuple[str, Tensor]]:
    """Yield each module's ΔW in float64, of PEFT's keys."""
    for key, up in tensors.items():
        stem = key.removesuffix(".lora_B.weight")
        if stem != key:
            down = tensors[f"{stem}.lora_A.weight"].double()
            yield stem, (up.double().flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def models(ours: State, originals: State, folder: Path, component: str = "transformer") -> tuple[Path, Path]:
    """Write the weights in both layouts: a folder of diffusers, and a checkpoint."""
    own = folder / component
    own.mkdir()
    written(own / "diffusion_pytorch_model.safetensors", ours)
    return own, written(folder / "original.safetensors", originals)


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    differing = [key for key in one if one[key].dtype != other[key].dtype or not torch.equal(one[key], other[key])]
    assert not differing


def few_rows(state: Mapping[str, Tensor]) -> State:
    """Return a 32nd of the rows, where that can be: what is fused keeps its proportions."""
    return {name: (tensor[::32] if len(tensor) % 32 == 0 else tensor).clone() for name, tensor in state.items()}


@pytest.mark.quick(9)
@pytest.mark.parametrize("name", CASES)
def test_through_all_spellings_and_back_is_bit_equal(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ours = few_rows(tiny_dit.narrow_state(tiny_dit.meta_model(case.model, **case.config)))
    folder, original = models(ours, tiny_dit.original_state(ours, case.dialect, case.layout), tmp_path)
    path, files = written(tmp_path / "0.safetensors", kohyas(ours)), {}
    for number, (to, model) in enumerate(
        [("diffusers", folder), ("original", original), ("kohya", original), ("comfy", original), ("peft", folder)]
    ):
        outcome = convert(path, tmp_path / f"{number + 1}.safetensors", to=to, model=model)  # type: ignore[arg-type]
        assert not dict(outcome.left_out)
        path, files[to] = outcome.path, load_file(outcome.path)
    same(load_file(convert(path, tmp_path / "back.safetensors", to="kohya", model=folder).path), kohyas(ours))
    # The spellings differ in names alone, and these are those of the original's weights with its values.
    same(files["comfy"], {f"diffusion_model.{key}": tensor for key, tensor in files["original"].items()})
    apart = {f"{stem.removeprefix('transformer.')}.weight": delta for stem, delta in deltas(files["diffusers"])}
    zeros = {key: torch.zeros_like(tensor, dtype=torch.float64) for key, tensor in ours.items()}
    expected = tiny_dit.original_state(zeros | apart, case.dialect, case.layout)
    found = {f"{stem}.weight": delta for stem, delta in deltas(files["original"])}
    weights = {key: tensor for key, tensor in expected.items() if key.endswith(".weight") and tensor.ndim > 1}
    same(found, {key: tensor for key, tensor in weights.items() if XLABS not in key})
    if case.layout == 0:  # a folder of diffusers leads to the same names
        other = convert(path, tmp_path / "other.safetensors", to="original", model=folder)
        same(load_file(other.path), files["original"])


def test_the_attention_of_cascade_is_called_as_kohya_does_and_leads_back(tmp_path: Path) -> None:
    config = {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "clip_text_in_channels": 1280}
    ours = few_rows(tiny_dit.narrow_state(tiny_dit.meta_model("StableCascadeUNet", **config)))
    originals = {}
    for name, tensor in ours.items():  # torch's attention has q, k and v in one parameter
        head, _, role = name.rpartition(".")
        if head.endswith(".to_q"):
            rows = [ours[f"{head[:-1]}{side}.{role}"] for side in "qkv"]
            originals[f"{head.removesuffix('to_q')}attn.in_proj_{role}"] = torch.cat(rows)
        elif not head.endswith((".to_k", ".to_v")):
            originals[name.replace(".attention.to_out.0.", ".attention.attn.out_proj.")] = tensor
    folder, original = models(ours, originals, tmp_path, "prior")
    path = written(tmp_path / "a.safetensors", kohyas(ours))
    attention = "down_blocks.0.2.attention"
    for to in ("original", "comfy", "kohya"):
        there = convert(path, tmp_path / f"to {to}.safetensors", to=to, model=original)  # type: ignore[arg-type]
        stem = {"kohya": f"lora_unet_{attention.replace('.', '_')}_attn_to_q", "original": f"{attention}.attn.to_q"}
        assert any(
            key.startswith(stem.get(to, f"diffusion_model.{attention}.attn.to_q.")) for key in load_file(there.path)
        )
        back = convert(there.path, tmp_path / f"{to} back.safetensors", to="kohya", model=folder)
        same(load_file(back.path), kohyas(ours))
