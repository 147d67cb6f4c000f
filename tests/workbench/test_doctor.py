"""`doctor`: each thing that is odd about a file is found, and nothing about one that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from adapters.judge import rand
from commands import Command
from torch import Tensor
from workbench.files import CONV_IN, TO_K, TO_Q, factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.workbench import Finding, doctor

GOOD = factors(TO_Q) | factors(CONV_IN) | factors(TO_K)
META = {"ss_base_model_version": "sd_v1", "ss_network_dim": "4"}


def found(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> list[Finding]:
    return [*doctor(written(tmp_path / "a.safetensors", tensors, META | (metadata or {}))).findings]


def test_a_file_without_a_flaw_has_no_findings(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", GOOD, META)
    diagnosis = doctor(path)
    assert diagnosis.findings == ()
    assert (diagnosis.healthy, diagnosis.modules) == (True, 3)
    total = 0.0
    for stem in (TO_Q, CONV_IN, TO_K):
        up, down = (GOOD[f"{stem}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
        total += float((up @ down * 3 / 4).square().sum())
    assert diagnosis.norm == pytest.approx(total**0.5, rel=1e-9)


def test_nan_and_unknown_keys_are_errors(tmp_path: Path) -> None:
    bad = {key: tensor.clone() for key, tensor in GOOD.items()}
    bad[f"{TO_Q}.lora_up.weight"][0, 0] = float("nan")
    bad["odd.key"] = rand(2)
    findings = found(tmp_path, bad)
    assert {f.severity for f in findings if "cannot be used" in f.what} == {"error"}
    assert any("NaN or infinity" in f.what and f"{TO_Q}.lora_up.weight" in f.where for f in findings)
    assert Finding("error", "cannot be used: no adapter has keys with this ending", ("odd.key",)) in findings


@pytest.mark.parametrize(
    ("alpha", "finding"),
    [
        (0.0, Finding("error", "its alpha is 0, so that it changes nothing", (TO_K,))),
        (-2.0, Finding("warning", "its alpha is negative, so that it acts against what was trained", (TO_K,))),
        (None, Finding("warning", "has no alpha, where other modules of the file have one: its scale is 1", (TO_K,))),
    ],
)
def test_odd_alphas_are_found(alpha: float | None, finding: Finding, tmp_path: Path) -> None:
    tensors = factors(TO_Q) | factors(CONV_IN) | factors(TO_K, alpha=alpha)
    assert finding in found(tmp_path, tensors)


def test_no_alpha_at_all_is_only_a_note(tmp_path: Path) -> None:
    (note,) = found(tmp_path, factors(TO_Q, alpha=None) | factors(TO_K, alpha=None))
    assert (note.severity, note.what) == ("note", "no module has an alpha: all scales are 1")


def test_norms_far_from_the_others_and_zeros_are_found(tmp_path: Path) -> None:
    tensors = {key: tensor.clone() for key, tensor in GOOD.items()}
    for index, scale in enumerate((1.0, 1000.0, 0.001, 0.0)):
        stem = f"lora_unet_mid_block_{index}"
        tensors |= factors(stem, shape=torch.Size((12, 20)))
        tensors[f"{stem}.lora_up.weight"] *= scale
    findings = {f.what.partition(" the median")[0]: f for f in found(tmp_path, tensors)}
    assert findings["its ‖Δ‖ is more than 30 times"].where == ("lora_unet_mid_block_1",)
    assert findings["its ‖Δ‖ is less than a 30th of"].where == ("lora_unet_mid_block_2",)
    assert findings["its change is exactly zero"].where == ("lora_unet_mid_block_3",)


def test_ranks_that_are_idle_or_not_what_is_said_are_found(tmp_path: Path) -> None:
    tensors = {key: tensor.clone() for key, tensor in GOOD.items()}
    tensors[f"{TO_Q}.lora_down.weight"][3] = tensors[f"{TO_Q}.lora_down.weight"][0]
    findings = found(tmp_path, tensors, {"ss_network_dim": "16"})
    assert Finding("note", "some of its ranks are not used: resize would lose nothing", (TO_Q,)) in findings
    assert Finding("warning", "its metadata say rank 16 (ss_network_dim), and its tensors have 4") in findings


def test_a_copy_under_another_name_is_found_whatever_its_metadata(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", GOOD, META)
    written(tmp_path / "copy.safetensors", GOOD, META | {"ss_output_name": "renamed"})
    written(tmp_path / "other.safetensors", {key: tensor + 1 for key, tensor in GOOD.items()}, META)
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    assert doctor(path).findings == (
        Finding("warning", "has the same tensors under another name", ("copy.safetensors",)),
    )
    (tmp_path / "elsewhere").mkdir()
    assert doctor(path, folder=tmp_path / "elsewhere").findings == ()


def test_names_and_shapes_that_a_model_does_not_have_are_found(tmp_path: Path) -> None:
    pipe = tiny.unet()
    pipe.save_pretrained(tmp_path / "unet")
    tiny.write_kohya_lora(
        tmp_path / "a.safetensors", pipe, components=["unet"], metadata=META | {"ss_network_dim": "2"}
    )
    assert doctor(tmp_path / "a.safetensors", model=tmp_path / "unet").healthy
    findings = doctor(written(tmp_path / "b.safetensors", GOOD, META), model=tmp_path / "unet").findings
    assert all(f.severity == "error" for f in findings)
    assert any(
        f.where == (CONV_IN,) and "made for (10, 4, 3, 3), the weight is (4, 4, 3, 3)" in f.what for f in findings
    )
    shutil.rmtree(tmp_path / "unet")
    with pytest.raises(LoraFileError, match="no such file or folder"):
        doctor(tmp_path / "a.safetensors", model=tmp_path / "unet")


def test_other_algorithms_are_said_not_to_be_looked_at(tmp_path: Path) -> None:
    tensors = GOOD | {"lora_unet_x.diff": rand(3, 3)}
    assert found(tmp_path, tensors) == [Finding("note", "norms and ranks of full were not looked at: no factors")]


def test_the_command_prints_what_it_found(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", GOOD, META)
    good = command("doctor", path)
    assert (good.status, good.out.splitlines()[1:]) == (0, ["  nothing odd"])
    written(path, GOOD | {"odd": rand(2)}, META)
    bad = command("doctor", path)
    assert bad.status == 1
    assert bad.out.splitlines()[1] == "  error: cannot be used: no adapter has keys with this ending (1: odd)"
    assert json.loads(command("doctor", path, "--json").out)["healthy"] is False
