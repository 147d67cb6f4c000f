"""OFT, BOFT and RoAd as PEFT saves them: PEFT's own merge says what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import peft.tuners.boft.layer as boft_layer
import pytest
import torch
from adapters.peft_judge import CONVOLUTIONS, LINEAR, WRAPPER, Pictures, Plain, check, folder, wrapped
from torch import Tensor, nn

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.errors import CorruptFileError, LoraFileError
from lora_runtime.lora import outline

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    # PEFT tries to compile a kernel for BOFT, and goes on without it.
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
]


def oft_config(modules: list[str], size: int = 4, **options: Any) -> Any:
    return peft.OFTConfig(oft_block_size=size, target_modules=modules, **options)


def boft_config(modules: list[str], size: int = 4, **options: Any) -> Any:
    return peft.BOFTConfig(boft_block_size=size, target_modules=modules, **options)


CONFIGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "OFT": (Plain, lambda: oft_config(LINEAR)),
    "OFT of one term": (Plain, lambda: oft_config(LINEAR, num_cayley_neumann_terms=2)),
    "OFT of three terms": (Plain, lambda: oft_config(LINEAR, num_cayley_neumann_terms=3)),
    "OFT of eight terms": (Plain, lambda: oft_config(LINEAR, num_cayley_neumann_terms=8)),
    "OFT of exact rotations": (Plain, lambda: oft_config(LINEAR, use_cayley_neumann=False)),
    "OFT of one block for all": (Plain, lambda: oft_config(LINEAR, block_share=True)),
    "OFT with a limit": (Plain, lambda: oft_config(LINEAR, coft=True, eps=0.7)),
    "OFT of convolutions": (Pictures, lambda: oft_config(CONVOLUTIONS, size=6)),
    "BOFT": (Plain, lambda: boft_config(LINEAR)),
    "BOFT of odd blocks": (Pictures, lambda: boft_config(CONVOLUTIONS, size=3)),
    "RoAd of pairs": (Plain, lambda: peft.RoadConfig(variant="road_1", group_size=4, target_modules=LINEAR)),
    "RoAd of outputs": (Plain, lambda: peft.RoadConfig(variant="road_2", group_size=2, target_modules=LINEAR)),
    "RoAd of numbers": (Plain, lambda: peft.RoadConfig(variant="road_4", group_size=4, target_modules=LINEAR)),
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


class Kernel:
    """What the kernel does that PEFT has for a GPU alone: each stage's blocks on a diagonal."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.parametrize(("size", "stages"), [(2, 4), (4, 3), (8, 2)])
@pytest.mark.parametrize("layer", [nn.Linear(16, 6), nn.Conv2d(4, 6, 2)], ids=["linear", "convolution"])
def test_stages_of_a_butterfly_are_those_of_peft(
    layer: nn.Module, size: int, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", Kernel)
    tuned = wrapped(nn.ModuleDict({"first": layer}), boft_config(["first"], size, boft_n_butterfly_factor=stages))
    weight = tuned.base_model.model["first"].base_layer.weight.detach().clone()
    tuned.save_pretrained(str(tmp_path / "style"))
    (adapter,) = load_lora(tmp_path / "style").adapters[f"{WRAPPER}first"]
    expected = tuned.merge_and_unload()["first"].weight
    torch.testing.assert_close(weight + adapter.delta(weight), expected, rtol=1e-5, atol=1e-6)


def skew_of(upper: Tensor, size: int) -> list[Tensor]:
    """Return the skew matrices in float64, element by element."""
    found = []
    for row in upper.double():
        skew, numbers = torch.zeros(size, size, dtype=torch.float64), iter(row)
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j] = next(numbers)
        found.append(skew - skew.T)
    return found


UPPER = torch.randn(2, 6, generator=torch.Generator().manual_seed(2)) * 0.2  # two blocks of 4 × 4


