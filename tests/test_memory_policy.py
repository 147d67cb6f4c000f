"""Where originals are kept, in host memory and from shapes alone; tests/device/suite/test_policy.py has a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lora_runtime
from lora_runtime import memory_policy
from lora_runtime.lora import load_lora
from lora_runtime.memory import free_bytes
from lora_runtime.memory_policy import Room, decide, read_bytes
from lora_runtime.pipelines import view
from lora_runtime.plan import Plan, make_plan
from lora_runtime.requests import Request
from lora_runtime.scopes import scope_of
from lora_runtime.targets import Targets

WIDTH, RANK, LAYERS = 64, 4, 3
SIZE = 4 * WIDTH * WIDTH * LAYERS
CUDA = torch.device("cuda:0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files ink (low rank) and full (whole differences)."""
    generator = torch.Generator().manual_seed(0)
    ink, full = {}, {}
    for layer in range(LAYERS):
        ink[f"{layer}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator) * 0.1
        ink[f"{layer}.lora_B.weight"] = torch.randn(WIDTH, RANK, generator=generator) * 0.1
        full[f"{layer}.diff"] = torch.randn(WIDTH, WIDTH, generator=generator) * 0.1
    save_file(ink, tmp_path / "ink.safetensors")
    save_file(full, tmp_path / "full.safetensors")
    return tmp_path


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).requires_grad_(False)


def planned(model: nn.Module, folder: Path, name: str = "ink") -> tuple[Plan, Targets]:
    scope = scope_of(view(model))
    return make_plan([Request(load_lora(folder / f"{name}.safetensors"), 1.0, 1.0)], scope.targets), scope.targets


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (0, 0), (12, 12), ("100", 100), ("24GB", 24 * 10**9), ("24 GiB", 24 << 30), ("1.5gb", 1500000000)],
)
def test_a_size_is_bytes_or_text(value: Any, expected: int | None) -> None:
    assert read_bytes(value, "device_memory") == expected


@pytest.mark.parametrize("value", [-1, 1.5, True, "", "many", "24 gigs", "-1GB"])
@pytest.mark.parametrize("name", ["device_memory", "host_memory"])
def test_what_is_no_size_is_an_error_that_says_what_is_one(folder: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f'{name}=.*: give a number of bytes, or text such as "24GB" or "24GiB"'):
        lora_runtime.apply(make_model(), "<lora:ink>", loras=folder, **{name: value})


@pytest.mark.parametrize(
    ("free", "host", "step", "why"),
    [
        (10 * SIZE, 10 * SIZE, "device", "there is room"),
        (SIZE, 10 * SIZE, "host", "49.2 kB touched, 49.2 kB free on cuda:0"),
        (SIZE, SIZE, "beside", "49.2 kB touched, 49.2 kB free on cuda:0; 49.2 kB touched, 49.2 kB free in host memory"),
        (None, None, "device", "there is room"),  # a device that does not tell
    ],
)
def test_the_step_is_the_first_for_which_there_is_room(
    folder: Path, free: int | None, host: int | None, step: str, why: str
) -> None:
    model = make_model()
    plan, targets = planned(model, folder)
    decision = decide(plan, targets, "auto", lambda device: Room(free), Room(host), on=CUDA)
    (choice,) = decision.choices
    assert (choice.step, choice.why) == (step, why)


def test_a_plan_on_weights_without_memory_says_what_each_step_takes(folder: Path) -> None:
    model = make_model()
    for layer in model:
        outline = torch.empty((), dtype=torch.bfloat16).expand(WIDTH, WIDTH)
        layer._parameters["weight"] = nn.Parameter(outline, requires_grad=False)
    plan, targets = planned(model, folder)
    touched, factors = 2 * WIDTH * WIDTH * LAYERS, 2 * RANK * WIDTH * LAYERS
    found = {}
    for step in ("device", "host", "inplace", "beside"):
        decision = decide(plan, targets, step, lambda device: Room(), on=CUDA)  # type: ignore[arg-type]
        found[step] = decision.forecasts()[CUDA]
    copies = {step: (cast.kept, cast.host_kept) for step, cast in found.items()}
    assert copies == {
        "device": (touched, 0),
        "host": (0, touched),
        "inplace": (touched, 0),
        "beside": (2 * factors, 0),
    }
    # The file has float32.
    crossing = {step: (cast.uploads, cast.downloads, cast.switch_uploads) for step, cast in found.items()}
    assert crossing == {
        "device": (4 * factors, 0, 0),
        "host": (4 * factors, touched, touched),
        "inplace": (4 * factors, 0, 0),
        "beside": (4 * factors, 0, 4 * factors),
    }
    assert [cast.factor_bytes for cast in found.values()] == [4 * factors, 4 * factors, 4 * factors, 0]
    # A sum of one weight: its factors and a block in float32, and W₀ in float32; the factors of all that stay.
    assert found["host"].peak == 4 * (2 * RANK * WIDTH + 2 * WIDTH * WIDTH) + 4 * factors
    assert found["device"].peak == touched + found["host"].peak


