"""What must hold on any device, looked at on the one at hand. Each check raises AssertionError with what it found.

The tests of the project hold the same on the pretend accelerator and on the CPU, bit for bit. A real GPU sums products
in an order of its own: there values are held to the CPU's within the rounding of the sum.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

import lora_runtime
from benchmarks import model
from benchmarks.devices import Cuda, Device
from benchmarks.judges import JUDGES, Judge, judged, quiet
from lora_runtime.memory import OutOfMemory
from lora_runtime.merge import Term, merge_into
from lora_runtime.patcher import Originals

__all__ = ["Check", "checks"]

WIDTH, LAYERS, TOKENS = 256, 4, 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Where originals lie, what is shown is the same to the bit; and where W′ is written in place of W₀.
EXACT = tuple(mode for mode in get_args(Originals) if mode not in ("auto", "beside"))
IN_PLACE = tuple(mode for mode in EXACT if mode != "device")
TEXT, OTHER, LIVE = "<lora:ink:0.7>", "<lora:ink:0.4><lora:wash>", "<lora:ink:0.2@0,1@1>"


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    run: Callable[[], None]


def checks(device: Device) -> Iterator[Check]:
    """Yield what can be looked at on this device."""
    for judge in JUDGES if device.device.type != "cpu" else ():
        yield Check(f"Δ and sum of {judge.name} as on the CPU", partial(_as_on_the_cpu, device, judge))
    for dtype in DTYPES:
        yield Check(f"originals come back, {_short(dtype)}", partial(_originals_come_back, device, dtype))
        yield Check(f"all modes show the same, {_short(dtype)}", partial(_modes_show_the_same, device, dtype))
    yield Check("live strengths act as merged ones", partial(_live_as_merged, device))
    yield Check("a move to the host and back", partial(_round_trip, device))
    yield Check("weights written in place keep their addresses", partial(_addresses_stay, device))
    if device.can_tell_waits:
        yield Check("a switch of strength waits for nothing", partial(_switch_waits, device))
        yield Check("a step waits for nothing", partial(_step_waits, device))
    if device.can_limit:
        yield Check("running out of memory leaves the model whole", partial(_out_of_memory, device))
        yield Check("auto goes on where the device is full", partial(_auto_goes_on, device))
    if isinstance(device, Cuda):
        yield Check("a captured CUDA graph shows what is applied in place", partial(_graph, device))


# ---- the parts ------------------------------------------------------------------------------------------------------


@contextmanager
def _layers(device: Device, dtype: torch.dtype = torch.float32) -> Iterator[tuple[nn.Module, Path]]:
    """Give some linear layers on the device, and a folder with two files for them."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).to(device.device, dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, stem in enumerate(("ink", "wash")):
            model.write_lora(folder / f"{stem}.safetensors", model.all_linears(layers), rank=8, prefix="", seed=seed)
        yield layers.eval().requires_grad_(False), folder
        lora_runtime.restore(layers)


