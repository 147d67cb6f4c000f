"""DeLoRA, GraLoRA, DEFT, BEFT, Bone and tables of embeddings: PEFT saves the folder, and its own merge is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters.peft_judge import LINEAR, WRAPPER, Plain, Turned, check, folder, wrapped
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.errors import CorruptFileError
from lora_runtime.lora import outline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


class Words(nn.Module):
    """A table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Embedding(10, 8)


class Spoken(Words):
    """A table of embeddings and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 8)


def deft_config(modules: list[str], **options: Any) -> Any:
    return peft.DeftConfig(r=3, target_modules=modules, **options)


CONFIGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "DeLoRA": (Plain, lambda: peft.DeloraConfig(r=3, target_modules=LINEAR)),
    "GraLoRA": (Plain, lambda: peft.GraloraConfig(r=4, gralora_k=2, alpha=6, target_modules=LINEAR)),
    "GraLoRA of four blocks": (Plain, lambda: peft.GraloraConfig(r=8, gralora_k=4, alpha=6, target_modules=LINEAR)),
    "GraLoRA with a LoRA of the whole": (
        Plain,
        lambda: peft.GraloraConfig(r=4, hybrid_r=3, gralora_k=2, alpha=6, target_modules=LINEAR),
    ),
    "GraLoRA of a turned layer": (
        Turned,
        lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=["first"], fan_in_fan_out=True),
    ),
    "DEFT": (Plain, lambda: deft_config(LINEAR)),
    "DEFT with an alpha": (Plain, lambda: deft_config(LINEAR, alpha=6)),
    "DEFT made orthogonal": (Plain, lambda: deft_config(LINEAR, decomposition_method="qr")),
    "DEFT of a turned layer": (Turned, lambda: deft_config(["first"], fan_in_fan_out=True)),
    "PaRa": (Plain, lambda: deft_config(LINEAR, decomposition_method="qr", para=True)),
    "rows of an embedding": (
        Words,
        lambda: peft.TrainableTokensConfig(target_modules=["first"], token_indices=[7, 2], init_weights=False),
    ),
    "rows of an embedding beside a LoRA": (
        Spoken,
        lambda: peft.LoraConfig(r=2, target_modules=["second"], trainable_token_indices={"first": [3, 9, 0]}),
    ),
    "Super": (Plain, lambda: peft.SupertuningConfig(sparsity=0.8, target_modules=LINEAR)),
    "Supra": (Plain, lambda: peft.SupertuningConfig(sparsity=0.8, r=2, lora_alpha=6, target_modules=LINEAR)),
    "HiRA of an embedding": (Words, lambda: peft.HiraConfig(r=3, target_modules=["first"])),
    "OFT of an embedding": (Words, lambda: peft.OFTConfig(oft_block_size=4, target_modules=["first"])),
    "OFT of an embedding, exact": (
        Words,
        lambda: peft.OFTConfig(oft_block_size=4, target_modules=["first"], use_cayley_neumann=False),
    ),
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


def test_beft_changes_the_bias_alone(tmp_path: Path) -> None:
    tuned = wrapped(Plain(), peft.BeftConfig(target_modules=["first"]))
    tuned.save_pretrained(str(tmp_path / "style"))
    check(Plain(), dict(tuned.merge_and_unload().state_dict()), tmp_path, {"first.bias"})


@pytest.mark.parametrize("kind", ["bat", True])
def test_bone_is_miss_by_another_name(kind: Any, tmp_path: Path) -> None:
    tuned = wrapped(Plain(), peft.MissConfig(r=4, init_weights=kind, target_modules=LINEAR))
    tuned.save_pretrained(str(tmp_path / "miss"))
    tensors = load_file(tmp_path / "miss" / "adapter_model.safetensors")
    (tmp_path / "style").mkdir()
    renamed = {key.replace("miss_block", "bone_block"): value for key, value in tensors.items()}
    save_file(renamed, tmp_path / "style" / "adapter_model.safetensors")
    (tmp_path / "style" / "adapter_config.json").write_text('{"peft_type": "BONE"}', encoding="utf-8")
    check(Plain(), dict(tuned.merge_and_unload().state_dict()), tmp_path)


@pytest.mark.parametrize("config", [{"peft_type": "ADALORA", "lora_alpha": 1, "init_r": 1}, {"peft_type": "DELORA"}])
def test_a_single_rank_of_a_single_input_has_an_outline(config: dict[str, Any], tmp_path: Path) -> None:
    a, b = torch.ones(1, 4), torch.ones(4, 1)
    adalora = {"lora_A": a, "lora_B": b, "lora_E": torch.ones(1, 1)}
    delora = {
        "delora_A": b,
        "delora_B": torch.ones(3, 4),
        "delora_lambda": torch.ones(1),
        "delora_w_norm": torch.ones(1),
    }
    tensors = adalora if config["peft_type"] == "ADALORA" else delora
    lora = outline(folder(tmp_path / "style", config, tensors))
    assert len(lora.adapters[f"{WRAPPER}first"]) == 1


ROAD = {"peft_type": "ROAD"}


def test_the_configuration_of_another_tuner_is_none(tmp_path: Path) -> None:
    lora = load_lora(folder(tmp_path / "style", ROAD, {"oft_R.weight": torch.ones(2, 6)}))
    assert len(lora.adapters[f"{WRAPPER}first"]) == 1


GRALORA, DEFT = {"peft_type": "GRALORA", "alpha": 4}, {"peft_type": "DEFT"}
DELORA = {"delora_B": torch.ones(12, 2), "delora_lambda": torch.ones(1), "delora_w_norm": torch.ones(7)}
BLOCKS = {"gralora_A": torch.ones(2, 4, 2), "gralora_B": torch.ones(2, 2, 5)}
TOKENS = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 12]}
SUPER = {"supertuning_values": torch.ones(2), "supertuning_indices": torch.tensor([3, 4])}
WRONG: dict[str, tuple[dict[str, Any] | None, dict[str, Tensor], str]] = {
    "DeLoRA": (None, DELORA | {"delora_A": torch.ones(2, 7)}, r"made for \(12, 7\), the weight is \(12, 8\)"),
    "GraLoRA": (GRALORA, BLOCKS, r"made for \(10, 8\), the weight is \(12, 8\)"),
    "DEFT": (
        DEFT,
        {"deft_P": torch.ones(12, 2), "deft_R": torch.ones(2, 7)},
        r"made for \(12, 7\), the weight is \(12, 8\)",
    ),
    "PaRa": (DEFT | {"para": True}, {"deft_P": torch.ones(11, 2)}, r"made for 11 outputs, the weight is \(12, 8\)"),
    "tokens": (
        TOKENS,
        {"trainable_tokens_delta": torch.ones(2, 8)},
        r"made for at least 13 rows of 8, the weight is \(12, 8\)",
    ),
    "Super": (
        None,
        {"supertuning_values": torch.ones(2), "supertuning_indices": torch.tensor([3, 96])},
        r"made for a matrix of at least 97 elements, the weight is \(12, 8\)",
    ),
    "BEFT": (None, {"beft_bias": torch.ones(1, 7)}, r"made for \(7,\), the bias is \(12,\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_shape_is_no_fit(name: str, tmp_path: Path) -> None:
    config, tensors, reason = WRONG[name]
    folder(tmp_path / "style", config, tensors)
    model = Plain()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    applied = lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path)
    assert applied.report.loras[0].used == 0
    assert all(re.search(reason, found) for found in applied.report.loras[0].unused.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


BROKEN: dict[str, tuple[dict[str, Any] | None, dict[str, Tensor], str]] = {
    "DeLoRA": (None, DELORA | {"delora_A": torch.ones(3, 7)}, "the factors do not fit together"),
    "DeLoRA of other inputs": (None, DELORA | {"delora_A": torch.ones(2, 8)}, "nor a length for each input"),
    "DeLoRA without lengths": (
        None,
        {"delora_A": torch.ones(2, 8), "delora_B": torch.ones(12, 2), "delora_lambda": torch.ones(1)},
        "without w_norm",
    ),
    "GraLoRA": (GRALORA, BLOCKS | {"gralora_B": torch.ones(2, 3, 5)}, "not those of equal blocks"),
    "GraLoRA of a rank in no parts": (
        GRALORA,
        {"gralora_A": torch.ones(2, 4, 3), "gralora_B": torch.ones(2, 3, 6)},
        "not those of equal blocks",
    ),
    "GraLoRA with half of a LoRA": (
        GRALORA,
        BLOCKS | {"gralora_A_general.weight": torch.ones(2, 8)},
        "without B_general",
    ),
    "GraLoRA with another LoRA": (
        GRALORA,
        BLOCKS | {"gralora_A_general.weight": torch.ones(2, 8), "gralora_B_general.weight": torch.ones(10, 3)},
        "the factors of the whole do not fit",
    ),
    "GraLoRA alone": (None, BLOCKS, r"only the adapter_config\.json"),
    "GraLoRA of no alpha": (GRALORA | {"alpha": "a"}, BLOCKS, "alpha 'a' is no number"),
    "DEFT": (DEFT, {"deft_P": torch.ones(12, 2), "deft_R": torch.ones(3, 8)}, "does not fit to them"),
    "DEFT of a vector": (DEFT, {"deft_P": torch.ones(12), "deft_R": torch.ones(3, 8)}, "the directions are no columns"),
    "DEFT without R": (DEFT, {"deft_P": torch.ones(12, 2)}, "a PaRa has no R and a DEFT has one"),
    "DEFT alone": (None, {"deft_P": torch.ones(12, 2)}, r"only the adapter_config\.json"),
    "DEFT of an unknown method": (
        DEFT | {"decomposition_method": "lu"},
        {"deft_P": torch.ones(12, 2)},
        "decomposition_method 'lu' is none of relu, qr",
    ),
    "tokens alone": (None, {"trainable_tokens_delta": torch.ones(2, 8)}, "and it does not"),
    "tokens of another embedding": (
        TOKENS | {"token_indices": {"irst": [1, 2]}},
        {"trainable_tokens_delta": torch.ones(2, 8)},
        "and it does not",
    ),
    "tokens that are no numbers": (
        TOKENS | {"token_indices": [1, -2]},
        {"trainable_tokens_delta": torch.ones(2, 8)},
        "no list of numbers",
    ),
    "tokens of other rows": (TOKENS, {"trainable_tokens_delta": torch.ones(3, 8)}, "2 tokens, each once, do not have"),
    "Super without places": (None, {"supertuning_values": torch.ones(2)}, "its places are not in the file"),
    "Super": (None, SUPER | {"supertuning_values": torch.ones(3)}, "the places and the changes do not fit together"),
    "Super before the first": (
        None,
        SUPER | {"supertuning_indices": torch.tensor([3, -1])},
        "a place with a negative number",
    ),
    "Supra of half a LoRA": (None, SUPER | {"supertuning_lora_A.weight": torch.ones(2, 8)}, "without B"),
    "Supra": (
        None,
        SUPER | {"supertuning_lora_A.weight": torch.ones(2, 8), "supertuning_lora_B.weight": torch.ones(12, 3)},
        "the factors do not fit together",
    ),
    "Supra alone": (
        None,
        SUPER | {"supertuning_lora_A.weight": torch.ones(2, 8), "supertuning_lora_B.weight": torch.ones(12, 2)},
        r"only the adapter_config\.json",
    ),
    "RoAd beside the configuration of another tuner": (
        GRALORA,
        {"road_theta": torch.ones(2), "road_alpha": torch.ones(2)},
        r"only the adapter_config\.json",
    ),
    "BEFT": (None, {"beft_bias": torch.ones(2, 7)}, "the bias is no row"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_contradict_each_other_are_an_error(name: str, tmp_path: Path) -> None:
    config, tensors, reason = BROKEN[name]
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(folder(tmp_path / "style", config, tensors))
