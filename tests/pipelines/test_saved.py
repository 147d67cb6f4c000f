"""Pipelines as they are saved: one file in the original names is the same model as the folder of diffusers'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_runtime.errors import ModelError
from lora_runtime.families.unet_to_ldm import original_names
from lora_runtime.pipelines.saved import load_saved

diffusers = pytest.importorskip("diffusers")

# The autoencoder of diffusers in the names of the original; up_blocks are counted the other way round there.
VAE = [
    (r"(encoder|decoder)\.mid_block\.attentions\.0", r"\1.mid.attn_1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.mid.block_1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.mid.block_2"),
    (r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets", r"decoder.up.<\1>.block"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", r"decoder.up.<\1>.upsample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
]


def original(pipe: Any) -> dict[str, Tensor]:
    """Return the tensors of a Stable Diffusion 1 as CompVis' code saves them."""
    paths = [path for path, module in pipe.unet.named_modules() if path]
    names = dict(original_names(paths))
    found = {
        f"model.diffusion_model.{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor
        for key, tensor in pipe.unet.state_dict().items()
    }
    levels = len(pipe.vae.config.up_block_types)
    for key, tensor in pipe.vae.state_dict().items():
        name = key
        for pattern, by in VAE:
            name = re.sub(pattern, by, name)
        name = re.sub(r"<(\d)>", lambda match: str(levels - 1 - int(match[1])), name)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[:, :, None, None]
        found[f"first_stage_model.{name}"] = tensor
    for key, tensor in pipe.text_encoder.state_dict().items():
        level = "" if key.startswith("text_model.") else "text_model."  # transformers 5 has no such level
        found[f"cond_stage_model.transformer.{level}{key}"] = tensor
    return {key: tensor.contiguous() for key, tensor in found.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """Give a pipeline, the folder that it is saved in, and a file of it."""
    home = tmp_path_factory.mktemp("saved")
    pipe = tiny.pipeline("sd1")
    pipe.save_pretrained(home / "folder")
    save_file(original(pipe), home / "model.safetensors")
    return pipe, home / "folder", home / "model.safetensors"


@pytest.mark.filterwarnings("ignore")
def test_a_single_file_is_the_pipeline_of_its_folder_to_the_bit(saved: tuple[Any, Path, Path]) -> None:
    pipe, folder, file = saved
    for loaded in (load_saved(folder, torch.float32), load_saved(file, torch.float32, folder)):
        assert type(loaded) is type(pipe)
        for part in ("unet", "vae", "text_encoder"):
            wanted, found = getattr(pipe, part).state_dict(), getattr(loaded, part).state_dict()
            assert wanted.keys() == found.keys()
            assert all(torch.equal(tensor, found[key]) for key, tensor in wanted.items())


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist; give a folder or a"):
        load_saved(tmp_path / "none", torch.float32)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_saved(tmp_path, torch.float32)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(ModelError, match="is no checkpoint of SD1, SD2, SDXL, SD3 or Flux"):
        load_saved(other, torch.float32)
