"""What a run leaves behind: the file as other tools read it, the pictures beside it, and what is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train.runs import config, pipeline

import lora_runtime
from lora_runtime.train import charts, train
from lora_runtime.train.samples import Wish, read_wish


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata())


def test_a_run_leaves_a_file_a_preview_samples_a_sheet_and_a_curve(tmp_path: Path) -> None:
    pipe = pipeline("small")
    told = config(tmp_path, sample_every_n_steps=2, sample_prompts=("a dot <lora:dot:1> --s 1", "b --s 1 --w 48"))
    trained = train(pipe, told)
    out = told.output_dir
    names = {"dot.safetensors", "dot.png", "dot.json", "dot-samples.png", "dot-loss.png", "sample"}
    assert {path.name for path in out.iterdir()} == names
    samples = sorted(path.name for path in (out / "sample").iterdir())
    assert samples == ["dot-000002-0.png", "dot-000002-1.png", "dot-000004-0.png", "dot-000004-1.png"]
    with Image.open(out / "sample" / "dot-000004-1.png") as second, Image.open(out / "dot.png") as preview:
        assert second.size == (48, 32)
        assert preview.size == (32, 32)
    # The preview is what anyone paints with the file afterwards, to the pixel.
    with lora_runtime.apply(pipe, "a dot <lora:dot:1>", loras=out, strict=True) as applied:
        generator = torch.Generator("cpu").manual_seed(told.seed)
        again = pipe(applied.prompt, num_inference_steps=1, width=32, height=32, generator=generator).images[0]
    with Image.open(out / "dot.png") as preview:
        assert again.tobytes() == preview.convert("RGB").tobytes()
    assert json.loads((out / "dot.json").read_text(encoding="utf-8")) == {"activation text": "dot"}
    assert trained.steps == len(trained.losses) == 4
    assert trained.notes == ()


def test_the_metadata_says_what_kohyas_tools_and_ours_read(tmp_path: Path) -> None:
    model = tmp_path / "base.safetensors"
    save_file({"a": torch.zeros(2)}, model)
    told = config(tmp_path, pretrained_model_name_or_path=str(model), sample_prompts=("a --s 1",), save_every_n_steps=2)
    trained = train(pipeline("small"), told)
    said = metadata_of(trained.path)
    assert (said["ss_network_dim"], float(said["ss_network_alpha"])) == ("2", 1.0)
    assert (said["ss_steps"], said["ss_max_train_steps"], said["ss_epoch"]) == ("4", "4", "2")
    assert json.loads(said["ss_tag_frequency"]) == {"2_dot": {"a dot a": 1, "a dot b": 1, "a dot c": 1}}
    assert said["ss_sd_model_name"] == "base.safetensors"
    assert said["ss_new_sd_model_hash"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert len(said["sshs_model_hash"]) == 64
    assert metadata_of(trained.path.with_stem("dot-000002"))["ss_steps"] == "2"
    assert lora_runtime.load_lora(trained.path).metadata["ss_output_name"] == "dot"


def test_the_tests_of_the_webui_show_a_file_with_this_metadata(tmp_path: Path) -> None:
    shown = json.loads((Path(__file__).parents[1] / "double" / "trained.json").read_text(encoding="utf-8"))
    pipe = pipeline("sd1")
    told = config(tmp_path, train_text_encoder=True, max_train_steps=1, sample_prompts=("a --s 1",))
    found = metadata_of(train(pipe, told).path)
    assert found.keys() == shown.keys()
    changing = {key for key in found if "hash" in key or key.endswith(("_at", ".date"))}
    assert {key: found[key] for key in found.keys() - changing} == {key: shown[key] for key in shown.keys() - changing}


def test_a_file_is_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        told = config(tmp_path, output_name=name, save_precision=name, max_train_steps=1, sample_prompts=("a --s 1",))
        tensors = load_file(train(pipeline("small"), told).path)
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_samples_that_cannot_be_painted_cost_no_run(tmp_path: Path) -> None:
    told = config(tmp_path, max_train_steps=1, sample_prompts=("a --w 31 --s 1",))
    trained = train(pipeline("small"), told)
    assert trained.path.exists()
    assert any(note.startswith("no samples: ") and "31" in note for note in trained.notes)


def test_a_tag_of_a_sample_that_nobody_has_is_said(tmp_path: Path) -> None:
    told = config(tmp_path, max_train_steps=1, sample_prompts=("a <lora:other:1> --s 1",))
    notes = train(pipeline("small"), told).notes
    assert any(note.startswith("samples: ") and "other" in note for note in notes)


LINES = [
    ("a robot <lora:robot:0.8>", Wish("a robot <lora:robot:0.8>", "", 32, 48, 7)),
    # sd-scripts' documentation of --sample_prompts
    (
        "(masterpiece), 1girl --n low quality, bad anatomy --w 768 --h 640 --d 1 --l 7.5 --s 28",
        Wish("(masterpiece), 1girl", "low quality, bad anatomy", 768, 640, 1, 28, 7.5),
    ),
    ("a well-made --thing --d 3", Wish("a well-made --thing", "", 32, 48, 3)),
]


@pytest.mark.parametrize(("line", "wish"), LINES, ids=["plain", "kohya", "dashes"])
def test_a_line_of_a_sample_is_read_as_kohyas(line: str, wish: Wish) -> None:
    assert read_wish(line, (32, 48), 7) == wish


def test_a_line_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(lora_runtime.LoraError, match=r"sample_prompts 'a --w wide': .* take whole numbers"):
        train(pipeline("small"), config(tmp_path, sample_prompts=("a --w wide",)))


def test_the_running_mean_is_that_of_the_formula() -> None:
    losses = [1.0, 3.0, 2.0]
    # Σ 0.95^(n−i)·x_i / Σ 0.95^(n−i)
    for n, found in enumerate(charts.running_mean(losses)):
        weights = [0.95 ** (n - i) for i in range(n + 1)]
        assert found == pytest.approx(sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights))


def test_without_matplotlib_there_is_no_curve_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", missing)
    told = config(tmp_path, max_train_steps=1, sample_prompts=("a --s 1",))
    trained = train(pipeline("small"), told)
    assert not (told.output_dir / "dot-loss.png").exists()
    assert trained.notes == ("no curve of the loss: matplotlib is not installed",)
