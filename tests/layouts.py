"""Models made of nothing but named weights, and the formulas of the algorithms in float64, written once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.lora import Lora, load_lora
from lora_runtime.patcher import Patcher
from lora_runtime.pipelines import view
from lora_runtime.plan import make_plan
from lora_runtime.report import LoraReport
from lora_runtime.requests import Request
from lora_runtime.targets import Targets


def tree(state: Mapping[str, Tensor]) -> nn.Module:
    """Return a model that has these parameters; it computes nothing."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        module = root
        for segment in path:
            if segment not in module._modules:
                module.add_module(segment, nn.Module())
            module = module._modules[segment]  # type: ignore[assignment]
        module.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))
    return root


def targets_of(model: nn.Module, component: str = "transformer") -> Targets:
    return Targets(view(SimpleNamespace(components={component: model})))


def written(tensors: Mapping[str, Tensor], folder: Path) -> Lora:
    """Return a file of these tensors, as our loader reads it."""
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    return load_lora(path)


def patched(
    model: nn.Module,
    loras: list[Lora],
    strength: float = 1.0,
    originals: str = "device",
    component: str = "transformer",
) -> tuple[dict[str, Tensor], tuple[LoraReport, ...]]:
    """Return the state with these files applied, and the reports; the model is restored and held against before."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plan = make_plan([Request(lora, strength, strength) for lora in loras], targets_of(model, component))
    patcher = Patcher()
    patcher.apply(plan.assignments, originals)  # type: ignore[arg-type]
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    patcher.restore()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    return state, plan.report.loras


def rand(*shape: int, seed: int = 0, size: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * size


Made = tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]  # what a file has after the stem, Δ(W₀) in float64


def lora(out: int, inputs: int) -> Made:
    up, down = rand(out, 2), rand(2, inputs)
    return {
        "lora_up.weight": up,
        "lora_down.weight": down,
        "alpha": torch.tensor(1.0),
    }, lambda w: 0.5 * (up.double() @ down.double())


def loha(out: int, inputs: int) -> Made:
    factors = [rand(out, 2), rand(2, inputs), rand(out, 2, seed=1), rand(2, inputs, seed=1)]
    a, b, c, d = (factor.double() for factor in factors)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, factors, strict=True)), lambda w: (a @ b) * (c @ d)


def lokr(out: int, inputs: int) -> Made:
    left, right = rand(2, inputs // 4), rand(out // 2, 4)
    return {"lokr_w1": left, "lokr_w2": right}, lambda w: torch.kron(left.double(), right.double())


def full(out: int, inputs: int) -> Made:
    values = rand(out, inputs)
    return {"diff": values}, lambda w: values.double()


def dora(out: int, inputs: int, axis: int) -> Made:
    tensors, inner = lora(out, inputs)
    magnitude = rand(out, 1).abs() + 0.5 if axis == 0 else rand(1, inputs).abs() + 0.5

    def change(w: Tensor) -> Tensor:
        total = w + inner(w)
        return magnitude.double() * total / total.norm(dim=1 - axis, keepdim=True) - w

    return tensors | {"dora_scale": magnitude}, change


def oft(out: int, inputs: int) -> Made:
    blocks = rand(2, out // 2, out // 2, size=0.1)

    def change(w: Tensor) -> Tensor:
        skew = blocks.double() - blocks.double().transpose(1, 2)
        eye = torch.eye(out // 2, dtype=torch.float64)
        turns = [((eye + q) @ torch.linalg.inv(eye - q)).T for q in skew]
        return torch.block_diag(*turns) @ w - w

    return {"oft_blocks": blocks}, change


def ia3(out: int, inputs: int) -> Made:
    vector = rand(out)
    return {"weight": vector, "on_input": torch.tensor(False)}, lambda w: vector.double()[:, None] * w


ALGORITHMS: dict[str, Callable[[int, int], Made]] = {
    "lora": lora,
    "loha": loha,
    "lokr": lokr,
    "full": full,
    "dora by output": lambda out, inputs: dora(out, inputs, 0),
    "dora by input": lambda out, inputs: dora(out, inputs, 1),
    "oft": oft,
    "ia3": ia3,
}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rounding: float = 2e-6) -> None:
    """Fail where a float32 state differs from one in float64 by more than the sum of a few products costs."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=rounding, atol=rounding, msg=name)
