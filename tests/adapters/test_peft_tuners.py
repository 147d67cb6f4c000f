"""Tuners of PEFT beside LoRA: PEFT saves the folder, and its own merge says what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters.peft_judge import CONVOLUTIONS, LINEAR, Pictures, Plain, Turned, check, folder, wrapped
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.errors import CorruptFileError
from lora_runtime.lora import outline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def shira_config() -> Any:
    return peft.ShiraConfig(r=2, target_modules=LINEAR, random_seed=0)


def adalora_config(modules: list[str], **options: Any) -> Any:
    return peft.AdaLoraConfig(init_r=4, lora_alpha=6, total_step=10, target_modules=modules, **options)


CONFIGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "IA3 of outputs": (Plain, lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=[])),
    "IA3 of inputs": (Plain, lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=["second"])),
    "IA3 of convolutions": (
        Pictures,
        lambda: peft.IA3Config(target_modules=CONVOLUTIONS, feedforward_modules=["enter"]),
    ),
    "IA3 of a turned layer": (
        Turned,
        lambda: peft.IA3Config(target_modules=["first"], feedforward_modules=[], fan_in_fan_out=True),
    ),
    "HRA": (Plain, lambda: peft.HRAConfig(r=4, target_modules=LINEAR)),
    "HRA of convolutions": (Pictures, lambda: peft.HRAConfig(r=4, target_modules=CONVOLUTIONS)),
    "HRA made orthogonal": (Pictures, lambda: peft.HRAConfig(r=4, apply_GS=True, target_modules=CONVOLUTIONS)),
    "HiRA": (Plain, lambda: peft.HiraConfig(r=3, target_modules=LINEAR)),
    "HiRA of convolutions": (Pictures, lambda: peft.HiraConfig(r=3, target_modules=CONVOLUTIONS)),
    "HiRA of a turned layer": (Turned, lambda: peft.HiraConfig(r=3, target_modules=["first"], fan_in_fan_out=True)),
    "AdaLoRA": (Plain, lambda: adalora_config(LINEAR)),
    "AdaLoRA of convolutions": (Pictures, lambda: adalora_config(CONVOLUTIONS)),
    "AdaLoRA of a turned layer": (Turned, lambda: adalora_config(["first"], fan_in_fan_out=True)),
    "MiSS": (Plain, lambda: peft.MissConfig(r=4, target_modules=LINEAR)),
    "MiSS with a part of a block": (Plain, lambda: peft.MissConfig(r=5, target_modules=LINEAR)),
    "MiSS mini": (Plain, lambda: peft.MissConfig(r=4, mini_r=2, init_weights="mini", target_modules=LINEAR)),
    "MiSS bat": (Plain, lambda: peft.MissConfig(r=4, init_weights="bat", target_modules=LINEAR)),
    "C3A": (Plain, lambda: peft.C3AConfig(block_size=4, target_modules=LINEAR)),
    "SHiRA": (Plain, shira_config),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_are_those_that_peft_merges(name: str, tmp_path: Path) -> None:
    make, config = CONFIGS[name]
    tuned = wrapped(make(), config())
    tuned.save_pretrained(str(tmp_path / "style"))
    check(make(), dict(tuned.merge_and_unload().state_dict()), tmp_path)
    whole, found = load_lora(tmp_path / "style"), outline(tmp_path / "style")
    assert {stem: [type(one) for one in made] for stem, made in found.adapters.items()} == {
        stem: [type(one) for one in made] for stem, made in whole.adapters.items()
    }


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_ranks_that_adalora_has_dropped_do_not_change_its_scale(tmp_path: Path) -> None:
    tuned = wrapped(Plain(), adalora_config(LINEAR))
    kept = [True, False, True, False]
    stems = [f"{name}.lora_E.default" for name in LINEAR]
    tuned.peft_config["default"].rank_pattern = {stems[0]: kept, stems[1]: [True] * 4}
    tuned.save_pretrained(str(tmp_path / "style"))
    loaded = peft.PeftModel.from_pretrained(Plain(), str(tmp_path / "style"))
    check(Plain(), dict(loaded.merge_and_unload().state_dict()), tmp_path)
    assert load_lora(tmp_path / "style").adapters["base_model.model.first"][0].rank == 2


def test_a_vector_without_length_reflects_nothing(tmp_path: Path) -> None:
    wrapped(Plain(), peft.HRAConfig(r=2, target_modules=["first"])).save_pretrained(str(tmp_path / "style"))
    path = tmp_path / "style" / "adapter_model.safetensors"
    save_file({key: torch.zeros_like(value) for key, value in load_file(path).items()}, path)
    weight = Plain().first.weight
    (adapter,) = load_lora(path).adapters["base_model.model.first"]
    assert torch.equal(adapter.delta(weight), torch.zeros_like(weight))


WRONG: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "IA3": ({"peft_type": "IA3"}, {"ia3_l": torch.ones(7, 1)}, r"made for 7 outputs, the weight is \(12, 8\)"),
    "HRA": ({"peft_type": "HRA"}, {"hra_u": torch.ones(7, 2)}, r"made for 7 inputs, the weight is \(12, 8\)"),
    "HiRA": (
        {"peft_type": "HIRA"},
        {"hira_A": torch.ones(2, 7), "hira_B": torch.ones(12, 2)},
        r"made for \(12, 7\), the weight is \(12, 8\)",
    ),
    "AdaLoRA": (
        {"peft_type": "ADALORA", "lora_alpha": 2, "init_r": 2},
        {"lora_A": torch.ones(2, 7), "lora_B": torch.ones(12, 2), "lora_E": torch.ones(2, 1)},
        r"made for \(12, 7\), the weight is \(12, 8\)",
    ),
    "MiSS": ({"peft_type": "MISS"}, {"miss_block": torch.ones(4, 6)}, "made for 6 outputs and blocks of 4 inputs"),
    "MiSS mini": (
        {"peft_type": "MISS", "init_weights": "mini"},
        {"miss_block": torch.ones(4, 5)},
        "made for a multiple of 5 outputs and blocks of 4 inputs",
    ),
    "MiSS bat": ({"peft_type": "MISS"}, {"miss_block": torch.ones(4, 4, 4)}, "made for 16 outputs and blocks of 4"),
    "C3A": ({"peft_type": "C3A"}, {"c3a_kernel": torch.ones(2, 3, 4)}, r"made for \(8, 12\), the weight is \(12, 8\)"),
    "SHiRA": (
        {"peft_type": "SHIRA"},
        {"shira_weight": torch.ones(20), "shira_indices": torch.full((2, 20), 9)},
        r"made for a matrix of at least \(10, 10\), the weight is \(12, 8\)",
    ),
    "SHiRA of another count": (
        {"peft_type": "SHIRA"},
        {"shira_weight": torch.ones(3), "shira_indices": torch.ones(2, 3)},
        "its 3 places are no multiple",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_shape_is_no_fit(name: str, tmp_path: Path) -> None:
    config, tensors, reason = WRONG[name]
    lora = load_lora(folder(tmp_path / "style", config, tensors))
    adapters = lora.adapters["base_model.model.first"]
    misfits = [adapter.misfit(torch.Size((12, 8))) for adapter in adapters if adapter.parameter == "weight"]
    assert misfits[0] is not None
    assert re.search(reason, misfits[0])
    # With no other adapter in the file, nothing of the model changes, its bias included.
    model = Plain()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    applied = lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path)
    assert applied.report.loras[0].used == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


BROKEN: dict[str, tuple[dict[str, Any] | None, dict[str, Tensor], str]] = {
    "IA3": ({"peft_type": "IA3"}, {"ia3_l": torch.ones(7, 2)}, "the factors are no vector"),
    "IA3 of a convolution alone": (None, {"ia3_l": torch.ones(1, 6, 1, 1)}, r"only the adapter_config\.json"),
    "IA3 of a convolution by pattern": (
        {"peft_type": "IA3", "feedforward_modules": "(a+)+"},
        {"ia3_l": torch.ones(1, 6, 1, 1)},
        "is a pattern and no list",
    ),
    "HRA": ({"peft_type": "HRA"}, {"hra_u": torch.ones(7)}, "the vectors are no columns"),
    "HRA alone": (None, {"hra_u": torch.ones(7, 2)}, r"only the adapter_config\.json"),
    "HiRA": (
        {"peft_type": "HIRA"},
        {"hira_A": torch.ones(2, 7), "hira_B": torch.ones(12, 3)},
        "the factors do not fit together",
    ),
    "HiRA of one factor": ({"peft_type": "HIRA"}, {"hira_A": torch.ones(2, 7)}, "A without B"),
    "AdaLoRA": (
        {"peft_type": "ADALORA", "lora_alpha": 2, "init_r": 2},
        {"lora_A": torch.ones(2, 7), "lora_B": torch.ones(12, 2), "lora_E": torch.ones(3, 1)},
        "2 ranks in the factors",
    ),
    "AdaLoRA without factors": (
        {"peft_type": "ADALORA", "lora_alpha": 2, "init_r": 2},
        {"lora_E": torch.ones(3, 1)},
        "without their factors",
    ),
    "AdaLoRA alone": (
        None,
        {"lora_A": torch.ones(2, 7), "lora_B": torch.ones(12, 2), "lora_E": torch.ones(2, 1)},
        r"only the adapter_config\.json",
    ),
    "AdaLoRA of a negative rank": (
        {"peft_type": "ADALORA", "lora_alpha": 2, "init_r": -2},
        {"lora_E": torch.ones(2, 1)},
        "a rank that is negative",
    ),
    "MiSS": ({"peft_type": "MISS"}, {"miss_block": torch.ones(4, 6, 5)}, "neither a matrix nor square blocks"),
    "C3A": ({"peft_type": "C3A"}, {"c3a_kernel": torch.ones(2, 3)}, "the kernel is no matrix of blocks"),
    "SHiRA": (
        {"peft_type": "SHIRA"},
        {"shira_weight": torch.ones(20), "shira_indices": torch.ones(2, 19)},
        "the places and the changes do not fit together",
    ),
    "SHiRA before the first": (
        {"peft_type": "SHIRA"},
        {"shira_weight": torch.ones(20), "shira_indices": -torch.ones(2, 20)},
        "a place with a negative number",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_contradict_each_other_are_an_error(name: str, tmp_path: Path) -> None:
    config, tensors, reason = BROKEN[name]
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(folder(tmp_path / "style", config, tensors))
