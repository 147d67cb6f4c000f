"""IA³ as LyCORIS stores it, against its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.judge import LAYERS, STEM, agree, made, rand, randomise, saved
from lycoris.modules.ia3 import IA3Module
from safetensors.torch import save_file
from torch import nn

from lora_runtime.lora import load_lora


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_it_acts_as_lycoris_does(
    layer: Callable[[], nn.Module], on_input: bool, strength: float, tmp_path: Path
) -> None:
    base = layer()
    module = randomise(IA3Module("x", base, train_on_input=on_input))
    tensors = module.state_dict()
    assert set(tensors) == {"weight", "on_input"}
    agree(base, module, saved(tensors, tmp_path), strength)


def test_the_order_of_the_keys_does_not_matter(tmp_path: Path) -> None:
    tensors = {"weight": rand(6), "on_input": torch.tensor(0)}
    for backwards in (False, True):
        lora = saved(tensors, tmp_path, backwards=backwards)
        assert [adapter.algorithm for adapter in lora.adapters[STEM]] == ["ia3"]
        assert set(lora.adapters[STEM][0].keys) == {f"{STEM}.weight", f"{STEM}.on_input"}
        assert dict(lora.unused) == {}


def test_a_weight_belongs_to_it_only_beside_its_own_key(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    other = {"y.weight": rand(6), "y.lora_up.weight": rand(6, 2), "y.lora_down.weight": rand(2, 4), "z.weight": rand(6)}
    save_file({"x.weight": rand(6), "x.on_input": torch.tensor(1)} | other, path)
    lora = load_lora(path)
    assert {stem: [adapter.algorithm for adapter in found] for stem, found in lora.adapters.items()} == {
        "x": ["ia3"],
        "y": ["lora"],
    }
    assert dict(lora.unused) == dict.fromkeys(("y.weight", "z.weight"), "no adapter has keys with this ending")


def test_it_depends_on_the_weight_and_has_no_rank() -> None:
    adapter = made("ia3", {"weight": rand(6), "on_input": torch.tensor(0)})
    assert adapter.base_dependent
    assert (adapter.rank, adapter.alpha, adapter.scale, adapter.factors()) == (0, None, 1.0, None)


def test_a_misfit_names_the_side_and_the_shape() -> None:
    on_input = made("ia3", {"weight": rand(6), "on_input": torch.tensor(1)})
    assert on_input.misfit(torch.Size((3, 6))) is None
    assert on_input.misfit(torch.Size((6, 3))) == "made for 6 inputs, the weight is (6, 3)"
    on_output = made("ia3", {"weight": rand(1, 6, 1, 1), "on_input": torch.tensor(0)})
    assert on_output.misfit(torch.Size((3, 6, 1, 1))) == "made for 6 outputs, the weight is (3, 6, 1, 1)"
    assert on_output.misfit(torch.Size((6,))) == "made for 6 outputs, the weight is (6,)"


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"on_input": ()}, "on_input without weight"),
        ({"weight": (6,), "on_input": (2,)}, "the factors are no vector: on_input (2,), weight (6,)"),
        ({"weight": (6, 2), "on_input": ()}, "the factors are no vector: on_input (), weight (6, 2)"),
        ({"weight": (0,), "on_input": ()}, "the factors are no vector: on_input (), weight (0,)"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("ia3", {role: torch.zeros(shape) for role, shape in shapes.items()})
    assert str(caught.value) == reason
