"""Ctrl-C at any line: afterwards the model is free, and one `restore` gives every weight its bits back."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from soak.world import Pipeline, folder, networks
from torch import nn

import lora_runtime

PACKAGE = str(Path(lora_runtime.__file__).parent)
POINTS = 25  # at which each way is interrupted
TAGS = "x <lora:all:0.5><lora:dora:1@0,0@1><lora:full:1>"
BEFORE = "x <lora:all:0.3><lora:loha:1@0,0@1>"
# Where a debugger's line is no moment of an interrupt: entering and leaving a `with` block, and what stands once.
_NO_MOMENT = ("with ", "async with ", "def ", "class ", "@", "except", "finally")


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of the library that runs; counts the lines."""

    def __init__(self, number: int | None = None) -> None:
        self.number, self.lines, self.place = number, 0, ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Interrupt | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.number is not None and self.lines >= self.number and not self.place and _is_moment(frame):
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


def _is_moment(frame: FrameType) -> bool:
    return not linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(_NO_MOMENT)


def _apply(pipe: Pipeline) -> Callable[[], Any]:
    return lambda: lora_runtime.apply(pipe, TAGS, loras=folder()[0])


def _change(pipe: Pipeline) -> Callable[[], Any]:
    kept = lora_runtime.apply(pipe, BEFORE, loras=folder()[0])
    return lambda: (kept, lora_runtime.apply(pipe, TAGS, loras=folder()[0]))


def _restore(pipe: Pipeline) -> Callable[[], Any]:
    return lora_runtime.apply(pipe, TAGS, loras=folder()[0]).restore


def _block(pipe: Pipeline) -> Callable[[], Any]:
    applied = lora_runtime.apply(pipe, TAGS, loras=folder()[0])

    def run() -> None:
        with applied:
            pass

    return run


WAYS: dict[str, Callable[[Pipeline], Callable[[], Any]]] = {
    "apply": _apply,
    "change": _change,
    "restore": _restore,
    "block": _block,
}


def _interrupted(way: str, number: int | None) -> tuple[Interrupt, tuple[nn.Module, ...], Pipeline]:
    modules = networks()
    pipe = Pipeline(transformer=modules[0], text_encoder=modules[2])
    run, interrupt = WAYS[way](pipe), Interrupt(number)
    tracer = sys.gettrace()
    sys.settrace(interrupt)
    try:
        run()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)
    return interrupt, modules, pipe


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_leaves_a_model_that_can_be_restored(way: str) -> None:
    _interrupted(way, None)  # what is looked up once
    lines = _interrupted(way, None)[0].lines
    assert lines > POINTS
    plain = [module.state_dict() for module in networks()]
    wrong = []
    for point in range(POINTS):
        interrupt, modules, pipe = _interrupted(way, 1 + point * lines // POINTS)
        done = threading.Event()

        def restore(pipe: Pipeline = pipe, done: threading.Event = done) -> None:
            lora_runtime.restore(pipe)
            done.set()

        threading.Thread(target=restore, daemon=True).start()  # another has no claims that were left behind
        if not done.wait(20):
            wrong.append(f"{interrupt.place}: the model is not free")
            continue
        for module, before in zip(modules, plain, strict=True):
            wrong += [
                f"{interrupt.place}: {name} has other bits"
                for name, value in module.state_dict().items()
                if not torch.equal(value, before[name])
            ]
            wrong += [
                f"{interrupt.place}: a hook is left on {path}"
                for path, layer in module.named_modules()
                if layer._forward_hooks or layer._forward_pre_hooks
            ]
    assert not wrong, "\n".join(wrong)
