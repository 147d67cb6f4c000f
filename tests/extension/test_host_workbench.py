"""Files that the workbench wrote, in the WebUI: what they do to its weights is what their parents do by the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from double import loras
from double.loras import plain

from lora_runtime.workbench import merge

if TYPE_CHECKING:
    from double.webui import WebUI


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_merged_file_does_what_its_parents_do_by_the_formula(start: Callable[..., WebUI], kind: str) -> None:
    name = "a" if kind == "sd1" else kind
    webui = start(checkpoint=name)
    ink = loras.write(webui.loras / "ink.safetensors", plain(name), kind)
    wash = loras.write(webui.loras / "wash.safetensors", plain(name), kind, seed=1)
    merge([f"{ink.path}:0.7", f"{wash.path}:-0.4"], webui.loras / "both.safetensors")
    done = webui.generate("a cat <lora:both:1>")
    assert done.comments == []
    weights = done.passes[0].weights
    assert sorted(webui.changed(weights)) == sorted(ink.places)
    for key, expected in loras.patched(plain(name), [(ink, 0.7), (wash, -0.4)]).items():
        torch.testing.assert_close(weights[key].double(), expected.double(), rtol=1e-6, atol=1e-6)
    assert webui.changed(webui.generate("a cat").passes[0].weights) == []
