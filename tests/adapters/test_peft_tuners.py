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
from peft.tuners.waveft.wavelet import Wavelet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.adapters.waveft import daubechies
from lora_runtime.errors import CorruptFileError, LoraFileError
from lora_runtime.lora import outline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


class Sizes(nn.Module):
    """Two linear layers of which neither is as large as both together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(10, 6, bias=False)


class Odd(nn.Module):
    """Two linear layers of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 11), nn.Linear(10, 5, bias=False)


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
    "VeRA": (Plain, lambda: peft.VeraConfig(r=4, target_modules=LINEAR)),
    "VeRA of a turned layer": (Turned, lambda: peft.VeraConfig(r=4, target_modules=["first"], fan_in_fan_out=True)),
    "PVeRA": (Plain, lambda: peft.PveraConfig(r=4, target_modules=LINEAR)),
    "RandLoRA": (Plain, lambda: peft.RandLoraConfig(r=3, randlora_alpha=5, target_modules=LINEAR)),
    "RandLoRA of sparse bases": (Sizes, lambda: peft.RandLoraConfig(r=5, sparse=True, target_modules=LINEAR)),
    "VB-LoRA": (
        Plain,
        lambda: peft.VBLoRAConfig(r=3, num_vectors=9, vector_length=4, topk=3, target_modules=LINEAR),
    ),
    "VB-LoRA for use only": (
        Plain,
        lambda: peft.VBLoRAConfig(
            r=3, num_vectors=300, vector_length=4, save_only_topk_weights=True, target_modules=LINEAR
        ),
    ),
    "UniLoRA": (Sizes, lambda: peft.UniLoraConfig(r=3, theta_d_length=32, save_indices=True, target_modules=LINEAR)),
    "FourierFT": (Sizes, lambda: peft.FourierFTConfig(n_frequency=20, target_modules=LINEAR)),
    "FourierFT of a turned layer": (
        Turned,
        lambda: peft.FourierFTConfig(n_frequency=20, random_loc_seed=3, target_modules=["first"], fan_in_fan_out=True),
    ),
    "WaveFT": (Sizes, lambda: peft.WaveFTConfig(n_frequency=20, target_modules=LINEAR)),
    "WaveFT of odd sizes": (Odd, lambda: peft.WaveFTConfig(n_frequency=20, target_modules=LINEAR)),
    "WaveFT of long filters": (
        Odd,
        lambda: peft.WaveFTConfig(n_frequency=20, wavelet_family="db6", random_loc_seed=5, target_modules=LINEAR),
    ),
    "WaveFT without a transform": (
        Sizes,
        lambda: peft.WaveFTConfig(n_frequency=20, use_idwt=False, target_modules=LINEAR),
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


VERA = {
    "vera_lambda_b": torch.ones(11),
    "vera_lambda_d": torch.ones(2),
    "vera_A": torch.ones(2, 9),
    "vera_B": torch.ones(12, 2),
}
PVERA = {f"p{role}": tensor for role, tensor in VERA.items()} | {"pvera_B": torch.ones(12, 1)}
RANDLORA = {
    "randlora_lambda": torch.ones(2, 3),
    "randlora_gamma": torch.ones(3, 7),
    "randlora_A": torch.ones(2, 1, 8),
    "randlora_B": torch.ones(13, 4, 2),
}
VBLORA = {
    "vblora_logits_A": torch.ones(2, 3, 5),
    "vblora_logits_B": torch.ones(2, 2, 5),
    "vblora_vector_bank": torch.ones(5, 4),
}
VBLORA_FOR_USE = {
    "vblora_logits_A": torch.ones(2, 3, 5),
    "vblora_logits_B_topk_indices": torch.ones(2, 2, 2, dtype=torch.uint8),
    "vblora_logits_B_topk_weights": torch.ones(2, 2, 1),
    "vblora_vector_bank": torch.ones(5, 4),
}
UNILORA = {
    "unilora_indices_A": torch.ones(2, 8, dtype=torch.long),
    "unilora_scales_A": torch.ones(2, 8),
    "unilora_indices_B": torch.ones(11, 2, dtype=torch.long),
    "unilora_scales_B": torch.ones(11, 2),
    "unilora_theta_d": torch.ones(5),
}

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
    "VeRA": ({"peft_type": "VERA"}, VERA, r"made for 11 outputs and at most 9 inputs, the weight is \(12, 8\)"),
    "RandLoRA": (
        {"peft_type": "RANDLORA"},
        RANDLORA,
        r"made for a lesser side of 7 and a greater of at most 13, the weight is \(12, 8\)",
    ),
    "VB-LoRA": ({"peft_type": "VBLORA"}, VBLORA, r"made for \(8, 12\), the weight is \(12, 8\)"),
    "VB-LoRA of a rank beyond reason": (
        {"peft_type": "VBLORA"},
        VBLORA | {"vblora_logits_A": torch.ones(13, 2, 5), "vblora_logits_B": torch.ones(3, 13, 5)},
        r"a rank of 13 for a weight \(12, 8\)",
    ),
    "UniLoRA": ({"peft_type": "UNILORA"}, UNILORA, r"made for \(11, 8\), the weight is \(12, 8\)"),
    "FourierFT": (
        {"peft_type": "FOURIERFT"},
        {"fourierft_spectrum": torch.ones(97)},
        r"made for a matrix of at least 97 elements, the weight is \(12, 8\)",
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
    "VeRA of other ranks": ({"peft_type": "VERA"}, VERA | {"vera_A": torch.ones(3, 9)}, "do not fit together"),
    "VeRA of a matrix": ({"peft_type": "VERA"}, VERA | {"vera_lambda_d": torch.ones(2, 2)}, "do not fit together"),
    "VeRA of too many outputs": ({"peft_type": "VERA"}, VERA | {"vera_B": torch.ones(10, 2)}, "do not fit together"),
    "VeRA alone": (
        None,
        {role: VERA[role] for role in ("vera_lambda_b", "vera_lambda_d")},
        "B and A, which its modules share, is not in the file: save it again with all that PEFT can save",
    ),
    "PVeRA": ({"peft_type": "PVERA"}, PVERA | {"pvera_A": torch.ones(3, 9)}, "not a mean and a variance"),
    "PVeRA of an odd rank": (
        {"peft_type": "PVERA"},
        PVERA | {"pvera_A": torch.ones(3, 9), "pvera_lambda_d": torch.ones(3)},
        "not a mean and a variance",
    ),
    "PVeRA of no dimension": ({"peft_type": "PVERA"}, PVERA | {"pvera_A": torch.tensor(1.0)}, "not a mean and"),
    "PVeRA that is drawn anew": (
        {"peft_type": "PVERA", "sample_at_inference": True},
        PVERA,
        "draws its factors anew for each input",
    ),
    "RandLoRA": (
        {"peft_type": "RANDLORA"},
        RANDLORA | {"randlora_gamma": torch.ones(2, 7)},
        "the bases and their scales do not fit together",
    ),
    "RandLoRA of one dimension": (
        {"peft_type": "RANDLORA"},
        RANDLORA | {"randlora_lambda": torch.ones(2)},
        "the bases and their scales do not fit together",
    ),
    "RandLoRA alone": (None, RANDLORA, r"only the adapter_config\.json"),
    "VB-LoRA of other ranks": (
        {"peft_type": "VBLORA"},
        VBLORA | {"vblora_logits_B": torch.ones(2, 3, 5)},
        "the ranks of the factors differ",
    ),
    "VB-LoRA of more than the bank has": ({"peft_type": "VBLORA", "topk": 6}, VBLORA, "of which 6 are mixed"),
    "VB-LoRA of an empty bank": (
        {"peft_type": "VBLORA"},
        VBLORA | {"vblora_vector_bank": torch.ones(0, 4)},
        "the bank is no matrix of vectors",
    ),
    "VB-LoRA alone": (None, VBLORA, r"only the adapter_config\.json"),
    "VB-LoRA of other places": (
        {"peft_type": "VBLORA"},
        VBLORA_FOR_USE | {"vblora_logits_B_topk_weights": torch.ones(2, 2, 2)},
        "the places and the weights do not fit together",
    ),
    "VB-LoRA of places outside": (
        {"peft_type": "VBLORA"},
        VBLORA_FOR_USE | {"vblora_logits_B_topk_indices": torch.full((2, 2, 2), 5)},
        "a place outside of the bank's 5 vectors",
    ),
    "UniLoRA of other ranks": (
        {"peft_type": "UNILORA"},
        UNILORA | {"unilora_indices_B": torch.ones(11, 3, dtype=torch.long)},
        "the factors do not fit together",
    ),
    "UniLoRA of places outside": (
        {"peft_type": "UNILORA"},
        UNILORA | {"unilora_indices_B": torch.full((11, 2), 5)},
        "a place outside of the shared vector's 5 elements",
    ),
    "UniLoRA of other scales": (
        {"peft_type": "UNILORA"},
        UNILORA | {"unilora_scales_B": torch.ones(11, 3)},
        r"places \(11, 2\) and scales \(11, 3\) do not fit together",
    ),
    "FourierFT": ({"peft_type": "FOURIERFT"}, {"fourierft_spectrum": torch.ones(2, 3)}, "the spectrum is no vector"),
    "FourierFT alone": (None, {"fourierft_spectrum": torch.ones(3)}, r"only the adapter_config\.json"),
    "WaveFT of a table": (
        {"peft_type": "WAVEFT", "wavelet_family": "coif3"},
        {"waveft_spectrum": torch.ones(3)},
        "the wavelet 'coif3' is none of db1 to db10",
    ),
    "a setting of another kind": (
        {"peft_type": "WAVEFT", "wavelet_family": 3},
        {"waveft_spectrum": torch.ones(3)},
        "wavelet_family 3 is none",
    ),
    "a seed out of bounds": (
        {"peft_type": "WAVEFT", "random_loc_seed": 1 << 63},
        {"waveft_spectrum": torch.ones(3)},
        "random_loc_seed 9223372036854775808 is none",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_contradict_each_other_are_an_error(name: str, tmp_path: Path) -> None:
    config, tensors, reason = BROKEN[name]
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(folder(tmp_path / "style", config, tensors))


@pytest.mark.parametrize(
    ("kind", "tensors", "rank"),
    [("VERA", VERA, 2), ("PVERA", PVERA, 1), ("RANDLORA", RANDLORA, 2), ("VBLORA", VBLORA, 2), ("UNILORA", UNILORA, 2)],
)
def test_the_rank_is_that_of_the_factors(kind: str, tensors: dict[str, Tensor], rank: int, tmp_path: Path) -> None:
    (adapter,) = load_lora(folder(tmp_path / "style", {"peft_type": kind}, tensors)).adapters["base_model.model.first"]
    assert adapter.rank == rank


@pytest.mark.parametrize("moments", range(1, 11))
def test_filters_are_those_of_the_tables(moments: int) -> None:
    table = torch.tensor(Wavelet(f"db{moments}").rec_lo, dtype=torch.float64)
    torch.testing.assert_close(daubechies(moments), table, rtol=0, atol=1e-11)  # the table of db3 has 12 digits


def test_drawing_places_leaves_the_callers_random_numbers(tmp_path: Path) -> None:
    path = folder(tmp_path / "style", {"peft_type": "FOURIERFT"}, {"fourierft_spectrum": torch.ones(3)})
    (adapter,) = load_lora(path).adapters["base_model.model.first"]
    before = torch.get_rng_state()
    adapter.delta(torch.ones(12, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_modules_share_is_no_use_without_them(tmp_path: Path) -> None:
    wrapped(
        Plain(), peft.UniLoraConfig(r=3, theta_d_length=32, save_indices=False, target_modules=LINEAR)
    ).save_pretrained(str(tmp_path / "style"))
    with pytest.raises(
        LoraFileError,
        match=r"unilora_theta_d.*shared by modules \(unilora\) of which the file has none.*save it again.*save_indices",
    ):
        load_lora(tmp_path / "style")


def test_what_cannot_be_used_of_peft_is_said_by_what_it_is(tmp_path: Path) -> None:
    """FRoD's shared tensors have endings of their own, and are the first keys of its file."""
    wrapped(Plain(), peft.FrodConfig(target_modules=["first"])).save_pretrained(str(tmp_path / "frod"))
    with pytest.raises(LoraFileError, match=r"first\.frod_lambda_l.*FRoD is not supported yet"):
        load_lora(tmp_path / "frod")


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_factors_for_a_convolution_of_groups_are_named(tmp_path: Path) -> None:
    model = nn.ModuleDict({"grouped": nn.Conv2d(8, 8, 3, groups=2)})
    wrapped(model, peft.LoraConfig(r=4, target_modules=["grouped"])).save_pretrained(str(tmp_path / "style"))
    with pytest.raises(LoraFileError, match=r"the ranks of the factors differ.*convolution of 2 groups"):
        load_lora(tmp_path / "style")
