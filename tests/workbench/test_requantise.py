"""`bake(…, requantise=True)`: each value the nearest that its scale has, by the libraries' own formulas for codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from safetensors.torch import load_file
from torch import Tensor
from workbench.files import written

from lora_runtime.errors import LoraFileError, StrengthError
from lora_runtime.workbench import bake
from lora_runtime.workbench.base_model import open_model

bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes judges what is read of its own formats")

OUT, IN, BLOCK = 24, 256, 64
BLOCKS = 12, 128
E4M3DTYPE = torch.float8_e4m3fn
WEIGHT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
MODULE = WEIGHT.removesuffix(".weight")
STEM = "lora_unet_" + MODULE.replace(".", "_")
OTHER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"
KINDS = ("fp8", "fp8 e5m2", "scalar", "row", "block", "comfy", "int8", "nf4", "nf4 nested", "fp4", "fp4 nested")


def original() -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * 0.05


def stored(kind: str) -> dict[str, Tensor]:
    """Return the tensors of a weight in this way, by what the formats say of them and bitsandbytes makes of it."""
    weight = original()
    if kind.startswith("fp8"):
        return {WEIGHT: weight.to(torch.float8_e5m2 if "e5m2" in kind else torch.float8_e4m3fn)}
    if kind in ("scalar", "comfy"):
        scale = weight.abs().max() / 448
        note = torch.tensor([*json.dumps({"format": "float8_e4m3fn"}).encode()], dtype=torch.uint8)
        more = {f"{MODULE}.comfy_quant": note} if kind == "comfy" else {"scaled_fp8": torch.zeros(2).to(E4M3DTYPE)}
        name = "weight_scale" if kind == "comfy" else "scale_weight"
        return {WEIGHT: (weight / scale).to(E4M3DTYPE), f"{MODULE}.{name}": scale, **more}
    if kind == "row":
        scale = weight.abs().amax(1, keepdim=True) / 448
        return {WEIGHT: (weight / scale).to(E4M3DTYPE), f"{MODULE}.weight_scale": scale}
    if kind == "block":
        scale = spread_most(weight, *BLOCKS) / 448
        return {WEIGHT: (weight / spread(scale, *BLOCKS)).to(E4M3DTYPE), f"{MODULE}.weight_scale_inv": scale}
    if kind == "int8":
        scale = weight.abs().amax(1)
        return {WEIGHT: (weight * 127 / scale[:, None]).round().to(torch.int8), f"{MODULE}.SCB": scale}
    name, _, nested = kind.partition(" ")
    codes, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=bool(nested), quant_type=name)
    return {WEIGHT: codes, **{f"{WEIGHT}.{key}": value for key, value in state.as_dict(packed=True).items()}}


def spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    return scale.repeat_interleave(rows, 0)[:OUT].repeat_interleave(columns, 1)[:, :IN]


def spread_most(weight: Tensor, rows: int, columns: int) -> Tensor:
    parts = [[part.abs().max() for part in each.split(columns, 1)] for each in weight.split(rows, 0)]
    return torch.tensor(parts)


def scales(kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return what 1 on the table of codes stands for, for each element."""
    if kind.startswith("fp8"):
        return torch.ones(OUT, IN)
    if kind == "block":
        return spread(tensors[f"{MODULE}.weight_scale_inv"], *BLOCKS)
    if kind in ("scalar", "comfy", "row"):
        name = "scale_weight" if kind == "scalar" else "weight_scale"
        return tensors[f"{MODULE}.{name}"].expand(OUT, IN) if kind != "row" else tensors[f"{MODULE}.{name}"]
    if kind == "int8":
        return tensors[f"{MODULE}.SCB"][:, None] / 127
    absmax = tensors[f"{WEIGHT}.absmax"]
    if "nested" in kind:
        state = state_of(kind, tensors)
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    return absmax.repeat_interleave(BLOCK).reshape(OUT, IN)


