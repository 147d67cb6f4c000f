"""OFT and BOFT against LyCORIS's forward pass and the formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.judge import LAYERS, STEM, agree, conv3x3, linear, made, patched, rand, randomise, saved
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.lora import load_lora

KINDS = [("oft", DiagOFTModule), ("boft", ButterflyOFTModule)]


def rotations(blocks: Tensor) -> Tensor:
    """Return (I + Q)(I − Q)⁻¹ in float64."""
    skew = blocks.double() - blocks.double().mT
    identity = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rescaled", [False, True])
# 0: the angles are free. 0.002: the norm of Q is cut, and 1.0: it is within the limit.
@pytest.mark.parametrize("constraint", [0.0, 0.002, 1.0])
@pytest.mark.parametrize(("algorithm", "kind"), KINDS)
def test_it_acts_as_lycoris_does(
    algorithm: str,
    kind: type[nn.Module],
    constraint: float,
    rescaled: bool,
    layer: Callable[[], nn.Module],
    tmp_path: Path,
) -> None:
    base = layer()
    module = randomise(kind("x", base, lora_dim=6, constraint=constraint, rescaled=rescaled))
    lora = saved(module.state_dict(), tmp_path)
    assert [adapter.algorithm for adapter in lora.adapters[STEM]] == [algorithm]
    agree(base, module, lora)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("strength", [0.5, -0.3, 2.0])
def test_at_other_strengths_a_rotation_is_what_lycoris_makes_of_it(
    strength: float, layer: Callable[[], nn.Module], tmp_path: Path
) -> None:
    base = layer()
    module = randomise(DiagOFTModule("x", base, lora_dim=4))
    agree(base, module, saved(module.state_dict(), tmp_path), strength)


@pytest.mark.parametrize("alpha", [1.0, 0.01])  # within the limit; the norm is cut
def test_runs_of_outputs_turn_apart(alpha: float, tmp_path: Path) -> None:
    # By kohya's formula for Flux: each run of rows has blocks, a norm and a limit (alpha · its outputs) of its own.
    sizes = [(2, 4), (2, 4), (2, 4), (2, 6)]  # blocks and rows of each: q, k, v and the MLP
    blocks = [rand(count, size, size, seed=run) * 0.3 for run, (count, size) in enumerate(sizes)]
    weight = rand(36, 10)
    expected = []
    for one, rows in zip(blocks, weight.double().split([count * size for count, size in sizes]), strict=True):
        limit = alpha * rows.shape[0]
        norm = (one.double() - one.double().mT).norm().item()
        turns = rotations(one * min(1.0, limit / norm))
        turned = [turn.T @ block for turn, block in zip(turns, rows.reshape(*one.shape[:2], -1), strict=True)]
        expected.append(torch.cat(turned))
    tensors = {f"oft_blocks.{run}": one for run, one in enumerate(blocks)} | {"alpha": torch.tensor(alpha)}
    lora = saved(tensors, tmp_path, backwards=True)
    (adapter,) = lora.adapters[STEM]
    assert len(adapter.keys) == 5
    merged = weight + adapter.delta(weight)
    torch.testing.assert_close(merged.double(), torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert adapter.misfit(torch.Size((36, 3))) is None
    assert adapter.misfit(torch.Size((35, 3))) == "made for 8 + 8 + 8 + 12 outputs, the weight is (35, 3)"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"blocks.1": rand(2, 4, 4)}, "the runs of outputs are not those from 0 on: blocks.1 (2, 4, 4)"),
        (
            {"blocks.0": rand(2, 4, 4), "rescale": rand(8)},
            "the runs of outputs are not those from 0 on: blocks.0 (2, 4, 4), rescale (8,)",
        ),
        ({"blocks.0": rand(2, 4, 3)}, "the blocks are not square: blocks.0 (2, 4, 3)"),
    ],
)
def test_runs_that_contradict_themselves_are_named(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("oft", tensors)
    assert str(caught.value) == reason


@pytest.mark.parametrize(("algorithm", "kind"), KINDS)
def test_a_strength_is_always_a_straight_line_from_the_original(
    algorithm: str, kind: type[nn.Module], tmp_path: Path
) -> None:
    # On purpose not as LyCORIS, which multiplies by the whole rescale even at strength 0 (OFT), or goes part of the way
    # in each stage of a butterfly (BOFT): a sum of adapters has one meaning of strength.
    base = linear()
    module = randomise(kind("x", base, lora_dim=6, rescaled=True))
    adapters = saved(module.state_dict(), tmp_path).adapters[STEM]
    assert adapters[0].algorithm == algorithm
    half, whole = (patched(base, adapters, strength)["weight"] for strength in (0.5, 1.0))
    torch.testing.assert_close(half, (base.weight.detach() + whole) / 2)


def test_a_rotation_keeps_lengths_and_angles() -> None:
    weight = rand(24, 12)
    for blocks in (rand(6, 4, 4), rand(3, 4, 6, 6)):
        turned = (weight + made("oft", {"blocks": blocks}).delta(weight)).double()
        torch.testing.assert_close(turned.mT @ turned, weight.double().mT @ weight.double(), rtol=1e-5, atol=1e-4)
        assert (turned - weight).abs().max() > 0.1


def test_the_blocks_turn_the_outputs_the_other_way_round() -> None:
    blocks, weight = rand(2, 3, 3), rand(6, 5)
    turns = rotations(blocks)
    exact = torch.cat([turns[0].T @ weight[:3].double(), turns[1].T @ weight[3:].double()])
    delta = made("oft", {"blocks": blocks}).delta(weight)
    torch.testing.assert_close(delta.double(), exact - weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_no_alpha_and_alpha_zero_are_no_limit(alpha: float | None) -> None:
    # kohya's trainer would hold alpha 0 at no rotation at all; LyCORIS writes 0 for no limit, and such files are many.
    blocks, weight = rand(2, 3, 3), rand(6, 5)
    free, given = made("oft", {"blocks": blocks}), made("oft", {"blocks": blocks}, alpha=alpha)
    assert torch.equal(free.delta(weight), given.delta(weight))
    assert free.delta(weight).abs().max() > 0.1


def test_the_limit_is_alpha_times_the_outputs_for_all_blocks_together() -> None:
    blocks, weight = rand(2, 3, 3), rand(6, 5)
    norm = (blocks - blocks.mT).norm().item()
    cut = made("oft", {"blocks": blocks}, alpha=norm / 6 / 2)
    expected = made("oft", {"blocks": blocks / 2})
    torch.testing.assert_close(cut.delta(weight), expected.delta(weight))


def test_blocks_of_zeros_change_nothing_under_a_limit_too() -> None:
    for shape in ((2, 4, 4), (2, 2, 4, 4)):
        assert torch.equal(made("oft", {"blocks": torch.zeros(shape)}, alpha=0.1).delta(rand(8, 5)), torch.zeros(8, 5))


def test_the_blocks_of_old_lycoris_are_the_rotation_itself() -> None:
    blocks, weight = rand(2, 3, 3), rand(6, 5)
    turns = rotations(blocks)
    adapter = made("oft", {"diag": turns.float()}, alpha=1e-3)
    expected = made("oft", {"blocks": blocks}).delta(weight)
    torch.testing.assert_close(adapter.delta(weight), expected, rtol=1e-5, atol=1e-5)


def test_an_alpha_of_peft_in_the_metadata_is_no_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{STEM}.oft_blocks": rand(2, 3, 3)}, path, {"lora_adapter_metadata": '{"lora_alpha": 0.001}'})
    assert load_lora(path).adapters[STEM][0].alpha is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_it_is_given_the_weight_in_any_dtype(dtype: torch.dtype) -> None:
    blocks, weight = rand(2, 3, 3), rand(6, 5, dtype=dtype)
    exact = (rotations(blocks).mT @ weight.double().reshape(2, 3, 5)).reshape(6, 5) - weight
    delta = made("oft", {"blocks": blocks}).delta(weight)
    assert (delta - exact).abs().max() < (1e-13 if dtype == torch.float64 else 1e-5)
    assert made("oft", {"blocks": blocks}).base_dependent


@pytest.mark.parametrize("shape", [(2, 3, 3), (1, 3, 2, 2)])
def test_the_way_a_weight_lies_in_memory_does_not_matter(shape: tuple[int, ...]) -> None:
    adapter = made("oft", {"blocks": rand(*shape)})
    weight = rand(6, 5, 3, 3)
    expected = adapter.delta(weight)
    torch.testing.assert_close(adapter.delta(weight.to(memory_format=torch.channels_last)), expected)


def test_a_misfit_names_both_shapes() -> None:
    adapter = made("oft", {"blocks": rand(6, 4, 4)})
    assert adapter.misfit(conv3x3().weight.shape) is None  # type: ignore[union-attr]
    assert adapter.misfit(torch.Size((25, 12))) == "made for 6 × 4 outputs, the weight is (25, 12)"
    assert adapter.misfit(torch.Size((24,))) == "made for 6 × 4 outputs, the weight is (24,)"


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"rescale": (6, 1)}, "rescale without blocks"),
        ({"blocks": (2, 3, 4)}, "the blocks are not square: blocks (2, 3, 4)"),
        ({"blocks": (3, 3)}, "the blocks are not square: blocks (3, 3)"),
        ({"diag": (2, 2, 4, 4)}, "the blocks are not square: diag (2, 2, 4, 4)"),
        ({"blocks": (0, 4, 4)}, "the blocks are empty: blocks (0, 4, 4)"),
        ({"blocks": (2, 3, 3), "diag": (2, 3, 3)}, "both oft_blocks and oft_diag on one module"),
        (
            {"blocks": (2, 3, 3), "rescale": (5, 1)},
            "the rescale has another number of outputs: blocks (2, 3, 3), rescale (5, 1)",
        ),
        ({"blocks": (1, 2, 3, 3)}, "the blocks make no butterfly of that many stages: blocks (1, 2, 3, 3)"),
        ({"blocks": (4, 4, 4, 4)}, "the blocks make no butterfly of that many stages: blocks (4, 4, 4, 4)"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("oft", {role: torch.zeros(shape) for role, shape in shapes.items()})
    assert str(caught.value) == reason
