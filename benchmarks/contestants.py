"""The ways to put LoRAs on a model that the benchmark compares, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.model import Layer
from benchmarks.timing import seconds

__all__ = ["CONTESTANTS", "Contestant", "Setting"]

Strengths = Sequence[float]


@dataclass(frozen=True)
class Setting:
    """A model, and the files to put on it: `modules` are those that the files have keys for."""

    pipe: Any
    modules: dict[str, Layer]
    files: list[Path]
    component: str = "unet"


class Contestant(ABC):
    """One way. The benchmark times the four verbs; `clean`, which it does not time, makes ready for another."""

    has_step = True
    keeps_adapters = False  # whether `again` is another thing than `apply`

    def __init__(self, setting: Setting) -> None:
        """Hold the setting; nothing is read or changed before `apply`."""
        self.setting = setting

    @abstractmethod
    def apply(self, strengths: Strengths) -> None:
        """Put the files on the bare model, one strength each."""

    @abstractmethod
    def change(self, strengths: Strengths) -> None:
        """Change the strengths of what is applied."""

    @abstractmethod
    def restore(self) -> None:
        """Make the model act as it did before."""

    def switch(self, index: int) -> None:
        """Go over to one of the files alone, at strength 1."""
        self.change([float(index == number) for number in range(len(self.setting.files))])

    def again(self, strengths: Strengths) -> None:
        """Apply after `restore` with what is still loaded."""
        self.apply(strengths)

    def clean(self) -> None:  # noqa: B027 - most leave nothing behind
        """Leave a bare model to the next contestant."""


class Bare(Contestant):
    """No LoRA at all: what a step costs."""

    def apply(self, strengths: Strengths) -> None:
        """Do nothing."""

    def change(self, strengths: Strengths) -> None:
        """Do nothing."""

    def restore(self) -> None:
        """Do nothing."""


class Ours(Contestant):
    """This library, as a user calls it: prompt in, and what it keeps from one call to the next is its own affair."""

    varies = ""  # behind each strength in the tags

    def __init__(self, setting: Setting, originals: Any = "auto") -> None:
        """Keep W₀ where `originals` says."""
        super().__init__(setting)
        self.originals = originals

    def apply(self, strengths: Strengths) -> None:
        """Apply a prompt with a tag for each file."""
        self.ask(self.tags(strengths))

    def tags(self, strengths: Strengths) -> str:
        """Return a tag for each file."""
        found = zip(self.setting.files, strengths, strict=True)
        return " ".join(f"<lora:{file.stem}:{strength}{self.varies}>" for file, strength in found)

    def switch(self, index: int) -> None:
        """Apply a prompt with the tag of one file."""
        self.ask(f"<lora:{self.setting.files[index].stem}:1{self.varies}>")

    def ask(self, tags: str) -> None:
        """Apply a prompt with these tags."""
        import lora_runtime

        folder = self.setting.files[0].parent
        self.applied = lora_runtime.apply(
            self.setting.pipe, f"a boat {tags}", loras=folder, strict=True, originals=self.originals
        )

    def change(self, strengths: Strengths) -> None:
        """Apply the prompt with other numbers in it."""
        self.apply(strengths)

    def restore(self) -> None:
        """Restore; the buffers stay for the next apply."""
        self.applied.restore()


class Live(Ours):
    """This library with strengths that vary from step to step: all acts beside the layers."""

    varies = "@0,0.1@1"


class Unmerged(Contestant):
    """diffusers with peft, the factors beside each layer: load_lora_weights + set_adapters."""

    keeps_adapters = True

    def apply(self, strengths: Strengths) -> None:
        """Load every file and set the strengths."""
        for file in self.setting.files:
            self.setting.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
        self.set(strengths)

    def set(self, strengths: Strengths) -> None:
        """Set the strengths of the loaded files."""
        self.setting.pipe.set_adapters([file.stem for file in self.setting.files], list(strengths))

    def change(self, strengths: Strengths) -> None:
        """Set other strengths."""
        self.set(strengths)

    def switch(self, index: int) -> None:
        """Set the adapter that acts."""
        self.setting.pipe.set_adapters([self.setting.files[index].stem], [1.0])

    def restore(self) -> None:
        """Switch the adapters off: the quickest way back that diffusers has."""
        self.setting.pipe.disable_lora()

    def again(self, strengths: Strengths) -> None:
        """Switch the adapters on."""
        self.setting.pipe.enable_lora()
        self.set(strengths)

    def clean(self) -> None:
        """Take the adapters out of the model."""
        self.setting.pipe.unload_lora_weights()


class Fuse(Unmerged):
    """diffusers with peft, the factors merged into the weights: the above + fuse_lora, back with unfuse_lora."""

    def apply(self, strengths: Strengths) -> None:
        """Load, set, and merge."""
        super().apply(strengths)
        self.fuse()

    def fuse(self) -> None:
        """Merge the loaded files."""
        self.setting.pipe.fuse_lora(
            components=[self.setting.component], adapter_names=[file.stem for file in self.setting.files]
        )

    def change(self, strengths: Strengths) -> None:
        """Take the old strengths out of the weights, merge with the new."""
        self.restore()
        self.set(strengths)
        self.fuse()

    def restore(self) -> None:
        """Subtract what was added; the bits are not those from before."""
        self.setting.pipe.unfuse_lora(components=[self.setting.component])

    def switch(self, index: int) -> None:
        """Take the merged ones out, and merge one."""
        self.restore()
        super().switch(index)
        self.setting.pipe.fuse_lora(components=[self.setting.component], adapter_names=[self.setting.files[index].stem])

    def again(self, strengths: Strengths) -> None:
        """Set and merge without loading."""
        self.set(strengths)
        self.fuse()


class Hotswap(Unmerged):
    """diffusers' hotswap: one adapter, whose factors those of the next file are written over."""

    NAME = "hot"

    def apply(self, strengths: Strengths) -> None:
        """Load the first file."""
        self.load(self.setting.files[0], swap=False)

    def load(self, file: Path, *, swap: bool) -> None:
        """Load a file as the adapter, or over it."""
        self.setting.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=self.NAME, hotswap=swap)

    def switch(self, index: int) -> None:
        """Load a file over the one that is there."""
        self.load(self.setting.files[index], swap=True)

    def set(self, strengths: Strengths) -> None:
        """Set the strength of the one adapter."""
        self.setting.pipe.set_adapters([self.NAME], [strengths[0]])


