"""A live model's modules by the names that files have for them."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

from lora_runtime.dialects import WHOLE, Part
from lora_runtime.pipelines import ModelView, view
from lora_runtime.targets import Target, Targets, look_at


def targets_of(**components: nn.Module) -> Targets:
    return Targets(view(SimpleNamespace(components=components)))


def place(targets: Targets, stem: str) -> str | None:
    target = targets.find(stem)
    return None if target is None else str(target)


class Model(nn.Module):
    """Named children in a row."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


@pytest.fixture(scope="module")
def sd1() -> Targets:
    return Targets(view(tiny.pipeline("sd1")))


@pytest.fixture(scope="module")
def sdxl() -> Targets:
    return Targets(view(tiny.pipeline("sdxl")))


BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(
    "stem",
    [
        f"unet.{BLOCK}.attn1.to_out.0",
        f"unet.{BLOCK}.attn1.processor.to_out",
        f"{BLOCK}.attn1.to_out.0",
        f"{BLOCK}.attn1.processor.to_out",
        f"base_model.model.{BLOCK}.attn1.to_out.0",
        f"unet.base_model.model.{BLOCK}.attn1.to_out.0",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
        "lora_unet_down_blocks_1_attentions_0.transformer_blocks.0.attn1_to_out.0",  # mixed
    ],
)
def test_all_names_of_a_module_lead_to_it(sd1: Targets, stem: str) -> None:
    target = sd1.find(stem)
    assert target is not None
    assert (target.component, target.path, target.parameter) == ("unet", f"{BLOCK}.attn1.to_out.0", "weight")
    assert str(target) == f"unet.{BLOCK}.attn1.to_out.0"


