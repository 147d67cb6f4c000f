"""Hooks of ours stay with the module that they were put on."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lora_runtime.hooks import Endings, end_all, hook_after, hook_before


def _add_one(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
    return output + 1


def _by_pickle(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def _by_torch(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def test_both_kinds_of_hooks_run_until_they_are_removed(layer: nn.Module) -> None:
    x, seen = torch.ones(1, 3), []
    before = layer(x)
    ends: Endings = []
    hook_after(layer, _add_one, ends)
    hook_before(layer, lambda module, args, kwargs: seen.append(kwargs), ends)
    assert torch.equal(layer(input=x), before + 1)
    assert list(seen[0]) == ["input"]
    end_all(ends)
    assert torch.equal(layer(x), before)
    assert len(seen) == 1


@pytest.mark.parametrize("taken", [copy.copy, copy.deepcopy, _by_pickle, _by_torch])
def test_a_copy_is_the_plain_module(layer: nn.Module, taken: Callable[[nn.Module], nn.Module]) -> None:
    x = torch.ones(1, 3)
    before = layer(x)
    hook_after(layer, lambda *_: pytest.fail("a local function cannot be pickled, nor has a copy it"), [])
    hook_before(layer, lambda *_: pytest.fail("a local function cannot be pickled, nor has a copy it"), [])
    twin = taken(nn.Sequential(layer))
    inner = twin[0] if taken is not copy.copy else taken(layer)  # a shallow copy of a parent has the child itself
    assert torch.equal(inner(x), before)
    assert not inner._forward_hooks
    assert not inner._forward_pre_hooks
    assert not inner._forward_hooks_with_kwargs
    assert vars(inner).keys() == vars(nn.Linear(3, 3)).keys()


def test_hooks_of_others_are_copied_as_ever(layer: nn.Module) -> None:
    x = torch.ones(1, 3)
    before = layer(x)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    hook_after(layer, _add_one, [])
    assert torch.equal(layer(x), before * 2 + 1)
    assert torch.equal(copy.deepcopy(layer)(x), before * 2)


def test_a_module_without_hooks_is_as_it_was(layer: nn.Module) -> None:
    names = set(vars(layer))
    ends: Endings = []
    hook_after(layer, _add_one, ends)
    hook_after(layer, _add_one, ends)
    ends[0]()
    assert not copy.deepcopy(layer)._forward_hooks
    ends[1]()
    assert set(vars(layer)) == names


def test_what_a_class_itself_gives_for_its_state_counts() -> None:
    class Own(nn.Linear):
        def __getstate__(self) -> dict[str, Any]:
            return {**vars(self), "note": "of its own"}

    layer = Own(2, 2)
    hook_after(layer, _add_one, [])
    twin = copy.deepcopy(layer)
    assert vars(twin)["note"] == "of its own"
    assert not twin._forward_hooks


def test_a_hook_keeps_no_module_alive(layer: nn.Module) -> None:
    module = nn.Linear(2, 2)
    gone = weakref.ref(module)
    ends: Endings = []
    hook_after(module, _add_one, ends)
    del module
    assert gone() is None
    end_all(ends)
