"""GLoRA as PEFT saves it: its own merge says what is right, and the weight beside a bias is the original one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
from adapters.peft_judge import LINEAR, WRAPPER, Plain, check, folder, wrapped
from torch import Tensor

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.errors import CorruptFileError
from lora_runtime.lora import outline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

CONFIGS = {
    "products": {},
    "vectors": {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
    "numbers": {"config_A_B": "constant"},
    "a weight without its bias": {"config_C": "none", "config_D_E": "none"},
    "a bias without its weight": {"config_A_B": "none"},
    "a bias of itself": {"config_C": "none", "config_D_E": "vector"},
    "a bias of the weight": {"config_C": "lora", "config_D_E": "none"},
}


def saved(path: Path, seed: int = 1, **options: Any) -> dict[str, Tensor]:
    """Let PEFT save a GLoRA, and return the weights that PEFT merges."""
    tuned = wrapped(Plain(), peft.GloraConfig(r=2, target_modules=LINEAR, **options))
    torch.manual_seed(seed)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.5
    tuned.save_pretrained(str(path))
    return dict(tuned.merge_and_unload().state_dict())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_are_those_that_peft_merges(name: str, tmp_path: Path) -> None:
    options = CONFIGS[name]
    merged = saved(tmp_path / "style", **options)
    own = Plain().state_dict()
    check(Plain(), merged, tmp_path, {key for key in own if not torch.equal(own[key], merged[key])})
    whole, found = load_lora(tmp_path / "style"), outline(tmp_path / "style")
    assert {stem: [type(one) for one in made] for stem, made in found.adapters.items()} == {
        stem: [type(one) for one in made] for stem, made in whole.adapters.items()
    }


@pytest.mark.parametrize("originals", ["device", "host"])
def test_two_files_and_a_second_apply_see_the_original_weight(
    originals: Literal["device", "host"], tmp_path: Path
) -> None:
    own = Plain().state_dict()
    merged = [saved(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    model = Plain()
    lora_runtime.apply(model, "<lora:a:1>", loras=tmp_path, originals=originals)
    applied = lora_runtime.apply(model, "<lora:a:0.5><lora:b:0.25>", loras=tmp_path, originals=originals)
    for key, value in model.state_dict().items():
        expected = own[key] + 0.5 * (merged[0][key] - own[key]) + 0.25 * (merged[1][key] - own[key])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    applied.restore()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_a_weight_that_is_loaded_anew_changes_the_bias_beside_it(tmp_path: Path) -> None:
    saved(tmp_path / "style")
    model, fresh = Plain(), Plain()
    lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path)
    with torch.no_grad():
        model.first.weight.copy_(fresh.first.weight * 2)
        fresh.first.weight.mul_(2)
    for changed in (model, fresh):
        lora_runtime.apply(changed, "<lora:style:1>", loras=tmp_path)
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())


def test_an_adapter_that_needs_no_weight_beside_it_stays_itself(tmp_path: Path) -> None:
    lora = load_lora(folder(tmp_path / "style", None, {"beft_bias": torch.ones(1, 12)}))
    (adapter,) = lora.adapters[f"{WRAPPER}first"]
    assert not adapter.needs_weight
    assert adapter.given((Plain().first.weight,)) is adapter


def glora(**paths: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a GLoRA of numbers, in which A_X is that of A."""
    whole = {f"{letter}_X": torch.ones(1) for letter in "ABDE"} | {"C_X": torch.ones(8, 1)}
    for name in paths:
        whole = {known: value for known, value in whole.items() if known[0] != name[0]}
    return {f"glora_{name.replace('_', '.')}": value for name, value in (whole | paths).items()}


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "a product": (
        glora(A_Xd=torch.ones(12, 2), A_Xu=torch.ones(2, 7)),
        r"made for \(12, 7\), the weight is \(12, 8\)",
    ),
    "a vector": (glora(B_X=torch.ones(11, 1)), r"made for \(11, 1\), the weight is \(12, 8\)"),
    "a column": (glora(C_X=torch.ones(7, 1)), r"made for 7 inputs, the weight is \(12, 8\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_shape_is_no_fit(name: str, tmp_path: Path) -> None:
    tensors, reason = WRONG[name]
    folder(tmp_path / "style", {"peft_type": "GLORA"}, tensors)
    model = Plain()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    applied = lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path)
    assert applied.report.loras[0].used == 0
    assert all(re.search(reason, found) for found in applied.report.loras[0].unused.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_bias_of_another_length_is_no_fit(tmp_path: Path) -> None:
    folder(tmp_path / "style", {"peft_type": "GLORA"}, glora(D_X=torch.ones(11)))
    unused = lora_runtime.apply(Plain(), "<lora:style:1>", loras=tmp_path).report.loras[0].unused
    assert dict.fromkeys((f"{WRAPPER}first.glora_{path}.X" for path in "CDE"), "") == dict.fromkeys(unused, "")
    assert set(unused.values()) == {"made for 11 outputs, the bias is (12,)"}


BROKEN: dict[str, tuple[dict[str, Tensor], str]] = {
    "half a product": (glora(A_Xd=torch.ones(12, 2)), "the path A is neither"),
    "ranks that differ": (glora(A_Xd=torch.ones(12, 2), A_Xu=torch.ones(3, 8)), "the path A is neither"),
    "a cube": (glora(B_X=torch.ones(2, 2, 2)), "the path B is neither"),
    "a matrix": (glora(B_X=torch.ones(12, 8)), "the paths A and B are neither"),
    "zeros that are none": (glora(A_zeros=torch.ones(12, 8)), "the path A is said to be zero"),
    "a bias of a product": (glora(D_Xd=torch.ones(12, 2), D_Xu=torch.ones(2, 1)), "the paths D and E are no vectors"),
    "a bias of a column": (glora(E_X=torch.ones(12, 1)), "the paths D and E are no vectors"),
    "a column of two": (glora(C_Xd=torch.ones(8, 2), C_Xu=torch.ones(2, 2)), "the path C is no column"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_contradict_each_other_are_an_error(name: str, tmp_path: Path) -> None:
    tensors, reason = BROKEN[name]
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(folder(tmp_path / "style", {"peft_type": "GLORA"}, tensors))
