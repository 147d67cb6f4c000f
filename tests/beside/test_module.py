"""What acts beside a module against the module with the same change merged into its weight, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from formula import DTYPES, Dense, LowRank, ulp
from torch import Tensor, nn

from lora_runtime.adapters import ALGORITHMS, Adapter, Group, Rows
from lora_runtime.beside import Live, LiveModule, LiveTerm, make_attached, reason_against
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.merge import Piece, Term, merge_into
from lora_runtime.patcher import Patcher
from lora_runtime.prompt.strength import Curve, Key, Moment, Position, Turn, Window
from lora_runtime.regions import Place
from lora_runtime.stage import Call, Row, Stage, Varying

BUILDERS = {algorithm.name: algorithm.build for algorithm in ALGORITHMS}
RISING = Curve((Key(0.0, Position(0.0)), Key(1.0, Position(1.0))))
STRENGTH = 0.7


def rand(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * std


def group(tensors: Mapping[str, Tensor], **more: Any) -> Group:
    """Return what an algorithm's builder gets of a file."""
    keys = tuple(f"x.{role}" for role in tensors)
    return Group("x", tensors, keys, key_of=dict(zip(tensors, keys, strict=True)), **more)


# ---- modules, each with an input ------------------------------------------------------------------------------------


def turned_linear() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    made = Conv1D(12, 8)  # out, in
    nn.init.normal_(made.bias)
    return made


