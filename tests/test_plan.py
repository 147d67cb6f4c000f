"""Which adapter of a file goes to which parameter, and to what of it."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_ldm
import torch
from formula import Dense
from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.lora import Lora
from lora_runtime.merge import merge_into
from lora_runtime.patcher import Patcher
from lora_runtime.pipelines import view
from lora_runtime.plan import Plan, make_plan
from lora_runtime.prompt.strength import Curve, Key, Position, Window
from lora_runtime.prompt.tags import ALWAYS, Conditions
from lora_runtime.regions import Place
from lora_runtime.requests import Request, add_up, of_batch
from lora_runtime.stage import Varying
from lora_runtime.targets import Targets


class Change(Dense):
    """A random dense change of a weight or a bias of one shape."""

    def __init__(self, shape: tuple[int, ...], parameter: str = "weight", name: str = "x") -> None:
        self.shape = shape
        self.parameter = parameter
        self.keys = (f"{name}.{parameter}",)
        self.value = torch.randn(shape)

    def misfit(self, shape: torch.Size) -> str | None:
        return None if tuple(shape) == self.shape else f"made for {self.shape}, the weight is {tuple(shape)}"

    def delta(self, weight: Tensor) -> Tensor:
        assert weight.shape == self.shape
        return self.value


def file(adapters: dict[str, tuple[Adapter, ...]], sha256: str = "a") -> Lora:
    count = sum(len(adapter.keys) for found in adapters.values() for adapter in found)
    return Lora("a", Path("a.safetensors"), lambda: sha256, {}, "unknown", adapters, {}, count)


def plan_for(model: nn.Module, adapters: dict[str, tuple[Adapter, ...]], strength: float = 1.0) -> Plan:
    targets = Targets(view(SimpleNamespace(components={"unet": model})))
    return make_plan([Request(file(adapters), strength, strength)], targets)


def patched(plan: Plan) -> dict[int, Tensor]:
    """Return what each parameter becomes, by its id."""
    found = {}
    for assignment in plan.assignments:
        out = torch.empty_like(assignment.parameter.data)
        merge_into(out, assignment.parameter.data, assignment.terms)
        found[id(assignment.parameter)] = out
    return found


def test_a_weight_and_a_bias_of_one_stem_go_to_the_parameters_of_their_names() -> None:
    model = tiny_ldm.Tree(proj=nn.Linear(3, 2))
    weight, bias = Change((2, 3)), Change((2,), "bias")
    plan = plan_for(model, {"unet.proj": (bias, weight)})
    assert patched(plan).keys() == {id(model.proj.weight), id(model.proj.bias)}
    found = patched(plan)
    assert torch.equal(found[id(model.proj.weight)], model.proj.weight.data + weight.value)
    assert torch.equal(found[id(model.proj.bias)], model.proj.bias.data + bias.value)
    (report,) = plan.report.loras
    assert (report.used, report.targets, plan.report.weights) == (2, {"unet": 2}, 2)


def test_a_bias_that_the_module_lacks_is_an_unused_key_and_the_weight_is_changed() -> None:
    model = tiny_ldm.Tree(proj=nn.Linear(3, 2, bias=False))
    plan = plan_for(model, {"unet.proj": (Change((2, 3)), Change((2,), "bias"))})
    (report,) = plan.report.loras
    assert report.unused == {"x.bias": "for a bias that this module does not have"}
    assert len(plan.assignments) == report.used == 1


def test_the_bias_of_a_weight_that_does_not_fit_is_left_out_with_it() -> None:
    model = tiny_ldm.Tree(proj=nn.Linear(3, 2))
    plan = plan_for(model, {"unet.proj": (Change((2,), "bias"), Change((9, 9)))})
    reason = "made for (9, 9), the weight is (2, 3)"
    assert plan.report.loras[0].unused == {"x.weight": reason, "x.bias": reason}
    assert plan.assignments == ()


ATTENTION = "lora_te_text_model_encoder_layers_0_self_attn_"


def test_q_k_and_v_of_one_file_are_terms_of_one_parameter() -> None:
    model = tiny_ldm.model("sd2")
    targets = Targets(view(model))
    changes = {name: (Change((16, 16)), Change((16,), "bias")) for name in ("q_proj", "k_proj", "v_proj")}
    lora = file({ATTENTION + name: found for name, found in changes.items()})
    plan = make_plan([Request(lora, 0.5, 0.0)], targets)
    attention = view(model).components["text_encoder"].get_submodule("transformer.resblocks.0.attn")
    assert isinstance(attention, nn.MultiheadAttention)
    found = patched(plan)
    for parameter, index in ((attention.in_proj_weight, 0), (attention.in_proj_bias, 1)):
        delta = torch.cat([change[index].value for change in changes.values()])
        assert torch.equal(found[id(parameter)], parameter.data + 0.5 * delta)
    assert len(found) == plan.report.weights == 2
    (report,) = plan.report.loras
    assert (report.used, report.targets, dict(report.unused)) == (6, {"text_encoder": 2}, {})


def test_two_names_for_one_part_in_one_file_are_not_both_applied() -> None:
    model = tiny_ldm.model("sd2")
    targets = Targets(view(model))
    other = "text_encoder.encoder.layers.0.self_attn.to_q"
    whole = "lora_te_transformer_resblocks_0_attn"
    lora = file(
        {
            ATTENTION + "q_proj": (Change((16, 16)),),
            ATTENTION + "k_proj": (Change((16, 16)),),
            other: (Change((16, 16), name="other"),),
            whole: (Change((48, 16), name="whole"),),
        }
    )
    plan = make_plan([Request(lora, 1.0, 1.0)], targets)
    reason = f"for a weight that {ATTENTION}q_proj of the same file changes already"
    assert plan.report.loras[0].unused == {"other.weight": reason, "whole.weight": reason}
    assert [term.part for term in plan.assignments[0].terms] == [Part(0, 3), Part(1, 3)]


def test_a_strength_of_zero_leaves_a_part_alone() -> None:
    model = tiny_ldm.model("sd2")
    targets = Targets(view(model))
    lora = file({ATTENTION + "q_proj": (Change((16, 16)),)})
    assert make_plan([Request(lora, 0.0, 1.0)], targets).assignments == ()


def test_the_part_belongs_to_the_identity() -> None:
    model = tiny_ldm.model("sd2")
    targets = Targets(view(model))
    change = Change((16, 16))
    identities = {
        make_plan([Request(file({ATTENTION + name: (change,)}), 1.0, 1.0)], targets).assignments[0].identity
        for name in ("q_proj", "k_proj", "v_proj")
    }
    assert len(identities) == 3
    assert {identity[0][-1] for identity in identities} == {Part(0, 3), Part(1, 3), Part(2, 3)}  # type: ignore[index]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_an_adapter_for_the_plain_model_changes_the_latent_channels_of_an_inpainting_model(kind: str) -> None:
    model = tiny_ldm.model(kind, inputs=9)
    change, bias = Change((4, 4, 3, 3)), Change((4,), "bias")
    lora = file({"lora_unet_conv_in": (change, bias)})
    plan = make_plan([Request(lora, 1.0, 1.0)], Targets(view(model)))
    convolution = view(model).components["unet"].get_submodule("input_blocks.0.0")
    weight = convolution.get_parameter("weight").data
    assert plan.report.loras[0].used == 2
    found = patched(plan)[id(convolution.weight)]
    assert torch.equal(found[:, 4:], weight[:, 4:])
    assert torch.equal(found[:, :4], weight[:, :4] + change.value)


def test_an_adapter_made_for_the_inpainting_model_changes_all_its_channels() -> None:
    model = tiny_ldm.model("sd1", inputs=9)
    lora = file({"lora_unet_conv_in": (Change((4, 9, 3, 3)),)})
    (assignment,) = make_plan([Request(lora, 1.0, 1.0)], Targets(view(model))).assignments
    assert assignment.terms[0].part == WHOLE


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 4, 3, 3), (4, 9, 1, 1)])
def test_what_fits_neither_shape_of_an_inpainting_model_is_unused(shape: tuple[int, ...]) -> None:
    model = tiny_ldm.model("sd1", inputs=9)
    lora = file({"lora_unet_conv_in": (Change(shape),)})
    plan = make_plan([Request(lora, 1.0, 1.0)], Targets(view(model)))
    assert plan.report.loras[0].unused == {"x.weight": f"made for {shape}, the weight is (4, 9, 3, 3)"}


def test_no_other_convolution_takes_a_smaller_adapter() -> None:
    model = tiny_ldm.Tree(conv=nn.Conv2d(8, 4, 3))
    plan = plan_for(model, {"unet.conv": (Change((4, 4, 3, 3)),)})
    assert plan.assignments == ()


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
def test_fp8_weights_are_summed_from_the_values_that_they_were_rounded_from() -> None:
    model = tiny_ldm.model("sd1")
    module = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q
    whole = module.weight.data.clone().half()
    module.fp16_weight = whole
    module.to(torch.float8_e4m3fn)
    rounded = module.weight.data.clone()
    change = Change(tuple(whole.shape))
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    plan = make_plan([Request(file({stem: (change,)}), 0.5, 0.5)], Targets(view(model)))
    patcher = Patcher()
    patcher.apply(plan.assignments)
    expected = (whole.double() + 0.5 * change.value.double()).float().to(torch.float8_e4m3fn)
    from_rounded = (rounded.double() + 0.5 * change.value.double()).float().to(torch.float8_e4m3fn)
    assert torch.equal(module.weight.data.view(torch.uint8), expected.view(torch.uint8))
    assert not torch.equal(expected.view(torch.uint8), from_rounded.view(torch.uint8))
    patcher.restore()
    assert torch.equal(module.weight.data.view(torch.uint8), rounded.view(torch.uint8))


# ---- strengths that vary --------------------------------------------------------------------------------------------

RISING = Curve((Key(0.0, Position(0.0)), Key(1.0, Position(1.0))))


def test_what_is_constant_and_what_varies_of_one_module_go_their_ways() -> None:
    model = tiny_ldm.Tree(proj=nn.Linear(3, 2))
    targets = Targets(view(SimpleNamespace(components={"unet": model})))
    steady, moving = file({"unet.proj": (Change((2, 3)),)}, "a"), file({"unet.proj": (Change((2, 3)),)}, "b")
    plan = make_plan([Request(steady, 0.0, 0.5), Request(moving, 0.0, RISING)], targets)
    (assignment,), (live,) = plan.assignments, plan.lives
    assert [term.strength for term in assignment.terms] == [0.5]
    assert [term.strength for term in live.terms["weight"]] == [Varying(1.0, (RISING,))]
    assert (plan.report.weights, plan.report.live) == (1, 1)
    assert [report.live for report in plan.report.loras] == [0, 1]


@pytest.mark.parametrize("wish", [{"images": frozenset({0})}, {"side": "negative"}])
def test_what_is_meant_for_some_rows_is_left_out_where_it_would_act_on_all(wish: dict[str, Any]) -> None:
    model = tiny_ldm.model("sd2")
    targets = Targets(view(model))
    lora = file({ATTENTION + "q_proj": (Change((16, 16)),)})
    plan = make_plan([Request(lora, 0.5, 0.0, **wish)], targets)
    assert (plan.lives, plan.assignments) == ((), ())
    ((reason, count),) = plan.report.loras[0].fixed.items()
    assert ("without calling it" in reason, reason.endswith("left out"), count) == (True, True, 1)


def test_a_layer_that_reads_the_text_has_no_place_in_the_picture() -> None:
    model = tiny_ldm.Tree(attn2=tiny_ldm.Tree(to_k=nn.Linear(3, 2), to_q=nn.Linear(3, 2)))
    targets = Targets(view(SimpleNamespace(components={"unet": model})))
    lora = file({f"unet.attn2.{name}": (Change((2, 3)),) for name in ("to_k", "to_q")})
    plan = make_plan([Request(lora, 1.0, 1.0, place=Place((0.0, 0.0, 0.5, 1.0)))], targets)
    assert plan.assignments == ()
    assert [live.module for live in plan.lives] == [model.attn2.to_q]
    ((reason, count),) = plan.report.loras[0].fixed.items()
    assert ("no place in the picture" in reason, count) == (True, 1)


def test_the_same_file_under_the_same_conditions_adds_up_and_under_others_stays_apart() -> None:
    lora, window = file({}), Conditions(when=(Window(Position(0.5)),))
    plain = [Request(lora, te, te) for te in (0.1, 0.2, 0.7)]
    others = [
        Request(lora, 0.5, 0.5, conditions=window),
        Request(lora, 0.5, 0.5, images=frozenset({1})),
        Request(lora, 0.5, 0.5, side="negative"),
        Request(lora, 0.5, 0.5, dyn=4),
        Request(lora, 0.5, RISING),
    ]
    summed = add_up([*plain, *others])
    assert len(summed) == 6
    assert next((r.te, r.unet) for r in summed if r.conditions is ALWAYS and not (r.images or r.side or r.dyn)) == (
        sum([0.1, 0.2, 0.7]),
        sum([0.1, 0.2, 0.7]),
    )


def test_any_order_of_requests_gives_the_same_list() -> None:
    one, two = file({}, "a"), file({}, "b")
    requests = [
        Request(one, 0.1, RISING),
        Request(one, 0.2, RISING),
        Request(one, 0.3, 0.3),
        Request(one, 0.7, 0.1),
        Request(two, RISING, 0.5),
        Request(two, 0.5, 0.5, images=frozenset({0, 1})),
    ]
    expected = add_up(requests)
    for order in permutations(requests):
        assert add_up(order) == expected


def test_a_batch_names_the_images_that_ask() -> None:
    one, two = file({}, "a"), file({}, "b")
    batch = [
        [Request(one, 0.5, 0.5), Request(two, 1.0, 1.0)],
        [Request(two, 0.4, 0.4), Request(two, 0.6, 0.6), Request(one, 0.5, RISING)],
        [Request(two, 1.0, 1.0)],
    ]
    assert [(r.lora.sha256, r.unet, r.images) for r in of_batch(batch)] == [
        ("a", 0.5, frozenset({0})),
        ("b", 1.0, None),
        ("a", RISING, frozenset({1})),
    ]
