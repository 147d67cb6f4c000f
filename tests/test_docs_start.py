"""The pages that people begin with: their examples and commands run, on the embedded pipeline and a tiny LLM."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from docs_pages import commands_of, prompts_of, run_examples, text_of

import lora_runtime
from lora_runtime.cli import main

pytest.importorskip("diffusers")
from lora_runtime.demo.scene_pipeline import LORAS, PIPELINE

TRAINING = Path(__file__).resolve().parent.parent / "training"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["start-webui.md", "ja.md"])
def test_every_prompt_of_the_page_is_read(name: str) -> None:
    prompts = prompts_of(name)
    assert len(prompts) > 5
    read = {prompt: lora_runtime.parse_prompt(prompt) for prompt in prompts}
    wrong = [prompt for prompt, found in read.items() if any(each.severity != "info" for each in found.diagnostics)]
    # What the page shows as mistaken: a decimal comma.
    assert wrong == [prompt for prompt in prompts if ":0,7>" in prompt]


def test_the_page_for_diffusers_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(LORAS, here / "loras")
    run_examples("start-diffusers.md")
    shutil.copytree(PIPELINE, here / "pipeline")
    commands = commands_of("start-diffusers.md")
    assert [command.split()[0] for command in commands] == ["list", "inspect", "run"]
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert "outline" in capsys.readouterr().out
    assert (here / "house.png").exists()


def language_model(folder: Path) -> None:
    """Write a model of two layers and a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "tell", "me", "of", "the", "sea", "hello", "a", "ship", "and", "its", "captain", "on", "water"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def peft_folder(folder: Path, seed: int) -> None:
    """Write a LoRA of rank 2 on the queries and values of both layers, in the names that PEFT saves."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for part in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, 16, generator=generator)
            tensors[f"{name}.lora_B.weight"] = 3 * torch.randn(16, 2, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_the_page_for_language_models_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language_model(here / "model")
    for seed, name in enumerate(("pirate", "formal")):
        peft_folder(here / "loras" / name, seed)
    run_examples("start-language-models.md")
    commands = commands_of("start-language-models.md")
    assert [command.split()[0] for command in commands] == ["inspect", "list"]
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert "pirate" in capsys.readouterr().out


def test_the_japanese_page_goes_from_pictures_to_a_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its own folder, numbers and commands, but for two steps of two small pictures and a quick preview."""
    pytest.importorskip("peft")
    page = text_of("ja.md")
    pictures = here / "pictures" / "20_robot"
    pictures.mkdir(parents=True)
    for name in re.findall(r"^        (\d\d\.(?:png|txt))", page, re.MULTILINE):
        shutil.copy(TRAINING / "pictures" / "10_robot" / name, pictures / name)
    shown = dict(re.findall(r"^        (\d\d\.txt) +(.+)$", page, re.MULTILINE))
    assert shown == {name: (pictures / name).read_text(encoding="utf-8").strip() for name in shown} and len(shown) == 2
    numbers = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    small = re.sub(r"resolution = \d+", "resolution = 48\nenable_bucket = false", numbers)
    small = re.sub(r"max_train_steps = \d+", "max_train_steps = 2", small)
    small += 'sample_prompts = "a robot <lora:robot:1> --s 2"\n'  # else the file's preview takes 50 steps
    (here / "robot.toml").write_text(small, encoding="utf-8")
    shutil.copytree(PIPELINE, here / "model")
    commands = commands_of("ja.md")
    assert [command.split()[0] for command in commands] == ["train", "run", "inspect"]
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert "robot" in capsys.readouterr().out and (here / "robot.png").exists()
    run_examples("ja.md")