class OffsetNorm(nn.Module):
    """An RMS norm whose factor is 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(rand(width, std=0.3))

    def forward(self, hidden_states: Tensor) -> Tensor:
        size = hidden_states.pow(2).mean(-1, keepdim=True)
        return hidden_states * torch.rsqrt(size + 1e-6) * (1 + self.weight)


class GatedNorm(nn.Module):
    """A norm with a second input, as of state-space models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(rand(width))

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        if gate is not None:
            hidden_states = hidden_states * torch.sigmoid(gate)
        return hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class ScaledEmbedding(nn.Embedding):
    """An embedding that multiplies what it finds, as Gemma's does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3.5


LINEARS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(8, 12), rand(4, 5, 8)),
    "linear without bias": lambda: (nn.Linear(8, 12, bias=False), rand(4, 8)),
    "linear on a view": lambda: (nn.Linear(8, 12), rand(4, 8, 5).transpose(1, 2)),
    "linear on maps": lambda: (nn.Linear(8, 12), rand(4, 3, 3, 8)),
    "conv1d": lambda: (nn.Conv1d(8, 12, 5, stride=2, padding=2), rand(4, 8, 11)),
    "conv2d": lambda: (nn.Conv2d(8, 12, 3, padding=1), rand(4, 8, 6, 7)),
    "conv2d 1x1": lambda: (nn.Conv2d(8, 12, 1), rand(4, 8, 6, 7)),
    "conv2d strided": lambda: (nn.Conv2d(8, 12, 3, stride=2, padding=(1, 2), dilation=2), rand(4, 8, 9, 7)),
    "conv2d same": lambda: (nn.Conv2d(8, 12, (3, 5), padding="same"), rand(4, 8, 6, 7)),
    "conv2d tiling": lambda: (nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), rand(4, 8, 6, 7)),
    "conv2d channels last": lambda: (
        nn.Conv2d(8, 12, 3, padding=1).to(memory_format=torch.channels_last),
        rand(4, 8, 6, 7).to(memory_format=torch.channels_last),
    ),
    "conv3d": lambda: (nn.Conv3d(8, 12, (1, 3, 3), padding=(0, 1, 1)), rand(4, 8, 3, 5, 5)),
}
GROUPED: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "grouped": lambda: (nn.Conv2d(8, 12, 3, padding=1, groups=2), rand(4, 8, 6, 7)),
    "depthwise": lambda: (nn.Conv1d(12, 12, 3, groups=12), rand(4, 12, 9)),
}
TABLES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "embedding": lambda: (nn.Embedding(12, 8), torch.arange(20).remainder(12).view(4, 5)),
    "scaled embedding": lambda: (ScaledEmbedding(12, 8), torch.arange(20).remainder(12).view(4, 5)),
}
NORMS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "layer norm": lambda: (nn.LayerNorm(8), rand(4, 5, 8)),
    "group norm": lambda: (nn.GroupNorm(2, 8), rand(4, 8, 5, 5)),
    "offset norm": lambda: (OffsetNorm(8), rand(4, 5, 8)),
}


def low_rank(shape: torch.Size, seed: int = 0, rank: int = 3) -> Adapter:
    columns = math.prod(shape[1:])
    return LowRank(rand(shape[0], rank, seed=seed, std=0.2), rand(rank, columns, seed=seed + 1, std=0.2), 0.5)


def lora(shape: torch.Size) -> Adapter:
    tensors = {"up": rand(shape[0], 3, *(1 for _ in shape[2:]), std=0.2), "down": rand(3, *shape[1:], std=0.2)}
    return BUILDERS["lora"](group(tensors, alpha=2.0))[0]


def locon(shape: torch.Size) -> Adapter:
    ones = tuple(1 for _ in shape[2:])
    tensors = {
        "up": rand(shape[0], 3, *ones, std=0.3),
        "down": rand(3, shape[1], *ones, std=0.3),
        "mid": rand(3, 3, *shape[2:], std=0.5),
    }
    return BUILDERS["lora"](group(tensors, alpha=2.0))[0]


def loha(shape: torch.Size) -> Adapter:
    out, columns = shape[0], math.prod(shape[1:])
    tensors = {
        "w1_a": rand(out, 2, seed=1, std=0.4),
        "w1_b": rand(2, columns, seed=2, std=0.4),
        "w2_a": rand(out, 2, seed=3, std=0.4),
        "w2_b": rand(2, columns, seed=4, std=0.4),
    }
    return BUILDERS["loha"](group(tensors, alpha=1.0))[0]


def lokr(shape: torch.Size) -> Adapter:
    tensors = {"w1": rand(2, 2, std=0.4), "w2": rand(shape[0] // 2, shape[1] // 2, *shape[2:], std=0.4)}
    return BUILDERS["lokr"](group(tensors))[0]


def full(shape: torch.Size) -> Adapter:
    return BUILDERS["full"](group({"weight": rand(*shape, std=0.2)}))[0]


def dora(shape: torch.Size) -> Adapter:
    magnitude = rand(shape[0], *(1 for _ in shape[1:]), seed=9).abs() + 0.5
    return BUILDERS["dora"](group({"scale": magnitude}, inner=(lora(shape),)))[0]


def oft(shape: torch.Size) -> Adapter:
    return BUILDERS["oft"](group({"blocks": rand(shape[0] // 4, 4, 4, std=0.3)}, alpha=0.0))[0]


KINDS = [lora, locon, loha, lokr, full, dora, oft]


# ---- both ways ------------------------------------------------------------------------------------------------------


class Beside:
    """A module with terms at strengths that vary; leaving the block detaches them."""

    def __init__(self, module: nn.Module, call: Call | None = None, **terms: Sequence[LiveTerm]) -> None:
        self.stage = Stage()
        if call is not None:
            self.stage.begin(call)
        self.detach = make_attached(module, self.stage, terms, Patcher()).begin().detach

    def __enter__(self) -> Stage:
        return self.stage

    def __exit__(self, *_: object) -> None:
        self.detach()


def bare(module: nn.Module) -> nn.Module:
    """Return a float64 copy of the module with nothing beside it."""
    made = copy.deepcopy(module).double()
    made._forward_hooks.clear()
    return made


def merged(module: nn.Module, strength: float = STRENGTH, **terms: Sequence[LiveTerm]) -> nn.Module:
    """Return a float64 copy of the module with the terms in its parameters, summed in float64."""
    made = bare(module)
    for name, here in terms.items():
        weight = getattr(made, name).data
        out = torch.empty_like(weight)
        constant = [Term(term.adapter, strength, term.dyn, term.part) for term in here]
        merge_into(out, weight.clone(), constant)
        getattr(made, name).data = out
    return made


def double(inputs: Tensor) -> Tensor:
    return inputs.double() if inputs.is_floating_point() else inputs


def close(got: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Fail where the two differ by more than a share of the largest value."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= relative * expected.double().abs().max().item(), error


def assert_beside_is_inside(module: nn.Module, inputs: Tensor, **terms: Sequence[LiveTerm]) -> None:
    """Compare the two ways, in float64 and with nothing left behind."""
    module.requires_grad_(False)
    before = module(inputs)
    expected = merged(module, **terms)(double(inputs))
    assert not torch.allclose(expected, before.double(), rtol=1e-3, atol=1e-3), "nothing to see"
    with Beside(module, **terms):
        close(module(inputs), expected)
        close(module(inputs), expected)
    assert not module._forward_hooks
    assert torch.equal(module(inputs), before)


def at(strength: float = STRENGTH, **more: Any) -> Varying:
    """Return a strength that is constant but has to be asked for at every call."""
    return Varying(strength, **more)


def term(adapter: Adapter, **more: Any) -> LiveTerm:
    return LiveTerm(adapter, at(), **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LINEARS)
def test_an_adapter_beside_a_layer_gives_what_it_gives_inside(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS[layer]()
    assert reason_against(module, "weight") is None
    assert_beside_is_inside(module, inputs, weight=[term(kind(module.weight.shape))])


@pytest.mark.parametrize("kind", [lora, full, dora])
@pytest.mark.parametrize("layer", GROUPED)
def test_an_adapter_beside_a_grouped_convolution(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = GROUPED[layer]()
    assert_beside_is_inside(module, inputs, weight=[term(kind(module.weight.shape))])


@pytest.mark.parametrize("kind", [low_rank, loha, full])
@pytest.mark.parametrize("table", TABLES)
def test_an_adapter_beside_an_embedding(table: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = TABLES[table]()
    assert_beside_is_inside(module, inputs, weight=[term(kind(module.weight.shape))])


@pytest.mark.parametrize("kind", [low_rank, loha, full, dora, oft])
def test_an_adapter_beside_a_linear_layer_that_has_its_weight_turned(kind: Callable[..., Adapter]) -> None:
    module, inputs = turned_linear(), rand(4, 5, 8)
    adapter = kind(torch.Size((12, 8)))  # as files have it
    assert_beside_is_inside(module, inputs, weight=[term(adapter, part=Part(transposed=True))])


@pytest.mark.parametrize("roles", [("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("norm", [*NORMS, "linear", "conv2d", "grouped"])
def test_a_difference_of_weight_and_bias(norm: str, roles: tuple[str, ...]) -> None:
    module, inputs = {**NORMS, **LINEARS, **GROUPED}[norm]()
    terms = {}
    for role in roles:
        if (parameter := getattr(module, role, None)) is None:
            pytest.skip("it has no bias")
        assert reason_against(module, role) is None
        (adapter,) = BUILDERS["norm"](group({role: rand(*parameter.shape, std=0.3)}))
        terms[role] = [term(adapter)]
    assert_beside_is_inside(module, inputs, **terms)


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="this torch has no RMSNorm")
def test_a_difference_of_torch_s_rms_norm() -> None:
    (adapter,) = BUILDERS["norm"](group({"weight": rand(8, std=0.3)}))
    assert_beside_is_inside(nn.RMSNorm(8), rand(4, 5, 8), weight=[term(adapter)])


@pytest.mark.parametrize("layer", ["linear", "conv2d", "norm"])
def test_a_hook_of_somebody_else_sees_the_output_of_the_changed_weight(layer: str) -> None:
    module, inputs = {**LINEARS, "norm": lambda: (nn.LayerNorm(8), rand(4, 5, 8))}[layer]()
    (adapter,) = BUILDERS["norm"](group({"weight": rand(*module.weight.shape, std=0.3)}))
    expected = torch.tanh(merged(module, weight=[term(adapter)])(inputs.double() * 2))
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    module.register_forward_hook(lambda module, args, output: torch.tanh(output))
    with Beside(module, weight=[term(adapter)]):
        close(module(inputs), expected)


def test_a_norm_that_takes_more_than_one_input_is_given_all_of_them() -> None:
    module, inputs, gate = GatedNorm(8).requires_grad_(False), rand(4, 5, 8), rand(4, 5, 8, seed=3)
    (adapter,) = BUILDERS["norm"](group({"weight": rand(8, std=0.3)}))
    strengths = [at(images=frozenset({1})), at(images=frozenset({3}))]
    terms = [LiveTerm(adapter, strength) for strength in strengths]
    whole = merged(module, weight=terms[:1])
    with Beside(module, Call(rows=tuple(Row(image) for image in range(4))), weight=terms):
        for got in (module(inputs, gate), module(inputs, gate=gate), module(hidden_states=inputs, gate=gate)):
            expected = bare(module)(inputs.double(), gate.double())
            for row in (1, 3):
                expected[row] = whole(inputs.double(), gate.double())[row]
            close(got, expected)


@pytest.mark.parametrize("layer", ["linear", "conv2d", "conv3d", "conv2d channels last"])
def test_several_adapters_at_once_add_up(layer: str) -> None:
    module, inputs = LINEARS[layer]()
    shape = module.weight.shape
    weight = [term(kind(shape)) for kind in KINDS] + [term(low_rank(shape, seed=5, rank=4), dyn=2)]
    (bias,) = BUILDERS["full"](group({"bias": rand(shape[0], std=0.3)}))
    assert_beside_is_inside(module, inputs, weight=weight, bias=[term(bias)])


PARTS = [
    (lambda: (nn.Linear(8, 36), rand(4, 5, 8)), Part(1, 3), (12, 8)),
    (lambda: (nn.Linear(8, 36), rand(4, 5, 8)), Part(1, 3, span=2), (24, 8)),
    (lambda: (nn.Linear(8, 36), rand(4, 8)), Part(2, 3), (12, 8)),
    (lambda: (nn.Conv2d(9, 12, 3), rand(4, 9, 5, 5)), Part(inputs=4), (12, 4, 3, 3)),
    (lambda: (nn.Linear(8, 12), rand(4, 5, 8)), Part(swapped=True), (12, 8)),
    (lambda: (nn.Conv2d(8, 12, 1), rand(4, 8, 5, 5)), Part(1, 3), (4, 8, 1, 1)),
]


@pytest.mark.parametrize("kind", [low_rank, loha, full, dora])
@pytest.mark.parametrize(("make", "part", "shape"), PARTS)
def test_an_adapter_for_a_part_acts_there(make: Any, part: Part, shape: Any, kind: Callable[..., Adapter]) -> None:
    module, inputs = make()
    adapter = kind(torch.Size(shape))
    if part.index == 0 and part.inputs is None and kind is low_rank:  # beside one for all of it
        assert_beside_is_inside(module, inputs, weight=[term(adapter, part=part), term(lora(module.weight.shape))])
    assert_beside_is_inside(module, inputs, weight=[term(adapter, part=part)])


def test_rows_of_an_adapter_that_depends_on_the_weights_see_all_of_the_originals() -> None:
    modules = [nn.Linear(8, 12, bias=False).requires_grad_(False) for _ in range(3)]
    whole = oft(torch.Size((36, 8)))
    pieces = tuple(Piece(module.weight, WHOLE) for module in modules)
    stacked = torch.cat([module.weight for module in modules]).double()
    expected = stacked + STRENGTH * whole.delta(stacked)
    inputs = rand(4, 8)
    for index, module in enumerate(modules):
        rows = Rows(whole, torch.Size((36, 8)), 12 * index, 12 * index + 12, ())
        with Beside(module, weight=[term(rows, pieces=pieces)]):
            close(module(inputs), inputs.double() @ expected[12 * index : 12 * index + 12].T)


def test_attention_that_never_calls_its_layers_is_refused_with_the_reason() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert "without calling it" in str(reason_against(attention, "in_proj_weight"))
    assert "without calling it" in str(reason_against(attention.out_proj, "weight"))
    assert "no linear function of its table" in str(reason_against(nn.Linear(2, 2), "table"))
    assert "no linear function of its weight" in str(reason_against(nn.PReLU(), "weight"))
    assert "no linear function" in str(reason_against(nn.Bilinear(2, 2, 2), "weight"))


# ---- what a call is about -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [lora, loha, dora])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_strength_zero_gives_the_bits_of_the_bare_module(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS[layer]()
    module.requires_grad_(False)
    before = module(inputs)
    strengths = [
        at(0.0),
        at(1.0, curves=(RISING,)),
        at(1.0, when=(Window(Position(0.5)),)),
        at(1.0, when=(Turn(1, 2),)),
        at(1.0, images=frozenset({7})),
        at(1.0, side="negative"),
        at(1.0, part=1),
    ]
    terms = [LiveTerm(kind(module.weight.shape), strength) for strength in strengths]
    with Beside(module, Call(Moment(0, 5)), weight=terms):
        assert torch.equal(module(inputs), before)


@pytest.mark.parametrize("kind", [lora, full])
def test_the_strength_is_asked_for_at_every_step(kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS["linear"]()
    adapter = kind(module.weight.shape)
    terms = [LiveTerm(adapter, at(2.0, curves=(RISING, RISING))), LiveTerm(low_rank(module.weight.shape), at(0.5))]
    module.requires_grad_(False)
    with Beside(module, weight=terms) as stage:
        for step in range(5):
            stage.begin(Call(Moment(step, 5)))
            strength = 2.0 * (step / 4) ** 2
            expected = merged(module, strength, weight=terms[:1])(inputs.double())
            expected += merged(module, 0.5, weight=terms[1:])(inputs.double()) - bare(module)(inputs.double())
            close(module(inputs), expected)


def by_row(adapters: Sequence[Adapter]) -> list[LiveTerm]:
    """Return terms of which every row has others, in other strengths."""
    return [
        LiveTerm(adapters[0], at(0.5, images=frozenset({0}))),
        LiveTerm(adapters[1], at(-0.8, images=frozenset({0, 2}))),
        LiveTerm(adapters[2], at(1.5, side="negative")),
        LiveTerm(adapters[3], at(0.25)),
        LiveTerm(adapters[4], at(1.0, side="positive", images=frozenset({2}))),
    ]


ROWS = tuple(Row(image, side) for side in ("negative", "positive") for image in range(3))


@pytest.mark.parametrize("kinds", [(low_rank,) * 5, (loha,) * 5, (low_rank, full, dora, low_rank, loha)])
@pytest.mark.parametrize("layer", ["linear", "conv2d", "conv1d", "conv3d", "linear on maps"])
@pytest.mark.parametrize("each", [1, 3])
def test_rows_of_a_batch_are_what_they_are_alone(layer: str, kinds: Sequence[Any], each: int) -> None:
    module, sample = LINEARS[layer]()
    module.requires_grad_(False)
    shape = module.weight.shape
    terms = by_row([kind(shape) for kind in kinds])
    inputs = rand(len(ROWS) * each, *sample.shape[1:], seed=8)
    with Beside(module, Call(rows=ROWS), weight=terms):
        got = module(inputs)
    for index in range(len(inputs)):
        row = ROWS[index // each]
        acting = [t for t in terms if t.strength.means(row)]
        weight = module.weight.double()
        for one in acting:
            out = torch.empty_like(weight)
            merge_into(out, module.weight.double(), [Term(one.adapter, one.strength.constant)])
            weight = weight + out - module.weight.double()
        alone = bare(module)
        alone.weight.data = weight
        close(got[index : index + 1], alone(inputs[index : index + 1].double()))


@pytest.mark.parametrize("rows", [(Row(0), Row(1)), ()])
def test_rows_that_cannot_be_told_get_nothing_of_what_is_for_some_and_it_says_so(
    rows: tuple[Row, ...], caplog: pytest.LogCaptureFixture
) -> None:
    module, inputs = nn.Linear(8, 12).requires_grad_(False), rand(5, 8)
    for_some, for_all = (LiveTerm(low_rank(module.weight.shape, seed=seed), s) for seed, s in enumerate([
        at(images=frozenset({0})), at(0.5)
    ]))  # fmt: skip
    with Beside(module, Call(rows=rows), weight=[for_some, for_all]):
        got = module(inputs)
        module(inputs)
    close(got, merged(module, 0.5, weight=[for_all])(inputs.double()))
    assert len(caplog.records) == 1
    assert "left out" in caplog.records[0].message


@pytest.mark.parametrize("kind", [lora, full])
def test_a_single_vector_has_no_batch(kind: Callable[..., Adapter]) -> None:
    module = nn.Linear(8, 12)
    assert_beside_is_inside(module, rand(8), weight=[term(kind(module.weight.shape))])


@pytest.mark.parametrize("kind", [lora, full])
def test_a_single_picture_without_a_batch(kind: Callable[..., Adapter]) -> None:
    module = nn.Conv2d(8, 12, 3, padding=1)
    assert_beside_is_inside(module, rand(8, 5, 6), weight=[term(kind(module.weight.shape))])


# ---- places ---------------------------------------------------------------------------------------------------------

LEFT = Place((0.0, 0.0, 0.5, 1.0))


@pytest.mark.parametrize("kind", [lora, full])
def test_a_region_of_pixels_is_the_change_times_the_mask(kind: Callable[..., Adapter]) -> None:
    module, inputs = nn.Conv2d(8, 12, 3, padding=1).requires_grad_(False), rand(2, 8, 6, 8)
    terms = [LiveTerm(kind(module.weight.shape), at(place=LEFT)), LiveTerm(low_rank(module.weight.shape), at(0.5))]
    with Beside(module, Call(grid=(6, 8)), weight=terms):
        got = module(inputs)
    change = merged(module, weight=terms[:1])(inputs.double()) - bare(module)(inputs.double())
    change[..., 4:] = 0
    close(got, merged(module, 0.5, weight=terms[1:])(inputs.double()) + change)


@pytest.mark.parametrize("kind", [lora, full])
@pytest.mark.parametrize(("grid", "tokens", "text", "frames"), [
    ((4, 8), (4, 8), 0, 1),
    ((8, 16), (4, 8), 0, 1),
    ((9, 15), (5, 8), 0, 1),
    ((4, 8), (4, 8), 7, 1),
    ((8, 16), (4, 8), 0, 3),
    ((4, 8), (4, 8), 7, 2),
])  # fmt: skip
def test_a_region_of_tokens_is_the_change_times_the_mask_of_their_grid(
    grid: tuple[int, int], tokens: tuple[int, int], text: int, frames: int, kind: Callable[..., Adapter]
) -> None:
    height, width = tokens
    module = nn.Linear(8, 12).requires_grad_(False)
    inputs = rand(2, text + frames * height * width, 8)
    terms = [LiveTerm(kind(module.weight.shape), at(place=LEFT))]
    with Beside(module, Call(grid=grid, text=text, frames=frames), weight=terms):
        got = module(inputs)
    plain = bare(module)(inputs.double())
    change = merged(module, weight=terms)(inputs.double()) - plain
    change[:, :text] = 0
    change[:, text:].unflatten(1, (frames, height, width))[:, :, :, width // 2 :] = 0
    close(got, plain + change)


def test_regions_with_and_without_rows_keep_to_their_own() -> None:
    module, inputs = nn.Linear(8, 12).requires_grad_(False), rand(2, 32, 8)
    right = Place((0.5, 0.0, 1.0, 1.0))
    terms = [
        LiveTerm(low_rank(module.weight.shape, seed=1), at(0.5, place=LEFT)),
        LiveTerm(low_rank(module.weight.shape, seed=2), at(-1.0, place=right, images=frozenset({1}))),
        LiveTerm(low_rank(module.weight.shape, seed=3), at(2.0)),
    ]
    with Beside(module, Call(grid=(4, 8), rows=(Row(0), Row(1))), weight=terms):
        got = module(inputs)
    plain = bare(module)(inputs.double())
    changes = [merged(module, t.strength.constant, weight=[t])(inputs.double()) - plain for t in terms]
    changes[0].unflatten(1, (4, 8))[:, :, 4:] = 0
    changes[1].unflatten(1, (4, 8))[:, :, :4] = 0
    changes[1][0] = 0
    close(got, plain + sum(changes))


@pytest.mark.parametrize("kind", [lora, full])
@pytest.mark.parametrize("call", [Call(), Call(grid=(4, 8))])
def test_a_layer_without_a_place_gets_nothing_of_a_region(call: Call, kind: Callable[..., Adapter]) -> None:
    module = nn.Linear(8, 12).requires_grad_(False)
    terms = [LiveTerm(kind(module.weight.shape), at(place=LEFT))]
    with Beside(module, call, weight=terms):
        for inputs in (rand(2, 8), rand(2, 77, 8)):
            close(module(inputs), bare(module)(inputs.double()))


def test_a_signal_in_one_dimension_has_no_place() -> None:
    module, inputs = nn.Conv1d(8, 12, 3).requires_grad_(False), rand(2, 8, 9)
    with Beside(module, weight=[LiveTerm(lora(module.weight.shape), at(place=LEFT))]):
        close(module(inputs), bare(module)(inputs.double()))


# ---- dtypes and modes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("kind", [lora, loha, dora])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_half_precision_is_right_within_its_rounding(
    layer: str, kind: Callable[..., Adapter], dtype: torch.dtype
) -> None:
    module, inputs = LINEARS[layer]()
    module, inputs = module.to(dtype).requires_grad_(False), inputs.to(dtype)
    terms = [term(kind(module.weight.shape))]
    expected = merged(module, weight=terms)(inputs.double())
    with Beside(module, weight=terms):
        got = module(inputs)
    assert got.dtype == dtype
    # Three roundings of the output's size: of the product inside, of the change and of the sum.
    largest = torch.maximum(expected.abs().max(), (expected - bare(module)(inputs.double())).abs().max())
    assert (got.double() - expected).abs().max() <= 3 * ulp(largest, dtype)


def test_float64_modules_are_computed_in_float64() -> None:
    module, inputs = nn.Linear(8, 12).double().requires_grad_(False), rand(4, 8).double()
    terms = [term(loha(module.weight.shape)), term(full(module.weight.shape))]
    with Beside(module, weight=terms):
        close(module(inputs), merged(module, weight=terms)(inputs), 1e-14)


@pytest.mark.parametrize("kind", [lora, full])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_a_module_that_is_cast_takes_what_is_beside_it_along_and_back(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS[layer]()
    module.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    terms = [term(kind(module.weight.shape))]
    expected = merged(module, weight=terms)(inputs.double())
    with Beside(module, weight=terms):
        for dtype, digits in (
            (torch.float16, 1e-2),
            (torch.bfloat16, 5e-2),
            (torch.float64, 1e-5),
            (torch.float32, 1e-5),
        ):
            module.to(dtype)
            module.load_state_dict(before)  # what a cast rounded away comes back; the change must too
            got = module(inputs.to(dtype))
            assert got.dtype == dtype
            close(got, expected, digits)


@pytest.mark.parametrize("kind", [lora, full])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_autocast_leaves_nothing_behind(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS[layer]()
    module.requires_grad_(False)
    terms = [term(kind(module.weight.shape))]
    expected = merged(module, weight=terms)(inputs.double())
    with Beside(module, weight=terms):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(inputs)
            assert got.dtype == torch.bfloat16
            close(got, expected, 3e-2)
        close(module(inputs), expected)


@pytest.mark.parametrize("kind", [lora, full])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_inference_mode_before_and_after(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS[layer]()
    module.requires_grad_(False)
    terms = [LiveTerm(kind(module.weight.shape), at(curves=(RISING,)))]
    expected = merged(module, weight=terms)(inputs.double())
    with Beside(module, Call(Moment(4, 5), grid=(2, 2)), weight=terms) as stage:
        with torch.inference_mode():
            close(module(inputs), expected)
        close(module(inputs), expected)
        with torch.enable_grad():
            asked = inputs.clone().requires_grad_()
            close(module(asked), expected)
            stage.begin(Call(Moment(4, 5)))
            module(asked).sum().backward()
    assert asked.grad is not None


@pytest.mark.parametrize("kind", [lora, full])
@pytest.mark.parametrize("layer", ["linear", "conv2d", "conv2d strided"])
def test_gradients_reach_the_input_and_the_weight(layer: str, kind: Callable[..., Adapter]) -> None:
    module, inputs = LINEARS[layer]()
    terms = [term(kind(module.weight.shape))]
    inside = merged(module, weight=terms)
    one, other = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
    towards = rand(*module(inputs).shape, seed=4)
    inside(other).backward(towards.double())
    with Beside(module, weight=terms):
        module(one).backward(towards)
    assert one.grad is not None and other.grad is not None
    close(one.grad, other.grad)
    close(module.weight.grad, inside.weight.grad)


def test_an_input_by_name_is_the_input() -> None:
    module, inputs = nn.Linear(8, 12).requires_grad_(False), rand(4, 8)
    terms = [term(lora(module.weight.shape))]
    with Beside(module, weight=terms):
        close(module(input=inputs), merged(module, weight=terms)(inputs.double()))


def test_the_input_is_never_written() -> None:
    module, inputs = nn.LayerNorm(8).requires_grad_(False), rand(4, 8)
    (adapter,) = BUILDERS["norm"](group({"bias": rand(8)}))
    before = inputs.clone()
    with Beside(module, weight=[], bias=[term(adapter)]):
        module(inputs)
    assert torch.equal(inputs, before)


# ---- Live: what acts beside a whole model ---------------------------------------------------------------------------


def live_on(module: nn.Module, adapter: Adapter, identity: object = "a", component: str = "unet") -> LiveModule:
    return LiveModule(component, module, {"weight": (term(adapter),)}, (identity,))


def hooks(module: nn.Module) -> list[object]:
    return list(module._forward_hooks.values())


def test_the_same_again_keeps_what_acts_and_another_replaces_it() -> None:
    live, patcher = Live(), Patcher()
    one, two = nn.Linear(8, 12), nn.Linear(8, 12)
    adapter = lora(one.weight.shape)
    live.apply([live_on(one, adapter), live_on(two, adapter)], patcher)
    first = hooks(one), hooks(two), live.stages["unet"]
    live.apply([live_on(one, adapter), live_on(two, adapter)], patcher)
    assert (hooks(one), hooks(two), live.stages["unet"]) == first
    live.apply([live_on(one, adapter, "b"), live_on(two, adapter)], patcher)
    assert hooks(one) != first[0]
    assert hooks(two) == first[1]
    live.apply([live_on(two, adapter)], patcher)
    assert (live.count, hooks(one), hooks(two)) == (1, [], first[1])
    live.clear()
    assert (live.count, live.stages, hooks(two)) == (0, {}, [])


def test_a_write_into_the_weight_makes_what_depends_on_it_anew() -> None:
    live, patcher = Live(), Patcher()
    module, plain = nn.Linear(8, 12).requires_grad_(False), nn.Linear(8, 12).requires_grad_(False)
    inputs = rand(4, 8)
    wanted = [live_on(module, dora(module.weight.shape)), live_on(plain, full(plain.weight.shape))]
    live.apply(wanted, patcher)
    kept = hooks(plain)
    module.weight.mul_(2)
    plain.weight.mul_(2)
    live.apply(wanted, patcher)
    close(module(inputs), merged(module, weight=wanted[0].terms["weight"])(inputs.double()))
    close(plain(inputs), merged(plain, weight=wanted[1].terms["weight"])(inputs.double()))
    assert hooks(plain) == kept
    live.clear()


def test_what_ends_with_what_acts_is_called_once() -> None:
    live, patcher, called = Live(), Patcher(), []
    live.until_then(lambda: called.append("first"))
    live.apply([], patcher)
    live.until_then(lambda: called.append("second"))
    live.clear()
    live.clear()
    assert called == ["first", "second"]


def test_a_module_in_the_place_of_another_with_its_id_is_not_taken_for_it() -> None:
    live, patcher = Live(), Patcher()
    module = nn.Linear(8, 12)
    live.apply([live_on(module, lora(module.weight.shape))], patcher)
    (attached,) = live._known.values()
    other = nn.Linear(8, 12)
    live._known = {id(other): attached}  # as if `module` had gone and `other` got its id
    live.apply([live_on(other, lora(module.weight.shape))], patcher)
    assert len(hooks(other)) == 1
    assert not hooks(module)
    live.clear()


def test_a_failure_while_attaching_leaves_nothing_attached() -> None:
    live, patcher = Live(), Patcher()
    one, two = nn.Linear(8, 12), nn.Linear(8, 12)

    class Failing(Dense):
        def delta(self, weight: Tensor) -> Tensor:
            raise MemoryError("injected")

    wanted = [live_on(one, lora(one.weight.shape)), live_on(two, Failing(rand(12, 1), rand(1, 8)))]
    with pytest.raises(MemoryError, match="injected"):
        live.apply(wanted, patcher)
    live.clear()
    assert not hooks(one) + hooks(two)


def test_terms_that_do_not_act_now_cost_no_rows() -> None:
    stage = Stage()
    stage.begin(Call(rows=(Row(0), Row(1), Row(2))))
    profile = (at(1.0, images=frozenset({1})), replace(at(), constant=0.0))
    assert [(run.rows, run.terms) for run in stage.runs(profile, 6)] == [(slice(2, 4), (0,))]
