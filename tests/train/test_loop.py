"""A run as a whole: it learns what it is shown, on whole and on quantised weights, in one process or two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from train.runs import bytes_of, config, painted, pictures, pipeline

import lora_runtime
from lora_runtime.errors import TrainingError
from lora_runtime.train import train

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {"sample_prompts": ("a --s 1",)}


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_runtime.train.file.loss_curve", lambda losses, path: True)


def falls(losses: tuple[float, ...]) -> bool:
    third = len(losses) // 3
    return sum(losses[-third:]) < 0.99 * sum(losses[:third])


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_lora_learns_on_quantised_weights_which_stay_as_they_are(quantize: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pipe = pipeline("small")
    states: list[dict[str, Tensor]] = []

    def on_step(step: Any) -> None:
        if step.number in (1, step.steps):
            states.append({key: value for key, value in bytes_of(pipe).items() if "lora_" not in key})

    # One batch of all pictures, again and again.
    told = config(
        tmp_path,
        quantize=quantize,
        max_train_steps=24,
        train_batch_size=8,
        learning_rate=3e-2,
        max_bucket_reso=32,
        **QUICK,
    )
    trained = train(pipe, told, on_step)
    assert falls(trained.losses)
    first, last = states
    assert any(value.dtype in (torch.uint8, torch.int8) for value in first.values())
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    kinds = {type(module).__name__ for module in pipe.unet.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    assert not any(type(module) is nn.Linear for module in pipe.unet.modules())
    with lora_runtime.apply(pipe, "a dot <lora:dot:1>", loras=told.output_dir) as applied:
        assert not applied.report.loras[0].unused


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_every_kind_of_model_learns(kind: str, tmp_path: Path) -> None:
    told = config(
        tmp_path, max_train_steps=12, train_batch_size=8, learning_rate=3e-2, max_bucket_reso=32, seed=3, **QUICK
    )
    pipe = pipeline(kind)
    trained = train(pipe, told)
    tensors = load_file(trained.path)
    ups = {key: tensor for key, tensor in tensors.items() if "lora_up" in key or "lora_B" in key}
    # What the last block of SD3 makes of the text is dropped, and so nobody asks with it.
    dead = {"transformer.transformer_blocks.1.attn.add_q_proj.lora_B.weight"} if kind == "sd3" else set()
    assert {key for key, tensor in ups.items() if not bool(tensor.any())} == dead
    assert len(ups) > 10
    assert trained.losses[-1] != trained.losses[0]


def test_a_new_word_is_learnt_and_comes_with_the_file(tmp_path: Path) -> None:
    home = pictures(tmp_path)
    for file in home.glob("*/*.txt"):
        file.write_text("a zq", encoding="utf-8")
    pipe = pipeline("small")
    told = config(
        tmp_path,
        token_string="zq",
        init_word="dot",
        num_vectors_per_token=2,
        train_unet=False,
        embedding_lr=0.1,
        **QUICK,
    )
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    trained = train(pipe, told)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, table)
    (key, vectors), *others = load_file(trained.path).items()
    assert not others
    assert key == "bundle_emb.zq.string_to_param.*"
    # It began as the first two tokens of its init_word.
    ids = pipe.tokenizer("dot", add_special_tokens=False)["input_ids"][:2]
    distance = (vectors - table[ids]).abs().amax(1)
    assert bool((distance > 0.05).all())
    assert bool((distance < 0.6).all())
    without = painted(pipe, "a zq")
    with lora_runtime.apply(pipe, "a zq <lora:dot:1>", loras=told.output_dir, strict=True) as applied:
        assert not torch.equal(painted(pipe, applied.prompt), without)


def test_a_word_of_sdxl_has_vectors_for_both_encoders(tmp_path: Path) -> None:
    home = pictures(tmp_path)
    for file in home.glob("*/*.txt"):
        file.write_text("a zq", encoding="utf-8")
    told = config(tmp_path, token_string="zq", max_train_steps=1, train_unet=False, **QUICK)
    tensors = load_file(train(pipeline("sdxl"), told).path)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "bundle_emb.zq.clip_l": (1, 12),
        "bundle_emb.zq.clip_g": (1, 8),
    }


REFUSED = [
    ("small", {"token_string": "zq"}, r"token_string zq: no caption has the word"),
    ("small", {"token_string": "a"}, r"token_string a: the tokenizer has that word already"),
    ("flux", {"token_string": "zq"}, r"FluxPipeline can learn no word; SD1, SD2 and SDXL can"),
    ("small", {"optimizer_type": "Adam", "optimizer_args": (("speed", 1),)}, r"optimizer_type Adam with .*speed"),
    ("small", {"network_module": "loha", "quantize": "nf4"}, r"loha on a quantised model: PEFT has none"),
    ("small", {"learning_rate": 1e30, "max_grad_norm": 0.0}, r"step \d: the loss is (nan|inf); give a lower"),
]


@pytest.mark.parametrize(("kind", "over", "message"), REFUSED, ids=lambda value: str(value)[:25])
def test_what_cannot_be_is_refused_in_one_line(kind: str, over: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train(pipeline(kind), config(tmp_path, **{**QUICK, **over}))
    assert not (tmp_path / "out" / "dot.safetensors").exists()


def test_what_is_encoded_is_kept_on_the_disk_by_content_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    pipe = pipeline("small")
    in_memory = load_file(train(pipe, config(tmp_path, **QUICK)).path)
    out = tmp_path / "kept"
    for _ in range(2):
        told = config(tmp_path, output_dir=out, cache_latents_to_disk=True, **QUICK)
        on_disk = load_file(train(pipe, told, force=True).path)
        assert all(torch.equal(on_disk[key], tensor) for key, tensor in in_memory.items())
        # Three pictures and their captions.
        names = {path.name for path in (out / "encoded").iterdir()}
        assert len(names) == 6
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(0.1)
    train(pipe, told, force=True)
    again = {path.name for path in (out / "encoded").iterdir()}
    assert names < again
    assert len(again) == 9


def test_sides_that_a_model_cannot_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_runtime.train.models.base.Model.step", 64)
    with pytest.raises(TrainingError, match=r"shown at 32 × 32, and this model's sides are multiples of 64: give such"):
        train(pipeline("small"), config(tmp_path))


def test_a_pipeline_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Linear: no such pipeline can be trained; there are Stable"):
        train(nn.Linear(1, 1), config(tmp_path))


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one(tmp_path: Path) -> None:
    pictures(tmp_path)
    # Three rows a batch: the second process has one of them, and none of the last batch of one.
    over = {"train_batch_size": 3, "max_train_steps": 5, "sample_prompts": ["a --s 1"], "train_text_encoder": True}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(folder: str, more: dict[str, str]) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            **more,
        }
        told = json.dumps({**over, "output_dir": folder})
        command = [sys.executable, "-W", "ignore", "-m", "train.one_run", str(tmp_path), told]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)

    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [start("two", {**group, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    alone = start("one", {}).communicate(timeout=300)[0]
    losses = [[json.loads(line)[1] for line in output.splitlines()] for output in (*outputs, alone)]
    assert len(losses[2]) == 5
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    one, two = (load_file(tmp_path / folder / "dot.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-4)
