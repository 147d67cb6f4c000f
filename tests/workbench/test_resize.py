"""`resize`: on each module no matrix of that rank is nearer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from adapters.judge import rand
from commands import Command
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_runtime.errors import LoraFileError
from lora_runtime.header import read_header
from lora_runtime.lora import Lora, load_lora
from lora_runtime.workbench import resize

LINEAR, CONV, TUCKER = "lora_unet_down_blocks_0_attentions_0_to_q", "lora_unet_conv_in", "lora_unet_mid_block_conv"


def factors(stem: str, out: int, rank: int, *down: int, alpha: float | None = 3.0) -> dict[str, Tensor]:
    ones = (1,) * (len(down) - 1)
    found = {f"{stem}.lora_up.weight": rand(out, rank, *ones), f"{stem}.lora_down.weight": rand(rank, *down)}
    return found if alpha is None else found | {f"{stem}.alpha": torch.tensor(alpha)}


def tucker(stem: str) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_up.weight": rand(10, 6, 1, 1),
        f"{stem}.lora_mid.weight": rand(6, 6, 3, 3),
        f"{stem}.lora_down.weight": rand(6, 7, 1, 1),
        f"{stem}.alpha": torch.tensor(2.0),
    }


TENSORS = factors(LINEAR, 12, 8, 20) | factors(CONV, 10, 6, 4, 3, 3) | tucker(TUCKER)


def written(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=dict(metadata or {}))
    return path


def deltas(lora: Lora, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return ΣΔ by stem in float64, by the adapters' own formula."""
    return {
        stem: torch.stack([a.delta(torch.zeros(shapes[stem], dtype=torch.float64)) for a in adapters]).sum(0)
        for stem, adapters in lora.adapters.items()
    }


