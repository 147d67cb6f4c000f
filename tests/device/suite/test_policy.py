"""Where originals are kept: what was foretold against what the device gives, and each step down for want of memory."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from device.pretend import Pretend
from safetensors.torch import save_file
from torch import nn

import lora_runtime
from benchmarks.judges import JUDGES, Judge, judged
from lora_runtime.beside import Live
from lora_runtime.errors import MemoryBudgetError
from lora_runtime.memory_policy import Room, decide
from lora_runtime.merge import Term
from lora_runtime.patcher import Patcher
from lora_runtime.pipelines import view
from lora_runtime.plan import Assignment, Plan
from lora_runtime.report import Report
from lora_runtime.scopes import scope_of
from lora_runtime.targets import Target

STEPS = ["device", "host", "inplace", "beside"]
WIDTH, LAYERS = 256, 6
QUICK = ("LoRA (PEFT)", "LoKr (LyCORIS)", "DoRA (PEFT)", "OFT (PEFT)", "GLoRA (PEFT)")


def endless(device: torch.device) -> Room:
    return Room()


@pytest.mark.parametrize(
    "judge",
    [pytest.param(each, marks=[] if each.name in QUICK else pytest.mark.slow, id=each.name) for each in JUDGES],
)
def test_memory_is_what_was_foretold_for_every_algorithm_and_step(
    pretend: Pretend, tmp_path: Path, judge: Judge
) -> None:
    torch.manual_seed(0)
    made = judged(judge, nn.Linear(384, 256), tmp_path)
    if made is None:
        pytest.skip("not written by the installed version of its library")
    model = nn.Sequential(*(nn.Linear(384, 256, bias=False) for _ in range(3))).to(torch.bfloat16)
    model.requires_grad_(False).to(pretend.device)
    assignments = tuple(
        Assignment(
            Target("net", str(index), weakref.ref(layer)),
            layer.weight,  # type: ignore[arg-type]
            tuple(Term(adapter, 0.7) for adapter in made.adapters),
            tuple(("file", index, number) for number in range(len(made.adapters))),
        )
        for index, layer in enumerate(model)
    )
    targets = scope_of(view(model)).targets
    for step in STEPS:
        decision = decide(Plan(assignments, Report()), targets, step, endless)  # type: ignore[arg-type]
        (foretold,) = decision.forecasts().values()
        patcher, live = Patcher(), Live()
        gc.collect()
        before = pretend.used
        with pretend.peak() as peak:
            patcher.apply(decision.plan.assignments, steps=decision.merging)
            live.apply(decision.plan.lives, patcher)
        kept, most = pretend.used - before, peak()
        assert most == pytest.approx(foretold.peak, rel=0.02), step
        assert kept == pytest.approx(foretold.kept + foretold.factor_bytes, rel=0.02, abs=512), step
        live.clear()
        patcher.restore(release=True)


@pytest.fixture
def layers(pretend: Pretend, tmp_path: Path) -> Iterator[nn.Module]:
    """Give linear layers in host memory, with the file ink for them."""
    generator = torch.Generator().manual_seed(0)
    file = {}
    for layer in range(LAYERS):
        file[f"{layer}.lora_A.weight"] = torch.randn(4, WIDTH, generator=generator)
        file[f"{layer}.lora_B.weight"] = torch.randn(WIDTH, 4, generator=generator)
    save_file(file, tmp_path / "ink.safetensors")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).requires_grad_(False)
    yield model
    pretend.reset()
    lora_runtime.restore(model)


def bits(model: nn.Module) -> list[torch.Tensor]:
    """Return copies of all parameters, in host memory."""
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def steps_of(applied: Any) -> list[str]:
    return [kept.step for kept in applied.report.memory]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_step_makes_the_same_bits_on_every_device(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, dtype: torch.dtype
) -> None:
    layers.to(dtype)
    before = bits(layers)
    shown = []
    for device in ("cpu", "pretend"):
        layers.to(device)
        for step in STEPS[:3]:
            for text in ("<lora:ink:0.2>", "<lora:ink:0.7>"):  # the second from copies, the first from the weights
                applied = lora_runtime.apply(layers, text, loras=tmp_path, originals=step)
            assert steps_of(applied) == [step]
            shown.append(bits(layers))
            applied.restore()
            assert equal(bits(layers), before)
    assert not equal(shown[0], before)
    assert all(equal(shown[0], other) for other in shown)


def test_beside_copies_no_weight_and_acts_within_the_rounding(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    layers.to("pretend")
    before, inputs = bits(layers), torch.randn(3, WIDTH).to("pretend")
    with lora_runtime.apply(layers, "<lora:ink:0.01>", loras=tmp_path, originals="device"):
        expected = layers(inputs).cpu()
    gc.collect()
    used = pretend.used
    with lora_runtime.apply(layers, "<lora:ink:0.01>", loras=tmp_path, originals="beside") as applied:
        gc.collect()
        assert pretend.used - used == 2 * 4 * 4 * WIDTH * LAYERS == applied.report.memory[0].device_bytes
        assert equal(bits(layers), before)
        assert torch.allclose(layers(inputs).cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(layers(inputs).cpu(), expected, rtol=1e-3, atol=1e-3)


SIZE = 4 * WIDTH * WIDTH * LAYERS


@pytest.mark.parametrize(
    ("device_memory", "host_memory", "step", "said"),
    [
        (None, None, "device", "there is room"),
        (SIZE, 0, "device", "there is room"),
        (SIZE - 1, None, "host", r"1\.6 MB for W′ beside the originals, 1\.6 MB allowed on pretend:0"),
        ("1kB", "2MB", "host", r"1\.0 kB allowed on pretend:0"),
        ("100kB", "1MB", "beside", r"1\.0 MB allowed in host memory"),
    ],
)
def test_a_budget_is_kept(
    pretend: Pretend,
    layers: nn.Module,
    tmp_path: Path,
    device_memory: Any,
    host_memory: Any,
    step: str,
    said: str,
) -> None:
    layers.to("pretend")
    options = {"loras": tmp_path, "device_memory": device_memory, "host_memory": host_memory}
    gc.collect()
    used = pretend.used
    with lora_runtime.apply(layers, "<lora:ink>", **options) as applied:
        (kept,) = applied.report.memory
        assert (kept.step, kept.device) == (step, "pretend:0")
        assert kept.host_bytes == (SIZE if step == "host" else 0)
        gc.collect()
        assert kept.device_bytes + kept.factor_bytes == pretend.used - used
        assert re.search(said, str(applied.report))


def test_a_budget_that_no_step_keeps_is_an_error_and_changes_nothing(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    layers.to("pretend")
    before = bits(layers)
    with pytest.raises(MemoryBudgetError, match="allow more, or use fewer LoRAs at once"):
        lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path, device_memory=10, host_memory=10)
    with pytest.raises(MemoryBudgetError, match='originals="auto"'):
        lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path, device_memory=10, originals="device")
    assert equal(bits(layers), before)


def test_running_out_goes_down_a_step_and_shows_all_tags(pretend: Pretend, layers: nn.Module, tmp_path: Path) -> None:
    layers.to("pretend")
    before = bits(layers)
    with lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path):
        expected = bits(layers)
    seen = set()
    for place in (0, 1, 4, 8):
        lora_runtime.restore(layers)
        pretend.fail_in(place, times=2)  # the second where the factors that stayed were given up
        with lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path) as applied:
            pretend.fail_in(-1)
            (kept,) = applied.report.memory
            seen.add(kept.step)
            if kept.step == "host":
                assert equal(bits(layers), expected)
                assert "ran out of memory" in kept.why
            assert applied.report.loras[0].used == 2 * LAYERS
        assert equal(bits(layers), before)
    assert "host" in seen


def test_a_device_without_room_for_a_sum_has_adapters_beside(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    layers.to("pretend")
    gc.collect()
    pretend.limit(pretend.used + SIZE // LAYERS // 2)  # less than the sum of one weight takes
    with lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path) as applied:
        assert steps_of(applied) == ["beside"]
        assert applied.report.loras[0].merged == 0
        assert applied.report.loras[0].live == LAYERS


@pytest.mark.parametrize("room", [0.9, 0.1])
def test_memory_that_comes_and_goes_changes_no_step_of_the_same_tags(
    pretend: Pretend, layers: nn.Module, tmp_path: Path, room: float
) -> None:
    layers.to("pretend")
    gc.collect()
    pretend.limit(int(pretend.used + room * SIZE))
    first = lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    pretend.reset()
    with pretend.logged() as log:
        again = lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)
    assert steps_of(first) == steps_of(again) == (["host"] if room > 0.5 else ["beside"])
    assert not log.ours["kernel"]
    assert not log.ours["h2d"] + log.ours["h2d async"]
    again.restore()
    assert steps_of(lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path)) == ["device"]


def test_copies_in_host_memory_are_pinned_and_nobody_waits_for_each(
    pretend: Pretend, layers: nn.Module, tmp_path: Path
) -> None:
    layers.to("pretend")
    with pretend.logged() as log:
        applied = lora_runtime.apply(layers, "<lora:ink>", loras=tmp_path, originals="host")
    assert log.kinds["d2h async"] == LAYERS
    assert log.kinds["d2h"] == 0
    with pretend.logged() as log:
        lora_runtime.apply(layers, "<lora:ink:0.5>", loras=tmp_path, originals="host")
    assert log.kinds["d2h"] == log.kinds["d2h async"] == 0
    assert log.bytes["h2d async"] == SIZE  # each W₀ once, in its own dtype
    with pretend.logged() as log:
        applied.restore()
        lora_runtime.restore(layers)
    assert log.bytes["h2d async"] == SIZE
    assert log.kinds["h2d"] == 0
