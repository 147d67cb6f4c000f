"""What the tests of the algorithms share: layers, LyCORIS's own modules on them, and files through our loader.

LyCORIS is asked for the forward pass of its module and never for its merged weight, in which LoHa and LoKr take their
scale twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.adapters import ALGORITHMS, Adapter, Group
from lora_runtime.lora import Lora, load_lora

STEM = "lora_unet_x"


def linear() -> nn.Module:
    return nn.Linear(12, 24)


def square() -> nn.Module:
    return nn.Linear(16, 16, bias=False)


def conv1x1() -> nn.Module:
    return nn.Conv2d(12, 24, 1)


def conv3x3() -> nn.Module:
    return nn.Conv2d(12, 24, 3, stride=2, padding=1)


def conv1d() -> nn.Module:
    return nn.Conv1d(12, 24, 5)


def conv3d() -> nn.Module:
    return nn.Conv3d(8, 12, (1, 3, 3), padding=(0, 1, 1))


LAYERS = [linear, square, conv1x1, conv3x3, conv1d, conv3d]
KERNELS = [conv3x3, conv1d, conv3d]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def seen(layer: nn.Module) -> Tensor:
    """Return an input for the layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return rand(3, weight.shape[1], *(6 for _ in weight.shape[2:]), seed=5)


def randomise(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Fill what is trained with noise; a DoRA's lengths stay positive."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name == "dora_scale":
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif name == "rescale":
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return module.eval()


def saved(tensors: Mapping[str, Tensor], folder: Path, stem: str = STEM, *, backwards: bool = False) -> Lora:
    """Return the file of these tensors, one key each with the stem before it, as our loader reads it."""
    keys = sorted(tensors, reverse=backwards)
    path = folder / f"file-{len(list(folder.iterdir()))}.safetensors"
    save_file({f"{stem}.{key}".lstrip("."): tensors[key].detach().clone().contiguous() for key in keys}, path)
    return load_lora(path)


def patched(layer: nn.Module, adapters: tuple[Adapter, ...], strength: float = 1.0) -> dict[str, Tensor]:
    """Return the layer's parameters, W₀ + strength · ΣΔ(W₀)."""
    found = {}
    for name, parameter in layer.named_parameters(recurse=False):
        total = parameter.detach().clone()
        for adapter in adapters:
            if adapter.parameter == name:
                assert adapter.misfit(parameter.shape) is None
                delta = adapter.delta(parameter.detach())
                assert delta.shape == parameter.shape
                assert delta.dtype == torch.float32
                total += strength * delta
        found[name] = total
    return found


@torch.no_grad()
def agree(layer: nn.Module, module: nn.Module, lora: Lora, strength: float = 1.0) -> None:
    """Fail where the patched layer does something else than LyCORIS's module around the layer."""
    (stem,) = lora.adapters
    x = seen(layer)
    module.multiplier = strength  # type: ignore[assignment]
    judged = module(x)
    mine = torch.func.functional_call(layer, patched(layer, lora.adapters[stem], strength), (x,))
    change = (judged - layer(x)).abs().max().item()
    assert change > 1e-2, "the judge's module does nothing"
    torch.testing.assert_close(mine, judged, rtol=1e-5, atol=1e-5 * judged.abs().max().item())


def change_by(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Return what a weight of the layer's shape does to x, without a bias, in the weight's dtype."""
    if isinstance(layer, nn.Linear):
        return F.linear(x.to(weight), weight)
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    return conv(x.to(weight), weight, stride=layer.stride, padding=layer.padding)  # type: ignore[operator]


def made(kind: str, tensors: Mapping[str, Tensor], **options: Any) -> Adapter:
    """Return the one adapter that an algorithm builds of these tensors, by role."""
    (adapter,) = build(kind, tensors, **options)
    return adapter


def build(kind: str, tensors: Mapping[str, Tensor], **options: Any) -> list[Adapter]:
    """Return the adapters that an algorithm builds of these tensors, by role; keys are the roles."""
    (algorithm,) = (algorithm for algorithm in ALGORITHMS if algorithm.name == kind)
    keys = {role: role for role in tensors}
    return list(algorithm.build(Group("stem", tensors, tuple(tensors), key_of=keys, **options)))


def agree_with_peft(layer: nn.Module, config: Any, folder: Path) -> None:
    """Compare the delta of a file that PEFT has saved with what its merge changes in the weight of one layer."""
    base = nn.Sequential(layer)
    before = layer.weight.detach().clone()  # type: ignore[operator]
    model = peft.get_peft_model(base, config)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data = rand(*parameter.shape)
    lora = saved(peft.get_peft_model_state_dict(model), folder, "")
    ((adapter,),) = lora.adapters.values()
    merged = model.merge_and_unload()[0].weight.detach()
    torch.testing.assert_close(adapter.delta(before), merged - before, rtol=1e-5, atol=1e-5)