SHAPES = {LINEAR: torch.Size((12, 20)), CONV: torch.Size((10, 4, 3, 3)), TUCKER: torch.Size((10, 7, 3, 3))}


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_no_matrix_of_that_rank_is_nearer(rank: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", TENSORS)
    outcome = resize(path, tmp_path / "b.safetensors", rank=rank)
    before, after = (deltas(load_lora(each), SHAPES) for each in (path, outcome.path))
    total, lost = 0.0, 0.0
    for stem, delta in before.items():
        values = torch.linalg.svdvals(delta.flatten(1))
        best = float(values[rank:].square().sum())
        error = float((after[stem] - delta).square().sum())
        assert error == pytest.approx(best, rel=1e-4)
        assert int(torch.linalg.matrix_rank(after[stem].flatten(1), rtol=1e-5)) == rank
        total, lost = total + float(values.square().sum()), lost + best
    assert outcome.kept == pytest.approx(1 - lost / total, rel=1e-7)  # the judge folds the core in float32
    assert outcome.error == pytest.approx((lost / total) ** 0.5, rel=1e-6)
    assert 0 < outcome.rounding < 1e-6
    assert outcome.ranks == (rank,)
    assert outcome.sha256 == load_lora(outcome.path).sha256


def test_the_keys_stay_and_alpha_is_the_rank(tmp_path: Path) -> None:
    outcome = resize(written(tmp_path / "a.safetensors", TENSORS), tmp_path / "b.safetensors", rank=2)
    found = load_file(outcome.path)
    assert set(found) == set(TENSORS) - {f"{TUCKER}.lora_mid.weight"}
    assert {float(tensor) for key, tensor in found.items() if key.endswith(".alpha")} == {2.0}
    assert found[f"{CONV}.lora_down.weight"].shape == (2, 4, 3, 3)
    assert found[f"{TUCKER}.lora_down.weight"].shape == (2, 7, 3, 3)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_an_energy_is_kept_by_the_least_rank(energy: float, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", TENSORS)
    outcome = resize(path, tmp_path / "b.safetensors", energy=energy)
    lora = load_lora(outcome.path)
    for stem, delta in deltas(load_lora(path), SHAPES).items():
        values = torch.linalg.svdvals(delta.flatten(1)).square()
        shares = values.cumsum(0) / values.sum()
        assert lora.adapters[stem][0].rank == int((shares < energy).sum()) + 1
    assert outcome.kept >= energy


def test_a_ratio_keeps_values_down_to_a_part_of_the_greatest(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", TENSORS)
    lora = load_lora(resize(path, tmp_path / "b.safetensors", ratio=3).path)
    for stem, delta in deltas(load_lora(path), SHAPES).items():
        values = torch.linalg.svdvals(delta.flatten(1))
        assert lora.adapters[stem][0].rank == int((values >= values[0] / 3).sum())


def test_a_size_is_not_exceeded_and_used_where_it_keeps_most(tmp_path: Path) -> None:
    pipe = tiny.unet()
    tiny.write_kohya_lora(tmp_path / "a.safetensors", pipe, rank=4, components=["unet"])
    whole = (tmp_path / "a.safetensors").stat().st_size
    kept = []
    for part in (0.6, 0.8, 0.95):
        outcome = resize(tmp_path / "a.safetensors", tmp_path / f"{part}.safetensors", size=int(whole * part))
        assert outcome.size <= whole * part
        kept.append(outcome.kept)
    assert kept == sorted(kept)
    same = resize(tmp_path / "a.safetensors", tmp_path / "c.safetensors", rank=outcome.ranks[-1] - 1)
    assert outcome.kept > same.kept or outcome.size > same.size
    with pytest.raises(LoraFileError, match=r"header, metadata and what is no LoRA in it take .* bytes, and 100 are"):
        resize(tmp_path / "a.safetensors", tmp_path / "d.safetensors", size=100)


def test_what_has_no_higher_rank_stays_bit_for_bit(tmp_path: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in TENSORS.items()} | {"odd.key": rand(3)}
    outcome = resize(written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors", rank=8)
    found = load_file(outcome.path)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert (outcome.kept, outcome.rounding, dict(outcome.unchanged)) == (1.0, 0.0, {"of no higher rank": 3})


def test_other_algorithms_stay_and_are_told(tmp_path: Path) -> None:
    loha = {f"lora_unet_x.hada_{role}": rand(*shape) for role, shape in
            {"w1_a": (6, 2), "w1_b": (2, 8), "w2_a": (6, 2), "w2_b": (2, 8)}.items()}  # fmt: skip
    dora = factors("lora_unet_y", 6, 4, 8) | {"lora_unet_y.dora_scale": rand(6, 1)}
    tensors = loha | dora | factors(LINEAR, 12, 8, 20)
    outcome = resize(written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors", rank=2)
    found = load_file(outcome.path)
    assert all(torch.equal(found[key], tensor) for key, tensor in (loha | dora).items())
    assert dict(outcome.unchanged) == {
        "not a product of two factors (loha): to-lora makes one of it": 1,
        "not a product of two factors (dora): to-lora makes one of it": 1,
    }


def test_a_bias_keeps_its_size_when_the_scale_of_its_factors_is_another(tmp_path: Path) -> None:
    tensors = factors(LINEAR, 12, 8, 20) | {f"{LINEAR}.lora_up.bias": rand(12)}
    outcome = resize(written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors", rank=2)
    _, bias = load_lora(outcome.path).adapters[LINEAR]
    assert bias.parameter == "bias"
    torch.testing.assert_close(bias.delta(torch.zeros(12)), rand(12) * 3 / 8)


def test_a_change_that_is_zero_is_left_out_and_told(tmp_path: Path) -> None:
    dead = factors("lora_unet_dead", 6, 4, 8)
    dead["lora_unet_dead.lora_up.weight"].zero_()
    outcome = resize(written(tmp_path / "a.safetensors", TENSORS | dead), tmp_path / "b.safetensors", rank=2)
    assert dict(outcome.left_out) == {"lora_unet_dead": "its change is exactly zero"}
    assert not any(key.startswith("lora_unet_dead") for key in load_file(outcome.path))


def test_the_metadata_say_what_it_is_now_and_what_it_was_made_from(tmp_path: Path) -> None:
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": "8",
        "ss_network_alpha": "3",
        "modelspec.trigger_phrase": "inkwash,  pale",
        "sshs_model_hash": "old",
        "lora_adapter_metadata": "{}",
    }
    path = written(tmp_path / "ink.safetensors", TENSORS, metadata)
    found = read_header(resize(path, tmp_path / "b.safetensors", rank=2).path).metadata
    assert found["ss_base_model_version"] == "sdxl_base_v1-0"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("2", "2")
    assert found["modelspec.trigger_phrase"] == "inkwash,  pale"
    assert found["sshs_model_hash"] != "old"
    assert "lora_adapter_metadata" not in found
    note = json.loads(found["lora_runtime.made_from"])
    assert (note["verb"], note["rank"]) == ("resize", 2)
    assert note["files"] == [{"name": "ink", "sha256": load_lora(path).sha256}]


def test_half_precision_costs_what_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", TENSORS)
    exact = resize(path, tmp_path / "b.safetensors", rank=3)
    half = resize(path, tmp_path / "c.safetensors", rank=3, dtype="float16")
    assert load_file(half.path)[f"{LINEAR}.lora_up.weight"].dtype == torch.float16
    meant, found = (deltas(load_lora(each.path), SHAPES) for each in (exact, half))
    lost = sum(float((found[stem] - meant[stem]).square().sum()) for stem in meant)
    size = sum(float(delta.square().sum()) for delta in meant.values())
    assert half.rounding == pytest.approx((lost / size) ** 0.5, rel=1e-2)


def test_what_half_precision_cannot_hold_is_told(tmp_path: Path) -> None:
    tensors = {key: tensor * (1 if key.endswith("alpha") else 1e4) for key, tensor in TENSORS.items()}
    path = written(tmp_path / "a.safetensors", tensors)
    with pytest.raises(LoraFileError, match=r"are beyond what torch.float16 can hold; give --dtype float32"):
        resize(path, tmp_path / "b.safetensors", rank=3, dtype="float16")
    assert not (tmp_path / "b.safetensors").exists()


def test_diffusers_sees_the_best_approximation_too(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    tiny.write_kohya_lora(tmp_path / "a.safetensors", pipe, rank=4, components=["unet"])
    outcome = resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=2)
    state = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(str(tmp_path), weight_name="b.safetensors")
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    change = (pipe.unet.get_parameter(f"{path}.weight") - state[f"{path}.weight"]).double()
    (adapter,) = load_lora(tmp_path / "a.safetensors").adapters["lora_unet_" + path.replace(".", "_")]
    delta = adapter.delta(torch.zeros(change.shape, dtype=torch.float64))
    left, values, right = torch.linalg.svd(delta)
    torch.testing.assert_close(change, left[:, :2] * values[:2] @ right[:2], rtol=1e-4, atol=1e-6)
    assert outcome.ranks == (2,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of rank, energy, ratio and size"),
        ({"rank": 2, "size": 3}, "give one of rank, energy, ratio and size"),
        ({"rank": 2, "dtype": "int8"}, "dtype int8: give one of float32, float16, bfloat16"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **given)  # type: ignore[arg-type]


def test_the_command_prints_what_was_kept(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", TENSORS)
    out = tmp_path / "b.safetensors"
    result = command("resize", path, "-o", out, "--rank", 2)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{out}: ")
    assert lines[1] == "  3 modules, rank 2"
    assert [line.split()[0] for line in lines[3:7]] == ["block", "IN00", "IN01", "M00"]
    assert command("resize", path, "-o", out, "--rank", 2).status == 2
    again = command("resize", path, "-o", out, "--energy", "90%", "--force", "--json")
    found = json.loads(again.out)
    assert found["kept"] >= 0.9
    assert set(found["blocks"]) == {"IN00", "IN01", "M00"}
    assert command("resize", path, "-o", tmp_path / "c.safetensors", "--energy", "2").status == 2
    assert command("resize", path, "-o", tmp_path / "c.safetensors", "--size", "64MB").status == 0
    assert "is no share" in command("resize", path, "-o", out, "--energy", "x").err
    assert command("resize", path, "-o", out, "--size", "many").status == 2
    refused = command("resize", path, "-o", out, "--ratio", "0.5", "--force").err
    assert refused.startswith("lora-runtime: error: ratio 0.5: give a number from 1")


def test_a_table_of_tokens_is_cut_in_its_own_layout(tmp_path: Path) -> None:
    tensors = {"t.x.lora_embedding_A": rand(4, 9), "t.x.lora_embedding_B": rand(6, 4)}
    outcome = resize(written(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors", rank=2)
    found = load_file(outcome.path)
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == {
        "t.x.lora_embedding_A": (2, 9),
        "t.x.lora_embedding_B": (6, 2),
    }
    exact = (tensors["t.x.lora_embedding_B"].double() @ tensors["t.x.lora_embedding_A"].double()).T
    (delta,) = deltas(load_lora(outcome.path), {"t.x": exact.shape}).values()
    values = torch.linalg.svdvals(exact).square()
    assert float((delta - exact).square().sum()) == pytest.approx(float(values[2:].sum()), rel=1e-4)


def test_what_a_configuration_says_is_in_the_new_tensors(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=2, use_rslora=True, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 20)), config)
    model.save_pretrained(str(tmp_path / "a"))
    judged = model.base_model.model[0].get_delta_weight("default").detach().double()
    shapes = {"base_model.model.0": judged.shape}
    for rank in (8, 3):  # taken over, and cut
        outcome = resize(tmp_path / "a", tmp_path / f"{rank}.safetensors", rank=rank)
        (found,) = deltas(load_lora(outcome.path), shapes).values()
        left, values, right = torch.linalg.svd(judged)
        best = left[:, :rank] * values[:rank] @ right[:rank]
        torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)
    loha = peft.LoHaConfig(r=4, alpha=2, target_modules=["0"], init_weights=False)
    peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 20)), loha).save_pretrained(str(tmp_path / "loha"))
    with pytest.raises(LoraFileError, match="settings beside the tensors tell what it means"):
        resize(tmp_path / "loha", tmp_path / "c.safetensors", rank=2)