def test_host_memory_without_room_has_adapters_beside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    before, inputs = [layer.weight.clone() for layer in model], torch.randn(2, WIDTH)
    with lora_runtime.apply(model, "<lora:ink:0.7>", loras=folder):
        expected = model(inputs)
    lora_runtime.restore(model)
    monkeypatch.setattr(memory_policy, "free_bytes", lambda device: SIZE)
    with lora_runtime.apply(model, "<lora:ink:0.7>", loras=folder) as applied:
        assert all(torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True))
        assert torch.allclose(model(inputs), expected, rtol=1e-4, atol=1e-4)
        (kept,) = applied.report.memory
        assert (kept.step, kept.host_bytes) == ("beside", 0)
        assert kept.why == "49.2 kB touched, 49.2 kB free in host memory"
        assert f"of factors beside the modules on cpu: {kept.why}" in str(applied.report)
        assert "3 of them beside weights that there is no room to copy" in str(applied.report)
    assert not torch.allclose(model(inputs), expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_act_beside_without_a_delta_of_its_size_is_merged(folder: Path) -> None:
    model = make_model()
    plain = [layer.weight.clone() for layer in model]
    with lora_runtime.apply(model, "<lora:full>", loras=folder, originals="beside") as applied:
        assert not any(torch.equal(layer.weight, old) for layer, old in zip(model, plain, strict=True))
        assert (applied.report.loras[0].merged, applied.report.loras[0].live) == (LAYERS, 0)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(model, plain, strict=True))


def test_the_same_tags_keep_their_step_and_a_budget_can_change_it(folder: Path) -> None:
    model = make_model()
    first = lora_runtime.apply(model, "<lora:ink>", loras=folder)
    again = lora_runtime.apply(model, "<lora:ink>", loras=folder)
    assert first.report.memory == again.report.memory
    assert [kept.step for kept in again.report.memory] == ["device"]
    small = lora_runtime.apply(model, "<lora:ink>", loras=folder, host_memory=SIZE - 1)
    assert [kept.step for kept in small.report.memory] == ["beside"]
    small.restore()


def test_what_is_kept_otherwise_already_is_said_to_be(folder: Path) -> None:
    model = make_model()
    lora_runtime.apply(model, "<lora:ink>", loras=folder, originals="host")
    (kept,) = lora_runtime.apply(model, "<lora:ink>", loras=folder).report.memory
    assert (kept.step, kept.device_bytes, kept.why) == ("host", SIZE, "it is held already")
    assert str(kept) == "49.2 kB of originals in host memory, patched in place on cpu: it is held already"
    (kept,) = lora_runtime.apply(model, "<lora:ink:0.5>", loras=folder).report.memory  # computed anew
    assert kept.step == "device"
    lora_runtime.restore(model)


def test_where_all_acts_beside_no_weight_is_said_to_be_kept(folder: Path) -> None:
    model = make_model()
    (kept,) = lora_runtime.apply(model, "<lora:ink:1@0,0@1>", loras=folder).report.memory
    assert (kept.step, kept.host_bytes, kept.why) == ("beside", 0, "nothing of it is merged")
    assert str(kept).endswith("of factors beside the modules on cpu: nothing of it is merged")
    lora_runtime.apply(model, "<lora:ink>", loras=folder)
    (kept,) = lora_runtime.apply(model, "<lora:ink:1@0,0@1>", loras=folder).report.memory
    assert (kept.step, kept.why) == ("beside", "nothing of it is merged")
    lora_runtime.restore(model)


def test_each_way_that_weights_are_kept_has_its_line(folder: Path) -> None:
    model = make_model()
    save_file({"0.diff": torch.ones(WIDTH, WIDTH)}, folder / "first.safetensors")
    save_file({f"{layer}.diff": torch.ones(WIDTH, WIDTH) for layer in (1, 2)}, folder / "rest.safetensors")
    lora_runtime.apply(model, "<lora:first>", loras=folder, originals="inplace")
    lines = lora_runtime.apply(model, "<lora:first><lora:rest>", loras=folder).report.memory
    assert {kept.step: (kept.device_bytes, kept.why) for kept in lines} == {
        "inplace": (SIZE // LAYERS, "it is held already"),
        "device": (SIZE // LAYERS * 2, "there is room"),
    }
    lora_runtime.restore(model)


def test_a_switch_that_takes_nothing_more_asks_for_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    lora_runtime.apply(model, "<lora:ink>", loras=folder)
    monkeypatch.setattr(memory_policy, "free_bytes", lambda device: 0)
    with lora_runtime.apply(model, "<lora:ink:0.5>", loras=folder) as applied:
        assert [kept.step for kept in applied.report.memory] == ["device"]
    lora_runtime.restore(model)


def test_what_is_constant_and_what_varies_meet_beside_one_module(folder: Path) -> None:
    model, text = make_model(), "<lora:ink:0.5><lora:full:1@0,0@1>"
    inputs = torch.randn(2, WIDTH)
    with lora_runtime.apply(model, text, loras=folder) as applied:
        applied.at(1, 4)
        expected = model(inputs)
    with lora_runtime.apply(model, text, loras=folder, originals="beside") as applied:
        applied.at(1, 4)
        assert (applied.report.weights, applied.report.live) == (0, LAYERS)
        assert torch.allclose(model(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not every system tells what is free")
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_memory_shared_with_the_host_has_the_room_that_the_host_has(device: str) -> None:
    free = free_bytes(torch.device(device))
    assert free is not None
    assert 1 << 10 < free < 1 << 60


def test_what_the_allocator_keeps_for_reuse_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (180, 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert free_bytes(torch.device("cuda")) == 200


def test_a_device_that_does_not_tell_says_nothing() -> None:
    assert free_bytes(torch.device("meta")) is None