def _bits(layers: nn.Module) -> list[Tensor]:
    return [parameter.detach().cpu().clone() for parameter in layers.parameters()]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def _inputs(device: Device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).to(device.device, dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the checks -----------------------------------------------------------------------------------------------------


def _as_on_the_cpu(device: Device, judge: Judge) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        made = judged(judge, nn.Linear(128, 64), Path(folder))
        if made is None:
            return  # not written by the installed version of its library
        terms = [Term(adapter, 0.7) for adapter in made.adapters]
        for dtype in DTYPES:
            weight = made.weight.to(dtype)
            here, there = torch.empty_like(weight, device=device.device), torch.empty_like(weight)
            merge_into(here, weight.to(device.device), terms)
            merge_into(there, weight, terms)
            change = float((there.double() - weight.double()).abs().max())
            # A rounding of W′ may go either way where two sums differ in their last digits.
            allowed = 1e-4 * change + torch.finfo(dtype).eps * float(there.double().abs().max())
            found = float((here.cpu().double() - there.double()).abs().max())
            assert found <= allowed, f"{_short(dtype)}: differs by {found:.3g}, allowed {allowed:.3g}"


def _originals_come_back(device: Device, dtype: torch.dtype) -> None:
    with _layers(device, dtype) as (layers, folder):
        before = _bits(layers)
        for mode in EXACT:
            for text in (TEXT, OTHER, LIVE):
                applied = lora_runtime.apply(layers, text, loras=folder, originals=mode, strict=True)
            applied.restore()
            assert _same(_bits(layers), before), f"originals={mode}: other bits after restore"


def _modes_show_the_same(device: Device, dtype: torch.dtype) -> None:
    with _layers(device, dtype) as (layers, folder):
        before, shown = _bits(layers), []
        for mode in EXACT:
            lora_runtime.apply(layers, TEXT, loras=folder, originals=mode, strict=True)
            lora_runtime.apply(layers, OTHER, loras=folder, originals=mode, strict=True)
            shown.append(_bits(layers))
            lora_runtime.restore(layers)
        assert not _same(shown[0], before), "nothing was changed"
        assert all(_same(shown[0], other) for other in shown[1:]), "the modes differ"


def _live_as_merged(device: Device) -> None:
    inputs = _inputs(device)
    with _layers(device) as (layers, folder), torch.inference_mode():
        plain = layers(inputs)
        with lora_runtime.apply(layers, "<lora:ink:0.6>", loras=folder, strict=True):
            merged = layers(inputs)
        with lora_runtime.apply(layers, "<lora:ink:0.2@0,1@1>", loras=folder, strict=True) as applied:
            applied.at(1, 3)  # half-way
            live = layers(inputs)
        size = float((merged - plain).abs().max())
        assert size > 0, "nothing was changed"
        found = float((live - merged).abs().max()) / size
        assert found < 1e-2, f"differs by {found:.2%} of the change"


def _round_trip(device: Device) -> None:
    device.settle()
    free = device.used()
    with _layers(device) as (layers, folder):
        before = _bits(layers)
        lora_runtime.apply(layers, TEXT, loras=folder, originals="device", strict=True)
        shown = _bits(layers)
        layers.to("cpu")
        device.settle()
        if device.device.type != "cpu":
            assert device.used() == free, f"{device.used() - free} bytes stay on the device"
        layers.to(device.device)
        lora_runtime.apply(layers, TEXT, loras=folder, originals="device", strict=True)
        assert _same(_bits(layers), shown), "other weights than before the move"
        lora_runtime.restore(layers)
        assert _same(_bits(layers), before), "other bits after restore"


def _addresses_stay(device: Device) -> None:
    with _layers(device) as (layers, folder):
        addresses = [parameter.data_ptr() for parameter in layers.parameters()]
        for mode in IN_PLACE:
            for text in (TEXT, OTHER, ""):
                lora_runtime.apply(layers, text, loras=folder, originals=mode, strict=True)
                now = [parameter.data_ptr() for parameter in layers.parameters()]
                assert now == addresses, f"originals={mode}: moved by {text!r}"


def _switch_waits(device: Device) -> None:
    with _layers(device) as (layers, folder):
        for text in ("<lora:ink:0.7>", "<lora:ink:0.6>"):  # memory and factors are there from now on
            lora_runtime.apply(layers, text, loras=folder, originals="device", strict=True)
        with device.waits() as waits:
            lora_runtime.apply(layers, "<lora:ink:0.5>", loras=folder, originals="device", strict=True)
            count = waits()
        assert count == 0, f"{count} waits"


def _step_waits(device: Device) -> None:
    inputs = _inputs(device)
    with _layers(device) as (layers, folder), torch.inference_mode():
        applied = lora_runtime.apply(layers, LIVE, loras=folder, strict=True)
        for step in range(2):
            applied.at(step, 8)
            layers(inputs)
        with device.waits() as waits:
            for step in range(2, 8):
                applied.at(step, 8)
                layers(inputs)
            count = waits()
        assert count == 0, f"{count} waits in 6 steps"


def _sized(device: Device) -> tuple[nn.Module, int]:
    """Return layers large enough that an allocator's blocks do not blur what fits, and their bytes."""
    torch.manual_seed(0)
    width = 2048 if isinstance(device, Cuda) else WIDTH
    layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(8))).requires_grad_(False)
    return layers.to(device.device), 8 * 4 * width * width


def _out_of_memory(device: Device) -> None:
    layers, size = _sized(device)
    before = _bits(layers)
    with tempfile.TemporaryDirectory() as name:
        model.write_lora(Path(name) / "ink.safetensors", model.all_linears(layers), rank=8, prefix="")
        failed = False
        with device.limited(size // 2):
            try:
                lora_runtime.apply(layers, TEXT, loras=name, originals="device", strict=True)
            except OutOfMemory:
                failed = True
        assert failed, "half of the room was enough"
        assert _same(_bits(layers), before), "other bits after the failure"
        lora_runtime.apply(layers, TEXT, loras=name, originals="device", strict=True)
        assert not _same(_bits(layers), before), "the next apply does nothing"
        lora_runtime.restore(layers)
        assert _same(_bits(layers), before), "other bits after restore"


def _auto_goes_on(device: Device) -> None:
    layers, size = _sized(device)
    before = _bits(layers)
    with tempfile.TemporaryDirectory() as name:
        model.write_lora(Path(name) / "ink.safetensors", model.all_linears(layers), rank=8, prefix="")
        with device.limited(size * 3 // 4):
            lora_runtime.apply(layers, TEXT, loras=name, originals="auto", strict=True)
        shown = _bits(layers)
        lora_runtime.restore(layers)
        assert _same(_bits(layers), before), "other bits after restore"
        with lora_runtime.apply(layers, TEXT, loras=name, originals="device", strict=True):
            assert _same(_bits(layers), shown), "other weights than with room"


def _graph(device: Device) -> None:
    inputs = _inputs(device)
    with _layers(device) as (layers, folder), torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            layers(inputs)
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = layers(inputs)
        graph.replay()
        plain = outputs.clone()
        with lora_runtime.apply(layers, TEXT, loras=folder, originals="host", strict=True):
            graph.replay()
            torch.cuda.synchronize()
            expected = layers(inputs)
            assert not torch.equal(outputs, plain), "the graph shows nothing of it"
            assert torch.allclose(outputs, expected, rtol=1e-4, atol=1e-5), "the graph shows something else"
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(outputs, plain), "the graph shows something after restore"
