"""`merge`: one file does what several do together, on ΔW."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from adapters.judge import rand
from commands import Command
from peft.utils import merge_utils
from safetensors.torch import load_file
from torch import Tensor, nn
from workbench.files import CONV_IN, TEXT, TO_K, TO_Q, delta, factors, written

from benchmarks.judges import JUDGES, Judge, quiet
from lora_runtime import apply
from lora_runtime.errors import CatalogError, LoraFileError, TagSyntaxError
from lora_runtime.header import read_header
from lora_runtime.lora import Lora, load_lora
from lora_runtime.workbench import merge

INK = factors(TO_Q, 4) | factors(CONV_IN, 3) | factors(TEXT, 2)
WASH = factors(TO_Q, 2, seed=7, alpha=1.0) | factors(CONV_IN, 5, seed=8, alpha=None) | factors(TO_K, 2, seed=9)


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    return written(tmp_path / "ink.safetensors", INK, {"modelspec.trigger_phrase": "ink, pale"})


@pytest.fixture
def wash(tmp_path: Path) -> Path:
    return written(tmp_path / "wash.safetensors", WASH, {"modelspec.trigger_phrase": "wash, pale"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def summed(terms: dict[Path, float], stem: str) -> Tensor:
    loras = {load_lora(path): strength for path, strength in terms.items()}
    return torch.stack([delta(lora, stem) * s for lora, s in loras.items() if stem in lora.adapters]).sum(0)


# ---- the sum --------------------------------------------------------------------------------------------------------


def test_a_sum_is_exact_and_its_ranks_add_up(ink: Path, wash: Path, out: Path) -> None:
    outcome = merge([f"{ink}:0.7", f"{wash}:-0.4"], out)
    found = load_lora(out)
    assert set(found.adapters) == {TO_Q, CONV_IN, TEXT, TO_K}
    for stem in found.adapters:
        torch.testing.assert_close(delta(found, stem), summed({ink: 0.7, wash: -0.4}, stem), rtol=1e-6, atol=1e-6)
    assert {stem: adapters[0].rank for stem, adapters in found.adapters.items()} == {
        TO_Q: 6,
        CONV_IN: 8,
        TEXT: 2,
        TO_K: 2,
    }
    assert (outcome.kept, outcome.modules, outcome.ranks) == (1.0, 4, (2, 6, 8))
    assert outcome.rounding < 1e-7
    assert all(adapter.scale == 1 for stem in (TO_Q, CONV_IN) for adapter in found.adapters[stem])


def test_one_file_at_strength_1_is_itself_bit_for_bit(tmp_path: Path, out: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in INK.items()}
    tensors |= {"bundle_emb.word.emb_params": rand(2, 6), "odd.key": rand(3), "lora_unet_x.diff_b": rand(3)}
    tensors |= factors(TO_K, 2) | {f"{TO_K}.dora_scale": rand(8, 1), f"{TO_K}.lora_up.bias": rand(8)}
    path = written(tmp_path / "a.safetensors", tensors)
    outcome = merge([path], out)
    found = load_file(out)
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)
    assert (outcome.kept, outcome.rounding) == (1.0, 0.0)


def test_one_file_at_another_strength_keeps_its_factors_and_changes_alpha(ink: Path, out: Path) -> None:
    merge([f"{ink}:0.7"], out)
    found = load_file(out)
    for key, tensor in INK.items():
        if key.endswith(".alpha"):
            assert float(found[key]) == pytest.approx(0.7 * 3)
        else:
            assert torch.equal(found[key], tensor)
    metadata = read_header(out).metadata
    assert float(metadata["ss_network_alpha"]) == pytest.approx(2.1)
    assert metadata["ss_network_dim"] == "Dynamic"


def test_equal_scales_leave_the_factors_bit_for_bit(tmp_path: Path, out: Path) -> None:
    half = {key: tensor.half() for key, tensor in factors(TO_Q, 4, alpha=3.0).items()}
    other = {key: tensor.half() for key, tensor in factors(TO_Q, 8, alpha=6.0, seed=5).items()}
    paths = [written(tmp_path / f"{n}.safetensors", tensors) for n, tensors in enumerate((half, other))]
    outcome = merge([f"{paths[0]}:0.7", f"{paths[1]}:-0.7"], out)
    up = load_file(out)[f"{TO_Q}.lora_up.weight"]
    assert torch.equal(up, torch.cat([half[f"{TO_Q}.lora_up.weight"], -other[f"{TO_Q}.lora_up.weight"]], 1))
    assert outcome.rounding == 0
    expected = 0.7 * (delta(load_lora(paths[0]), TO_Q) - delta(load_lora(paths[1]), TO_Q))
    torch.testing.assert_close(delta(load_lora(out), TO_Q), expected, rtol=1e-6, atol=1e-7)


def test_a_cut_sum_is_the_best_of_its_rank(ink: Path, wash: Path, out: Path) -> None:
    outcome = merge([f"{ink}:0.7", f"{wash}:0.4"], out, rank=3)
    found, total, lost = load_lora(out), 0.0, 0.0
    for stem in found.adapters:
        exact = summed({ink: 0.7, wash: 0.4}, stem)
        values = torch.linalg.svdvals(exact.flatten(1)).square()
        assert float((delta(found, stem) - exact).square().sum()) == pytest.approx(
            float(values[3:].sum()), rel=1e-4, abs=1e-9
        )
        total, lost = total + float(values.sum()), lost + float(values[3:].sum())
    assert outcome.kept == pytest.approx(1 - lost / total, rel=1e-9)
    assert merge([ink, wash], out, energy=0.9, force=True).kept >= 0.9
    assert max(merge([ink, wash], out, energy=0.999, rank=2, force=True).ranks) == 2


def test_merging_and_applying_is_applying_both(tmp_path: Path, out: Path) -> None:
    pipe = tiny.pipeline()
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed, name in enumerate(("ink", "wash"), 1):
        tiny.write_kohya_lora(folder / f"{name}.safetensors", pipe, rank=2 + seed, seed=seed)
    prompt = "<lora:ink:0.5:0.8:IN=0.3:OUT03-05=0><lora:wash:te=0.7:unet=-0.2>"
    merge([prompt], folder / "both.safetensors", loras=[folder])
    changed = []
    for text in (prompt, "<lora:both>"):
        with apply(pipe, text, loras=folder):
            changed.append(
                {
                    n: p.detach().clone()
                    for n, p in (*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters())
                }
            )
    plain = dict([*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters()])
    moved = 0
    for name, weight in changed[0].items():
        torch.testing.assert_close(changed[1][name], weight, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(plain[name], weight)
    assert moved > 50


# ---- every algorithm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.name)
def test_a_merge_of_any_algorithm_does_what_both_do(judge: Judge, tmp_path: Path, out: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 128)
    (tmp_path / "a").mkdir()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with quiet():
        made = judge.make(layer, tmp_path / "a")
    if made is None:
        pytest.skip(f"this version of {judge.library} has no {judge.kind}")
    lora = load_lora(made[0])
    (stem,) = lora.adapters
    base = written(
        tmp_path / "base.safetensors",
        {"x.weight": weight, "x.bias": bias} if stem == "lora_unet_x" else {"0.weight": weight, "0.bias": bias},
    )
    other = written(tmp_path / "other.safetensors", factors(stem, 4, shape=torch.Size((128, 128)), seed=3, alpha=None))
    merge([f"{made[0]}:0.7", f"{other}:0.4"], out, model=base, dtype="float32")
    found = load_lora(out)
    for parameter, original in (("weight", weight), ("bias", bias)):
        own = _summed(lora, stem, original, weight, parameter) * 0.7
        if parameter == "weight":
            own = own + delta(load_lora(other), stem, original) * 0.4
        assert parameter == "bias" or float(own.abs().max()) > 0.01
        have = _summed(found, stem, original, weight, parameter)
        torch.testing.assert_close(have, own, rtol=1e-5, atol=1e-5 * max(1.0, float(own.abs().max())))


def _summed(lora: Lora, stem: str, original: Tensor, weight: Tensor, parameter: str) -> Tensor:
    total = torch.zeros_like(original, dtype=torch.float64)
    for adapter in lora.adapters[stem]:
        if adapter.parameter == parameter:
            given = adapter.given((weight.double(),)) if adapter.needs_weight else adapter
            total += given.delta(original.double())
    return total


def test_what_depends_on_the_weights_asks_for_a_model(tmp_path: Path, ink: Path, out: Path) -> None:
    dora = written(tmp_path / "dora.safetensors", factors(TO_Q) | {f"{TO_Q}.dora_scale": rand(12, 1)})
    with pytest.raises(LoraFileError) as caught:
        merge([dora, ink], out)
    assert str(caught.value) == (
        f"{dora}: {TO_Q} (dora): the file does not tell it: how its change depends on the model's own weight; give the "
        "model that it was trained on: --model DIR or FILE (model=…)"
    )
    model = written(tmp_path / "model.safetensors", {"model.diffusion_model.x.weight": rand(3)})
    with pytest.raises(LoraFileError, match="no module of that name in unet: give the model that the file was trained"):
        merge([dora, ink], out, model=model)
    assert not out.exists()


def test_whole_differences_are_said(tmp_path: Path, ink: Path, out: Path) -> None:
    full = written(tmp_path / "full.safetensors", {f"{TO_Q}.diff": rand(12, 20), f"{TO_Q}.diff_b": rand(12)})
    outcome = merge([full, ink], out)
    (note,) = outcome.notes
    assert note.startswith("1 modules are of no low rank, and so kept as whole differences (.diff)")
    found = load_lora(out)
    torch.testing.assert_close(
        delta(found, TO_Q), rand(12, 20).double() + delta(load_lora(ink), TO_Q), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(delta(found, TO_Q, torch.Size((12,)), "bias"), rand(12).double())
    low = merge([full, ink], out, rank=5, force=True)
    assert low.notes == ()
    exact = rand(12, 20).double() + delta(load_lora(ink), TO_Q)
    error = float((delta(load_lora(out), TO_Q) - exact).square().sum())
    assert error == pytest.approx(float(torch.linalg.svdvals(exact)[5:].square().sum()), rel=1e-4)


def test_a_bias_of_factors_keeps_its_size(tmp_path: Path, wash: Path, out: Path) -> None:
    path = written(tmp_path / "a.safetensors", factors(TO_Q) | {f"{TO_Q}.lora_up.bias": rand(12)})
    merge([f"{path}:0.5", wash], out)
    bias = delta(load_lora(out), TO_Q, torch.Size((12,)), "bias")
    torch.testing.assert_close(bias, rand(12).double() * 3 / 4 * 0.5)


# ---- other methods --------------------------------------------------------------------------------------------------


def dense(path: Path, stem: str = TO_Q) -> Tensor:
    return delta(load_lora(path), stem)


def test_ties_is_that_of_peft_on_the_deltas(ink: Path, wash: Path, out: Path) -> None:
    merge([f"{ink}:0.9", f"{wash}:0.6"], out, method="ties", density=0.3, energy=1.0)
    judged = merge_utils.ties([dense(ink), dense(wash)], torch.tensor([0.9, 0.6]), 0.3)
    torch.testing.assert_close(dense(out), judged, rtol=1e-5, atol=1e-5)
    alone = merge_utils.ties([dense(wash, TO_K)], torch.tensor([0.6]), 0.3)
    torch.testing.assert_close(dense(out, TO_K), alone, rtol=1e-5, atol=1e-5)


def test_dare_drops_by_chance_and_keeps_what_is_expected(ink: Path, wash: Path, out: Path) -> None:
    total, kept = torch.zeros(12, 20, dtype=torch.float64), []
    for seed in range(60):
        merge([f"{ink}:0.9"], out, method="dare", density=0.4, seed=seed, energy=1.0, force=True)
        found = dense(out)
        stays = found.abs() > 1e-6
        torch.testing.assert_close(found[stays], (0.9 * dense(ink) / 0.4)[stays], rtol=1e-4, atol=1e-5)
        kept.append(stays.double().mean())
        total += found
    assert float(torch.stack(kept).mean()) == pytest.approx(0.4, abs=0.015)
    error = torch.linalg.vector_norm(total / 60 - 0.9 * dense(ink)) / torch.linalg.vector_norm(dense(ink))
    # √((1 − d)/d/n) of the elements' own size.
    assert float(error) == pytest.approx(0.9 * (0.6 / 0.4 / 60) ** 0.5, rel=0.15)
    assert torch.equal(load_again(out, ink, 59), load_again(out, ink, 59))


def load_again(out: Path, ink: Path, seed: int) -> Tensor:
    merge([f"{ink}:0.9"], out, method="dare", density=0.4, seed=seed, energy=1.0, force=True)
    return load_file(out)[f"{TO_Q}.lora_up.weight"]


@pytest.mark.slow
def test_della_drops_small_elements_more_often(ink: Path, out: Path) -> None:
    times = torch.zeros(12, 20)
    for seed in range(200):
        merge([ink], out, method="della", density=0.5, epsilon=0.9, seed=seed, energy=1.0, force=True)
        found = dense(out)
        stays = found.abs() > 1e-6
        order = dense(ink).abs().argsort(1, descending=True).argsort(1)
        chance = 1 - (0.5 - 0.45 + 0.9 * order / 20)
        torch.testing.assert_close(found[stays], (dense(ink) / chance)[stays], rtol=1e-4, atol=1e-4)
        times += stays
    by_order = torch.zeros(20).index_add_(0, order.flatten(), times.flatten()) / 12 / 200
    torch.testing.assert_close(by_order, 1 - (0.05 + 0.9 * torch.arange(20) / 20), rtol=0, atol=0.05)


def test_orthogonal_files_do_not_meet_and_the_first_stays(ink: Path, wash: Path, out: Path) -> None:
    outcome = merge([f"{ink}:0.7", f"{wash}:0.4"], out, method="orthogonal")
    first = 0.7 * dense(ink)
    rest = dense(out) - first
    zero = torch.zeros(12, 12, dtype=torch.float64)
    torch.testing.assert_close(rest @ first.T, zero, rtol=0, atol=1e-4)
    torch.testing.assert_close(rest.T @ first, torch.zeros(20, 20, dtype=torch.float64), rtol=0, atol=1e-4)
    # What is left of the second is its part in the spaces that the first leaves alone.
    p, q = torch.linalg.qr(first @ rand(20, 4).double())[0], torch.linalg.qr(first.T @ rand(12, 4).double())[0]
    second = dense(wash)
    left = (torch.eye(12) - p @ p.T) @ second @ (torch.eye(20) - q @ q.T)
    torch.testing.assert_close(rest, 0.4 * left, rtol=1e-4, atol=1e-5)
    assert outcome.notes[0] == "ink: 100.0% of its ‖Δ‖² is left beside the files before it"
    assert outcome.notes[1].startswith("wash: ")


def test_svd_takes_the_greatest_rank_of_the_files(ink: Path, wash: Path, out: Path) -> None:
    merge([ink, wash], out, method="svd")
    assert {stem: a[0].rank for stem, a in load_lora(out).adapters.items()} == {TO_Q: 4, CONV_IN: 5, TEXT: 2, TO_K: 2}


# ---- PEFT, diffusers, and the recipes that are wrong ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_peft_merges_its_adapters_to_the_same(kind: str, tmp_path: Path, out: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
    model: Any = peft.get_peft_model(nn.Sequential(nn.Linear(12, 20)), config, "ink")
    model.add_adapter("wash", peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path))
    model.add_weighted_adapter(["ink", "wash"], [0.7, 0.4], "both", combination_type=kind, svd_rank=4)
    judged = model.base_model.model[0].get_delta_weight("both").detach().double()
    merge([f"{tmp_path / 'ink'}:0.7", f"{tmp_path / 'wash'}:0.4"], out, method="svd" if kind == "svd" else "sum")
    found = load_lora(out)
    (stem,) = found.adapters
    torch.testing.assert_close(delta(found, stem, torch.Size((20, 12))), judged, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_diffusers_reads_the_merged_file_as_both(tmp_path: Path, out: Path) -> None:
    for seed, name in enumerate(("ink", "wash"), 1):
        tiny.write_kohya_lora(tmp_path / f"{name}.safetensors", tiny.unet(), rank=2, seed=seed, components=["unet"])
    merge([f"{tmp_path / 'ink'}:0.7", f"{tmp_path / 'wash'}:0.4"], out)
    ink, wash, both = (changed_by_diffusers(tmp_path, name) for name in ("ink", "wash", "out"))
    assert len(both) > 100
    for name, change in both.items():
        torch.testing.assert_close(change, 0.7 * ink[name] + 0.4 * wash[name], rtol=1e-4, atol=1e-6)


def changed_by_diffusers(folder: Path, name: str) -> dict[str, Tensor]:
    """Return what diffusers changes in the weights of a UNet for a file."""
    pipe = tiny.pipeline()
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors")
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    return {key: after[key] - old for key, old in before.items() if not torch.equal(after[key], old)}


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.7, 0.4)])
def test_what_other_recipes_make_of_it_is_something_else(
    strengths: tuple[float, float], tmp_path: Path, out: Path
) -> None:
    # Two independent files of equal rank and alpha: relative errors as the sources of four tools have their formulas.
    s, t = strengths
    shape = torch.Size((320, 256))
    ink, wash = (
        written(tmp_path / f"{seed}.safetensors", factors(TO_Q, 8, seed=seed, shape=shape, alpha=8.0))
        for seed in (0, 50)
    )
    (u1, d1), (u2, d2) = (
        tuple(tensors[f"{TO_Q}.lora_{side}.weight"].double() for side in ("up", "down"))
        for tensors in (load_file(ink), load_file(wash))
    )
    exact = s * u1 @ d1 + t * u2 @ d2

    def error(found: Tensor) -> float:
        return float(torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact))

    summed_apart = (s * u1 + t * u2) @ (s * d1 + t * d2)
    # Concatenated: the rank is twice what alpha is divided by, and the strength is on both factors.
    alpha_kept = (s * s * u1 @ d1 + t * t * u2 @ d2) / 2
    roots = (s**0.5 * u1 + t**0.5 * u2) @ (s**0.5 * d1 + t**0.5 * d2)
    alphas_too = (s * u1 + t * u2) @ (s * d1 + t * d2) * (s + t)
    wrong = [error(each) for each in (summed_apart, alpha_kept, roots, alphas_too)]
    expected = {(1.0, 1.0): [1.0, 0.5, 1.0, 2.25], (0.7, 0.4): [0.63, 0.69, 0.93, 0.64]}[strengths]
    assert wrong == pytest.approx(expected, rel=0.04)
    merge([f"{ink}:{s}", f"{wash}:{t}"], out)
    assert error(delta(load_lora(out), TO_Q, shape)) < 1e-6


# ---- how sources are written ----------------------------------------------------------------------------------------


def test_strengths_and_blocks_follow_a_path(ink: Path, out: Path) -> None:
    outcome = merge([f"{ink}:0.5:0.8@IN=0"], out)
    found = load_lora(out)
    assert set(found.adapters) == {TEXT}
    torch.testing.assert_close(delta(found, TEXT), 0.5 * delta(load_lora(ink), TEXT))
    assert dict(outcome.left_out) == {TO_Q: "its strength is 0", CONV_IN: "its strength is 0"}
    note = json.loads(read_header(out).metadata["lora_runtime.made_from"])
    assert note["files"] == [
        {"name": "ink", "sha256": load_lora(ink).sha256, "te": 0.5, "unet": 0.8, "blocks": note["files"][0]["blocks"]}
    ]


@pytest.mark.skipif(os.name == "nt", reason="no name has a colon there, but for a drive's")
def test_a_path_may_have_colons_and_no_suffix(ink: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "a:0.3@b").mkdir()
    path = tmp_path / "a:0.3@b" / "ink.safetensors"
    path.write_bytes(ink.read_bytes())
    merge([f"{path.with_suffix('')}:0.5"], out)
    torch.testing.assert_close(dense(out), 0.5 * dense(ink), rtol=1e-6, atol=1e-6)


def test_ranks_can_be_cut_by_a_tag(ink: Path, out: Path, tmp_path: Path) -> None:
    merge(["<lora:ink:1:dyn=2>"], out, loras=[tmp_path])
    up, down = (INK[f"{TO_Q}.lora_{side}.weight"].double() for side in ("up", "down"))
    torch.testing.assert_close(dense(out), 3 / 4 * up[:, :2] @ down[:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("<lora:ink:0@0,1@1>", LoraFileError, "its strength depends on the step, the image or the place"),
        ("<lora:ink:1:box=0,0,0.5,1>", LoraFileError, "its strength depends on the step, the image or the place"),
        ("ink:1@mask=left.png", LoraFileError, "its strength depends on the step, the image or the place"),
        ("<lora:ink:1> <set:nosuch>", TagSyntaxError, "no set named"),
        ("/nowhere/nothing.safetensors", LoraFileError, "there is no such file; correct the path"),
        ("<lora:ink:1:lbw=1,R,R,U,U,1,1,1,1,1,1,1>", LoraFileError, "its block weights are drawn at random"),
        ("<lora:inc:1>", CatalogError, 'Did you mean "ink"'),
        ("nothing:0.5", CatalogError, "nothing"),
        ("C:/nowhere/nothing:0.5", CatalogError, "C:/nowhere/nothing"),
        ("ink:lots", TagSyntaxError, "lots"),
    ],
)
def test_sources_that_cannot_be_merged_are_told(
    source: str, error: type[Exception], message: str, ink: Path, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        merge([source], out, loras=[tmp_path])
    assert not out.exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("hr=0.2", ['"ink" has strengths for a second pass (hr=): a file has one, that of the first pass']),
        ("hr=1", []),
        ("foo=3", ['there is no argument "foo="; it is ignored']),
        ("NOSUCH=0", ['there is no argument "NOSUCH="; it is ignored']),
        ("lbw=NOSUCH", ['the block weights "NOSUCH" is no preset that is known']),
        ("D00=0", ['"ink": no module of the file is meant by D00']),
        ("*nosuch*=0", ['"ink": no module of the file is meant by *nosuch*']),
        ("mid=1", ['"ink": no module of the file is meant by mid=']),
        ("lbw=INALL", []),  # of a list some are enough
        ("IN00-01=1:*q=1:BASE=1:in=1:OUT03=1", ['"ink": no module of the file is meant by OUT03']),
        ("IN01=1", []),
    ],
)
def test_what_of_a_tag_changes_nothing_is_said(
    fields: str, said: list[str], ink: Path, tmp_path: Path, out: Path
) -> None:
    notes = merge([f"<lora:ink:1:{fields}>"], out, loras=[tmp_path]).notes
    assert [note[: len(what)] for note, what in zip(notes, said, strict=True)] == said
    of_path = merge([f"{ink}:1:{fields}"], tmp_path / "again.safetensors").notes
    assert [note.replace('"file"', '"ink"') for note in of_path] == [*notes]


def test_a_denoiser_that_no_module_of_the_file_is_for_is_said(ink: Path, tmp_path: Path, out: Path) -> None:
    outcome = merge(["<lora:ink:1:low>"], out, loras=[tmp_path])
    (note,) = outcome.notes
    assert note.startswith('"ink" is for the denoiser "transformer_2", and no module of the file is called that')
    assert set(load_lora(out).adapters) == {TEXT}


def test_a_list_of_block_weights_for_another_kind_of_model_is_said(tmp_path: Path, out: Path) -> None:
    stem = "lora_unet_double_blocks_0_img_attn_proj"
    flux = written(tmp_path / "flux.safetensors", factors(stem, 2, shape=torch.Size((6, 6))) | factors(TEXT, 2))
    outcome = merge([f"{flux}:1:lbw=INALL"], out)
    assert outcome.notes == ('"flux": no module of the file is meant by its list of block weights',)


def test_other_tags_are_said_and_sets_are_their_tags(ink: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "half.set.txt").write_text("<lora:ink:1>", encoding="utf-8")
    outcome = merge(["<set:half:0.5> <hypernet:x:1>"], out, loras=[tmp_path])
    torch.testing.assert_close(dense(out), 0.5 * dense(ink), rtol=1e-6, atol=1e-6)
    assert outcome.notes == ("<hypernet:x:1> is no LoRA: it is left out",)


def test_files_that_do_not_belong_together_are_told(ink: Path, tmp_path: Path, out: Path) -> None:
    other = written(tmp_path / "other.safetensors", factors(TO_Q, shape=torch.Size((8, 20))))
    with pytest.raises(LoraFileError, match=r"is for \(8, 20\), and for \(12, 20\) in .*: the files are for different"):
        merge([ink, other], out)
    sd, xl = (
        written(tmp_path / f"{base}.safetensors", INK, {"ss_base_model_version": base})
        for base in ("sd_v1", "sdxl_base_v1-0")
    )
    with pytest.raises(LoraFileError, match="no file is for both"):
        merge([sd, xl], out)
    ldm = written(tmp_path / "ldm.safetensors", factors("lora_unet_input_blocks_1_1_proj_in", shape=torch.Size((4, 4))))
    with pytest.raises(LoraFileError, match=r"names none of the modules of its denoiser as .* does"):
        merge([ink, ldm], out)
    twice = written(
        tmp_path / "twice.safetensors",
        INK | {f"unet.{TO_Q.removeprefix('lora_unet_')}.lora_{x}.weight": rand(12, 12) for x in "AB"},
    )
    with pytest.raises(LoraFileError, match="under two names"):
        merge([twice, ink], out)


def test_a_model_matches_names_of_two_kinds(tmp_path: Path, out: Path) -> None:
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path / "model")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    shape = pipe.unet.get_parameter(f"{path}.weight").shape
    kohya = written(tmp_path / "a.safetensors", factors("lora_unet_" + path.replace(".", "_"), 2, shape=shape))
    ldm_stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    ldm = written(tmp_path / "b.safetensors", factors(ldm_stem, 3, shape=shape, seed=4))
    outcome = merge([kohya, ldm], out, model=tmp_path / "model")
    (stem,) = load_lora(out).adapters
    assert (outcome.modules, outcome.ranks) == (1, (5,))
    both = delta(load_lora(kohya), stem, shape) + delta(load_lora(ldm), ldm_stem, shape)
    torch.testing.assert_close(delta(load_lora(out), stem, shape), both, rtol=1e-6, atol=1e-6)


def test_trigger_words_and_tags_of_all_are_kept(tmp_path: Path, ink: Path, wash: Path, out: Path) -> None:
    tags = {"ss_tag_frequency": json.dumps({"10_ink": {"ink": 3}})}
    third = written(tmp_path / "third.safetensors", INK, tags | {"ss_base_model_version": "sd_v1"})
    merge([ink, wash, third], out)
    found = read_header(out).metadata
    assert found["modelspec.trigger_phrase"] == "ink, pale, wash"
    assert json.loads(found["ss_tag_frequency"]) == {"10_ink": {"ink": 3}}
    assert "ss_base_model_version" not in found  # of one alone


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "ties"}, "ties chooses elements of ΔW"),
        ({"method": "best"}, "method best: give one of sum, svd, orthogonal, ties, dare, della"),
        ({"method": "dare", "rank": 2, "density": 0}, "density 0: give the share of elements to keep"),
        ({"method": "della", "rank": 2, "density": 0.9, "epsilon": 0.3}, "epsilon 0.3: with density 0.9"),
        ({"dtype": "float8"}, "dtype float8"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    given: dict[str, Any], message: str, ink: Path, out: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        merge([ink], out, **given)
    with pytest.raises(ValueError, match="there is nothing to merge"):
        merge([], out)


def test_orthogonal_needs_products(tmp_path: Path, ink: Path, out: Path) -> None:
    full = written(tmp_path / "full.safetensors", {f"{TO_Q}.diff": rand(12, 20)})
    with pytest.raises(LoraFileError, match=r"\(full, lora\): orthogonal takes products of two factors"):
        merge([full, ink], out, method="orthogonal")


def test_the_command_prints_what_it_did(command: Command, ink: Path, wash: Path, out: Path) -> None:
    result = command("merge", f"{ink}:0.7", f"{wash}:0.4@IN=0", "-o", out)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[1] == "  4 modules, rank 2..4"
    refused = command("merge", ink, wash, "-o", out, "--method", "ties", "--force")
    assert refused.status == 2
    assert "give a rank or an energy" in refused.err
    found = json.loads(command("merge", ink, wash, "-o", out, "--rank", 2, "--force", "--json").out)
    assert found["ranks"] == [2]
    assert 0 < found["kept"] < 1


def test_a_file_for_another_model_than_the_one_given_is_told(ink: Path, tmp_path: Path, out: Path) -> None:
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    (tmp_path / "unet").mkdir()
    written(tmp_path / "unet" / "model.safetensors", {key: rand(8, 20)})
    with pytest.raises(LoraFileError, match=r"does not fit .*unet: made for \(12, 20\), the weight is \(8, 20\)"):
        merge([f"{ink}:0.5"], out, model=tmp_path / "unet")


def test_eight_bits_become_sixteen(tmp_path: Path, out: Path) -> None:
    eight = {k: t if k.endswith("alpha") else t.to(torch.float8_e4m3fn) for k, t in factors(TO_Q).items()}
    path = written(tmp_path / "a.safetensors", eight)
    outcome = merge([f"{path}:0.7", f"{path}:0.2"], out)
    assert load_file(out)[f"{TO_Q}.lora_up.weight"].dtype == torch.float16
    torch.testing.assert_close(dense(out), 0.9 * dense(path), rtol=1e-3, atol=1e-2)
    assert outcome.rounding < 1e-3


def test_the_command_offers_the_methods_that_there_are() -> None:
    """Without torch it cannot ask the workbench for them."""
    from lora_runtime.cli import merge as command
    from lora_runtime.workbench import METHODS

    assert command._METHODS == METHODS
