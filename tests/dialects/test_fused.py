"""A file that has in one weight what the model has in several, and the other way round.

The model is SD3's denoiser in both layouts; diffusers' converter of checkpoints says what of a fused weight is where,
the formulas in float64 say what each algorithm makes of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import tiny_ldm
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as to_diffusers
from torch import Tensor, nn

from lora_runtime.adapters import Rows
from lora_runtime.dialects import Part
from lora_runtime.merge import region_of
from lora_runtime.patcher import Patcher
from lora_runtime.plan import make_plan
from lora_runtime.requests import Request

FUSED = "joint_blocks.1.x_block.attn.qkv"
Q, K, V = (f"transformer_blocks.1.attn.to_{name}" for name in "qkv")
SIZE = 8
ALGORITHMS = pytest.mark.parametrize("kind", list(layouts.ALGORITHMS))


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the same random weights in the original's layout and in diffusers'."""
    torch.manual_seed(0)
    original = {name: torch.randn_like(tensor) for name, tensor in tiny_ldm.state(tiny_ldm.mmdit()).items()}
    del original["pos_embed"]
    return original, converted(original)


def converted(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of the original's layout in diffusers'."""
    found: dict[str, Tensor] = to_diffusers(original | {"pos_embed": torch.zeros(1)})
    del found["pos_embed.pos_embed"]
    return found


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


def under(stem: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stem}.{name}": tensor for name, tensor in tensors.items()}


@ALGORITHMS
@pytest.mark.parametrize("originals", ["device", "host"])
def test_a_fused_weight_of_a_file_changes_the_weights_that_the_model_has_for_it(
    kind: str, originals: str, tmp_path: Path
) -> None:
    original, theirs = states()
    tensors, change = layouts.ALGORITHMS[kind](3 * SIZE, SIZE)
    file = layouts.written(under(f"lora_unet_{FUSED.replace('.', '_')}", tensors), tmp_path)
    found, (report,) = layouts.patched(layouts.tree(theirs), [file], 0.7, originals)
    expected = doubled(original)
    expected[f"{FUSED}.weight"] += 0.7 * change(expected[f"{FUSED}.weight"])
    layouts.assert_same(found, converted(expected))
    assert (report.used, report.keys, dict(report.unused)) == (len(tensors), len(tensors), {})
    assert report.targets == {"transformer": 3}


@ALGORITHMS
def test_single_weights_of_a_file_change_their_rows_of_the_fused_one(kind: str, tmp_path: Path) -> None:
    original, theirs = states()
    expected = doubled(theirs)
    file: dict[str, Tensor] = {}
    for name in (Q, V):
        tensors, change = layouts.ALGORITHMS[kind](SIZE, SIZE)
        expected[f"{name}.weight"] += 0.7 * change(expected[f"{name}.weight"])
        file |= under(f"transformer.{name}", tensors)
    found, (report,) = layouts.patched(layouts.tree(original), [layouts.written(file, tmp_path)], 0.7)
    layouts.assert_same(converted(found), expected)
    assert report.used == len(file)


@ALGORITHMS
def test_files_in_both_spellings_join_in_one_sum(kind: str, tmp_path: Path) -> None:
    original, theirs = states()
    fused, change = layouts.ALGORITHMS[kind](3 * SIZE, SIZE)
    single, change_of_k = layouts.lora(SIZE, SIZE)
    files = [
        layouts.written(under(f"diffusion_model.{FUSED}", fused), tmp_path),
        layouts.written(under(f"transformer.{K}", single), tmp_path),
    ]
    expected = doubled(original)
    base = expected[f"{FUSED}.weight"].clone()
    expected[f"{FUSED}.weight"] += change(base)  # of W₀, never of a patched weight
    expected[f"{FUSED}.weight"][SIZE : 2 * SIZE] += change_of_k(base[SIZE : 2 * SIZE])
    in_theirs, _ = layouts.patched(layouts.tree(theirs), files)
    layouts.assert_same(in_theirs, converted(expected))
    in_original, _ = layouts.patched(layouts.tree(original), files)
    layouts.assert_same(in_original, expected)


@pytest.mark.parametrize("name", ["final_layer.adaLN_modulation.1", "joint_blocks.1.context_block.adaLN_modulation.1"])
def test_swapped_halves_are_swapped_in_both_directions(name: str, tmp_path: Path) -> None:
    original, theirs = states()
    tensors, change = layouts.lora(2 * SIZE, SIZE)
    bias = layouts.rand(2 * SIZE)
    file = layouts.written(under(f"diffusion_model.{name}", tensors | {"diff_b": bias}), tmp_path)
    expected = doubled(original)
    expected[f"{name}.weight"] += change(expected[f"{name}.weight"])
    expected[f"{name}.bias"] += bias
    layouts.assert_same(layouts.patched(layouts.tree(original), [file])[0], expected)
    layouts.assert_same(layouts.patched(layouts.tree(theirs), [file])[0], converted(expected))


def test_the_bias_of_a_fused_weight_is_cut_too(tmp_path: Path) -> None:
    original, theirs = states()
    values = layouts.rand(3 * SIZE)
    file = layouts.written({f"lora_unet_{FUSED.replace('.', '_')}.diff_b": values}, tmp_path)
    found, (report,) = layouts.patched(layouts.tree(theirs), [file])
    expected = doubled(original)
    expected[f"{FUSED}.bias"] += values
    layouts.assert_same(found, converted(expected))
    assert (report.used, report.keys) == (1, 1)


def test_low_rank_rows_take_the_way_of_the_one_product(tmp_path: Path) -> None:
    _, theirs = states()
    tensors, _ = layouts.lora(3 * SIZE, SIZE)
    file = layouts.written(under(FUSED, tensors), tmp_path)
    model = layouts.tree(theirs)
    plan = make_plan([Request(file, 1.0, 1.0)], layouts.targets_of(model))
    for index, assignment in enumerate(plan.assignments):
        (term,) = assignment.terms
        factors = term.adapter.factors()
        assert factors is not None
        assert torch.equal(factors.up, tensors["lora_up.weight"][index * SIZE : (index + 1) * SIZE])
        assert (term.adapter.rank, term.adapter.alpha, term.adapter.scale) == (2, 1.0, 0.5)
        assert term.adapter.misfit(torch.Size((SIZE, SIZE))) is None
        assert "the weight is (8, 9)" in str(term.adapter.misfit(torch.Size((SIZE, 9))))


def test_weights_of_unequal_size_have_as_many_rows_as_they_are(tmp_path: Path) -> None:
    _, theirs = states()
    theirs[f"{K}.weight"], theirs[f"{V}.weight"] = layouts.rand(4, SIZE), layouts.rand(12, SIZE)
    tensors, change = layouts.loha(3 * SIZE, SIZE)
    found, _ = layouts.patched(layouts.tree(theirs), [layouts.written(under(FUSED, tensors), tmp_path)])
    delta = change(torch.zeros(()))
    for name, rows in ((Q, slice(0, 8)), (K, slice(8, 12)), (V, slice(12, 24))):
        expected = theirs[f"{name}.weight"].double() + delta[rows]
        torch.testing.assert_close(found[f"{name}.weight"].double(), expected, rtol=2e-6, atol=2e-6)


def test_where_one_piece_cannot_be_changed_none_is(tmp_path: Path) -> None:
    tensors, _ = layouts.lora(3 * SIZE, SIZE)
    file = layouts.written(under(FUSED, tensors), tmp_path)

    def reason(**changed: Tensor | None) -> str:
        _, theirs = states()
        for name, tensor in changed.items():
            path = f"transformer_blocks.1.attn.{name}.weight"
            theirs.pop(path)
            if tensor is not None:
                theirs[path] = tensor
        model = layouts.tree(theirs)
        plan = make_plan([Request(file, 1.0, 1.0)], layouts.targets_of(model))
        assert plan.assignments == ()
        (report,) = plan.report.loras
        assert (report.used, len(report.unused)) == (0, 3)
        (found,) = set(report.unused.values())
        return found

    assert reason(to_v=torch.zeros(SIZE, SIZE, device="meta")).endswith("instead: transformer." + V)
    assert reason(to_k=torch.zeros(SIZE, 9)) == "for one weight, where this model has (8, 8) and (8, 9) and (8, 8)"
    assert reason(to_q=torch.zeros(9, SIZE)) == "made for (24, 8), the weight is (25, 8)"
    assert reason(to_v=None) == "no module of that name in transformer"


def test_a_fused_and_a_single_weight_of_one_file_do_not_both_change_a_row(tmp_path: Path) -> None:
    _, theirs = states()
    fused, single = layouts.lora(3 * SIZE, SIZE)[0], layouts.lora(SIZE, SIZE)[0]
    file = layouts.written(under(FUSED, fused) | under(f"transformer.{K}", single), tmp_path)
    _, (report,) = layouts.patched(layouts.tree(theirs), [file])
    assert set(report.unused.values()) == {f"for a weight that {FUSED} of the same file changes already"}
    assert set(report.unused) == set(under(f"transformer.{K}", single))


def test_rows_that_do_not_divide_are_a_reason(tmp_path: Path) -> None:
    original, _ = states()
    original[f"{FUSED}.weight"] = torch.zeros(3 * SIZE + 1, SIZE)
    file = layouts.written(under(Q, layouts.lora(SIZE, SIZE)[0]), tmp_path)
    model = layouts.tree(original)
    plan = make_plan([Request(file, 1.0, 1.0)], layouts.targets_of(model))
    assert set(plan.report.loras[0].unused.values()) == {"for 1/3 of the rows of a weight that is (25, 8)"}


def test_a_name_for_several_weights_says_which() -> None:
    _, theirs = states()
    model = layouts.tree(theirs)
    target = layouts.targets_of(model).find(FUSED)
    assert target is not None
    assert str(target) == f"transformer.{Q} + transformer.{K} + transformer.{V}"
    assert [place.path for place in target.places] == [Q, K, V]
    assert [place.rest for place in target.places] == [()] * 3


def test_a_new_original_of_one_piece_reaches_the_others(tmp_path: Path) -> None:
    """A rotation of all rows reads the originals of all pieces, so none may keep what it was computed from before."""
    original, theirs = states()
    tensors, change = layouts.oft(3 * SIZE, SIZE)
    model = layouts.tree(theirs)
    plan = make_plan([Request(layouts.written(under(FUSED, tensors), tmp_path), 1.0, 1.0)], layouts.targets_of(model))
    patcher = Patcher()
    assert patcher.apply(plan.assignments) == 3
    assert patcher.apply(plan.assignments) == 0
    weight = model.get_submodule(K).weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.copy_(torch.ones(SIZE, SIZE))
    assert patcher.apply(plan.assignments) == 3
    base = doubled(original)[f"{FUSED}.weight"]
    base[SIZE : 2 * SIZE] = 1
    expected = base + change(base)
    for index, name in enumerate((Q, K, V)):
        now = model.get_submodule(name).weight
        assert isinstance(now, Tensor)
        torch.testing.assert_close(now.double(), expected[index * SIZE : (index + 1) * SIZE], rtol=2e-6, atol=2e-6)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
def test_pieces_of_8_bits_are_read_in_the_digits_that_the_host_keeps(tmp_path: Path) -> None:
    from lora_runtime.pipelines import ModelView
    from lora_runtime.targets import Targets

    _, theirs = states()
    model = layouts.tree(theirs)
    whole = {}
    for name in (Q, K, V):
        module = model.get_submodule(name)
        whole[name] = module.weight.data.half()  # type: ignore[union-attr, operator]
        module.kept = whole[name]  # type: ignore[assignment]
        module.weight.data = module.weight.data.to(torch.float8_e4m3fn)  # type: ignore[union-attr, operator]
    view = ModelView({"transformer": model}, "", "pipeline", precise={"weight": "kept"})
    tensors, change = layouts.dora(3 * SIZE, SIZE, 1)
    plan = make_plan([Request(layouts.written(under(FUSED, tensors), tmp_path), 1.0, 1.0)], Targets(view))
    Patcher().apply(plan.assignments)
    base = torch.cat([whole[name].double() for name in (Q, K, V)])
    expected = (base + change(base)).float().to(torch.float8_e4m3fn).float()
    found = torch.cat([model.get_submodule(name).weight.data.float() for name in (Q, K, V)])  # type: ignore[union-attr, operator]
    assert torch.equal(found, expected)


def test_rows_without_the_originals_that_they_need_are_an_error(tmp_path: Path) -> None:
    file = layouts.written(under(FUSED, layouts.oft(3 * SIZE, SIZE)[0]), tmp_path)
    ((adapter,),) = file.adapters.values()
    rows = Rows(adapter, torch.Size((3 * SIZE, SIZE)), 0, SIZE, adapter.keys)
    with pytest.raises(ValueError, match="oft depends on W₀ and was not given the other rows"):
        rows.delta(torch.zeros(SIZE, SIZE))
    given = replace(rows, originals=(torch.ones(3 * SIZE, SIZE),))
    assert given.delta(torch.zeros(SIZE, SIZE)).shape == (SIZE, SIZE)
    assert (given.base_dependent, given.algorithm, given.parameter) == (True, "oft", "weight")


@pytest.mark.parametrize(
    ("part", "rows"),
    [(Part(3, 7, span=4), slice(6, 14)), (Part(0, 7, span=3), slice(0, 6)), (Part(2, 7), slice(4, 6))],
)
def test_a_part_of_several_runs_of_rows(part: Part, rows: slice) -> None:
    weight = torch.arange(28.0).reshape(14, 2)
    assert torch.equal(region_of(weight, part), weight[rows])


def test_parts_overlap_where_they_share_a_row() -> None:
    mlp, second_half = Part(3, 7, span=4), Part(1, 2)
    assert mlp.overlaps(Part(6, 7)) and mlp.overlaps(second_half) and second_half.overlaps(mlp)
    assert not mlp.overlaps(Part(2, 7)) and not Part(0, 7, span=3).overlaps(mlp) and not mlp.overlaps(Part(0, 3))
    assert str(mlp) == "4-7/7"
