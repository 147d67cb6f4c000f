"""What acts beside modules inside of code that torch.compile makes: right, without a break or a second code."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_runtime.adapters import ALGORITHMS, Adapter, Group
from lora_runtime.beside import Live, LiveModule, LiveTerm
from lora_runtime.beside import compiled as compiled_module
from lora_runtime.errors import ModelError
from lora_runtime.patcher import Patcher
from lora_runtime.prompt.strength import Curve, Key, Moment, Position
from lora_runtime.regions import Place
from lora_runtime.stage import Call, Row, Varying

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about its own compiler
BUILDERS = {algorithm.name: algorithm.build for algorithm in ALGORITHMS}
RISING = Curve((Key(0.0, Position(0.0)), Key(1.0, Position(1.0))))
BLOCKS = 10  # more than the code of one function may be made anew


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.down(torch.relu(self.up(hidden)))
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(8)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.norm(hidden)
        return out


class Counted:
    """A backend that counts what is compiled."""

    def __init__(self, name: str = "aot_eager") -> None:
        self.count = 0
        self.name = name

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        self.count += 1
        return lookup_backend(self.name)(graph, inputs)


def whole(net: nn.Module, backend: Any) -> nn.Module:
    made: nn.Module = torch.compile(net, backend=backend, fullgraph=True)
    return made


def in_place(net: nn.Module, backend: Any) -> nn.Module:
    net.compile(backend=backend, fullgraph=True)
    return net


def regional(net: nn.Module, backend: Any) -> nn.Module:
    for block in net.blocks:  # type: ignore[union-attr]
        block.compile(backend=backend, fullgraph=True)  # type: ignore[operator, union-attr]
    return net


def forward(net: nn.Module, backend: Any) -> nn.Module:
    net.forward = torch.compile(net.forward, backend=backend, fullgraph=True)
    return net


WAYS = [whole, in_place, regional, forward]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def lora(shape: torch.Size, seed: int = 0) -> Adapter:
    tensors = {"up": rand(shape[0], 2, seed=seed), "down": rand(2, shape[1], seed=seed + 1)}
    return BUILDERS["lora"](Group("x", tensors, ("x",), key_of={"up": "x.up", "down": "x.down"}))[0]


def oft(shape: torch.Size, seed: int = 0) -> Adapter:
    return BUILDERS["oft"](Group("x", {"blocks": rand(shape[0] // 4, 4, 4, seed=seed)}, ("x",), alpha=0.0))[0]


def norm(width: int) -> Adapter:
    return BUILDERS["norm"](Group("x", {"weight": rand(width)}, ("x",), key_of={"weight": "x"}))[0]


def lives(net: nn.Module, strength: Varying, seed: int = 0) -> list[LiveModule]:
    """Return something for every block: a LoRA and a rotation, and a difference of the norm."""
    made = []
    for number, block in enumerate(net.blocks):  # type: ignore[arg-type]
        weight = block.up.weight
        terms = tuple(LiveTerm(make(weight.shape, seed + number), strength) for make in (lora, oft))
        made.append(LiveModule("net", block.up, {"weight": terms}, (seed, strength), {}, frozenset({"weight"})))
    made.append(LiveModule("net", net.norm, {"weight": (LiveTerm(norm(8), strength),)}, (seed, strength)))  # type: ignore[arg-type]
    return made


def expected(net: Net, inputs: Tensor, strength: float, seed: int = 0) -> Tensor:
    """Return the output in float64 with everything merged."""
    made = copy.deepcopy(net).double()
    for module in made.modules():
        module._forward_hooks.clear()
        vars(module).pop("forward", None)
        module._compiled_call_impl = None  # type: ignore[assignment]
    for number, block in enumerate(made.blocks):
        weight = block.up.weight.data  # type: ignore[union-attr]
        deltas = sum(make(weight.shape, seed + number).delta(weight) for make in (lora, oft))
        block.up.weight.data = weight + strength * deltas  # type: ignore[union-attr]
    made.norm.weight.data += strength * norm(8).delta(made.norm.weight.data)
    return made(inputs.double())


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.quick(2)
@pytest.mark.skipif(torch.__version__ < "2.5", reason="its compiler does not tell modules apart")
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_model_is_right_and_only_the_touched_one_is_made_anew(way: Callable[..., nn.Module]) -> None:
    torch.compiler.reset()
    compiled_module._touched.clear()  # of other tests: when they are many, all compiled code is forgotten once
    backend = Counted()
    net, other, inputs = Net(), Net(), rand(3, 8)
    compiled, untouched = way(net, backend), way(other, backend)
    compiled(inputs), untouched(inputs)
    live, before = Live(), backend.count
    steps = []
    for picture in range(3):
        live.apply(lives(net, Varying(1.0, (RISING,)), seed=picture), Patcher(), compiled=True)
        for step in range(1, 5):
            live.stages["net"].begin(Call(Moment(step, 5)))
            close(compiled(inputs), expected(net, inputs, step / 4, picture))
            steps.append(backend.count)
        live.clear()
        close(compiled(inputs), expected(net, inputs, 0.0))
        untouched(inputs)
    assert backend.count == steps[0]  # nothing more after the first call of the first picture
    assert steps[0] - before == 1
    assert not any("forward" in vars(block.up) for block in net.blocks)


@pytest.mark.quick(2)
@pytest.mark.parametrize("way", WAYS)
def test_rows_and_regions_in_compiled_code(way: Callable[..., nn.Module]) -> None:
    net, inputs = Net(), rand(2, 8, 8)
    compiled = way(net, Counted())
    strength = Varying(0.7, images=frozenset({1}), place=Place((0.0, 0.0, 0.5, 1.0)))
    live = Live()
    live.apply(lives(net, strength), Patcher(), compiled=True)
    live.stages["net"].begin(Call(rows=(Row(0), Row(1)), grid=(1, 8)))
    got = compiled(inputs)
    live.clear()
    bare, with_all = expected(net, inputs, 0.0), expected(net, inputs, 0.7)
    close(got[0], bare[0])
    close(got[1, 4:], bare[1, 4:])  # no layer here looks at other tokens
    close(got[1, :4], with_all[1, :4])


def test_gradients_go_through_compiled_code() -> None:
    net, inputs = Net().requires_grad_(False), rand(3, 8)
    compiled = whole(net, Counted())
    live = Live()
    live.apply(lives(net, Varying(0.7)), Patcher(), compiled=True)
    with torch.enable_grad():
        one, two = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
        compiled(one).square().sum().backward()
        expected(net, two, 0.7).square().sum().backward()
    live.clear()
    assert one.grad is not None and two.grad is not None
    torch.testing.assert_close(one.grad.double(), two.grad, rtol=1e-3, atol=1e-3)


def test_a_model_that_is_compiled_while_something_acts() -> None:
    net, inputs = Net(), rand(3, 8)
    live = Live()
    live.apply(lives(net, Varying(0.7)), Patcher())
    compiled = whole(net, Counted())
    close(compiled(inputs), expected(net, inputs, 0.7))
    live.clear()
    close(compiled(inputs), expected(net, inputs, 0.0))


def test_a_function_that_is_compiled_and_runs_a_model_is_made_anew_too() -> None:
    net, inputs = Net(), rand(3, 8)
    run = torch.compile(lambda x: net(x) * 2, backend=Counted(), fullgraph=True)
    run(inputs)
    live = Live()
    live.apply(lives(net, Varying(0.7)), Patcher())  # nobody can tell that it is compiled
    close(run(inputs), expected(net, inputs, 0.7) * 2)
    live.clear()
    close(run(inputs), expected(net, inputs, 0.0) * 2)


@pytest.mark.parametrize("after", ["another step", "the end"])
def test_a_gradient_at_other_strengths_than_those_of_the_forward_pass_is_refused(after: str) -> None:
    net, inputs = Net().requires_grad_(False), rand(3, 8).requires_grad_()
    compiled = whole(net, Counted())
    live = Live()
    live.apply(lives(net, Varying(1.0, (RISING,))), Patcher(), compiled=True)
    live.stages["net"].begin(Call(Moment(2, 5)))
    with torch.enable_grad():
        loss = compiled(inputs).square().sum()
    if after == "the end":
        live.clear()
    else:
        live.stages["net"].begin(Call(Moment(3, 5)))
    with pytest.raises(ModelError, match="between its forward and its backward pass"):
        loss.backward()
    live.clear()


@pytest.mark.skipif(torch.__version__ < "2.5", reason="all code is made anew each time")
def test_no_number_of_sets_of_touched_modules_is_too_many() -> None:
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch(**{limit: 2}):
        layers, inputs, live = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), rand(3, 8), Live()
        compiled = torch.compile(layers, backend="eager", fullgraph=True)
        for layer in layers:
            adapter, before = lora(layer.weight.shape), copy.deepcopy(layers).double()  # type: ignore[union-attr, arg-type]
            live.apply([LiveModule("net", layer, {"weight": (LiveTerm(adapter, Varying(0.7)),)}, ())], Patcher())
            got = compiled(inputs)
            live.clear()
            changed = before[list(layers).index(layer)]
            changed.weight.data += 0.7 * adapter.delta(changed.weight.data)  # type: ignore[operator, union-attr]
            close(got, before(inputs.double()))


def test_the_library_can_be_imported_anew_in_one_process() -> None:
    """As the WebUI does at each Reload UI; what was imported first may run yet."""
    spec = importlib.util.find_spec("lora_runtime.beside.compiled")
    assert spec is not None and spec.loader is not None
    compiled_module.operators()
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    anew.operators()
    output, by_first, by_second = torch.zeros(2), Adds(1), Adds(2)
    assert compiled_module.run_as_operator(compiled_module.handle_of(by_first), (), {}, output).tolist() == [1, 1]
    assert anew.run_as_operator(anew.handle_of(by_second), (), {}, output).tolist() == [2, 2]


class Adds:
    """Something that acts beside a module: it adds a number."""

    def __init__(self, number: int) -> None:
        self.module, self.number, self.serial = nn.Identity(), number, 1

    def act(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Tensor) -> Tensor:
        return output + self.number