@pytest.mark.parametrize("version", [None, "0.17.1", "0.17.2.dev0@abc"])
def test_the_series_of_peft_before_0_18_counts_its_last_power_twice(version: str | None, tmp_path: Path) -> None:
    config = {"peft_type": "OFT", "oft_block_size": 4, "use_cayley_neumann": True, "peft_version": version}
    lora = load_lora(folder(tmp_path / "style", config, {"oft_R.weight": UPPER}))
    (adapter,) = lora.adapters[f"{WRAPPER}first"]
    weight = Plain().first.weight.detach().double()
    turns = [torch.eye(4) + 2 * sum(torch.matrix_power(q, k) for k in (1, 2, 3, 4)) for q in skew_of(UPPER, 4)]
    expected = weight @ torch.block_diag(*turns).T
    torch.testing.assert_close(weight + adapter.delta(weight), expected)


def onetrainer(path: Path, weight: Tensor, **more: Tensor) -> Tensor:
    """Return the weight with the change of a file that has no configuration beside it."""
    (adapter,) = load_lora(folder(path, None, {"oft_R.weight": UPPER, **more})).adapters[f"{WRAPPER}first"]
    assert adapter.misfit(weight.shape) is None
    return weight + adapter.delta(weight)


def neumann_of(upper: Tensor) -> Tensor:
    """Return R in float64, in PEFT's default form with five terms."""
    powers = [[torch.matrix_power(q, k) for k in range(5)] for q in skew_of(upper, 4)]
    return torch.block_diag(*(p[0] + 2 * p[1] + 2 * p[2] + 2 * p[3] + p[4] for p in powers))


def test_a_file_of_onetrainer_turns_linear_layers_as_peft_does_and_kernels_back(tmp_path: Path) -> None:
    linear, kernel = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    turn = neumann_of(UPPER)
    torch.testing.assert_close(onetrainer(tmp_path / "a", linear), linear @ turn.T)
    torch.testing.assert_close(onetrainer(tmp_path / "b", kernel), (kernel.flatten(1) @ turn).view(kernel.shape))


def test_a_file_of_onetrainer_with_lengths_is_a_dora(tmp_path: Path) -> None:
    weight, lengths = torch.randn(3, 8, dtype=torch.float64), torch.tensor([[1.0], [2.0], [3.0]])
    turned = weight @ neumann_of(UPPER).T
    expected = lengths.double() * turned / turned.norm(dim=1, keepdim=True)
    torch.testing.assert_close(onetrainer(tmp_path / "a", weight, dora_scale=lengths), expected)


def test_one_block_without_a_configuration_turns_all_inputs(tmp_path: Path) -> None:
    (adapter,) = load_lora(folder(tmp_path / "style", None, {"oft_R.weight": UPPER[:1]})).adapters[f"{WRAPPER}first"]
    weight = torch.randn(3, 8, dtype=torch.float64)
    expected = weight @ neumann_of(UPPER[[0, 0]]).T
    torch.testing.assert_close(weight + adapter.delta(weight), expected)


