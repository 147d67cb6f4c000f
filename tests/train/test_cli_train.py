"""`lora-runtime train`: from a folder of a model and one of pictures to a file, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from train.runs import pictures, small

from lora_runtime.cli import main


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_runtime.train.file.loss_curve", lambda losses, path: True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small().save_pretrained(folder)
    return folder


TOML = """
[network]
network_module = "networks.lora"
network_dim = 3
network_alpha = 1
[training]
resolution = "32,32"
enable_bucket = false
max_train_steps = 5
learning_rate = 1e-2
lora_secret = 3
sample_prompts = "a dot <lora:dot:1> --s 1"
"""


def test_a_file_comes_out_and_it_is_said_what_is_not_known(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.toml").write_text(TOML, encoding="utf-8")
    out = tmp_path / "outputs" / "dot.safetensors"
    line = ["train", "--model", str(model), "--data", str(pictures(tmp_path)), "--out", str(out)]
    line += ["--config", str(tmp_path / "train.toml"), "--set", "max_train_steps=2", "--set", "save_precision=float"]
    assert main(line) == 0
    said = capsys.readouterr()
    assert "lora_secret" in said.err
    assert "2/2" in said.err
    assert "loss=" in said.err
    assert f"{out}: " in said.out
    assert "2 steps, loss " in said.out
    assert "<lora:dot:1>" in said.out
    ranks = {tensor.shape[0] for key, tensor in load_file(out).items() if key.endswith("lora_down.weight")}
    assert ranks == {3}
    assert out.with_suffix(".png").exists()
    assert main(line) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out", "a.bin"], "--out a.bin: give a name that ends in .safetensors"),
        (["--set", "network_dim"], "--set network_dim: write NAME=VALUE, such as network_dim=16"),
        (["--set", "network_dim=[1"], "--set network_dim=[1: "),
        (["--set", "network_dim=0"], "network_dim = 0 cannot be"),
        (["--model", "nowhere"], "the model 'nowhere' does not exist"),
        (["--config", "nowhere.toml"], "nowhere.toml: the configuration cannot be read"),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(
    more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(pictures(tmp_path)), "--out", "dot.safetensors", *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"lora-runtime: error: {message}")


def test_stopping_says_what_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dot.safetensors"
    line = ["train", "--model", str(model), "--data", str(pictures(tmp_path)), "--out", str(out)]
    for told in ("resolution=32", "enable_bucket=false", "max_train_steps=3", "save_every_n_steps=1", "network_dim=2"):
        line += ["--set", told]
    line += ["--set", 'sample_prompts=["a --s 1"]']

    def stop(loss: float, number: int, config: object) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lora_runtime.train.loop.check_finite", stop)
        assert main(line) == 130
    assert f"{out.with_suffix('.state')} is kept: --resume goes on from it" in capsys.readouterr().err
    assert main(line) == 2
    assert "a broken run left its state: --resume goes on from it" in capsys.readouterr().err
    assert main([*line, "--resume"]) == 0
    assert out.exists()
    assert not out.with_suffix(".state").exists()


def test_single_files_need_a_configuration_and_say_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    keys = {
        "sd1": ("cond_stage_model.transformer.a", "stable-diffusion-v1-5"),
        "xl": ("conditioner.embedders.1.a", "xl-base"),
    }
    for name, (key, repository) in keys.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({key: torch.zeros(1)}, path)
        assert (
            main(["train", "--model", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "a.safetensors")])
            == 2
        )
        said = capsys.readouterr().err
        assert "cannot be loaded" in said
        assert repository in said
        assert "name a folder of such a model beside the file" in said
    path = tmp_path / "other.safetensors"
    save_file({"some.key": torch.zeros(1)}, path)
    assert main(["train", "--model", str(path), "--data", str(tmp_path)]) == 2
    assert "is no checkpoint of SD1, SD2, SDXL, SD3 or Flux" in capsys.readouterr().err
