"""A changed weight that its dtype cannot hold costs the tag that asks for it, and is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lora_runtime
from lora_runtime.errors import StrengthError
from lora_runtime.merge import Term, merge_into

UP, DOWN = torch.ones(4, 2), torch.ones(2, 4)


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.to(dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, layer in (("strong", "one"), ("mild", "two")):
        save_file({f"{layer}.lora_B.weight": UP, f"{layer}.lora_A.weight": DOWN}, tmp_path / f"{name}.safetensors")
    save_file({"one.diff": torch.full((4, 4), 2.0)}, tmp_path / "dense.safetensors")
    save_file({"one.lora_B.weight": UP / 2, "one.lora_A.weight": DOWN}, tmp_path / "beside.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["strong", "dense"])
@pytest.mark.parametrize("originals", ["device", "host"])
def test_what_float16_cannot_hold_is_said_and_the_weight_stays(name: str, originals: str, folder: Path) -> None:
    model = Net(torch.float16)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    text = f"<lora:{name}:40000> <lora:mild:0.5> <lora:beside:1>"
    applied = lora_runtime.apply(model, text, loras=folder, originals=originals)  # type: ignore[arg-type]
    (said,) = applied.diagnostics
    assert said.severity == "error"
    assert said.message == (
        f'LoRA "{name}": model.one would be beyond 65504, the most that torch.float16 can hold, at strength 40000: '
        "use a lower strength"
    )
    assert text[slice(*said.span)] == f"<lora:{name}:40000>"
    assert torch.equal(model.one.weight, (before[0].float() + 1).half())  # what "beside" asks for
    assert torch.equal(model.two.weight, (before[1].float() + 1).half())
    assert {line.name for line in applied.report.loras} == {"mild", "beside"}
    applied.restore()
    assert all(torch.equal(parameter, value) for parameter, value in zip(model.parameters(), before, strict=True))


def test_strict_raises_and_leaves_the_model_as_it_was(folder: Path) -> None:
    model = Net(torch.float16)
    before = model.one.weight.detach().clone()
    with pytest.raises(StrengthError, match="at strength 40000: use a lower strength"):
        lora_runtime.apply(model, "<lora:strong:40000>", loras=folder, strict=True)
    assert torch.equal(model.one.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_other_dtypes_cannot_hold_is_said_too(dtype: torch.dtype, folder: Path) -> None:
    model = Net(dtype)
    before = model.one.weight.detach().clone()
    applied = lora_runtime.apply(model, "<lora:strong:3e38>", loras=folder)
    assert "can hold, at strength 3e+38" in applied.diagnostics[0].message
    assert torch.equal(model.one.weight, before)


def test_the_largest_that_float16_holds_is_bound(folder: Path) -> None:
    model = Net(torch.float16)
    applied = lora_runtime.apply(model, "<lora:strong:32751>", loras=folder)
    assert applied.diagnostics == ()
    assert torch.isfinite(model.one.weight).all()


@pytest.mark.parametrize("change", [15.9, 65504.0])
def test_the_bound_of_a_change_lets_no_overflow_through(change: float) -> None:
    from lora_runtime.adapters.difference import Difference

    weight, out = torch.full((4, 4), 65504.0, dtype=torch.float16), torch.empty(4, 4, dtype=torch.float16)
    adapter = Difference(torch.full((4, 4), change), ("x",))
    if change < 16:
        merge_into(out, weight, [Term(adapter, 1.0)])
        assert torch.equal(out, weight)
    else:
        with pytest.raises(OverflowError, match="65504"):
            merge_into(out, weight, [Term(adapter, 1.0)])
