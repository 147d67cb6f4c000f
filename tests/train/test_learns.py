"""It learns: the embedded pipeline paints a concept that it has never seen, and more so than with other captions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lora_runtime
from lora_runtime.demo.scene_pipeline import load_pipeline, paint
from lora_runtime.train import Config, train

FOLDER = next((Path(__file__).resolve().parents[2] / "training" / "pictures").iterdir())
SHOWN = 6  # pictures that are painted again by their captions


def learnt(folder: Path, out: Path, pipe: Any) -> None:
    told = Config(
        train_data_dir=folder,
        output_dir=out,
        output_name="concept",
        resolution=(48, 48),
        enable_bucket=False,
        network_dim=8,
        network_alpha=8.0,
        learning_rate=4e-3,
        lr_warmup_steps=5,
        train_text_encoder=True,
        train_batch_size=12,
        max_train_steps=80,
        sample_prompts=("a robot --s 1",),
        seed=1,
    )
    train(pipe, told)


def distance(pipe: Any, captions: list[str], pictures: list[Image.Image], loras: Path | None) -> float:
    """Return how far what is painted by captions is from their pictures: the mean of 12 × 12 fields, 0 to 255."""
    tag = "<lora:concept:1>" if loras else ""
    with lora_runtime.apply(pipe, [caption + tag for caption in captions], loras=loras) as applied:
        painted = paint(pipe, applied.prompt, seeds=range(len(captions)), steps=10)
    pairs = zip(painted, pictures, strict=True)
    return float(np.mean([np.abs(fields(one) - fields(other)).mean() for one, other in pairs]))


def fields(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("RGB").resize((12, 12), Image.Resampling.BOX), dtype=np.float64)


@pytest.mark.slow
def test_a_new_concept_is_learnt_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_runtime.train.file.loss_curve", lambda losses, path: True)
    files = sorted(FOLDER.glob("*.png"))
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    pictures = [Image.open(file).convert("RGB") for file in files]
    shuffled = tmp_path / "shuffled" / FOLDER.name
    shuffled.mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.copy(file, shuffled)
        other = captions[(number + 7) % len(captions)]
        (shuffled / f"{file.stem}.txt").write_text(other, encoding="utf-8")
    pipe = load_pipeline()
    learnt(FOLDER.parent, tmp_path / "own", pipe)
    learnt(shuffled.parent, tmp_path / "others", pipe)
    without, own, others = (
        distance(pipe, captions[:SHOWN], pictures[:SHOWN], folder)
        for folder in (None, tmp_path / "own", tmp_path / "others")
    )
    print(f"without {without:.1f}, trained {own:.1f}, on shuffled captions {others:.1f}")
    assert own < 0.8 * without
    assert own < 0.8 * others
