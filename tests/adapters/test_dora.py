"""DoRA around LoRA, LoHa and LoKr, against LyCORIS's forward pass, PEFT's merged weight and the formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters.judge import (
    LAYERS,
    STEM,
    agree,
    conv1x1,
    conv3x3,
    linear,
    patched,
    rand,
    randomise,
    saved,
    square,
)
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.adapters.dora import dora_delta
from lora_runtime.lora import load_lora

KINDS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (LoConModule, {"lora_dim": 4, "alpha": 2}),
    (LohaModule, {"lora_dim": 4, "alpha": 2}),
    (LokrModule, {"lora_dim": 1, "alpha": 2}),
]


def lora(**extra: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a LoRA on a weight (7, 5) and others."""
    return {"lora_up.weight": rand(7, 2), "lora_down.weight": rand(2, 5)} | extra


def one(tensors: dict[str, Tensor], folder: Path) -> Adapter:
    (adapter,) = saved(tensors, folder).adapters[STEM]
    return adapter


def formula(weight: Tensor, inner: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """Return m·V/‖V‖ − W₀ in float64, row by row or column by column."""
    total = (weight.double() + inner.double()).movedim(axis, 0)
    rows = [m * row / row.norm() for m, row in zip(magnitude.double().flatten(), total, strict=True)]
    return torch.stack(rows).movedim(0, axis) - weight


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("by_output", [True, False])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_it_acts_as_lycoris_does(
    kind: type[nn.Module], options: dict[str, Any], by_output: bool, layer: Callable[[], nn.Module], tmp_path: Path
) -> None:
    base = layer()
    module = randomise(kind("x", base, weight_decompose=True, wd_on_out=by_output, **options))
    tensors = module.state_dict()
    assert "dora_scale" in tensors
    found = saved(tensors, tmp_path)
    (adapter,) = found.adapters[STEM]
    assert (adapter.algorithm, adapter.base_dependent, adapter.factors()) == ("dora", True, None)
    assert set(adapter.keys) == {f"{STEM}.{key}" for key in tensors}
    assert dict(found.unused) == {}
    agree(base, module, found)


def test_a_tucker_core_is_inside_too(tmp_path: Path) -> None:
    base = conv3x3()
    module = randomise(LohaModule("x", base, lora_dim=4, alpha=2, use_tucker=True, weight_decompose=True))
    agree(base, module, saved(module.state_dict(), tmp_path))


def test_a_strength_is_a_straight_line_from_the_original(tmp_path: Path) -> None:
    # On purpose not as LyCORIS, where only the length follows the strength, and strength 0 still adds the LoRA.
    base = linear()
    module = randomise(LoConModule("x", base, lora_dim=4, alpha=2, weight_decompose=True))
    adapters = saved(module.state_dict(), tmp_path).adapters[STEM]
    none, half, whole = (patched(base, adapters, strength)["weight"] for strength in (0.0, 0.5, 1.0))
    assert torch.equal(none, base.weight.detach())
    torch.testing.assert_close(half, (none + whole) / 2)


@pytest.mark.parametrize("layer", [linear, square, conv1x1, conv3x3])
def test_it_changes_the_weight_as_peft_does(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    base = nn.Sequential(layer())
    before = base[0].weight.detach().clone()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"], use_dora=True))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2)) + 0.5
        elif parameter.requires_grad:
            parameter.data = rand(*parameter.shape) * 0.3
    tensors = peft.get_peft_model_state_dict(model)
    assert any(key.endswith(".lora_magnitude_vector") for key in tensors)
    found = saved(tensors, tmp_path, "")
    ((adapter,),) = found.adapters.values()
    merged = model.merge_and_unload()[0].weight.detach()
    assert (merged - before).abs().max() > 0.01
    torch.testing.assert_close(before + adapter.delta(before), merged, rtol=1e-5, atol=1e-5)


# (key, shape of the magnitude, axis of a square weight that it means)
SPELLINGS = [
    ("dora_scale", (5, 1), 0),
    ("dora_scale", (1, 5), 1),
    ("dora_scale", (5,), 1),  # such files are older than magnitudes by output
    ("lora_magnitude_vector", (5,), 0),
    ("lora_magnitude_vector.weight", (5,), 0),
    ("lora_magnitude_vector.default.weight", (5,), 0),
    ("lora_magnitude_vector", (1, 5), 0),
    ("magnitude", (5,), 0),
]


@pytest.mark.parametrize(("key", "shape", "axis"), SPELLINGS)
def test_the_name_and_then_the_shape_say_which_axis_is_meant(
    key: str, shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    up, down, weight = rand(5, 2), rand(2, 5), rand(5, 5)
    magnitude = rand(*shape).abs() + 0.5
    adapter = one({"lora_up.weight": up, "lora_down.weight": down, key: magnitude}, tmp_path)
    exact = formula(weight, up.double() @ down.double(), magnitude, axis)
    torch.testing.assert_close(adapter.delta(weight).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "axis"), [(7, 0), (5, 1)])
def test_a_bare_vector_belongs_to_the_axis_that_it_fits(count: int, axis: int, tmp_path: Path) -> None:
    weight, magnitude = rand(7, 5), rand(count).abs() + 0.5
    adapter = one(lora(dora_scale=magnitude), tmp_path)
    exact = formula(weight, rand(7, 2).double() @ rand(2, 5).double(), magnitude, axis)
    torch.testing.assert_close(adapter.delta(weight).double(), exact, rtol=1e-5, atol=1e-5)


def test_all_that_changes_the_weight_is_inside_and_the_bias_is_not(tmp_path: Path) -> None:
    weight, magnitude = rand(7, 5), rand(7, 1).abs() + 0.5
    tensors = lora(dora_scale=magnitude, alpha=torch.tensor(1.0), diff=rand(7, 5, seed=3), diff_b=rand(7))
    for backwards in (False, True):
        found = saved(tensors, tmp_path, backwards=backwards)
        bias, dora = found.adapters[STEM]
        assert (bias.parameter, dora.algorithm) == ("bias", "dora")
        inner = rand(7, 2).double() @ rand(2, 5).double() / 2 + rand(7, 5, seed=3).double()
        exact = formula(weight, inner, magnitude, 0)
        torch.testing.assert_close(dora.delta(weight).double(), exact, rtol=1e-5, atol=1e-5)
        assert len(bias.keys) + len(dora.keys) == found.key_count


def test_two_adapters_of_peft_have_a_magnitude_each(tmp_path: Path) -> None:
    tensors = {
        f"{key}.{name}{end}": tensor
        for name in "ab"
        for key, end, tensor in (
            ("lora_A", ".weight", rand(2, 5)),
            ("lora_B", ".weight", rand(7, 2)),
            ("lora_magnitude_vector", ".weight", rand(7).abs()),
        )
    }
    adapters = saved(tensors, tmp_path).adapters[STEM]
    assert [(adapter.algorithm, len(adapter.keys)) for adapter in adapters] == [("dora", 3), ("dora", 3)]
    assert torch.equal(adapters[0].delta(rand(7, 5)), adapters[1].delta(rand(7, 5)))


def test_a_row_without_length_stays_zero() -> None:
    weight = rand(3, 4)
    weight[1] = 0
    delta = dora_delta(weight, torch.zeros(3, 4), torch.ones(3, 1), 0)
    assert torch.equal(delta[1], torch.zeros(4))
    assert delta.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_it_is_given_the_weight_in_any_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    weight, magnitude = rand(7, 5, dtype=dtype), rand(7, 1).abs()
    adapter = one(lora(dora_scale=magnitude), tmp_path)
    exact = formula(weight, rand(7, 2).double() @ rand(2, 5).double(), magnitude, 0)
    with torch.autocast("cpu", torch.bfloat16):
        delta = adapter.delta(weight)
    assert (delta - exact).abs().max() < (1e-13 if dtype == torch.float64 else 1e-5)


def test_around_rank_zero_only_the_lengths_change(tmp_path: Path) -> None:
    tensors = {
        "lora_up.weight": torch.zeros(7, 0),
        "lora_down.weight": torch.zeros(0, 5),
        "dora_scale": torch.ones(7, 1),
    }
    weight = rand(7, 5)
    patched_weight = weight + one(tensors, tmp_path).delta(weight)
    torch.testing.assert_close(patched_weight.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize(
    ("magnitude", "shape", "reason"),
    [
        ((7, 1), (7, 6), "made for (7, 5), the weight is (7, 6)"),
        ((6, 1), (7, 5), "its magnitude is (6, 1), the weight is (7, 5)"),
        ((5, 1), (7, 5), "its magnitude is (5, 1), the weight is (7, 5)"),
        ((1, 7), (7, 5), "its magnitude is (1, 7), the weight is (7, 5)"),
        ((6,), (7, 5), "its magnitude is (6,), the weight is (7, 5)"),
    ],
)
def test_a_misfit_names_both_shapes(
    magnitude: tuple[int, ...], shape: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    assert one(lora(dora_scale=torch.ones(magnitude)), tmp_path).misfit(torch.Size(shape)) == reason


def test_lengths_of_outputs_by_name_are_never_those_of_inputs(tmp_path: Path) -> None:
    adapter = one(lora(lora_magnitude_vector=torch.ones(5)), tmp_path)
    assert adapter.misfit(torch.Size((7, 5))) == "its magnitude is (5,), the weight is (7, 5)"


LEFT_OUT = f"left out, since alone it would be wrong: it belongs with {STEM}.dora_scale (dora)"


@pytest.mark.parametrize(
    ("tensors", "reasons"),
    [
        ({"dora_scale": torch.ones(7, 1)}, {"dora_scale": "a magnitude (DoRA) without factors"}),
        (
            {"dora_scale": torch.ones(7, 1), "diff_b": torch.ones(7)},
            {"dora_scale": "a magnitude (DoRA) without factors"},
        ),
        (
            {"dora_scale": torch.ones(7, 1), "lora_up.weight": rand(7, 2), "alpha": torch.tensor(1.0)},
            {
                "lora_up.weight": "an up factor without its down factor",
                "dora_scale": "dora around factors that cannot be used",
                "alpha": "an alpha without factors",
            },
        ),
        (
            lora(dora_scale=torch.ones(7, 5)),
            {
                "dora_scale": "the magnitude (DoRA) is no vector: scale (7, 5)",
                "lora_up.weight": LEFT_OUT,
                "lora_down.weight": LEFT_OUT,
            },
        ),
        (
            lora(dora_scale=torch.ones(7, 1), magnitude=torch.ones(7)),
            {
                **dict.fromkeys(
                    ("dora_scale", "magnitude"), "two magnitudes on one module: magnitude (7,), scale (7, 1)"
                ),
                "lora_up.weight": LEFT_OUT,
                "lora_down.weight": LEFT_OUT,
            },
        ),
        (
            lora(dora_scale=torch.full((7, 1), float("nan")), alpha=torch.tensor(1.0)),
            {
                "dora_scale": f"{STEM}.dora_scale has NaN or infinity in it",
                **dict.fromkeys(("lora_up.weight", "lora_down.weight", "alpha"), LEFT_OUT),
            },
        ),
    ],
)
def test_neither_half_of_a_dora_is_used_alone(
    tensors: dict[str, Tensor], reasons: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{STEM}.{key}": tensor.clone() for key, tensor in tensors.items()} | {"good.diff": rand(2, 2)}, path)
    found = load_lora(path)
    assert {key.removeprefix(f"{STEM}."): reason for key, reason in found.unused.items()} == reasons
    kept = [key for adapter in found.adapters.get(STEM, ()) for key in adapter.keys]
    assert len(kept) + len(reasons) == len(tensors)
