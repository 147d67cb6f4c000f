"""Transformers whose original has other names: diffusers' converters of checkpoints tell what becomes which.

A file of differences holds one model's whole weights, and they are laid on a model of zeros in the other layout: what
comes out there must be what the converter makes, to the bit.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import layouts
import pytest
import tiny_dit
import torch
from diffusers.loaders import lora_pipeline, single_file_utils
from torch import Tensor, nn

from lora_runtime.dialects import Dialect, normalise
from lora_runtime.families.ace_step import ACE_STEP_NAMES
from lora_runtime.families.cosmos import COSMOS_NAMES
from lora_runtime.families.flux_3 import FLUX_3_NAMES
from lora_runtime.families.hunyuan_video import HUNYUAN_VIDEO_NAMES
from lora_runtime.families.ideogram_4 import IDEOGRAM_4_NAMES
from lora_runtime.families.krea_2 import KREA_2_NAMES
from lora_runtime.families.ltx import LTX_NAMES
from lora_runtime.families.lumina_2 import LUMINA_2_NAMES
from lora_runtime.families.minimax_h3 import MINIMAX_H3_NAMES
from lora_runtime.families.mochi import MOCHI_NAMES
from lora_runtime.families.qwen_image import QWEN_IMAGE_NAMES
from lora_runtime.families.sana import SANA_NAMES
from lora_runtime.families.wan import WAN_NAMES
from lora_runtime.families.z_image import Z_IMAGE_NAMES

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _warnings_of_others() -> Iterator[None]:
    """Allow what diffusers warns about in its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="diffusers")
        yield


class Kept(dict[str, Any]):
    """What cannot be emptied: diffusers' converter of Cosmos looks for the version in what it has just emptied."""

    def pop(self, key: str, *_: Any) -> Any:
        return self[key]


def cosmos(state: State) -> State:
    found: State = single_file_utils.convert_cosmos_transformer_checkpoint_to_diffusers(
        Kept({f"net.{name}": tensor for name, tensor in state.items()})
    )
    return found


def mochi(state: State) -> State:
    found: State = single_file_utils.convert_mochi_transformer_checkpoint_to_diffusers(
        {**state, "pos_frequencies": torch.zeros(1)}
    )
    return found


def minimax(state: State) -> State:
    found: State = single_file_utils.convert_minimax_h3_transformer_checkpoint_to_diffusers(state, {})
    return found


def sana(state: State) -> State:
    tables = ("pos_embed", "y_embedder.y_embedding", "final_layer.scale_shift_table")
    tables += tuple(f"blocks.{number}.scale_shift_table" for number in range(2))
    found: State = single_file_utils.convert_sana_transformer_to_diffusers(
        {**state, **dict.fromkeys(tables, torch.zeros(1))}
    )
    return found


@dataclass(frozen=True)
class Case:
    """A model of diffusers, and what turns its original into it."""

    model: str
    dialect: Dialect
    convert: Callable[[State], State]
    config: Mapping[str, Any] = field(default_factory=lambda: {"num_layers": 2})
    layout: int = 0


