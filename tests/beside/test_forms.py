"""Every algorithm beside a layer, in the form that it has there, against the same change merged in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from formula import ulp
from torch import Tensor, nn

from lora_runtime.adapters import ALGORITHMS, Adapter, Group, Rows
from lora_runtime.beside import LiveTerm, make_attached
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.merge import Piece, delta_of
from lora_runtime.patcher import Patcher
from lora_runtime.prompt.strength import Curve, Key, Moment, Position
from lora_runtime.regions import Place
from lora_runtime.stage import Call, Row, Stage, Varying

BUILDERS = {algorithm.name: algorithm.build for algorithm in ALGORITHMS}
RISING = Curve((Key(0.0, Position(0.0)), Key(1.0, Position(1.0))))
STRENGTH = 0.7
ALL = frozenset({"weight", "bias"})


def rand(*shape: int, seed: int = 0, std: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * std


def ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(1 for _ in shape[2:])


def build(kind: str, tensors: Mapping[str, Tensor], **more: Any) -> list[Adapter]:
    keys = tuple(f"x.{role}" for role in tensors)
    return list(BUILDERS[kind](Group("x", tensors, keys, key_of=dict(zip(tensors, keys, strict=True)), **more)))


def lora(shape: torch.Size, rank: int = 2) -> list[Adapter]:
    return build("lora", {"up": rand(shape[0], rank, *ones(shape)), "down": rand(rank, *shape[1:])}, alpha=1.5)


def locon(shape: torch.Size) -> list[Adapter]:
    tensors = {"up": rand(shape[0], 2, *ones(shape)), "down": rand(2, shape[1], *ones(shape))}
    return build("lora", tensors | {"mid": rand(2, 2, *shape[2:], std=0.8)})


def remainder(shape: torch.Size) -> list[Adapter]:
    columns = math.prod(shape[1:])
    rest = {
        "bias_indices": torch.tensor([[0, 3, 5], [1, 2, columns - 1]]),
        "bias_values": rand(3, std=2),
        "bias_size": torch.tensor([shape[0], columns]),
    }
    return build("lora", {"up": rand(shape[0], 2), "down": rand(2, columns)} | rest)


def biased(shape: torch.Size) -> list[Adapter]:
    factors = {"up": rand(shape[0], 2, *ones(shape)), "down": rand(2, *shape[1:])}
    return build("lora", factors | {"bias": rand(shape[0])})


def loha(shape: torch.Size, rank: int = 2, cores: bool = False) -> list[Adapter]:
    out, columns = shape[0], math.prod(shape[1:])
    if cores:
        named = {f"w{i}_a": rand(rank, out, seed=i) for i in (1, 2)}
        named |= {f"w{i}_b": rand(rank, shape[1], seed=i + 2) for i in (1, 2)}
        return build("loha", named | {f"t{i}": rand(rank, rank, *shape[2:], seed=i) for i in (1, 2)}, alpha=1.0)
    named = {f"w{i}_a": rand(out, rank, seed=i, std=0.6) for i in (1, 2)}
    return build("loha", named | {f"w{i}_b": rand(rank, columns, seed=i + 2, std=0.6) for i in (1, 2)}, alpha=1.0)


def lokr(shape: torch.Size, of_w2: str = "whole") -> list[Adapter]:
    rows, columns = shape[0] // 4, shape[1] // 2
    tensors = {"w1": rand(4, 2)}
    if of_w2 == "whole":
        tensors["w2"] = rand(rows, columns, *shape[2:])
    elif of_w2 == "factors":
        tensors |= {"w1": rand(8, 2), "w2_a": rand(shape[0] // 8, 1), "w2_b": rand(1, columns * math.prod(shape[2:]))}
    else:
        tensors |= {"w2_a": rand(2, rows), "w2_b": rand(2, columns), "t2": rand(2, 2, *shape[2:])}
    return build("lokr", tensors, scale=0.8)


def abba(shape: torch.Size) -> list[Adapter]:
    named = {f"up{i}": rand(shape[0], 2, *ones(shape), seed=i, std=0.7) for i in (1, 2)}
    return build("abba", named | {f"down{i}": rand(2, *shape[1:], seed=i + 2, std=0.7) for i in (1, 2)})


def ia3(shape: torch.Size, on_input: bool = False) -> list[Adapter]:
    count = shape[int(on_input)]
    return build("ia3", {"weight": rand(count), "on_input": torch.tensor(on_input)})


def peft_ia3(shape: torch.Size, on_input: bool = False) -> list[Adapter]:
    if len(shape) > 2:
        vector = rand(1, shape[int(on_input)], *ones(shape)) + 1
        listed = ["x"] if on_input else []
        return build("ia3 of PEFT", {"factors": vector}, options={"feedforward_modules": listed})
    return build("ia3 of PEFT", {"factors": (rand(1, shape[1]) if on_input else rand(shape[0], 1)) + 1})


def glora(shape: torch.Size) -> list[Adapter]:
    one = ones(shape)
    tensors = {"a1": rand(shape[1], 2, *one), "a2": rand(2, shape[1], *one), "b1": rand(shape[0], 2, *one)}
    return build("glora", tensors | {"b2": rand(2, *shape[1:])}, alpha=1.5)


def peft_glora(shape: torch.Size, a: str = "vector", b: str = "product") -> list[Adapter]:
    def path(letter: str, kind: str) -> dict[str, Tensor]:
        if kind == "vector":
            return {f"{letter}.X": rand(shape[0], 1)}
        if kind == "number":
            return {f"{letter}.X": rand(1)}
        return {f"{letter}.Xd": rand(shape[0], 2), f"{letter}.Xu": rand(2, shape[1])}

    zeros = {f"{letter}.zeros": torch.zeros(1) for letter in "CDE"}
    return build("glora of PEFT", path("A", a) | path("B", b) | zeros)


def oft(shape: torch.Size, rescale: bool = False, learnt: bool = True) -> list[Adapter]:
    tensors = {"blocks" if learnt else "diag": rand(shape[0] // 4, 4, 4)}
    if rescale:
        tensors["rescale"] = rand(shape[0], *(1 for _ in shape[1:])).abs() + 0.5
    return build("oft", tensors, alpha=0.01 if rescale else 0.0)


def boft(shape: torch.Size, rescale: bool = False) -> list[Adapter]:
    tensors = {"blocks": rand(3, shape[0] // 4, 4, 4)}
    if rescale:
        tensors["rescale"] = rand(shape[0]).abs() + 0.5
    return build("oft", tensors)


def oft_of_runs(shape: torch.Size) -> list[Adapter]:
    half = shape[0] // 2
    return build("oft", {"blocks.0": rand(half // 4, 4, 4), "blocks.1": rand(half // 8, 8, 8)})


def peft_oft(shape: torch.Size, shared: bool = False) -> list[Adapter]:
    count = 1 if shared else math.prod(shape[1:]) // 4
    return build("oft of PEFT", {"upper": rand(count, 6)})


def peft_boft(shape: torch.Size) -> list[Adapter]:
    tensors = {"blocks": rand(2, math.prod(shape[1:]) // 4, 4, 4), "outputs": rand(shape[0], 1) + 1}
    return build("boft of PEFT", tensors)


def hra(shape: torch.Size, orthogonal: bool = False) -> list[Adapter]:
    return build("hra", {"vectors": rand(math.prod(shape[1:]), 2)}, options={"apply_GS": orthogonal})


def hira(shape: torch.Size) -> list[Adapter]:
    return build("hira", {"B": rand(shape[0], 2, *ones(shape)), "A": rand(2, *shape[1:])})


def miss(shape: torch.Size, of: str = "one") -> list[Adapter]:
    if of == "bat":
        return build("miss", {"block": rand(shape[0] // 4, 4, 4)})
    count = shape[0] // 2 if of == "mini" else shape[0]
    return build("miss", {"block": rand(3, count)}, options={"init_weights": "mini" if of == "mini" else True})


def c3a(shape: torch.Size) -> list[Adapter]:
    return build("c3a", {"kernel": rand(shape[0] // 4, shape[1] // 4, 4, std=4)})


def road(shape: torch.Size, variant: str = "road_1") -> list[Adapter]:
    count = shape[0] * {"road_1": 1, "road_2": 2, "road_4": 4}[variant] // 2
    tensors = {"theta": rand(count), "alpha_of_each": rand(count) + 1}
    return build("road", tensors, options={"variant": variant, "group_size": 8})


def delora(shape: torch.Size) -> list[Adapter]:
    tensors = {"A": rand(2, shape[1]), "B": rand(shape[0], 2), "lambda": torch.tensor(3.0)}
    return build("delora", tensors | {"w_norm": rand(shape[1]).abs() + 0.5})


def gralora(shape: torch.Size, hybrid: bool = False) -> list[Adapter]:
    tensors = {"A": rand(2, shape[1] // 2, 4), "B": rand(2, 4, shape[0] // 2)}
    if hybrid:
        tensors |= {"A_general": rand(2, shape[1]), "B_general": rand(shape[0], 2)}
    return build("gralora", tensors, options={"alpha": 6.0})


def deft(shape: torch.Size, method: str = "qr", para: bool = False) -> list[Adapter]:
    tensors = {"P": rand(shape[0], 2)} | ({} if para else {"R": rand(2, shape[1])})
    return build("deft", tensors, options={"decomposition_method": method, "alpha": 3.0, "para": para})


def beft(shape: torch.Size) -> list[Adapter]:
    return build("beft", {"bias": rand(1, shape[0])})


def shira(shape: torch.Size) -> list[Adapter]:
    count = sum(shape)
    rows, columns = torch.arange(count) % shape[0], torch.arange(count) % shape[1]
    return build("shira", {"weight": rand(count), "indices": torch.stack([rows, columns])})


def vera(shape: torch.Size, kind: str = "vera") -> list[Adapter]:
    rank = 2 if kind == "vera" else 4
    shared = {"A": rand(rank, shape[1] + 3), "B": rand(shape[0] + 3, 2)}
    return build(kind, {"lambda_b": rand(shape[0]), "lambda_d": rand(rank)}, file=shared)


def randlora(shape: torch.Size) -> list[Adapter]:
    least, most = min(shape), max(shape)
    shared = {"A": rand(2, 1, least + 2), "B": rand(most + 2, 5, 2)}
    tensors = {"lambda": rand(2, 4), "gamma": rand(4, least)}
    return build("randlora", tensors, file=shared, options={"randlora_alpha": 4.0})


def vblora(shape: torch.Size) -> list[Adapter]:
    tensors = {"logits_A": rand(2, shape[1] // 4, 6), "logits_B": rand(shape[0] // 4, 2, 6)}
    return build("vblora", tensors, file={"vector_bank": rand(6, 4)}, options={"topk": 2})


def unilora(shape: torch.Size) -> list[Adapter]:
    tensors = {}
    for side, extents in (("A", (2, shape[1])), ("B", (shape[0], 2))):
        tensors |= {f"indices_{side}": torch.arange(math.prod(extents)).reshape(extents) % 7}
        tensors |= {f"scales_{side}": rand(*extents)}
    return build("unilora", tensors, file={"theta_d": rand(7, std=1)})


def fourierft(shape: torch.Size) -> list[Adapter]:
    return build("fourierft", {"spectrum": rand(9)}, options={"random_loc_seed": 7, "scaling": 40.0})


def waveft(shape: torch.Size) -> list[Adapter]:
    options = {"random_loc_seed": 7, "scaling": 4.0, "use_idwt": True, "wavelet_family": "db1"}
    return build("waveft", {"spectrum": rand(9)}, options=options)


def full(shape: torch.Size) -> list[Adapter]:
    return build("full", {"weight": rand(*shape), "bias": rand(shape[0])})


def norm(shape: torch.Size) -> list[Adapter]:
    return build("norm", {"weight": rand(*shape)})


def replaced(shape: torch.Size) -> list[Adapter]:
    return build("replaced", {"weight": rand(*shape)})


def supertuning(shape: torch.Size) -> list[Adapter]:
    tensors = {"values": rand(5), "indices": torch.arange(5) * 3, "A": rand(2, shape[1]), "B": rand(shape[0], 2)}
    return build("supertuning", tensors, options={"lora_alpha": 3.0})


def adalora(shape: torch.Size) -> list[Adapter]:
    inner = build("lora", {"up": rand(shape[0], 2), "down": rand(2, shape[1])})
    options = {"lora_alpha": 4.0, "init_r": 2}
    return build("adalora", {"values": rand(2, 1, std=1)}, inner=tuple(inner), options=options)


def mlx(shape: torch.Size, dora: bool = False) -> list[Adapter]:
    tensors = {"a": rand(shape[1], 2), "b": rand(2, shape[0])} | ({"m": rand(shape[0]).abs() + 1} if dora else {})
    return build("lora of MLX", tensors, options={"mlx_scale": 2.0})


def tokens(shape: torch.Size) -> list[Adapter]:
    return build("trainable tokens", {"rows": rand(2, shape[1])}, options={"token_indices": [1, 4]})


def table(shape: torch.Size) -> list[Adapter]:
    return build("lora of an embedding", {"A": rand(2, shape[0]), "B": rand(shape[1], 2)})


def dora(shape: torch.Size, inner: Callable[..., list[Adapter]] = lora, by_input: bool = False) -> list[Adapter]:
    if by_input:
        magnitude = rand(1, shape[1], *ones(shape), seed=9).abs() + 0.5
    else:
        magnitude = rand(shape[0], *(1 for _ in shape[1:]), seed=9).abs() + 0.5
    return build("dora", {"scale": magnitude}, inner=tuple(a for a in inner(shape) if a.parameter == "weight"))


def case(make: Callable[..., list[Adapter]], **more: Any) -> Any:
    name = make.__name__ + "".join(f" {getattr(value, '__name__', value)}" for value in more.values())
    return pytest.param(lambda shape: make(shape, **more), id=name)


ANY = [
    case(lora),
    case(locon),
    case(remainder),
    case(biased),
    case(loha),
    case(loha, rank=6),
    case(loha, cores=True),
    case(lokr),
    case(lokr, of_w2="factors"),
    case(lokr, of_w2="core"),
    case(abba),
    case(ia3),
    case(ia3, on_input=True),
    case(peft_ia3),
    case(peft_ia3, on_input=True),
    case(glora),
    case(oft),
    case(oft, rescale=True),
    case(oft, learnt=False),
    case(oft_of_runs),
    case(boft),
    case(boft, rescale=True),
    case(peft_oft),
    case(peft_oft, shared=True),
    case(peft_boft),
    case(hra),
    case(hra, orthogonal=True),
    case(hira),
    case(full),
    case(norm),
    case(replaced),
    case(dora),
    case(dora, by_input=True),
    case(dora, inner=loha),
    case(dora, inner=loha, by_input=True),
    case(dora, inner=lokr),
    case(dora, inner=lokr, by_input=True),
    case(dora, inner=full),
    case(dora, inner=glora),
    case(dora, inner=oft),
]
MATRICES = [
    case(peft_glora),
    case(peft_glora, a="number", b="vector"),
    case(peft_glora, a="product", b="number"),
    case(miss),
    case(miss, of="mini"),
    case(miss, of="bat"),
    case(c3a),
    case(road),
    case(road, variant="road_2"),
    case(road, variant="road_4"),
    case(delora),
    case(gralora),
    case(gralora, hybrid=True),
    case(deft),
    case(deft, method="relu"),
    case(deft, para=True),
    case(beft),
    case(shira),
    case(vera),
    case(vera, kind="pvera"),
    case(randlora),
    case(vblora),
    case(unilora),
    case(fourierft),
    case(waveft),
    case(supertuning),
    case(adalora),
    case(mlx),
    case(mlx, dora=True),
]
TABLES = [case(tokens), case(table), case(lora), case(dora, inner=table), case(full)]
# Only a weight of the layer's size can be what these are beside a linear layer of 16 to 32 channels.
DENSE = {
    "remainder", "loha 6", "hira", "full", "norm", "replaced", "dora full", "miss bat", "peft_glora product number",
    "shira", "randlora", "fourierft", "waveft", "supertuning",
}  # fmt: skip

LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(16, 32), rand(4, 5, 16, std=1)),
    "linear without bias": lambda: (nn.Linear(32, 16, bias=False), rand(4, 32, std=1)),
    "conv2d": lambda: (nn.Conv2d(16, 32, 3, stride=2, padding=1), rand(4, 16, 6, 7, std=1)),
    "conv2d 1x1": lambda: (nn.Conv2d(16, 32, 1), rand(4, 16, 6, 7, std=1)),
    "conv1d": lambda: (nn.Conv1d(16, 32, 4, padding=2), rand(4, 16, 9, std=1)),
}
LINEAR = ("linear", "linear without bias")


def terms_of(adapters: Sequence[Adapter], module: nn.Module, strength: Varying, **more: Any) -> dict[str, Any]:
    """Return the terms of those adapters whose parameter the module has."""
    terms: dict[str, list[LiveTerm]] = {}
    for adapter in adapters:
        parameter = getattr(module, adapter.parameter, None)
        if parameter is not None:
            terms.setdefault(adapter.parameter, []).append(LiveTerm(adapter, strength, **more))
    return terms


def changed(module: nn.Module, terms: Mapping[str, Sequence[LiveTerm]], strength: float = STRENGTH) -> nn.Module:
    """Return a float64 copy of the module with W₀ + s·ΣΔ(W₀), Δ in float64."""
    made = copy.deepcopy(module)
    made._forward_hooks.clear()
    made.double()
    for name, here in terms.items():
        weight = getattr(made, name).data
        own = getattr(module, name).data.double()
        getattr(made, name).data = weight + strength * sum(term.adapter.delta(own) for term in here)
    return made


def close(got: Tensor, expected: Tensor, relative: float = 2e-5) -> None:
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().max().item()
    assert error <= relative * expected.abs().max().item(), error


def compare(module: nn.Module, inputs: Tensor, adapters: Sequence[Adapter], strength: Varying) -> None:
    """Compare a module with adapters beside it with one that has them inside."""
    module.requires_grad_(False)
    terms = terms_of(adapters, module, strength)
    for name, here in terms.items():
        assert [term.adapter.misfit(getattr(module, name).shape) for term in here] == [None] * len(here)
    stage = Stage()
    attached = make_attached(module, stage, terms, Patcher(), unmerged=ALL).begin()
    stage.begin(Call(Moment(4, 5)))
    wanted = changed(module, terms)(inputs.double() if inputs.is_floating_point() else inputs)
    got = module(inputs)
    attached.detach()
    plain = module(inputs)
    assert (wanted - plain.double()).abs().max() > 1e-3, "nothing to see"
    if module.weight.dtype == torch.float32:
        close(got, wanted)
    else:
        rest = [wanted, plain.double(), wanted - plain.double()]
        largest = torch.stack([value.abs().max() for value in rest]).max()
        assert (got.double() - wanted).abs().max() <= 6 * ulp(largest, got.dtype)


STRENGTHS = [pytest.param(Varying(STRENGTH), id="constant"), pytest.param(Varying(STRENGTH, (RISING,)), id="varying")]


def pairs() -> list[Any]:
    made = []
    for layer in LAYERS:
        for found in ANY + (MATRICES if layer in LINEAR else []):
            if (layer, found.id) != ("linear without bias", "beft"):
                made.append(pytest.param(layer, *found.values, id=f"{layer}-{found.id}"))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("layer", "make"), pairs())
def test_an_algorithm_beside_a_layer_is_what_it_is_inside(
    layer: str, make: Callable[..., list[Adapter]], strength: Varying, dtype: torch.dtype
) -> None:
    module, inputs = LAYERS[layer]()
    compare(module.to(dtype), inputs.to(dtype), make(module.weight.shape), strength)


@pytest.mark.parametrize("make", TABLES)
def test_an_algorithm_beside_an_embedding_is_what_it_is_inside(make: Callable[..., list[Adapter]]) -> None:
    module = nn.Embedding(32, 16)
    inputs = torch.arange(20).remainder(7).view(4, 5)
    compare(module, inputs, [a for a in make(module.weight.shape) if a.parameter == "weight"], Varying(STRENGTH))


@pytest.mark.parametrize(("name", "make"), [pytest.param(f.id, *f.values, id=f.id) for f in ANY + MATRICES])
def test_only_what_has_no_cheaper_form_needs_a_weight_of_the_layer_s_size(name: str, make: Any) -> None:
    module = nn.Linear(16, 32).requires_grad_(False)
    attached = make_attached(
        module, Stage(), terms_of(make(module.weight.shape), module, Varying(0.5)), Patcher(), unmerged=ALL
    ).begin()
    of_weights = attached.dense_bytes // (4 * module.weight.numel())  # those of biases are less than one
    assert (of_weights > 0) == (name in DENSE)
    attached.detach()


def test_every_algorithm_is_among_these() -> None:
    made = [found.values[0](torch.Size((32, 16))) for found in ANY + MATRICES + TABLES]
    built = {adapter.algorithm for adapters in made for adapter in adapters}
    named = {
        algorithm.name.removesuffix(" of PEFT").removesuffix(" of an embedding").removesuffix(" of MLX")
        for algorithm in ALGORITHMS
    }
    assert named <= built


# ---- where the layer's own product is not W₀x, and parts of it ------------------------------------------------------


@pytest.mark.parametrize("make", [case(dora), case(oft), case(peft_oft), case(ia3), case(road), case(glora)])
def test_what_multiplies_is_dense_where_something_is_merged_in_the_weight(make: Callable[..., list[Adapter]]) -> None:
    module, inputs = nn.Linear(16, 32).requires_grad_(False), rand(4, 16, std=1)
    original = module.weight.data.clone()
    patcher = Patcher()
    terms = terms_of(make(module.weight.shape), module, Varying(STRENGTH))
    del terms["weight"][1:]
    module.weight.data = original + rand(32, 16, seed=3)
    patcher.original = lambda parameter: original if parameter is module.weight else parameter.data  # type: ignore[method-assign]
    attached = make_attached(module, Stage(), {"weight": terms["weight"]}, patcher).begin()
    assert attached.dense_bytes >= 4 * original.numel()
    weight = module.weight.double() + STRENGTH * terms["weight"][0].adapter.delta(original.double())
    close(module(inputs), inputs.double() @ weight.T + module.bias.double())


PARTS = [
    pytest.param(lambda: (nn.Linear(16, 96), rand(4, 5, 16, std=1)), Part(1, 3), (32, 16), id="rows"),
    pytest.param(lambda: (nn.Linear(16, 96), rand(4, 16, std=1)), Part(1, 3, span=2), (64, 16), id="more rows"),
    pytest.param(lambda: (nn.Linear(16, 32), rand(4, 5, 16, std=1)), Part(swapped=True), (32, 16), id="swapped"),
    pytest.param(lambda: (nn.Linear(20, 32), rand(4, 20, std=1)), Part(inputs=16), (32, 16), id="inputs"),
    pytest.param(lambda: (nn.Conv2d(16, 96, 1), rand(4, 16, 5, 5, std=1)), Part(1, 3), (32, 16, 1, 1), id="pixels"),
    pytest.param(
        lambda: (nn.Conv2d(20, 32, 3), rand(4, 20, 5, 5, std=1)), Part(inputs=16), (32, 16, 3, 3), id="kernel"
    ),
]
SOME = [
    case(loha), case(lokr), case(ia3), case(ia3, on_input=True), case(glora), case(oft), case(boft), case(peft_oft),
    case(peft_boft), case(hra), case(dora), case(dora, by_input=True), case(dora, inner=lokr), case(norm),
]  # fmt: skip


@pytest.mark.parametrize("make", SOME)
@pytest.mark.parametrize(("layer", "part", "shape"), PARTS)
def test_a_form_for_a_part_of_a_weight_acts_there(layer: Any, part: Part, shape: Any, make: Any) -> None:
    module, inputs = layer()
    module.requires_grad_(False)
    (adapter,) = make(torch.Size(shape))
    attached = make_attached(
        module, Stage(), {"weight": [LiveTerm(adapter, Varying(STRENGTH), part=part)]}, Patcher(), unmerged=ALL
    ).begin()
    got = module(inputs)
    attached.detach()
    weight = module.weight.double()
    weight = weight + STRENGTH * delta_of(weight, adapter, None, part)
    expected = torch.func.functional_call(copy.deepcopy(module).double(), {"weight": weight}, (inputs.double(),))
    close(got, expected)


@pytest.mark.parametrize("make", SOME)
def test_rows_of_a_form_see_all_of_the_originals(make: Any) -> None:
    modules = [nn.Linear(16, 32, bias=False).requires_grad_(False) for _ in range(3)]
    (whole,) = make(torch.Size((96, 16)))
    pieces = tuple(Piece(module.weight, WHOLE) for module in modules)
    stacked = torch.cat([module.weight for module in modules]).double()
    expected = stacked + STRENGTH * whole.delta(stacked)
    inputs = rand(4, 16, std=1)
    for index, module in enumerate(modules):
        rows = Rows(whole, torch.Size((96, 16)), 32 * index, 32 * index + 32, ())
        terms = {"weight": [LiveTerm(rows, Varying(STRENGTH), pieces=pieces)]}
        attached = make_attached(module, Stage(), terms, Patcher(), unmerged=ALL).begin()
        close(module(inputs), inputs.double() @ expected[32 * index : 32 * index + 32].T)
        attached.detach()


@pytest.mark.parametrize("make", SOME)
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_a_form_keeps_to_its_rows_and_its_region(layer: str, make: Any) -> None:
    module = nn.Linear(16, 32) if layer == "linear" else nn.Conv2d(16, 32, 3, padding=1)
    inputs = rand(2, 32, 16, std=1) if layer == "linear" else rand(2, 16, 4, 8, std=1)
    module.requires_grad_(False)
    (adapter,) = make(module.weight.shape)
    left = Place((0.0, 0.0, 0.5, 1.0))
    strength = Varying(STRENGTH, images=frozenset({1}), place=left)
    stage = Stage()
    attached = make_attached(module, stage, {"weight": [LiveTerm(adapter, strength)]}, Patcher(), unmerged=ALL).begin()
    stage.begin(Call(rows=(Row(0), Row(1)), grid=(4, 8)))
    got = module(inputs)
    attached.detach()
    plain = copy.deepcopy(module).double()(inputs.double())
    change = changed(module, {"weight": [LiveTerm(adapter, strength)]})(inputs.double()) - plain
    change[0] = 0
    if layer == "linear":
        change.unflatten(1, (4, 8))[:, :, 4:] = 0
    else:
        change[..., 4:] = 0
    close(got, plain + change)


@pytest.mark.parametrize("make", SOME)
def test_several_forms_on_one_layer_add_up(make: Any) -> None:
    module = nn.Linear(16, 32)
    adapters = [
        *make(module.weight.shape),
        *lora(module.weight.shape),
        *oft(module.weight.shape),
        *hra(module.weight.shape),
    ]
    compare(module, rand(4, 5, 16, std=1), adapters, Varying(STRENGTH))


@pytest.mark.parametrize("make", SOME)
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_gradients_go_through_a_form(layer: str, make: Any) -> None:
    module, inputs = LAYERS[layer]()
    module.requires_grad_(False)
    (adapter,) = make(module.weight.shape)
    terms = {"weight": [LiveTerm(adapter, Varying(STRENGTH))]}
    one, other = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
    towards = rand(*module(inputs).shape, seed=4)
    changed(module, terms)(other).backward(towards.double())
    attached = make_attached(module, Stage(), terms, Patcher(), unmerged=ALL).begin()
    module(one).backward(towards)
    attached.detach()
    close(one.grad, other.grad)


def test_forms_are_made_with_all_digits_of_float32_whatever_the_host_allows() -> None:
    seen: list[str] = []

    class Asking(Adapter):
        algorithm, keys, rank, alpha, scale = "asking", (), 0, None, 1.0

        def misfit(self, shape: torch.Size) -> str | None:
            return None

        def factors(self) -> None:
            return

        def delta(self, weight: Tensor) -> Tensor:
            raise AssertionError("it has forms")

        def forms(self, shape: torch.Size, cast: Any, original: Any) -> tuple[Any, ...]:
            newer = hasattr(
                torch.backends, "fp32_precision"
            )  # a setting for each backend, which the older does not tell
            matmul: Any = torch.backends.cuda.matmul
            seen.append(matmul.fp32_precision if newer else torch.get_float32_matmul_precision())
            return ()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        make_attached(nn.Linear(4, 4), Stage(), {"weight": [LiveTerm(Asking(), Varying(1.0))]}, Patcher())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen in (["ieee"], ["highest"])