@dataclass(frozen=True)
class Factors:
    """A file's factors for one module, flattened to two dimensions: up (out, r), down (r, columns)."""

    up: Tensor
    down: Tensor
    scale: float


def read_factors(file: Path, modules: dict[str, Layer], component: str = "unet") -> dict[str, Factors]:
    """Return the factors of a file in kohya's names or PEFT's by module name, in the file's dtype."""
    tensors = load_file(file)
    factors = {}
    for name in modules:
        key = f"{component}.{name}"
        if f"{key}.lora_A.weight" in tensors:
            factors[name] = Factors(tensors[f"{key}.lora_B.weight"], tensors[f"{key}.lora_A.weight"], 1.0)
            continue
        key = "lora_unet_" + name.replace(".", "_")
        up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
        scale = float(tensors[f"{key}.alpha"]) / down.shape[0]
        factors[name] = Factors(up.flatten(1), down.flatten(1), scale)
    return factors


class Loop(Contestant):
    """As the WebUI does: a copy of each weight in host memory, then one LoRA after another, each rounded into it."""

    def __init__(self, setting: Setting) -> None:
        """Start with no copies and no factors."""
        super().__init__(setting)
        self.backup: dict[str, Tensor] = {}
        self.files: list[dict[str, Factors]] = []

    @torch.no_grad()
    def apply(self, strengths: Strengths) -> None:
        """Copy back what was there, then add each file's delta, summed in float32."""
        if not self.files:
            self.files = [read_factors(file, self.setting.modules) for file in self.setting.files]
        for name, module in self.setting.modules.items():
            weight = module.weight
            if name in self.backup:
                weight.copy_(self.backup[name])
            else:
                self.backup[name] = weight.to("cpu", copy=True)
            for factors, strength in zip(self.files, strengths, strict=True):
                up = factors[name].up.to(weight.device, torch.float32)
                down = factors[name].down.to(weight.device, torch.float32)
                delta = (up @ down).view(weight.shape) * (strength * factors[name].scale)
                weight.copy_((weight.to(torch.float32) + delta).to(weight.dtype))

    def change(self, strengths: Strengths) -> None:
        """Do it all again."""
        self.apply(strengths)

    @torch.no_grad()
    def restore(self) -> None:
        """Copy each weight back."""
        for name, module in self.setting.modules.items():
            module.weight.copy_(self.backup[name])