CASES = {
    "wan": Case("WanTransformer3DModel", WAN_NAMES, single_file_utils.convert_wan_transformer_to_diffusers),
    "wan i2v": Case(
        "WanTransformer3DModel",
        WAN_NAMES,
        single_file_utils.convert_wan_transformer_to_diffusers,
        {"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "wan vace": Case(
        "WanVACETransformer3DModel",
        WAN_NAMES,
        single_file_utils.convert_wan_transformer_to_diffusers,
        {"num_layers": 2, "vace_layers": [0, 1]},
    ),
    "hunyuan video": Case(
        "HunyuanVideoTransformer3DModel",
        HUNYUAN_VIDEO_NAMES,
        single_file_utils.convert_hunyuan_video_transformer_to_diffusers,
        {"num_layers": 2, "num_single_layers": 2},
    ),
    "ltx": Case(
        "LTXVideoTransformer3DModel", LTX_NAMES, single_file_utils.convert_ltx_transformer_checkpoint_to_diffusers
    ),
    "ltx 2": Case("LTX2VideoTransformer3DModel", LTX_NAMES, single_file_utils.convert_ltx2_transformer_to_diffusers),
    # as many blocks as the converter counts on
    "mochi": Case(
        "MochiTransformer3DModel", MOCHI_NAMES, mochi, {"num_layers": 48}
    ),  # as many as the converter counts on
    "lumina 2": Case("Lumina2Transformer2DModel", LUMINA_2_NAMES, single_file_utils.convert_lumina2_to_diffusers),
    "z-image": Case(
        "ZImageTransformer2DModel",
        Z_IMAGE_NAMES,
        single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
        {"n_layers": 2},
    ),
    "cosmos 2": Case("CosmosTransformer3DModel", COSMOS_NAMES, cosmos),
    "cosmos 1": Case("CosmosTransformer3DModel", COSMOS_NAMES, cosmos, layout=1),
    "sana": Case("SanaTransformer2DModel", SANA_NAMES, sana),
    "krea 2": Case(
        "Krea2Transformer2DModel", KREA_2_NAMES, single_file_utils.convert_krea2_transformer_checkpoint_to_diffusers
    ),
    "minimax h3": Case("MiniMaxH3Transformer3DModel", MINIMAX_H3_NAMES, minimax),
    "flux 3": Case(
        "Flux3Transformer2DModel",
        FLUX_3_NAMES,
        single_file_utils.convert_flux3_transformer_checkpoint_to_diffusers,
        {"num_layers": 2, "num_single_layers": 2},
    ),
    "qwen-image 2.1": Case(
        "QwenImage21Transformer2DModel",
        QWEN_IMAGE_NAMES,
        single_file_utils.convert_qwen_image21_transformer_checkpoint_to_diffusers,
    ),
}
SPELLED = [("diffusion_model.", str), ("lora_unet_", normalise)]


def states(case: Case) -> tuple[State, State]:
    """Return the weights of the model in diffusers' layout and in the original's."""
    ours = tiny_dit.narrow_state(tiny_dit.meta_model(case.model, **case.config))
    return ours, tiny_dit.original_state(ours, case.dialect, case.layout)


def difference(state: State, prefix: str, spell: Callable[[str], str]) -> State:
    """Return a file that adds these weights and biases."""
    endings = {"weight": "diff", "bias": "diff_b"}
    found = {}
    for name, tensor in state.items():
        path, _, role = name.rpartition(".")
        found[f"{prefix}{spell(path)}.{endings[role]}"] = tensor.contiguous()
    return found


def patched(model: nn.Module, tensors: State, folder: Path) -> State:
    """Return the model's weights with the file on it; every key must have found its place."""
    found, (report,) = layouts.patched(model, [layouts.written(tensors, folder)])
    assert dict(report.unused) == {}
    assert report.used == len(tensors)
    return found


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def zeros(state: State) -> nn.Module:
    return layouts.tree({name: torch.zeros_like(tensor) for name, tensor in state.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_originals_names_are_those_that_diffusers_converts(name: str) -> None:
    ours, originals = states(CASES[name])
    converted = CASES[name].convert(dict(originals))
    named = {key: tensor for key, tensor in converted.items() if key.endswith((".weight", ".bias"))}
    assert_same(named, ours)
    assert set(originals) != set(ours)


@pytest.mark.parametrize(("prefix", "spell"), SPELLED)
@pytest.mark.parametrize("name", CASES)
def test_a_file_in_the_originals_names_on_a_model_of_diffusers(
    name: str, prefix: str, spell: Callable[[str], str], tmp_path: Path
) -> None:
    ours, originals = states(CASES[name])
    assert_same(patched(zeros(ours), difference(originals, prefix, spell), tmp_path), ours)


@pytest.mark.parametrize(("prefix", "spell"), [("transformer.", str), ("lora_transformer_", normalise)])
@pytest.mark.parametrize("name", CASES)
def test_a_file_in_the_names_of_diffusers_on_an_original_model(
    name: str, prefix: str, spell: Callable[[str], str], tmp_path: Path
) -> None:
    ours, originals = states(CASES[name])
    assert_same(patched(zeros(originals), difference(ours, prefix, spell), tmp_path), originals)


@pytest.mark.parametrize("name", CASES)
def test_a_file_in_the_originals_names_on_an_original_model(name: str, tmp_path: Path) -> None:
    _, originals = states(CASES[name])
    assert_same(patched(zeros(originals), difference(originals, "diffusion_model.", str), tmp_path), originals)


@dataclass(frozen=True)
class Trained:
    """What a trainer writes for a case: where, and how the names and factors are spelled."""

    case: str
    loader: str  # of diffusers
    where: str = ".*"  # the original's names
    prefix: str = "diffusion_model."
    kohya: bool = False


TRAINED = {
    "wan": Trained("wan", "Wan", r"blocks.*(attn|ffn).*|head.*|(time|text).*"),
    "wan i2v": Trained("wan i2v", "Wan", r"blocks.*(attn|ffn).*|head.*|(time|text).*|img_emb.*"),
    "wan of musubi": Trained("wan", "Wan", r"blocks.*(attn|ffn).*", "lora_unet_", kohya=True),
    "wan i2v of musubi": Trained("wan i2v", "Wan", r"blocks.*(attn|ffn).*", "lora_unet_", kohya=True),
    # diffusers cuts the other factor of the refiner's q, k and v too, and swaps both factors of the last modulation.
    "hunyuan video": Trained("hunyuan video", "HunyuanVideo", r"(?!.*self_attn_qkv|final_layer.adaLN|img_in).*"),
    "hunyuan video, prefixed": Trained(
        "hunyuan video", "HunyuanVideo", r"(?!.*self_attn_qkv|final_layer.adaLN|img_in).*", "transformer."
    ),
    "ltx": Trained("ltx", "LTXVideo", r"transformer_blocks.*"),
    "ltx 2": Trained("ltx 2", "LTX2"),
    "lumina 2": Trained("lumina 2", "Lumina2", r"(layers|noise_refiner|context_refiner).*"),
    "z-image of kohya": Trained("z-image", "ZImage", r"(?!.*qkv|x_emb|final).*", "lora_unet_", kohya=True),
    "anima": Trained("cosmos 2", "Anima"),
    "krea 2": Trained("krea 2", "Krea2"),
    "krea 2 of ai-toolkit": Trained("krea 2", "Krea2", prefix="base_model.model."),
    "minimax h3": Trained("minimax h3", "MiniMaxH3"),
    "minimax h3 of musubi": Trained("minimax h3", "MiniMaxH3", prefix="lora_unet_", kohya=True),
    "flux 3": Trained("flux 3", "Flux3", r".*blocks.*"),
    "ideogram 4": Trained("ideogram 4", "Ideogram4", r"layers.*"),
    "ideogram 4 of its trainer": Trained("ideogram 4", "Ideogram4", r"layers.*", "conditional_transformer."),
    "ace-step": Trained("ace-step", "AceStep", r".*attn.*", "base_model.model."),
}
WITHOUT_CONVERTER = {
    "ideogram 4": Case("Ideogram4Transformer2DModel", IDEOGRAM_4_NAMES, dict, {"num_layers": 2}),
    "ace-step": Case("AceStepTransformer1DModel", ACE_STEP_NAMES, dict, {"num_hidden_layers": 2}),
}


def low_rank(originals: State, trained: Trained) -> State:
    """Return a file with factors for the linear layers, with ranks that are no multiple of two or three."""
    generator = torch.Generator().manual_seed(1)
    found: State = {}
    for path in tiny_dit.paths_of(originals):
        weight = originals[f"{path}.weight"]
        if weight.ndim != 2 or re.fullmatch(trained.where, path) is None:
            continue
        stem = trained.prefix + (normalise(path) if trained.prefix.endswith("_") else path)
        up, down = torch.randn(weight.shape[0], 5, generator=generator), torch.randn(5, 1, generator=generator)
        if trained.kohya:
            found |= {
                f"{stem}.lora_up.weight": up,
                f"{stem}.lora_down.weight": down,
                f"{stem}.alpha": torch.tensor(2.5),
            }
        else:
            found |= {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}
    assert found
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_adapters_in_the_originals_names_change_what_diffusers_reads_in_them(name: str, tmp_path: Path) -> None:
    trained = TRAINED[name]
    ours, originals = states(({**CASES, **WITHOUT_CONVERTER})[trained.case])
    tensors = low_rank(originals, trained)
    loader = getattr(lora_pipeline, f"{trained.loader}LoraLoaderMixin")
    read = loader.lora_state_dict({key: tensor.clone() for key, tensor in tensors.items()})
    expected = {key: tensor.double() for key, tensor in ours.items()}
    for key in [key for key in read if key.endswith(".lora_A.weight")]:
        path = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        expected[f"{path}.weight"] += read[f"transformer.{path}.lora_B.weight"].double() @ read[key].double()
    layouts.assert_same(patched(layouts.tree(ours), tensors, tmp_path), expected)