def table(kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the values of all codes at a scale of 1."""
    if kind == "int8":
        return torch.arange(-127, 128).float()
    if "4" in kind:
        return tensors[f"{WEIGHT}.quant_map"]
    values = torch.arange(256).to(torch.uint8).view(tensors[WEIGHT].dtype).float()
    return values[values.isfinite()]


def state_of(kind: str, tensors: Mapping[str, Tensor]) -> Any:
    own = {key.removeprefix(f"{WEIGHT}."): value for key, value in tensors.items() if key.startswith(f"{WEIGHT}.")}
    return bnb.QuantState.from_dict(own, device=torch.device("cpu"))


def values(kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weight that a program reads from these tensors."""
    if "4" in kind:
        found: Tensor = bnb.dequantize_4bit(tensors[WEIGHT], state_of(kind, tensors))
        return found.float()
    return tensors[WEIGHT].float() * scales(kind, tensors)


def lora(folder: Path, up: Tensor, down: Tensor) -> Path:
    tensors = {f"{STEM}.lora_up.weight": up, f"{STEM}.lora_down.weight": down, f"{STEM}.alpha": torch.tensor(2.0)}
    return written(folder / "ink.safetensors", tensors)


def random_lora(folder: Path, size: float, rows: int = OUT) -> tuple[Path, Tensor]:
    """Return a LoRA that changes so many rows, and its ΔW in float64."""
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(OUT, 2, generator=generator), torch.randn(2, IN, generator=generator) * size
    up[rows:] = 0
    return lora(folder, up, down), up.double() @ down.double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.003, 0.1], ids=["within the scales", "beyond them"])
def test_each_value_is_the_nearest_that_its_scale_has(kind: str, size: float, tmp_path: Path) -> None:
    other = torch.randn(4, 4)
    source = written(tmp_path / "model.safetensors", {**stored(kind), OTHER: other})
    file, delta = random_lora(tmp_path, size)
    baked = bake(source, [f"{file}:0.5"], tmp_path / "baked.safetensors", requantise=True)
    before, after = load_file(source), load_file(baked.path)
    assert {key: (t.dtype, t.shape) for key, t in after.items()} == {k: (t.dtype, t.shape) for k, t in before.items()}
    assert torch.equal(after[OTHER], other)
    meant = values(kind, before).double() + 0.5 * delta
    choices = scales(kind, after).double()[..., None] * table(kind, after).double()
    nearest = (choices - meant[..., None]).abs().amin(-1)
    found = values(kind, after)
    torch.testing.assert_close((found.double() - meant).abs(), nearest, rtol=1e-4, atol=1e-6)
    # A scale of 8 bits is the nearest that there is: the greatest value of a block may be a little beyond it.
    beyond = meant.abs() > scales(kind, after).double() * table(kind, after).double().abs().max() * (1 + 1e-6)
    assert not bool(beyond.any()) or ("nested" in kind and float(beyond.double().mean()) < 0.02)
    assert (scales(kind, after) >= scales(kind, before) * (1 - 1e-6)).all() or "nested" in kind
    done = baked.requantised
    assert done is not None and [*done.kinds.values()] == [1]
    assert done.error == pytest.approx(float((found.double() - meant).norm() / (0.5 * delta).norm()), rel=1e-3)
    codes = [unpacked(kind, each[WEIGHT]) for each in (before, after)]
    assert (done.codes, done.changed) == (OUT * IN, int((codes[0] != codes[1]).sum()))


