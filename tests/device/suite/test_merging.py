"""The arithmetic on the device, against the same on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from device.pretend import Pretend
from formula import random_terms
from torch import nn

import lora_runtime
from benchmarks.judges import JUDGES, Judge, judged
from lora_runtime.merge import Term, merge_into
from lora_runtime.uploads import Sent, Uploads

WANTED = [torch.float32, torch.float16, torch.bfloat16]
# Operations that some backend does not have.
LACKS = ["_linalg_solve_ex", "linalg_solve_triangular", "_fft_c2c", "linalg_vector_norm", "index_add", "bmm"]


def merged(weight: torch.Tensor, terms: list[Term]) -> torch.Tensor:
    """Return W′ on the weight's device."""
    out = torch.empty_like(weight)
    merge_into(out, weight, terms)
    return out


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.name)
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_every_adapter_makes_the_bits_that_it_makes_on_the_cpu(
    pretend: Pretend, tmp_path: Path, judge: Judge, layer: str
) -> None:
    if layer == "convolution" and not judge.convolutions:
        pytest.skip("not for convolutions")
    torch.manual_seed(0)
    made = judged(judge, nn.Linear(128, 64) if layer == "linear" else nn.Conv2d(32, 48, 3), tmp_path)
    if made is None:
        pytest.skip("not written by the installed version of its library")
    terms = [Term(adapter, 0.7) for adapter in made.adapters]
    for dtype in WANTED:
        weight = made.weight.to(dtype)
        with pretend.logged() as log:
            result = merged(weight.to(pretend.device), terms)
        assert log.kinds["d2h"] == 0
        assert torch.equal(result.cpu(), merged(weight, terms)), dtype
    weight = made.weight.to(pretend.device)
    uploads = Uploads(Sent(), {pretend.device: None})
    sent, _ = uploads.send([each.for_shape(weight.shape) for each in made.adapters], pretend.device, torch.float32)
    uploads.wait()
    with pretend.logged() as log:
        result = merged(weight, [Term(upload.adapter, 0.7) for upload in sent])
    assert log.kinds["h2d"] + log.kinds["h2d async"] == 0
    assert torch.equal(result.cpu(), merged(made.weight, terms))


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.name)
def test_what_a_device_cannot_compute_is_computed_on_the_cpu(pretend: Pretend, tmp_path: Path, judge: Judge) -> None:
    pretend.lack(*(f"aten::{operation}" for operation in LACKS))
    torch.manual_seed(0)
    made = judged(judge, nn.Linear(128, 64), tmp_path)
    if made is None:
        pytest.skip("not written by the installed version of its library")
    terms = [Term(adapter, 0.7) for adapter in made.adapters]
    weight = made.weight.bfloat16()
    assert torch.equal(merged(weight.to(pretend.device), terms).cpu(), merged(weight, terms))


def test_a_device_without_autocast_merges(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.pretend, "get_amp_supported_dtype")  # type: ignore[attr-defined]
    weight = torch.ones(16, 16)
    terms = random_terms(2, weight.shape)
    assert torch.equal(merged(weight.to(pretend.device), terms).cpu(), merged(weight, terms))


def test_a_model_without_an_operation_shows_all_tags(pretend: Pretend, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32)).requires_grad_(False)
    save_file({"0.oft_blocks": torch.randn(2, 16, 16) * 0.1}, tmp_path / "oft.safetensors")
    low_rank = {"0.lora_A.weight": torch.randn(4, 64), "0.lora_B.weight": torch.randn(32, 4)}
    save_file(low_rank, tmp_path / "low.safetensors")
    with lora_runtime.apply(model, "<lora:oft><lora:low>", loras=tmp_path):
        expected = model[0].weight.clone()
    model.to(pretend.device)
    pretend.lack("aten::_linalg_solve_ex")
    with lora_runtime.apply(model, "<lora:oft><lora:low>", loras=tmp_path):
        assert torch.equal(model[0].weight.cpu(), expected)
