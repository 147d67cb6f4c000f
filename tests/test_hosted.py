"""What is asked of weights that a host writes itself: the values, and that nothing keeps the host's parameters."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layouts
import pytest
import tiny_ldm
import torch
from torch import Tensor, nn

from lora_runtime.errors import ModelError, StrengthError
from lora_runtime.hosted import HostKeeper, HostPatch, host_patches, identity_of
from lora_runtime.lora import Lora
from lora_runtime.patcher import Patcher
from lora_runtime.pipelines import view
from lora_runtime.plan import Plan, make_plan
from lora_runtime.requests import Request
from lora_runtime.targets import Targets

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
FUSED = "joint_blocks.1.x_block.attn.qkv"  # SD3's own name for what diffusers has in three layers
PIECES = [f"transformer_blocks.1.attn.to_{name}" for name in "qkv"]
SIZE = 8


class Net(nn.Module):
    """Two layers, as a host has them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 24).to(dtype), nn.Linear(24, 8).to(dtype)


def read(module: nn.Module, name: str) -> Tensor:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter.data


def factors(rows: int, columns: int, seed: int = 1, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "lora_up.weight": torch.randn(rows, 4, generator=generator) * size,
        "lora_down.weight": torch.randn(4, columns, generator=generator) * size,
    }


def under(stem: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stem}.{name}": tensor for name, tensor in tensors.items()}


def delta(tensors: dict[str, Tensor]) -> Tensor:
    """Return Δ in float64: without an alpha its scale is 1."""
    return tensors["lora_up.weight"].double() @ tensors["lora_down.weight"].double()


def plan_of(model: nn.Module, *asked: tuple[Lora, float]) -> Plan:
    targets = Targets(view(SimpleNamespace(components={"transformer": model})))
    return make_plan([Request(lora, strength, strength) for lora, strength in asked], targets)


def patches_of(model: nn.Module, *asked: tuple[Lora, float]) -> list[HostPatch]:
    return host_patches(plan_of(model, *asked).assignments, HostKeeper(model.modules(), read))


def only(patches: Sequence[HostPatch]) -> HostPatch:
    (patch,) = patches
    return patch


@DTYPES
def test_w_is_the_sum_of_all_terms_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Net(dtype)
    a, b = factors(24, 16, 1), factors(24, 16, 2)
    loras = [layouts.written(under("transformer.first", tensors), tmp_path) for tensors in (a, b)]
    patch = only(patches_of(model, (loras[0], 0.5), (loras[1], -0.25)))
    exact = model.first.weight.double() + 0.5 * delta(a) - 0.25 * delta(b)
    made = patch.merged(model.first.weight.data)
    assert made.dtype == dtype
    torch.testing.assert_close(made.double(), exact.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=2e-6)
    if dtype != torch.float32:  # elsewhere the exact sum lies between two roundings
        assert float((made != exact.to(dtype)).double().mean()) < 0.01


@DTYPES
def test_it_has_the_bits_of_a_weight_that_the_library_binds_itself(dtype: torch.dtype, tmp_path: Path) -> None:
    model, other = Net(dtype), Net(dtype)
    tensors = under("transformer.first", factors(24, 16)) | under("transformer.second", factors(8, 24, 2))
    lora = layouts.written(tensors, tmp_path)
    Patcher().apply(plan_of(other, (lora, 0.7)).assignments)
    made = {
        patch.target.path: patch.merged(read(patch.target.module, patch.name))
        for patch in patches_of(model, (lora, 0.7))
    }
    assert torch.equal(made["first"], other.first.weight)
    assert torch.equal(made["second"], other.second.weight)


def test_w0_is_only_read_and_the_result_is_memory_of_its_own(tmp_path: Path) -> None:
    model = Net()
    before = model.first.weight.detach().clone()
    patch = only(patches_of(model, (layouts.written(under("transformer.first", factors(24, 16)), tmp_path), 1.0)))
    one, two = patch.merged(model.first.weight.data), patch.merged(model.first.weight.data)
    assert torch.equal(model.first.weight, before)
    assert len({model.first.weight.data_ptr(), one.data_ptr(), two.data_ptr()}) == 3


def test_what_is_made_under_inference_mode_is_no_inference_tensor(tmp_path: Path) -> None:
    """A host paints under inference mode, and what it makes a parameter of must not be one for life."""
    model = Net()
    patch = only(patches_of(model, (layouts.written(under("transformer.first", factors(24, 16)), tmp_path), 1.0)))
    expected = patch.merged(model.first.weight.data)
    with torch.inference_mode():
        made = patch.merged(model.first.weight.data.clone())
    assert not made.is_inference()
    assert torch.equal(made, expected)