def unpacked(kind: str, codes: Tensor) -> Tensor:
    if "4" not in kind:
        return codes.view(torch.uint8)
    return torch.cat([codes.flatten() // 16, codes.flatten() % 16])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_do_not_change_keep_their_codes(kind: str, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", stored(kind))
    file, _ = random_lora(tmp_path, 0.01, rows=8)
    baked = bake(source, [file], tmp_path / "baked.safetensors", requantise=True)
    before, after = load_file(source), load_file(baked.path)
    first = 8 * before[WEIGHT].numel() // OUT  # two codes in a byte, of 4 bits
    same = before[WEIGHT].flatten().view(torch.uint8)[first:] == after[WEIGHT].flatten().view(torch.uint8)[first:]
    if kind in ("scalar", "comfy") and not torch.equal(scales(kind, before), scales(kind, after)):
        return  # the one scale grew
    if kind == "block":  # of 12 rows
        same = same[4 * IN :]
    if "nested" in kind:  # where a scale of scales has grown, other blocks' are the nearest on it
        assert float(same.double().mean()) > 0.9
        return
    assert bool(same.all())


def test_blocks_of_128_have_fewer_at_the_end(tmp_path: Path) -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    scale = spread_most(weight, 128, 128) / 448
    each = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    tensors = {WEIGHT: (weight / each).to(E4M3DTYPE), f"{MODULE}.weight_scale_inv": scale}
    source = written(tmp_path / "model.safetensors", tensors)
    up, down = torch.randn(200, 2), torch.randn(2, 300) * 0.1
    baked = bake(source, [lora(tmp_path, up, down)], tmp_path / "baked.safetensors", requantise=True)
    after = load_file(baked.path)
    grown = after[f"{MODULE}.weight_scale_inv"]
    each = grown.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    meant = tensors[WEIGHT].float() * scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    meant = meant + up @ down
    assert torch.equal(grown >= scale, torch.ones(2, 3, dtype=torch.bool)) and bool((grown > scale).any())
    # Of fp8 with three digits behind the point: half a step is 2⁻⁴ of a value, or 2⁻¹⁰ of a scale.
    error = (after[WEIGHT].float() * each - meant).abs()
    assert bool((error <= torch.maximum(meant.abs() * 2**-4, each * 2**-10) * (1 + 1e-3)).all())


def test_blocks_whose_size_nobody_can_tell_are_refused(tmp_path: Path) -> None:
    tensors = {WEIGHT: torch.zeros(OUT, IN).to(E4M3DTYPE), f"{MODULE}.weight_scale": torch.ones(7, 5)}
    file, _ = random_lora(tmp_path, 0.01)
    with pytest.raises(LoraFileError, match="in a way that only its own library writes"):
        bake(written(tmp_path / "m.safetensors", tensors), [file], tmp_path / "x.safetensors", requantise=True)


def test_a_value_beyond_fp8_without_a_scale_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", stored("fp8"))
    file, _ = random_lora(tmp_path, 1000.0)
    with pytest.raises(StrengthError, match="float8_e4m3fn without a scale holds 448: use a lower strength"):
        bake(source, [file], tmp_path / "x.safetensors", requantise=True)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_without_being_asked_none_is_written(kind: str, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", stored(kind))
    file, _ = random_lora(tmp_path, 0.01)
    with pytest.raises(LoraFileError, match=r"1 of the weights .* or give --requantise"):
        bake(source, [file], tmp_path / "x.safetensors")


def test_what_its_own_library_alone_writes_is_refused(tmp_path: Path) -> None:
    file, _ = random_lora(tmp_path, 0.01)
    note = torch.tensor([*json.dumps({"format": "nvfp4"}).encode()], dtype=torch.uint8)
    kinds = {
        "nvfp4": {WEIGHT: torch.zeros(OUT, IN // 2, dtype=torch.uint8), f"{MODULE}.comfy_quant": note},
        "int8": {WEIGHT: torch.zeros(OUT, IN, dtype=torch.int8)},
        "rotated": {**stored("scalar"), f"{MODULE}.comfy_quant": note},
    }
    for name, tensors in kinds.items():
        source = written(tmp_path / f"{name}.safetensors", tensors)
        with pytest.raises(LoraFileError, match="in a way that only its own library writes"):
            bake(source, [file], tmp_path / "x.safetensors", requantise=True)


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_values_are_those_that_a_program_reads(kind: str, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", stored(kind))
    found = open_model(source, decoded=True).read(STEM)
    assert found is not None
    torch.testing.assert_close(found, values(kind, load_file(source)), rtol=1e-6, atol=1e-8)


def test_the_command_prints_the_share_of_codes(command: Command, tmp_path: Path) -> None:
    source = written(tmp_path / "model.safetensors", stored("nf4"))
    file, delta = random_lora(tmp_path, 0.003)
    out = tmp_path / "x.safetensors"
    result = command("bake", source, file, "--requantise", "-o", out)
    assert (result.status, result.err) == (0, "")
    changed = int((unpacked("nf4", load_file(source)[WEIGHT]) != unpacked("nf4", load_file(out)[WEIGHT])).sum())
    assert f"  {changed / (OUT * IN):.2%} of the codes changed (1 in nf4 of bitsandbytes)" in result.out.splitlines()
    found = json.loads(command("bake", source, file, "--requantise", "-o", out, "--force", "--json").out)["requantised"]
    assert (found["codes"], found["changed"]) == (OUT * IN, changed)
    assert math.sqrt(found["meant"]) == pytest.approx(float(delta.norm()), rel=1e-3)
