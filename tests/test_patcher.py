"""Patching and restoring parameters: exact, whatever happened in between."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from formula import DTYPES, assert_rounded_once, random_terms
from torch import Tensor, nn

from lora_runtime import patcher as patcher_module
from lora_runtime.memory_policy import Originals
from lora_runtime.merge import Term
from lora_runtime.patcher import Patcher
from lora_runtime.plan import Assignment
from lora_runtime.targets import Target
from lora_runtime.weights import Weight

MODES: list[Originals] = ["device", "host", "inplace"]
both_modes = pytest.mark.parametrize("originals", MODES)


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a model of a linear layer, a convolution and a norm that nothing patches."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.Conv2d(4, 8, 3), nn.LayerNorm(16)).to(dtype)


def assign(model: nn.Sequential, seed: int = 1, strength: float = 1.0) -> list[Assignment]:
    """Return assignments for the linear layer and the convolution."""
    found = []
    for index in (0, 1):
        weight = model[index].weight
        terms = tuple(Term(t.adapter, t.strength * strength) for t in random_terms(seed, weight.shape))
        target = Target("unet", str(index), weakref.ref(model[index]))
        found.append(Assignment(target, weight, terms, ("file", seed, index, strength)))
    return found


class Snapshot:
    """What must be the same after restoring: values, storage, dtype, device, requires_grad and identity."""

    def __init__(self, model: nn.Module) -> None:
        self.state = [
            (name, weakref.ref(p), p.detach().clone(), p.data_ptr(), p.requires_grad)
            for name, p in model.named_parameters()
        ]

    def assert_holds(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        assert len(parameters) == len(self.state)
        for name, reference, value, address, requires_grad in self.state:
            now = parameters[name]
            assert now is reference(), name
            assert now.dtype == value.dtype, name
            assert torch.equal(now, value), name
            assert now.data_ptr() == address, name
            assert now.requires_grad == requires_grad, name
            assert now.stride() == value.stride(), name


@pytest.fixture(params=DTYPES, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    made = make_model(request.param)
    made[1].weight.requires_grad_(False)
    return made


@both_modes
def test_patched_weights_are_the_formula_rounded_once(model: nn.Sequential, originals: Originals) -> None:
    before = [model[i].weight.detach().clone() for i in (0, 1)]
    assignments = assign(model)
    assert Patcher().apply(assignments, originals) == 2
    for weight, index, assignment in zip(before, (0, 1), assignments, strict=True):
        assert_rounded_once(model[index].weight.detach(), weight, assignment.terms)


@both_modes
def test_restore_is_bit_exact_and_leaves_storage_and_identity(model: nn.Sequential, originals: Originals) -> None:
    before, patcher = Snapshot(model), Patcher()
    patcher.apply(assign(model), originals)
    assert patcher.restore() == 2
    before.assert_holds(model)


@both_modes
def test_repeated_applies_start_from_the_original_every_time(model: nn.Sequential, originals: Originals) -> None:
    before, patcher = Snapshot(model), Patcher()
    patcher.apply(assign(model), originals)
    once = model[0].weight.detach().clone()
    for seed in (2, 3, 1):
        patcher.apply(assign(model, seed), originals)
    assert torch.equal(model[0].weight, once)
    patcher.restore()
    before.assert_holds(model)


@both_modes
def test_a_module_that_the_next_apply_leaves_out_is_restored(model: nn.Sequential, originals: Originals) -> None:
    conv, patcher = model[1].weight.detach().clone(), Patcher()
    patcher.apply(assign(model), originals)
    patcher.apply(assign(model)[:1], originals)
    assert torch.equal(model[1].weight, conv)
    assert patcher.patched == 1


@both_modes
def test_the_same_assignments_again_compute_nothing(model: nn.Sequential, originals: Originals) -> None:
    patcher = Patcher()
    patcher.apply(assign(model), originals)
    assert patcher.apply(assign(model), originals) == 0


def test_changing_the_mode_moves_the_originals(model: nn.Sequential) -> None:
    before, patcher = Snapshot(model), Patcher()
    for originals in ("device", "host", "inplace", "device", "beside", "auto"):
        patcher.apply(assign(model), originals)  # type: ignore[arg-type]
    patcher.restore()
    before.assert_holds(model)


@pytest.mark.parametrize("originals", ["host", "inplace"])
def test_in_place_patching_keeps_the_address(model: nn.Sequential, originals: Originals) -> None:
    address = model[0].weight.data_ptr()
    Patcher().apply(assign(model), originals)
    assert model[0].weight.data_ptr() == address


def test_rebinding_never_writes_the_original(model: nn.Sequential) -> None:
    original = model[0].weight.data
    before, patcher = original.clone(), Patcher()
    for seed in (1, 2):
        patcher.apply(assign(model, seed), "device")
        assert torch.equal(original, before)


def test_buffers_are_kept_for_the_next_switch_and_freed_on_request(model: nn.Sequential) -> None:
    patcher = Patcher()
    touched = sum(model[i].weight.numel() * model[i].weight.element_size() for i in (0, 1))
    patcher.apply(assign(model), "device")
    address = model[0].weight.data_ptr()
    patcher.apply(assign(model, 2), "device")
    assert model[0].weight.data_ptr() == address
    assert patcher.nbytes == touched
    patcher.restore()
    assert patcher.nbytes == touched
    patcher.restore(release=True)
    assert patcher.nbytes == 0


@both_modes
@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        lambda m: m.to(memory_format=torch.channels_last),
        lambda m: m.half().float(),
        lambda m: m.requires_grad_(False),
    ],
    ids=["half", "bfloat16", "double", "channels_last", "half_float", "requires_grad"],
)
def test_a_model_moved_while_patched_gets_its_weights_moved_the_same_way(
    originals: Originals, move: Callable[[nn.Module], nn.Module]
) -> None:
    model, expected, patcher = make_model(), make_model(), Patcher()
    parameters = list(model.parameters())
    patcher.apply(assign(model), originals)
    move(model)
    patcher.restore()
    if model[0].weight.dtype != torch.float32:  # half().float(): the original is nearer to what was than its half
        move(expected)
    for now, then, identity in zip(model.parameters(), expected.parameters(), parameters, strict=True):
        assert now is identity
        assert now.dtype == then.dtype
        if now.dtype == torch.float32:
            assert torch.equal(now, then) or torch.equal(now, then.half().float())
        else:
            assert torch.equal(now, then)


@both_modes
def test_an_apply_after_a_move_starts_from_the_moved_original(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    before = model[0].weight.detach().clone()
    patcher.apply(assign(model), originals)
    model.half()
    patcher.apply(assign(model), originals)
    assert_rounded_once(model[0].weight.detach(), before.half(), assign(model)[0].terms)
    patcher.restore()
    assert torch.equal(model[0].weight, before.half())


@both_modes
def test_another_checkpoint_loaded_while_patched_stays(model: nn.Sequential, originals: Originals) -> None:
    patcher, storage = Patcher(), model[0].weight.data_ptr()
    patcher.apply(assign(model), originals)
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    patcher.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other[name]), name
    assert model[0].weight.data_ptr() == storage


@both_modes
def test_an_apply_after_another_checkpoint_starts_from_it(model: nn.Sequential, originals: Originals) -> None:
    patcher = Patcher()
    patcher.apply(assign(model), originals)
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    patcher.apply(assign(model), originals)
    assert_rounded_once(model[0].weight.detach(), other["0.weight"], assign(model)[0].terms)
    patcher.restore()
    assert torch.equal(model[0].weight, other["0.weight"])


@both_modes
def test_a_checkpoint_that_holds_only_some_weights_leaves_the_others_original(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    conv = model[1].weight.detach().clone()
    patcher.apply(assign(model), originals)
    new = torch.randn_like(model[0].weight)
    model.load_state_dict({"0.weight": new}, strict=False)
    patcher.restore()
    assert torch.equal(model[0].weight, new)
    assert torch.equal(model[1].weight, conv)


@both_modes
def test_a_checkpoint_loaded_and_then_cast_stays(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    patcher.apply(assign(model), originals)
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    model.half()
    patcher.restore()
    assert torch.equal(model[0].weight, other["0.weight"].half())


@both_modes
def test_parameters_that_were_replaced_are_left_alone(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    patcher.apply(assign(model), originals)
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    patcher.restore()
    assert torch.equal(model[0].weight, other["0.weight"])


@both_modes
def test_a_model_sent_to_meta_is_left_alone(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    patcher.apply(assign(model), originals)
    model.to("meta")
    patcher.restore()
    assert model[0].weight.is_meta


@both_modes
def test_everything_works_under_inference_mode_and_leaves_ordinary_tensors(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    before = Snapshot(model)
    with torch.inference_mode():
        patcher.apply(assign(model), originals)
        patcher.apply(assign(model, 2), originals)
        assert not model[0].weight.is_inference()
        patcher.restore()
    before.assert_holds(model)
    model[0](torch.zeros(1, 24)).sum().backward()


@both_modes
def test_another_checkpoint_loaded_under_inference_mode_stays(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    patcher.apply(assign(model), originals)
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    with torch.inference_mode():
        model.load_state_dict(other)
        patcher.restore()
    assert torch.equal(model[0].weight, other["0.weight"])


@both_modes
def test_a_model_made_under_inference_mode_is_patched_and_restored(originals: Originals) -> None:
    with torch.inference_mode():
        model = make_model()
    value, address, patcher = model[0].weight.clone(), model[0].weight.data_ptr(), Patcher()
    patcher.apply(assign(model), originals)
    assert_rounded_once(model[0].weight.clone(), value, assign(model)[0].terms)
    with torch.inference_mode():
        model[0](torch.zeros(1, 24))
    patcher.restore()
    assert torch.equal(model[0].weight, value)
    assert model[0].weight.data_ptr() == address


@both_modes
def test_another_checkpoint_for_a_model_made_under_inference_mode_stays(originals: Originals) -> None:
    with torch.inference_mode():
        model = make_model()
        patcher = Patcher()
        patcher.apply(assign(model), originals)
        other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
        model.load_state_dict(other)
        patcher.restore()
    assert torch.equal(model[0].weight, other["0.weight"])


@both_modes
def test_a_cast_model_made_under_inference_mode_gets_its_weights_cast(originals: Originals) -> None:
    with torch.inference_mode():
        model = make_model()
        before = model[0].weight.clone()
        patcher = Patcher()
        patcher.apply(assign(model), originals)
        model.half()
        patcher.restore()
    assert torch.equal(model[0].weight, before.half())


@both_modes
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("earlier", [False, True], ids=["first apply", "after another"])
def test_a_fault_at_any_module_leaves_none_patched(originals: Originals, failing: int, earlier: bool) -> None:
    model, patcher = make_model(), Patcher()
    before = Snapshot(model)
    if earlier:
        patcher.apply(assign(model, 2), originals)
    real, calls = patcher_module.merge_into, iter(range(10))

    def merge_or_fail(*args: Any) -> None:
        real(*args)
        if next(calls) == failing:
            raise MemoryError("injected")

    with mock.patch.object(patcher_module, "merge_into", merge_or_fail), pytest.raises(MemoryError, match="injected"):
        patcher.apply(assign(model), originals)
    assert patcher.patched == 0
    before.assert_holds(model)


def test_a_fault_while_binding_leaves_none_patched() -> None:
    model, patcher = make_model(), Patcher()
    before = Snapshot(model)
    real, calls = Weight.bind, iter(range(10))

    def bind_or_fail(self: Weight, value: Tensor, assignment: Assignment) -> None:
        real(self, value, assignment)
        if next(calls) == 1:
            raise KeyboardInterrupt

    with mock.patch.object(Weight, "bind", bind_or_fail), pytest.raises(KeyboardInterrupt):
        patcher.apply(assign(model), "device")
    before.assert_holds(model)


@both_modes
def test_a_copied_model_is_independent(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    patcher.apply(assign(model), originals)
    twin = copy.deepcopy(model)
    patched = twin[0].weight.detach().clone()
    patcher.restore()
    assert torch.equal(twin[0].weight, patched)


@both_modes
def test_a_model_dropped_while_patched_takes_its_weights_along(originals: Originals) -> None:
    model, patcher = make_model(), Patcher()
    patcher.apply(assign(model), originals)
    gone = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert gone() is None
    assert patcher.restore() == 0
    assert patcher.nbytes == 0


def test_a_parameter_at_the_address_of_a_dead_one_is_taken_for_itself() -> None:
    patcher = Patcher()
    for _ in range(20):  # CPython gives the next object of the same size the same id, sooner or later
        model = make_model()
        patcher.apply(assign(model)[:1], "device")
        assert_rounded_once(model[0].weight.detach(), make_model()[0].weight.detach(), assign(model)[0].terms)


def test_restoring_takes_no_copy(model: nn.Sequential) -> None:
    patcher = Patcher()
    patcher.apply(assign(model), "device")
    with mock.patch.object(Tensor, "copy_", side_effect=AssertionError("copied")):
        patcher.restore()


def test_an_adapter_of_another_strength_is_another_identity(model: nn.Sequential) -> None:
    patcher = Patcher()
    patcher.apply(assign(model), "device")
    assert patcher.apply(assign(model, strength=0.5), "device") == 2
