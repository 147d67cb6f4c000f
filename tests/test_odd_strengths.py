"""Strengths that can hardly be meant are said, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lora_runtime


class Model(nn.Module):
    """A layer by a name that kohya's files can mean."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4, 4)


def said(folder: Path, name: str, strength: str, metadata: dict[str, str], alpha: float | None = 8.0) -> list[str]:
    """Return what is noted of a file of rank 8 at a strength."""
    tensors = {"lora_unet_down.lora_down.weight": torch.ones(8, 4), "lora_unet_down.lora_up.weight": torch.ones(4, 8)}
    if alpha is not None:
        tensors["lora_unet_down.alpha"] = torch.tensor(alpha)
    save_file(tensors, folder / f"{name}.safetensors", metadata)
    applied = lora_runtime.apply(Model(), f"<lora:{name}:{strength}>", loras=folder)
    return [each.message for each in applied.diagnostics if each.severity == "info"]


SDXL = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}


@pytest.mark.parametrize(
    "name",
    [
        *("sdxl_lightning_4step_lora", "Hyper-SDXL-8steps-lora", "lcm-lora-sdxl", "LCM_LoRA_Weights_SDXL"),
        *("dmd2_sdxl_4step_lora_fp16", "sd_xl_turbo_lora_v1", "TCD-SDXL-LoRA", "Hyper-SD15-12steps-CFG-lora"),
    ],
)
@pytest.mark.parametrize("strength", ["0.3", "2", "-1"])
def test_a_lora_for_few_steps_far_from_1_is_said(name: str, strength: str, tmp_path: Path) -> None:
    (told,) = said(tmp_path, name, strength, SDXL)
    assert told == f'"{name}" lets a model paint in few steps and is made for strength 1; here it has {strength}'


@pytest.mark.parametrize("strength", ["1", "0.5", "0.8", "1.5", "0", "0@0,1@1"])
def test_at_a_usual_strength_nothing_is_said(strength: str, tmp_path: Path) -> None:
    assert said(tmp_path, "sdxl_lightning_4step_lora", strength, SDXL) == []


@pytest.mark.parametrize(
    "name",
    [
        *("lightning_strike", "hyperrealistic-lora", "turbo_engine", "welcome-lora", "hyper_detail_v4", "steps_4"),
        *("lightningmcqueen-4steps", "falcm lora"),
    ],
)
def test_other_files_with_these_words_are_no_such(name: str, tmp_path: Path) -> None:
    assert said(tmp_path, name, "0.3", SDXL) == []


@pytest.mark.parametrize("model", ["flux-1-dev/lora", "wan2.2-t2v-a14b/lora", "unheard-of"])
def test_of_families_where_an_eighth_is_usual_nothing_is_said(model: str, tmp_path: Path) -> None:
    assert said(tmp_path, "Hyper-8steps-lora", "0.125", {"modelspec.architecture": model}) == []


def kohya(dim: str, alpha: str, module: str = "networks.lora") -> dict[str, str]:
    return {**SDXL, "ss_network_module": module, "ss_network_dim": dim, "ss_network_alpha": alpha}


@pytest.mark.parametrize("module", ["networks.lora", "networks.lora_flux", "lycoris.kohya"])
def test_alphas_that_were_lost_are_said(module: str, tmp_path: Path) -> None:
    (told,) = said(tmp_path, "ink", "1", kohya("8", "1.0", module), alpha=None)
    assert told.startswith('"ink" has no alphas, which its trainer writes into every file')
    assert told.endswith("it acts 8 times as strongly as in training")


@pytest.mark.parametrize(
    ("metadata", "alpha"),
    [
        (kohya("8", "1.0"), 1.0),
        (kohya("8", "8.0"), None),
        (kohya("8", "None"), None),
        (kohya("Dynamic", "1"), None),
        (kohya("8", "0"), None),
        ({"ss_network_dim": "8", "ss_network_alpha": "1"}, None),
        (kohya("8", "1.0", "networks.other"), None),
        ({}, None),
    ],
)
def test_where_nothing_was_lost_nothing_is_said(metadata: dict[str, str], alpha: float | None, tmp_path: Path) -> None:
    assert said(tmp_path, "ink", "1", metadata, alpha) == []