def pieces(tmp_path: Path) -> tuple[nn.Module, Plan, Tensor]:
    """Return SD3 as diffusers has it, a plan for a rotation of all rows of q, k and v, and those in float64."""
    converters = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch.manual_seed(0)
    original = {name: torch.randn_like(tensor) for name, tensor in tiny_ldm.state(tiny_ldm.mmdit()).items()}
    state = converters.convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    del state["pos_embed.pos_embed"]
    tensors, change = layouts.oft(3 * SIZE, SIZE)
    model = layouts.tree(state)
    base = original[f"{FUSED}.weight"].double()
    return model, plan_of(model, (layouts.written(under(FUSED, tensors), tmp_path), 1.0)), base + change(base)


def test_an_adapter_for_several_weights_reads_the_originals_of_all_wherever_they_are_by_then(tmp_path: Path) -> None:
    model, plan, expected = pieces(tmp_path)
    originals = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    names = {id(module): path for path, module in model.named_modules()}

    def backup(module: nn.Module, name: str) -> Tensor:
        return originals[f"{names[id(module)]}.{name}"]

    patches = host_patches(plan.assignments, HostKeeper(model.modules(), backup))
    for name in PIECES:  # what the host shows by then is no original any more
        model.get_submodule(name).weight = nn.Parameter(torch.full((SIZE, SIZE), 7.0), requires_grad=False)
    made = [patch.merged(originals[f"{patch.target.path}.weight"]) for patch in patches]
    assert [patch.target.path for patch in patches] == PIECES
    torch.testing.assert_close(torch.cat(made).double(), expected, rtol=2e-6, atol=2e-6)


def test_no_parameter_of_the_host_is_kept(tmp_path: Path) -> None:
    """It may be a device's memory, which the host counts as free once it has put another one there."""
    model, plan, _ = pieces(tmp_path)
    patches = host_patches(plan.assignments, HostKeeper(model.modules(), read))
    kept = [weakref.ref(model.get_submodule(name).weight) for name in PIECES]
    del plan
    for name in PIECES:
        model.get_submodule(name).weight = nn.Parameter(torch.zeros(SIZE, SIZE), requires_grad=False)
    gc.collect()
    assert len(patches) == 3
    assert [reference() for reference in kept] == [None] * 3


def test_a_layer_that_is_gone_costs_the_file_that_needs_it(tmp_path: Path) -> None:
    model, plan, _ = pieces(tmp_path)
    patches = host_patches(plan.assignments, HostKeeper(model.modules(), read))
    sha256 = plan.report.loras[0].sha256
    first = model.get_submodule(PIECES[0])
    del model.transformer_blocks._modules["1"].attn._modules["to_v"]  # type: ignore[union-attr]
    del plan
    gc.collect()
    with pytest.raises(ModelError, match="the layer whose weight is needed is gone") as caught:
        patches[0].merged(first.weight.data)  # type: ignore[union-attr, arg-type]
    assert caught.value.sha256 == sha256


@pytest.mark.parametrize("call", ["merged", "check"])
def test_a_weight_beyond_half_precision_names_the_file_that_changes_it_most(call: str, tmp_path: Path) -> None:
    model = Net(torch.float16)
    small, large = factors(24, 16, 1), factors(24, 16, 2, size=300.0)
    loras = [layouts.written(under("transformer.first", tensors), tmp_path) for tensors in (small, large)]
    patch = only(patches_of(model, (loras[0], 1.0), (loras[1], 1.0)))
    with pytest.raises(StrengthError, match=r"transformer\.first would be beyond 65504") as caught:
        getattr(patch, call)(model.first.weight.data)
    assert caught.value.sha256 == loras[1].sha256


def test_a_check_says_nothing_of_what_can_be_held(tmp_path: Path) -> None:
    for dtype, size in ((torch.float16, 1.0), (torch.float16, 10.0), (torch.bfloat16, 300.0), (torch.float32, 300.0)):
        model = Net(dtype)
        lora = layouts.written(under("transformer.first", factors(24, 16, size=size)), tmp_path)
        only(patches_of(model, (lora, 1.0))).check(model.first.weight.data)


def test_the_identity_is_that_of_contents_and_strengths_in_any_order(tmp_path: Path) -> None:
    model = Net()
    a = layouts.written(under("transformer.first", factors(24, 16, 1)), tmp_path)
    b = layouts.written(under("transformer.first", factors(24, 16, 2)), tmp_path)

    def known(*asked: tuple[Lora, float]) -> str:
        return identity_of(patches_of(model, *asked))

    ab = known((a, 0.5), (b, 0.7))
    assert known((b, 0.7), (a, 0.5)) == ab
    assert len({ab, known((a, 0.7), (b, 0.5)), known((a, 0.5)), known((b, 0.5)), ""}) == 5
    assert identity_of([]) == ""


def test_the_keeper_gives_originals_by_the_parameters_that_are_there_now() -> None:
    model: Any = Net()
    originals = {"first": torch.ones(24, 16), "second": torch.zeros(8, 24)}
    names = {id(model.first): "first", id(model.second): "second"}
    keeper = HostKeeper(model.modules(), lambda module, name: originals[names[id(module)]])
    assert keeper.original(model.first.weight) is originals["first"]
    assert keeper.name_of(model.second.bias) == "bias"
