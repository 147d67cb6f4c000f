"""Parameters that PEFT saves whole: LN tuning, modules_to_save and trained biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters.peft_judge import WRAPPER, check, folder, wrapped
from torch import nn

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.errors import CorruptFileError
from lora_runtime.lora import outline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


class Judged(nn.Module):
    """A layer, a norm and a head of two modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(8, 12), nn.LayerNorm(12)
        self.head = nn.Sequential(nn.Linear(12, 4), nn.LayerNorm(4))


def lora_config(**options: Any) -> Any:
    return peft.LoraConfig(r=2, target_modules=["first"], **options)


HEAD = {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}
CONFIGS: dict[str, tuple[Any, set[str]]] = {
    "norms": (lambda: peft.LNTuningConfig(target_modules=["norm"]), {"norm.weight", "norm.bias"}),
    "a head": (lambda: lora_config(modules_to_save=["head"]), {"first.weight", *HEAD}),
    "a part of a head": (
        lambda: lora_config(modules_to_save=["head.0"]),
        {"first.weight", "head.0.weight", "head.0.bias"},
    ),
    "a norm beside another tuner": (
        lambda: peft.OFTConfig(oft_block_size=4, target_modules=["first"], modules_to_save=["norm"]),
        {"first.weight", "norm.weight", "norm.bias"},
    ),
    "the bias of what is tuned": (lambda: lora_config(bias="lora_only"), {"first.weight", "first.bias"}),
    "all biases": (
        lambda: lora_config(bias="all"),
        {"first.weight", "first.bias", "norm.bias", "head.0.bias", "head.1.bias"},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_are_those_that_peft_merges(name: str, tmp_path: Path) -> None:
    config, changed = CONFIGS[name]
    tuned = wrapped(Judged(), config())
    tuned.save_pretrained(str(tmp_path / "style"))
    merged = tuned.merge_and_unload()
    check(Judged(), dict(merged.state_dict()), tmp_path, changed)
    assert load_lora(tmp_path / "style").adapters.keys() == outline(tmp_path / "style").adapters.keys()


def test_a_strength_leads_from_the_models_own_to_the_saved(tmp_path: Path) -> None:
    own, saved = Judged().norm.weight.detach(), torch.randn(12)
    folder(tmp_path / "style", {"peft_type": "LN_TUNING"}, {"norm.ln_tuning_layers.weight": saved}, WRAPPER[:-1])
    model = Judged()
    lora_runtime.apply(model, "<lora:style:0.25>", loras=tmp_path)
    torch.testing.assert_close(model.norm.weight.detach(), own + 0.25 * (saved - own))


def test_a_plain_name_is_used_where_the_configuration_says_so_alone(tmp_path: Path) -> None:
    tuned = wrapped(Judged(), lora_config(modules_to_save=["head"]))
    tuned.save_pretrained(str(tmp_path / "style"))
    config = tmp_path / "style" / "adapter_config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(said | {"modules_to_save": ["hea", "ead"]}), encoding="utf-8")
    unused = load_lora(tmp_path / "style").unused
    assert unused == {f"{WRAPPER}{name}": "no adapter has keys with this ending" for name in HEAD}


def test_what_is_neither_weight_nor_bias_has_its_reason(tmp_path: Path) -> None:
    tensors = {"head.weight": torch.ones(4), "head.running_mean": torch.ones(4)}
    lora = load_lora(folder(tmp_path / "style", {"peft_type": "LORA", "modules_to_save": ["head"]}, tensors))
    assert lora.unused == {f"{WRAPPER}first.head.running_mean": "no adapter has keys with this ending"}


def test_another_shape_is_no_fit(tmp_path: Path) -> None:
    tensors = {"norm.ln_tuning_layers.weight": torch.ones(11)}
    folder(tmp_path / "style", {"peft_type": "LN_TUNING"}, tensors, WRAPPER[:-1])
    report = lora_runtime.apply(Judged(), "<lora:style:1>", loras=tmp_path).report
    assert set(report.loras[0].unused.values()) == {"made for (11,), the weight is (12,)"}


@pytest.mark.parametrize("names", [{"head": 1}, "head", ["head"] * 101])
def test_modules_that_are_no_short_list_are_an_error(names: Any, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "modules_to_save": names}
    with pytest.raises(CorruptFileError, match="no list of at most 100"):
        load_lora(folder(tmp_path / "style", config, {"head.weight": torch.ones(4)}))