OFT = {"peft_type": "OFT", "oft_block_size": 4, "peft_version": "0.18.0"}
ROAD = {"peft_type": "ROAD", "group_size": 4}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "OFT": (OFT, {"oft_R.weight": torch.ones(3, 6)}, r"made for 12 inputs, the weight is \(12, 8\)"),
    "OFT of one block": (
        OFT | {"block_share": True},
        {"oft_R.weight": torch.ones(1, 10)},
        r"made for a multiple of 5 inputs, the weight is \(12, 8\)",
    ),
    "RoAd": (
        {"peft_type": "ROAD", "group_size": 2},
        {"road_theta": torch.ones(5), "road_alpha": torch.ones(5)},
        r"made for 10 outputs, the weight is \(12, 8\)",
    ),
    "BOFT": (
        {"peft_type": "BOFT"},
        {"boft_R": torch.ones(1, 2, 4, 4), "boft_s": torch.ones(11, 1)},
        r"made for 8 inputs and 11 outputs, the weight is \(12, 8\)",
    ),
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
    "OFT": (OFT, {"oft_R.weight": torch.ones(6)}, "the rotations are no rows"),
    "OFT of no triangle": (OFT, {"oft_R.weight": torch.ones(2, 7)}, "no block has that many numbers"),
    "OFT of several shared blocks": (
        OFT | {"block_share": True},
        {"oft_R.weight": torch.ones(2, 6)},
        "several blocks, and",
    ),
    "OFT of endless terms": (
        OFT | {"num_cayley_neumann_terms": 10**9},
        {"oft_R.weight": torch.ones(2, 6)},
        "num_cayley_neumann_terms 1000000000 is no number from 1 to 100",
    ),
    "OFT of a limit that is none": (OFT | {"eps": "1"}, {"oft_R.weight": torch.ones(2, 6)}, "eps '1' is no number"),
    "RoAd": (ROAD, {"road_theta": torch.ones(6), "road_alpha": torch.ones(5)}, "no two vectors of one length"),
    "RoAd alone": (None, {"road_theta": torch.ones(6), "road_alpha": torch.ones(6)}, r"only the adapter_config\.json"),
    "RoAd of odd groups": (
        ROAD | {"group_size": 3},
        {"road_theta": torch.ones(6), "road_alpha": torch.ones(6)},
        "12 outputs make no pairs in groups of 3",
    ),
    "RoAd of no groups": (
        ROAD | {"group_size": 0},
        {"road_theta": torch.ones(6), "road_alpha": torch.ones(6)},
        "group_size 0 is no number of outputs",
    ),
    "RoAd of an unknown variant": (
        ROAD | {"variant": "road_3"},
        {"road_theta": torch.ones(6), "road_alpha": torch.ones(6)},
        "variant 'road_3' is none of road_1, road_2, road_4",
    ),
    "BOFT without a scale": (None, {"boft_R": torch.ones(1, 2, 4, 4)}, "blocks without outputs"),
    "BOFT": (None, {"boft_R": torch.ones(1, 2, 4, 3), "boft_s": torch.ones(12, 1)}, "the blocks are not square"),
    "BOFT of a matrix of scales": (
        None,
        {"boft_R": torch.ones(1, 2, 4, 4), "boft_s": torch.ones(12, 2)},
        "the scale is no vector",
    ),
    "BOFT of too many stages": (
        None,
        {"boft_R": torch.ones(3, 2, 4, 4), "boft_s": torch.ones(12, 1)},
        "no butterfly of that many stages",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_contradict_each_other_are_an_error(name: str, tmp_path: Path) -> None:
    config, tensors, reason = BROKEN[name]
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(folder(tmp_path / "style", config, tensors))


def test_oft_of_older_peft_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match=r"that of PEFT before 0\.14"):
        load_lora(folder(tmp_path / "a", {"peft_type": "OFT"}, {"oft_R.weight": UPPER}))
    with pytest.raises(LoraFileError, match=r"OFT of PEFT before 0\.16 is not supported"):
        load_lora(folder(tmp_path / "b", OFT, {"oft_r": torch.ones(2, 4, 4)}))


@pytest.mark.parametrize("marker", ["oft_R.scaled_oft", "oft_R.cans_exp", "dora_multiplier"])
def test_trainers_whose_formula_changed_under_the_same_key_are_refused_by_name(marker: str, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="scaled, clipped or exponential OFT is not supported"):
        load_lora(folder(tmp_path / "style", None, {"oft_R.weight": UPPER, marker: torch.ones(1)}))


def test_a_limit_leaves_no_rotation_as_it_is(tmp_path: Path) -> None:
    config = OFT | {"coft": True, "eps": 0.1}
    lora = load_lora(folder(tmp_path / "style", config, {"oft_R.weight": torch.zeros(2, 6)}))
    weight = Plain().first.weight
    assert torch.equal(lora.adapters[f"{WRAPPER}first"][0].delta(weight), torch.zeros_like(weight))
