"""The embedded pipeline paints, and its LoRAs change what it paints the more the stronger they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import lora_runtime
from lora_runtime.demo import sheet
from lora_runtime.demo.scene_pipeline import LORAS, PIPELINE, load_pipeline, paint

PROMPTS, SEEDS = ["a red circle", "a house by the sea under a sun"], [4, 2]
NAMES = sorted(path.stem for path in LORAS.glob("*.safetensors"))
STEPS = 8

Pictures = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


def pictures(pipe: Any, tags: str, prompts: list[str] = PROMPTS) -> Pictures:
    """Return the painted prompts with these tags, values from 0 to 255."""
    with lora_runtime.apply(pipe, [prompt + tags for prompt in prompts], loras=LORAS, strict=True) as applied:
        painted = paint(pipe, applied.prompt, seeds=SEEDS[: len(prompts)], steps=STEPS)
    return np.stack([np.asarray(picture, dtype=np.float64) for picture in painted])


def distance(one: Pictures, other: Pictures) -> float:
    """Return the mean absolute difference of pixels, 0 to 255."""
    return float(np.abs(one - other).mean())


def test_everything_embedded_is_at_most_8_mb_of_safetensors() -> None:
    files = [path for folder in (PIPELINE, LORAS) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".png"}  # the cards' pictures


def test_there_are_four_loras_or_more_and_one_changes_the_text_encoder() -> None:
    assert len(NAMES) >= 4
    loras = [lora_runtime.load_lora(LORAS / f"{name}.safetensors") for name in NAMES]
    assert any(stem.startswith("lora_te_") for lora in loras for stem in lora.adapters)
    assert all(not lora.unused for lora in loras)


def test_a_seed_gives_the_same_picture_alone_and_in_a_batch(pipe: Any) -> None:
    assert distance(pictures(pipe, ""), np.concatenate([pictures(pipe, "", PROMPTS[:1]), pictures(pipe, "")[1:]])) < 1


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_effect_grows_with_strength(pipe: Any, name: str) -> None:
    plain = pictures(pipe, "")
    effects = [distance(pictures(pipe, f"<lora:{name}:{strength}>"), plain) for strength in (0.4, 0.8, 1.2)]
    assert 2 < effects[0] < effects[1] < effects[2]


def test_two_loras_together_show_both(pipe: Any) -> None:
    plain, outline, night = (pictures(pipe, tags) for tags in ("", "<lora:outline:0.8>", "<lora:night:0.8>"))
    both = pictures(pipe, "<lora:outline:0.8><lora:night:0.8>")
    assert both.mean() < outline.mean() - 20  # night darkens the outlined picture too
    assert distance(both, night) > 0.5 * distance(outline, plain)  # and the outlines show in the night


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NAMES)
def test_diffusers_paints_the_same_with_these_files(pipe: Any, name: str) -> None:
    ours = pictures(pipe, f"<lora:{name}:0.8>")
    judge = load_pipeline()
    judge.load_lora_weights(LORAS / f"{name}.safetensors", adapter_name=name)
    judge.set_adapters([name], [0.8])
    theirs = paint(judge, PROMPTS, seeds=SEEDS, steps=STEPS)
    # diffusers adds the delta to the activations, ours is in the weight: the same up to float32 rounding.
    assert distance(ours, np.stack([np.asarray(picture, dtype=np.float64) for picture in theirs])) < 0.05


@pytest.mark.slow
def test_the_sheet_has_a_picture_for_each_prompt_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pipe: Any
) -> None:
    monkeypatch.setattr(sheet, "load_pipeline", lambda: pipe)
    monkeypatch.setattr(sheet, "ROWS", sheet.ROWS[:2])
    monkeypatch.setattr(sheet, "STRENGTHS", (0.8,))
    path = sheet.main(out=str(tmp_path / "new" / "sheet.png"))
    said = capsys.readouterr().out
    columns = 1 + len(NAMES) + len(sheet.TOGETHER)
    with Image.open(path) as picture:
        assert picture.width >= columns * 96
        assert picture.height >= 2 * 96
    assert f"/{columns}] " in said
    assert "every weight is bit for bit what it was" in said
    assert str(path.resolve()) in said


def test_the_sheet_says_when_a_weight_was_left_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: Any
) -> None:
    hashes = iter(["before", "after"])
    monkeypatch.setattr(sheet, "load_pipeline", lambda: pipe)
    monkeypatch.setattr(sheet, "paint_sheet", lambda *_: Image.new("RGB", (1, 1)))
    monkeypatch.setattr(sheet, "weights_hash", lambda _: next(hashes))
    with pytest.raises(lora_runtime.ModelError, match="not what they were"):
        sheet.main(out=str(tmp_path / "sheet.png"))


def test_the_hash_of_the_weights_sees_a_single_bit(pipe: Any) -> None:
    before = sheet.weights_hash(pipe)
    weight = pipe.unet.conv_in.weight.data.view(-1)
    value = weight[0].clone()
    weight[0] = torch.nextafter(value, torch.tensor(9.0))
    assert sheet.weights_hash(pipe) != before
    weight[0] = value
    assert sheet.weights_hash(pipe) == before


def test_the_pipeline_loads_in_half_precision() -> None:
    assert load_pipeline(dtype=torch.float16).unet.dtype == torch.float16
