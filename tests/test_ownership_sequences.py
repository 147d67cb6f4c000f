"""Random sequences of what users do to two pipelines that share a text encoder, against a plain model of stacks."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

TAGS = ("", "<lora:ink>", "<lora:wash:0.5>", "<lora:ink:0.25><lora:wash>", "<lora:ink:0:1>")
STEPS = 25


class Pipeline:
    """A pipeline as the library sees one."""

    def __init__(self, **components: nn.Module) -> None:
        self.components = components


@dataclass(eq=False)
class Layer:
    """What the model of stacks knows of an apply."""

    pipeline: str
    tag: str
    applied: Any
    entered: bool = False
    asleep: bool = False
    replaced: list[Layer] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)


class World:
    """The pipelines, and what each component should show."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        torch.manual_seed(chance.randrange(1 << 30))
        dtype = chance.choice([torch.float32, torch.bfloat16])
        self.components = {name: nn.Sequential(nn.Linear(6, 6)).to(dtype) for name in ("one", "two", "words")}
        self.parts = {"first": ("one", "words"), "second": ("two", "words")}
        self.pipelines = {
            name: Pipeline(unet=self.components[unet], text_encoder=self.components[words])
            for name, (unet, words) in self.parts.items()
        }
        self.base = {name: self.values(name) for name in self.components}
        self.unseen: set[str] = set()  # written while patched, and not looked at since
        self.layers: list[Layer] = []

    def values(self, name: str) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.components[name].parameters()]

    def expected(self, name: str) -> list[Tensor]:
        """Return the weights of a component under the topmost apply, merged alone into a model of their own."""
        top = next((x for x in reversed(self.layers) if not x.asleep and name in self.parts[x.pipeline]), None)
        if top is None or name in top.cut or name in self.unseen:
            return self.base[name]
        alone = nn.Sequential(nn.Linear(6, 6)).to(self.base[name][0].dtype)
        for parameter, value in zip(alone.parameters(), self.base[name], strict=True):
            parameter.data.copy_(value)
        kind = "text_encoder" if name == "words" else "unet"
        lora_runtime.apply(Pipeline(**{kind: alone}), top.tag, loras=self.folder)
        return [parameter.detach().clone() for parameter in alone.parameters()]

    def check(self, story: list[str]) -> None:
        for name in self.components:
            for got, wanted in zip(self.values(name), self.expected(name), strict=True):
                assert torch.equal(got, wanted), f"{name} after {' '.join(story)}"

    # ---- what users do ----

    def apply(self, *, enter: bool = False) -> str:
        name, tag = self.chance.choice(list(self.pipelines)), self.chance.choice(TAGS)
        originals: Any = self.chance.choice(["device", "host", "auto"])
        applied = lora_runtime.apply(self.pipelines[name], tag, loras=self.folder, originals=originals)
        others = [x for x in self.layers if not (x.entered or x.asleep) and x.pipeline == name]
        for other in others:
            self.layers = [x for x in self.layers if x not in other.replaced]
            other.replaced, other.asleep = [], True
        layer = Layer(name, tag, applied, replaced=others)
        self.layers.append(layer)
        if enter:
            applied.__enter__()
            layer.entered = True
            for other in layer.replaced:
                other.asleep = False
            layer.replaced = []
        self.unseen -= set(self.parts[name])
        return f"{'with' if enter else 'apply'}({name}, {tag})"

    def enter(self) -> str:
        return self.apply(enter=True)

    def leave(self) -> str:
        found = [x for x in self.layers if not x.asleep]
        if not found:
            return "-"
        layer = self.chance.choice(found)
        if layer.entered:
            layer.applied.__exit__(None, None, None)
        else:
            layer.applied.restore()
        self.layers = [x for x in self.layers if x is not layer and x not in layer.replaced]
        self.unseen -= set(self.parts[layer.pipeline])
        return f"leave({layer.pipeline}, {layer.tag})"

    def restore(self) -> str:
        name = self.chance.choice(list(self.pipelines))
        lora_runtime.restore(self.pipelines[name])
        for layer in [x for x in self.layers if x.entered and x.pipeline == name]:
            layer.applied.__exit__(None, None, None)  # a block that is open still has to be left
        for layer in self.layers:
            layer.cut |= set(self.parts[name])
        self.layers = [x for x in self.layers if x.pipeline != name]
        self.unseen -= set(self.parts[name])
        return f"restore({name})"

    def move(self) -> str:
        name = self.chance.choice(list(self.components))
        for parameter in self.components[name].parameters():
            parameter.data = parameter.data.clone()
        return f"move({name})"

    def load(self) -> str:
        name = self.chance.choice(list(self.components))
        state = {key: torch.randn_like(value) for key, value in self.components[name].state_dict().items()}
        if self.chance.random() < 0.5:
            self.components[name].load_state_dict(state)
        else:
            for key, parameter in self.components[name].named_parameters():
                parameter.data.copy_(state[key])
        self.base[name] = self.values(name)
        self.unseen.add(name)
        return f"load({name})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "wash")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{component}.0.lora_{side}.weight": torch.randn(shape, generator=generator)
            for component in ("unet", "text_encoder")
            for side, shape in (("A", (2, 6)), ("B", (6, 2)))
        }
        save_file(tensors, path / f"{name}.safetensors")
    return path


@pytest.mark.quick(20)
@pytest.mark.parametrize("seed", range(60))
def test_every_weight_shows_what_the_topmost_apply_asks(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    world, story = World(folder, chance), [f"seed {seed}:"]
    for _ in range(STEPS):
        step = chance.choice(
            [
                world.apply,
                world.apply,
                world.enter,
                world.enter,
                world.leave,
                world.leave,
                world.leave,
                world.restore,
                world.move,
                world.load,
            ]
        )
        story.append(step())
        world.check(story)
    while any(not x.asleep for x in world.layers):
        story.append(world.leave())
        world.check(story)