class Floor(Contestant):
    """What cannot be had for less: a copy of the touched weights into warm buffers, and one GEMM at the summed rank.

    The model is not changed and the factors lie ready in float32. The GEMM is the fastest found here, the private
    oneDNN one included, whole or in blocks of rows.
    """

    has_step = False

    def __init__(self, setting: Setting) -> None:
        """Start without buffers."""
        super().__init__(setting)
        self.buffers: dict[str, Tensor] = {}
        self.ups: dict[str, Tensor] = {}
        self.downs: dict[str, Tensor] = {}
        self.products: Callable[[], None] | None = None

    @torch.no_grad()
    def apply(self, strengths: Strengths) -> None:
        """Copy, and multiply; the product is thrown away."""
        if self.products is None:
            self.prepare()
        assert self.products is not None
        for name, module in self.setting.modules.items():
            self.buffers[name].copy_(module.weight)
        self.products()

    def prepare(self) -> None:
        """Lay out buffers and factors, and choose the fastest GEMM."""
        files = [read_factors(file, self.setting.modules, self.setting.component) for file in self.setting.files]
        for name, module in self.setting.modules.items():
            self.buffers[name] = torch.empty_like(module.weight)
            device = module.weight.device
            self.ups[name] = torch.cat([f[name].up for f in files], 1).to(device, torch.float32)
            self.downs[name] = torch.cat([f[name].down for f in files], 0).to(device, torch.float32)
        self.products = min(self.candidates(), key=lambda run: min(seconds(run) for _ in range(3)))

    def candidates(self) -> Iterator[Callable[[], None]]:
        """Yield functions that do every product once."""
        largest = max(up.shape[0] * self.downs[name].shape[1] for name, up in self.ups.items())
        scratch = torch.empty(largest, device=next(iter(self.ups.values())).device)

        def run(onednn: bool, block_bytes: int | None) -> None:
            for name, up in self.ups.items():
                down = (self.transposed if onednn else self.downs)[name]
                columns = self.downs[name].shape[1]
                rows = up.shape[0] if block_bytes is None else max(16, block_bytes // (4 * columns) // 16 * 16)
                for start in range(0, up.shape[0], rows):
                    block = up[start : start + rows]
                    if onednn:
                        torch.ops.mkldnn._linear_pointwise(block, down, None, "none", [], "")
                    else:
                        torch.mm(block, down, out=scratch[: block.shape[0] * columns].view(-1, columns))

        yield lambda: run(False, None)
        yield lambda: run(False, 2 << 20)
        if scratch.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return
        self.transposed = {name: down.t().contiguous() for name, down in self.downs.items()}
        for block_bytes in (None, 2 << 20):
            try:
                run(True, block_bytes)
            except (RuntimeError, TypeError):  # a private op: its signature may be another by now
                return
            yield lambda block_bytes=block_bytes: run(True, block_bytes)  # type: ignore[misc]

    def change(self, strengths: Strengths) -> None:
        """Cost what `apply` costs."""
        self.apply(strengths)

    def restore(self) -> None:
        """Cost nothing: the model was not changed."""


CONTESTANTS: dict[str, type[Contestant]] = {
    "ours": Ours,
    "live": Live,
    "unmerged": Unmerged,
    "fuse": Fuse,
    "hotswap": Hotswap,
    "loop": Loop,
    "floor": Floor,
    "bare": Bare,
}
