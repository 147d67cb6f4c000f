"""docs/faq.md: each message that it quotes is what the program prints, in the page's own examples."""

from __future__ import annotations

import shutil
from pathlib import Path

import handmade
import pytest
import safetensors.torch
import torch
from docs_pages import run_examples, text_of

pytest.importorskip("diffusers")
from lora_runtime.demo.scene_pipeline import LORAS

Tensors = dict[str, torch.Tensor]


def for_sdxl() -> Tensors:
    """Return the tensors of a file that only SDXL's UNet has the layers for, in the trainer's names."""
    tensors: Tensors = {}
    for layer in "qkv":
        for block in range(2):
            name = f"lora_unet_input_blocks_4_1_transformer_blocks_{block}_attn2_to_{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.zeros(4, 640 if layer == "q" else 2048)
            tensors[f"{name}.lora_up.weight"] = torch.zeros(640, 4)
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
    return tensors


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder that the page speaks of, and go to where it lies."""
    folder = tmp_path / "loras"
    shutil.copytree(LORAS, folder)
    metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
    safetensors.torch.save_file(for_sdxl(), folder / "sdxl-style.safetensors", metadata)
    partly = safetensors.torch.load_file(LORAS / "outline.safetensors")
    nowhere = {key.replace("input_blocks_4", "of_another"): value for key, value in list(for_sdxl().items())[:3]}
    safetensors.torch.save_file({**partly, **nowhere}, folder / "partly.safetensors")
    whole = (LORAS / "night.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[:50_000])
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html><title>Log in</title></html>")
    (folder / "pointer.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 153680\n"
    )
    handmade.write(folder / "old.safetensors").rename(folder / "old.pt")
    monkeypatch.chdir(tmp_path)
    return folder


def test_every_answer_of_the_page_is_what_the_program_says(loras: Path) -> None:
    run_examples("faq.md")


def test_the_page_answers_twenty_questions_in_four_parts() -> None:
    lines = text_of("faq.md").splitlines()
    assert sum(line.startswith("### ") for line in lines) == 20
    assert sum(line.startswith("## ") for line in lines) == 4
