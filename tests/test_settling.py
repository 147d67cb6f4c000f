"""What others do to a model while LoRAs are in it, in any order: W₀ comes back, or a warning says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import lora_runtime

WARNING = "written while LoRAs were applied"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    sides = {"A": (2, 8), "B": (8, 2)}
    save_file(
        {f"{layer}.lora_{side}.weight": torch.randn(shape) for layer in (0, 1) for side, shape in sides.items()},
        tmp_path / "ink.safetensors",
    )
    return tmp_path


def applied(model: nn.Module, folder: Path, originals: Any = "auto") -> lora_runtime.Applied:
    found = lora_runtime.apply(model, "<lora:ink>", loras=folder, originals=originals)
    assert found.report.weights == 2
    return found


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def load_own(model: nn.Module) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})


def assign_own(model: nn.Module) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def make_parameters_anew(model: nn.Module) -> None:
    for layer in model.children():
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(parameter.data.clone()))


def move(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


STEPS: dict[str, Callable[[nn.Module], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "float": lambda model: model.float(),
    "float8": lambda model: model.to(torch.float8_e4m3fn),
    "move": move,
    "share": lambda model: model.share_memory(),
    "load": load_own,
    "assign": assign_own,
    "anew": make_parameters_anew,
}


@pytest.mark.parametrize("originals", ["device", "host"])
@pytest.mark.parametrize(
    "steps",
    [
        "half anew",
        "bfloat16 assign",
        "load assign",
        "move anew",
        "share anew",
        "load half float",
        "load half bfloat16",
        "anew half anew",
        "float8 float",
    ],
)
def test_what_only_moves_casts_or_copies_leaves_the_original(
    ink: Path, steps: str, originals: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    plain = values(model)
    with applied(model, ink, originals):
        for step in steps.split():
            STEPS[step](model)
        dtype = next(model.parameters()).dtype
    assert same(values(model), [value.to(dtype) for value in plain])
    assert WARNING not in caplog.text


def test_a_model_in_double_precision_that_was_in_single_gets_its_original(ink: Path) -> None:
    model = net().double()
    plain = values(model)
    with applied(model, ink):
        model.float().double()
    assert same(values(model), plain)


@pytest.mark.parametrize("steps", ["half other anew", "other half anew", "anew other"])
def test_other_values_stay_whatever_is_done_to_them(ink: Path, steps: str, caplog: pytest.LogCaptureFixture) -> None:
    model, wanted = net(), net()
    for parameter in wanted.parameters():
        nn.init.constant_(parameter, 3.0)
    with applied(model, ink):
        for step in steps.split():
            if step == "other":
                model.load_state_dict(wanted.state_dict())
            else:
                STEPS[step](model)
        dtype = next(model.parameters()).dtype
    assert same(values(model), values(wanted.to(dtype)))
    assert WARNING in caplog.text


@pytest.mark.parametrize("originals", ["device", "host", "inplace"])
def test_offloading_that_begins_in_a_block_gets_the_original(
    ink: Path, originals: Any, caplog: pytest.LogCaptureFixture
) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, x = net(), torch.ones(1, 8)
    plain = model(x)
    with applied(model, ink, originals):
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(model(x), plain)
    assert WARNING not in caplog.text
    with lora_runtime.apply(model, "<lora:ink>", loras=ink):
        once = model(x)
    fresh = net()
    with applied(fresh, ink):
        torch.testing.assert_close(once, fresh(x))


def test_offloading_to_disk_that_begins_in_a_block_is_said_to_keep_the_lora(
    ink: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = net()
    with applied(model, ink):
        accelerate.disk_offload(model, tmp_path / "disk", execution_device=torch.device("cpu"))
    assert f"2 weights were {WARNING}" in caplog.text
    lora_runtime.restore(model)  # which has nothing to do, and does not fail


class Packed(Tensor):
    """A quantised tensor: it has no operations but its own."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} for packed values")


def pack(model: nn.Module) -> None:
    for layer in model.children():
        packed = torch.Tensor._make_wrapper_subclass(Packed, layer.weight.shape)  # type: ignore[attr-defined]
        layer._parameters["weight"] = nn.Parameter(packed, requires_grad=False)


def normalise(model: nn.Module) -> None:
    for layer in model.children():
        nn.utils.weight_norm(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("change", [pack, normalise])
def test_what_was_made_of_the_patched_weights_is_said_to_be(
    ink: Path, change: Callable[[nn.Module], None], caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    with applied(model, ink) as found:
        change(model)
    assert f"2 weights were {WARNING}" in caplog.text
    assert not found.active
    lora_runtime.restore(model)  # which has nothing to do, and does not fail


def test_pruning_and_parametrizations_that_begin_in_a_block_get_the_original(
    ink: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    plain = [layer.weight.detach().clone() for layer in model.children()]
    with applied(model, ink):
        nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
        prune.identity(model[1], "weight")
    assert torch.equal(model[0].parametrizations.weight.original, plain[0])  # type: ignore[union-attr,index]
    assert torch.equal(model[1].weight_orig, plain[1])
    assert WARNING not in caplog.text


@pytest.mark.parametrize("originals", ["device", "host"])
def test_what_peft_fuses_and_takes_out_again_in_a_block_leaves_the_original(
    ink: Path, originals: Any, caplog: pytest.LogCaptureFixture
) -> None:
    peft = pytest.importorskip("peft")
    model = net()
    plain = values(model)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False), model)
    with applied(model, ink, originals):
        for _ in range(3):
            for layer in model.children():
                layer.merge()
            for layer in model.children():
                layer.unmerge()
    bases = [value for name, value in model.state_dict().items() if "base_layer" in name]
    assert same(bases, plain)
    assert WARNING not in caplog.text