@pytest.mark.parametrize(
    ("stem", "component"),
    [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder"),
        ("lora_te1_encoder_layers_0_self_attn_q_proj", "text_encoder"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "text_encoder"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder_2"),
        ("lora_te2_encoder_layers_0_self_attn_q_proj", "text_encoder_2"),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", "text_encoder_2"),
    ],
)
def test_both_layouts_of_both_text_encoders(sdxl: Targets, stem: str, component: str) -> None:
    target = sdxl.find(stem)
    assert target is not None
    assert target.component == component
    assert target.path.endswith("encoder.layers.0.self_attn.q_proj")


@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize("named", ["text_model_encoder_layers_0", "encoder_layers_0"])
def test_text_encoders_of_transformers_4_and_5(level: bool, named: str) -> None:
    inner = Model(
        embeddings=Model(token_embedding=nn.Embedding(3, 2)),
        encoder=Model(layers=nn.ModuleList([linear()])),
    )
    encoder = Model(text_model=inner) if level else inner
    target = targets_of(text_encoder=encoder).find(f"lora_te_{named}")
    assert target is not None
    assert target.module is inner.encoder.layers[0]


def test_a_component_of_another_pipeline_is_named(sd1: Targets) -> None:
    stem = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    assert sd1.find(stem) is None
    assert sd1.reason(stem) == "for text_encoder_2, which this pipeline does not have"


def test_a_denoiser_that_is_missing_is_named() -> None:
    found = Targets(view(tiny.text_encoder()))
    assert found.reason("lora_unet_conv_in") == "for unet, which this model does not have"


def test_the_denoiser_is_called_as_the_pipeline_calls_it() -> None:
    found = targets_of(transformer=Model(proj=linear()))
    assert place(found, "lora_unet_proj") == "transformer.proj"
    assert found.reason("lora_unet_nothing") == "no module of that name in transformer"


def test_an_unknown_name_says_where_it_was_looked_for(sd1: Targets) -> None:
    assert sd1.reason("lora_unet_down_blocks_9") == "no module of that name in unet"
    assert sd1.reason("nothing") == "no module of that name in unet, text_encoder"
    assert targets_of(unet=Model(a=linear())).find("lora_unet_") is None


def test_two_modules_of_one_name_are_both_named_and_neither_is_found() -> None:
    found = targets_of(unet=Model(a=Model(b=linear()), a_b=linear()))
    for stem in ("lora_unet_a_b", "unet.a.b", "unet.a_b"):
        assert found.find(stem) is None
        assert found.reason(stem) == "several modules share this name: unet.a.b and unet.a_b"


def test_a_name_that_two_components_share_is_not_guessed() -> None:
    found = targets_of(unet=Model(proj=linear()), text_encoder=Model(proj=linear()))
    assert found.find("proj") is None
    assert found.reason("proj") == "several modules share this name: text_encoder.proj and unet.proj"
    assert place(found, "unet.proj") == "unet.proj"


def test_underscores_are_never_turned_into_dots() -> None:
    found = targets_of(unet=Model(to_q=linear(), two=Model(k=linear())))
    assert place(found, "lora_unet_to_q") == "unet.to_q"
    assert place(found, "lora_unet_two_k") == "unet.two.k"


@pytest.mark.parametrize("suffix", ["", "_layer", "_inner"])
def test_a_plain_module_takes_bare_and_prefixed_names(suffix: str) -> None:
    name = f"proj{suffix}"
    found = Targets(view(Model(**{name: linear()})))
    for stem in (name, f"lora_unet_{name}", f"lora_te_{name}", f"base_model.model.{name}", f"transformer.{name}"):
        assert place(found, stem) == f"model.{name}"
    assert found.reason("lora_te2_x") == "no module of that name in model"


def test_a_module_that_is_itself_a_layer() -> None:
    layer = linear()
    target = Targets(view(layer)).find("")
    assert target is not None
    assert target.module is layer
    assert str(target) == "model"


class Wrapper(nn.Module):
    """What torch.compile leaves in a model's tree."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


def test_wrappers_of_compile_leave_the_names_as_they_were() -> None:
    inner = linear()
    found = targets_of(unet=Wrapper(Model(block=Wrapper(Model(to_q=Wrapper(inner))))))
    target = found.find("lora_unet_block_to_q")
    assert target is not None
    assert target.module is inner
    assert target.path == "block.to_q"


def test_a_really_compiled_module() -> None:
    model = Model(to_q=linear())
    target = targets_of(unet=torch.compile(model, backend="eager")).find("unet.to_q")
    assert target is not None
    assert target.module is model.to_q


def test_layers_that_peft_has_wrapped_are_found_under_their_own_name() -> None:
    from peft import LoraConfig

    unet = tiny.unet()
    layer = unet.get_submodule(f"{BLOCK}.attn1.to_q")
    before = Targets(view(unet))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"]))
    after = Targets(view(unet))
    target = after.find(f"unet.{BLOCK}.attn1.to_q")
    assert target is not None
    assert target.module is layer
    assert target == before.find(f"unet.{BLOCK}.attn1.to_q")
    assert after.find(f"unet.{BLOCK}.attn1.to_q.lora_A.default") is None


def test_a_whole_model_that_peft_has_wrapped() -> None:
    from peft import LoraConfig, get_peft_model

    model = Model(to_q=linear())
    layer = model.to_q
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["to_q"]))
    for stem in ("base_model.model.to_q", "to_q", "lora_unet_to_q"):
        target = Targets(view(wrapped)).find(stem)
        assert target is not None
        assert target.module is layer


def test_a_module_on_two_paths_is_one_place_with_both_names() -> None:
    shared = linear()
    found = targets_of(unet=Model(first=shared, second=Model(inner=shared)))
    assert found.find("lora_unet_first") == found.find("lora_unet_second_inner")
    assert place(found, "lora_unet_first") == "unet.first"


def test_one_place_under_two_prefixes_is_found() -> None:
    shared = linear()
    found = targets_of(unet=Model(proj=shared, unet=Model(proj=shared)))
    assert place(found, "unet.proj") == "unet.proj"  # the component's prefix, or a path of its own


def test_tied_weights_are_two_places_with_one_parameter() -> None:
    first, second = linear(), linear()
    second.weight = first.weight
    found = targets_of(unet=Model(first=first, second=second))
    one, two = found.find("unet.first"), found.find("unet.second")
    assert one is not None and two is not None
    assert one != two
    assert one.module.weight is two.module.weight


def test_a_cycle_of_modules_ends() -> None:
    child = Model(to_q=linear())
    child.add_module("parent", child)
    assert place(targets_of(unet=Model(child=child)), "unet.child.to_q") == "unet.child.to_q"


def test_what_owns_no_weight_is_no_place() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0))

    found = targets_of(unet=Model(act=nn.GELU(), bare=nn.LayerNorm(2, elementwise_affine=False), scale=Scale()))
    assert [found.find(f"unet.{name}") for name in ("act", "bare", "scale")] == [None] * 3


def test_norms_embeddings_and_quantised_weights_are_places() -> None:
    quantised = linear()
    quantised.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    found = targets_of(unet=Model(norm=nn.LayerNorm(2), table=nn.Embedding(3, 2), quantised=quantised))
    assert all(found.find(f"unet.{name}") is not None for name in ("norm", "table", "quantised"))


def test_a_weight_that_is_computed_is_a_place() -> None:
    layer = torch.nn.utils.parametrizations.orthogonal(linear())
    target = targets_of(unet=Model(proj=layer, absent=nn.Identity())).find("unet.proj")
    assert target is not None
    assert target.module is layer


def test_targets_are_equal_by_place() -> None:
    first, second = linear(), linear()
    one, other = Target("unet", "a", weakref.ref(first)), Target("unet", "a", weakref.ref(second))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Target("unet", "b", one.reference) != Target("unet", "b", one.reference, "bias")


def test_places_do_not_keep_the_model() -> None:
    layer = linear()
    target = targets_of(unet=Model(proj=layer)).find("unet.proj")
    del layer
    assert target is not None
    with pytest.raises(ReferenceError, match=r"unet\.proj is gone"):
        _ = target.module


def test_places_fit_while_the_modules_are_the_same() -> None:
    model = Model(proj=linear(), deep=nn.Sequential(linear(), linear()))
    targets, viewed = targets_of(unet=model), ModelView({"unet": model}, "", "pipeline")
    assert targets.fits(look_at(viewed))
    model.deep[1] = linear()
    assert not targets.fits(look_at(viewed))
    assert not targets.fits(look_at(ModelView({"unet": model, "prior": linear()}, "", "pipeline")))


def test_the_fused_weight_of_an_attention_and_its_projection_are_two_places() -> None:
    attention = nn.MultiheadAttention(4, 2)
    found = targets_of(unet=Model(attn=attention))
    fused, projection = found.find("unet.attn"), found.find("unet.attn.out_proj")
    assert fused is not None and projection is not None
    assert (fused.module, fused.parameter, fused.role("bias")) == (attention, "in_proj_weight", ("in_proj_bias", WHOLE))
    assert (projection.module, projection.parameter) == (attention.out_proj, "weight")


def test_the_bias_of_a_place_is_beside_its_weight() -> None:
    target = targets_of(unet=Model(proj=linear())).find("unet.proj")
    assert target is not None
    assert target.role("weight") == ("weight", WHOLE)
    assert target.role("bias") == ("bias", WHOLE)
    part = replace(target, part=Part(1, 3, swapped=True, inputs=4, transposed=True))
    assert part.role("bias") == ("bias", Part(1, 3, swapped=True))
    assert str(part) == "unet.proj (2/3)"
    assert replace(target, parameter="text_projection").role("bias") is None


def test_bare_parameters_of_open_clip_are_places_under_their_own_names() -> None:
    model = Model(transformer=Model(resblocks=nn.ModuleList([Model(ln_1=nn.LayerNorm(2))])))
    model.positional_embedding = nn.Parameter(torch.zeros(3, 2))
    model.logit_scale = nn.Parameter(torch.ones(()))
    found = targets_of(text_encoder=model)
    target = found.find("text_encoder.text_model.embeddings.position_embedding")
    assert target is not None
    assert (target.module, target.parameter, target.path) == (model, "positional_embedding", "positional_embedding")
    assert found.find("text_encoder.logit_scale") is None


def test_the_scale_of_a_norm_is_its_weight_unless_it_has_one() -> None:
    norm, scaled = Model(), linear()
    norm.scale = nn.Parameter(torch.ones(4))
    scaled.scale = nn.Parameter(torch.ones(2))  # type: ignore[assignment]
    found = targets_of(unet=Model(key_norm=norm, proj=scaled))
    target, other = found.find("unet.key_norm"), found.find("unet.proj")
    assert target is not None and other is not None
    assert (target.role("weight"), target.role("bias")) == (("scale", WHOLE), None)
    assert other.parameter == "weight"


def test_a_layer_that_only_wraps_another_leaves_no_name() -> None:
    inner = linear()
    assert place(targets_of(unet=Model(proj=Model(wrapped=inner))), "unet.proj") == "unet.proj"
    beside = Model(proj=Model(wrapped=linear(), other=linear()))
    assert place(targets_of(unet=beside), "unet.proj.wrapped") == "unet.proj.wrapped"


def test_parts_of_one_parameter_are_different_places() -> None:
    layer = Model(ln_1=nn.LayerNorm(4), attn=nn.MultiheadAttention(4, 2))
    found = targets_of(text_encoder=Model(transformer=Model(resblocks=nn.ModuleList([layer]))))
    names = [f"text_encoder.text_model.encoder.layers.0.self_attn.{name}_proj" for name in "qkv"]
    q, k, v = (found.find(name) for name in names)
    assert q is not None and k is not None and v is not None
    assert len({q, k, v}) == 3
    assert q.module is k.module is v.module is layer.attn
    assert [str(target) for target in (q, v)] == [f"text_encoder.transformer.resblocks.0.attn ({i}/3)" for i in (1, 3)]


def test_what_a_model_was_wrapped_in_while_it_was_saved_means_nothing() -> None:
    found = targets_of(transformer=Model(blocks=Model(to_q=linear())))
    for stem in (
        *(
            "blocks.to_q",
            "blocks.to_q_",
            "lora_unet_blocks_to_q_",
            "lora_transformer_blocks_to_q",
            "lora_flux_blocks_to_q",
        ),
        *("transformer.blocks.to_q", "unet.blocks.to_q", "transformer.transformer.blocks.to_q"),
        *("pipe.dit.blocks.to_q", "dit.blocks.to_q", "net.blocks.to_q", "base_model.model.net.blocks.to_q"),
        *("model.blocks.to_q", "base_model.model.model.blocks.to_q", "module.blocks.to_q", "_orig_mod.blocks.to_q"),
        *("diffusion_model.base_model.model.blocks.to_q", "base_model.model.diffusion_model.blocks.to_q"),
        *("transformer._orig_mod.blocks.to_q", "module.transformer.module.blocks.to_q"),
    ):
        assert place(found, stem) == "transformer.blocks.to_q", stem


def test_a_wrapper_that_is_a_module_of_the_model_is_that_module() -> None:
    found = targets_of(transformer=Model(model=Model(to_q=linear()), to_q=linear()))
    assert place(found, "model.to_q") == "transformer.model.to_q"
    assert place(found, "transformer.to_q") == "transformer.to_q"


def test_motion_modules_go_by_the_names_of_animatediff() -> None:
    block = Model(
        attn1=Model(to_q=linear(), to_out=nn.ModuleList([linear()])), attn2=Model(to_q=linear()), norm3=linear()
    )
    module = Model(transformer_blocks=nn.ModuleList([block]), proj_in=linear())
    found = targets_of(unet=Model(mid_block=Model(motion_modules=nn.ModuleList([module]))))
    ours, theirs = "mid_block.motion_modules.0", "mid_block.motion_modules.0.temporal_transformer"
    for name, path in {
        "transformer_blocks.0.attention_blocks.0.processor.to_q": "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.0.attention_blocks.0.processor.to_out": "transformer_blocks.0.attn1.to_out.0",
        "transformer_blocks.0.attention_blocks.1.to_q": "transformer_blocks.0.attn2.to_q",
        "transformer_blocks.0.ff_norm": "transformer_blocks.0.norm3",
        "proj_in": "proj_in",
    }.items():
        for wrapper in ("", "module."):
            assert place(found, f"{wrapper}{theirs}.{name}") == f"unet.{ours}.{path}"
