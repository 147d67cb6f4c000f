"""Ctrl-C at every moment: afterwards the model is free, and one `restore` gives every weight its bits back."""

from __future__ import annotations

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
TAGS = "x <lora:all:0.5><lora:dora:1@0,0@1><lora:full:1>"
BEFORE = "x <lora:all:0.3><lora:loha:1@0,0@1>"
# A handler of signals runs where a function begins (or a generator goes on) and where a call of C code is over.
_MOMENTS = ("call", "c_return")
# A `with` block cannot help it if its end never begins; what it does then is tried at all its other moments.
_BEFORE_ANY_HANDLER = ("__enter__", "__exit__")
Moment = tuple[str, int, str]


class Interrupt:
    """Raises KeyboardInterrupt when the library comes to a moment for the first time; notes those that it comes to."""

    def __init__(self, wanted: Moment | None = None) -> None:
        self.wanted, self.raised = wanted, False
        self.moments: dict[Moment, None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in _MOMENTS or not code.co_filename.startswith(PACKAGE):
            return
        if event == "call" and code.co_name in _BEFORE_ANY_HANDLER:
            return
        moment = code.co_filename, frame.f_lineno, event
        self.moments[moment] = None
        if moment == self.wanted and not self.raised:
            self.raised = True
            raise KeyboardInterrupt


def _apply(pipe: Pipeline) -> Callable[[], Any]:
    return lambda: lora_runtime.apply(pipe, TAGS, loras=folder()[0])


def _change(pipe: Pipeline) -> Callable[[], Any]:
    kept = lora_runtime.apply(pipe, BEFORE, loras=folder()[0])
    return lambda: (kept, lora_runtime.apply(pipe, TAGS, loras=folder()[0]))


def _restore(pipe: Pipeline) -> Callable[[], Any]:
    return lora_runtime.apply(pipe, TAGS, loras=folder()[0]).restore


def _block(pipe: Pipeline) -> Callable[[], Any]:
    applied = lora_runtime.apply(pipe, TAGS, loras=folder()[0]).__enter__()
    return lambda: applied.__exit__(None, None, None)


def _whole_block(pipe: Pipeline) -> Callable[[], Any]:
    def run() -> None:
        with lora_runtime.apply(pipe, TAGS, loras=folder()[0]):
            pass

    return run


WAYS: dict[str, Callable[[Pipeline], Callable[[], Any]]] = {
    "apply": _apply,
    "change": _change,
    "restore": _restore,
    "end of a block": _block,
    "block": _whole_block,
}
SLOW = ("apply", "block")  # whose moments are those of "change", and of the others
PARTS = 3  # of the moments, each an own test


def _interrupted(way: str, wanted: Moment | None) -> tuple[Interrupt, tuple[nn.Module, ...], Pipeline]:
    modules = networks()
    pipe = Pipeline(transformer=modules[0], text_encoder=modules[2])
    run, interrupt = WAYS[way](pipe), Interrupt(wanted)
    profiler = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        run()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(profiler)
    return interrupt, modules, pipe


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] if way in SLOW else []) for way in WAYS])
@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_leaves_a_model_that_can_be_restored(
    way: str, part: int, caplog: pytest.LogCaptureFixture
) -> None:
    _interrupted(way, None)  # what is looked up once
    moments = list(_interrupted(way, None)[0].moments)
    assert len(moments) > PARTS
    plain = [module.state_dict() for module in networks()]
    wrong = []
    for moment in moments[part::PARTS]:
        caplog.clear()
        _, modules, pipe = _interrupted(way, moment)
        where = f"{Path(moment[0]).name}:{moment[1]} ({moment[2]})"
        done = threading.Event()

        def restore(pipe: Pipeline = pipe, done: threading.Event = done) -> None:
            if way == "end of a block":  # what was not taken away must not come back after another's block either
                with lora_runtime.apply(pipe, BEFORE, loras=folder()[0]):
                    pass
            else:
                lora_runtime.restore(pipe)
            done.set()

        threading.Thread(target=restore, daemon=True).start()  # another has no claims that were left behind
        if not done.wait(3):
            wrong.append(f"{where}: the model is not free")
            continue
        if "written while LoRAs were applied" in caplog.text:
            wrong.append(f"{where}: what was restored is taken for another's write")
        for module, before in zip(modules, plain, strict=True):
            wrong += [
                f"{where}: {name} has other bits"
                for name, value in module.state_dict().items()
                if not torch.equal(value, before[name])
            ]
            wrong += [
                f"{where}: a hook is left on {path}"
                for path, layer in module.named_modules()
                if layer._forward_hooks or layer._forward_pre_hooks
            ]
    assert not wrong, "\n".join(wrong)
