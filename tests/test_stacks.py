"""Stacks of owners where several lines of calls, offloaders and hand-written loops have a part in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime.owners import OWNERS


class Pipeline:
    """A pipeline as the library sees one."""

    def __init__(self, **components: nn.Module) -> None:
        self.components = components


def block(seed: int) -> nn.Module:
    """Return a small component of two layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("ink", "wash"), start=1):
        generator = torch.Generator().manual_seed(seed)
        save_file(
            {
                f"{component}.{layer}.lora_{side}.weight": torch.randn(shape, generator=generator)
                for component in ("unet",) + (("text_encoder",) if name == "ink" else ())
                for layer in (0, 1)
                for side, shape in (("A", (2, 8)), ("B", (8, 2)))
            },
            tmp_path / f"{name}.safetensors",
        )
    return tmp_path


def shown(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_blocks_that_threads_asked_for_at_once_give_the_bare_apply_again(folder: Path) -> None:
    pipeline = Pipeline(unet=block(1), text_encoder=block(2))
    unet = pipeline.components["unet"]
    lora_runtime.apply(unet, "<lora:ink:0.5>", loras=folder)
    bare = shown(unet)
    threads = [ThreadPoolExecutor(1) for _ in range(3)]
    asked = [thread.submit(lora_runtime.apply, pipeline, "<lora:wash>", loras=folder).result() for thread in threads]
    for turn in (1, 0, 2):
        threads[turn].submit(asked[turn].__enter__).result()
        assert not same(shown(unet), bare)
        threads[turn].submit(asked[turn].__exit__, None, None, None).result()
    assert same(shown(unet), bare)
    lora_runtime.restore(pipeline)


def test_a_block_stands_on_the_parts_too_of_which_it_asks_nothing(folder: Path) -> None:
    words = block(3)
    first, second = Pipeline(unet=block(1), text_encoder=words), Pipeline(unet=block(2), text_encoder=words)
    base = shown(words)
    applied = lora_runtime.apply(first, "<lora:wash>", loras=folder)  # nothing for the text encoder
    lora_runtime.apply(second, "<lora:ink>", loras=folder)
    patched = shown(words)
    with applied:
        assert same(shown(words), base)
    assert same(shown(words), patched)
    lora_runtime.restore(first)
    lora_runtime.restore(second)


def test_an_apply_to_an_offloaded_model_replaces_the_one_before_the_last_call(folder: Path) -> None:
    from accelerate import cpu_offload

    unet = block(1)
    inputs = torch.randn(3, 8)
    plain = unet(inputs)
    cpu_offload(unet, torch.device("cpu"))
    counts = []
    for _ in range(3):  # each call puts new parameters on the meta device
        applied = lora_runtime.apply(unet, "<lora:ink:0.5>", loras=folder)
        counts.append(sum(not owner.asleep for owner in OWNERS))
        assert not torch.allclose(unet(inputs), plain, atol=1e-2)
    assert counts == counts[:1] * 3
    applied.restore()
    torch.testing.assert_close(unet(inputs), plain)


def test_other_parameters_do_not_keep_an_apply_from_replacing_the_one_before(folder: Path) -> None:
    unet = block(1)
    lora_runtime.apply(unet, "<lora:ink:0.5>", loras=folder)
    values = {name: torch.randn(8, 8) if "weight" in name else torch.randn(8) for name in unet.state_dict()}
    unet.load_state_dict({name: value.clone() for name, value in values.items()}, assign=True)
    applied = lora_runtime.apply(unet, "<lora:wash>", loras=folder)
    applied.restore()
    assert all(torch.equal(unet.state_dict()[name], value) for name, value in values.items())
    lora_runtime.restore(unet)


def test_a_step_that_was_said_holds_again_after_an_inner_block(folder: Path) -> None:
    unet = block(1)
    inputs = torch.randn(3, 8)
    applied = lora_runtime.apply(unet, "<lora:ink:1@0,0@1>", loras=folder)
    applied.at(3, 5)
    wanted = unet(inputs)
    with lora_runtime.apply(unet, "<lora:wash>", loras=folder):
        assert not torch.allclose(unet(inputs), wanted, atol=1e-2)
    torch.testing.assert_close(unet(inputs), wanted)
    lora_runtime.restore(unet)


class Coded(nn.Linear):
    """A layer whose weight is stored in codes that nobody can read."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2 and len(x) != 3:
            raise RuntimeError("three rows at a time")
        return x * 2


def test_a_weight_that_cannot_be_read_costs_only_the_tags_that_need_it(folder: Path) -> None:
    model = nn.Sequential(Coded(), nn.Linear(8, 8)).requires_grad_(False)
    save_file(
        {
            "0.lora_A.weight": torch.randn(2, 8),
            "0.lora_B.weight": torch.randn(8, 2),
            "0.lora_magnitude_vector": torch.rand(8),
        },
        folder / "dora.safetensors",
    )
    inputs = torch.randn(3, 8)
    with lora_runtime.apply(model, "<lora:wash>", loras=folder):
        wanted = model(inputs)
    with lora_runtime.apply(model, "<lora:dora><lora:wash>", loras=folder) as applied:
        torch.testing.assert_close(model(inputs), wanted)
    assert [line.name for line in applied.report.loras] == ["wash"]
    (said,) = [found for found in applied.diagnostics if found.severity == "error"]
    assert "cannot be read" in said.message
    with pytest.raises(lora_runtime.ModelError, match="cannot be read"):
        lora_runtime.apply(model, "<lora:dora>", loras=folder, strict=True)


def test_a_block_keeps_originals_its_own_way_when_one_above_it_has_left(folder: Path) -> None:
    unet = block(4)
    before = shown(unet)
    with lora_runtime.apply(unet, "<lora:wash:0.5>", loras=folder) as outer:
        above = lora_runtime.apply(unet, "<lora:wash:0.5>", loras=folder, originals="host")
        above.restore()
        assert {kept.step for kept in outer.report.memory} == {"device"}
        taken = unet.state_dict()
        bits = {name: value.clone() for name, value in taken.items()}
    assert all(torch.equal(taken[name], bits[name]) for name in bits)
    assert same(shown(unet), before)
