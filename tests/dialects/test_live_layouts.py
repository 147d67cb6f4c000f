"""Models that are built otherwise than in diffusers: names lead to the values that diffusers' converters put there.

The converters of single-file checkpoints know independently what of an original parameter becomes which new one. The
models have random weights, so equal values are the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_ldm
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Factors
from lora_runtime.dialects import WHOLE, Part, normalise, spellings
from lora_runtime.dialects.open_clip import OPEN_CLIP
from lora_runtime.families.sd3 import SD3_NAMES
from lora_runtime.families.unet import UNET_NAMES
from lora_runtime.merge import Term, merge_into
from lora_runtime.pipelines import view
from lora_runtime.targets import Targets


class Witness(Adapter):
    """Changes nothing and keeps what it was given as its weight."""

    algorithm = "witness"

    def misfit(self, shape: torch.Size) -> str | None:
        return None

    def factors(self) -> Factors | None:
        return None

    def delta(self, weight: Tensor) -> Tensor:
        self.seen = weight.clone()
        return torch.zeros_like(weight)


def seen_by_name(targets: Targets, stem: str, role: str) -> Tensor:
    """Return what an adapter of that name sees as its weight or bias."""
    target = targets.find(stem)
    assert target is not None, targets.reason(stem)
    found = target.role(role)
    assert found is not None, f"{stem} has no {role}"
    weight = getattr(target.module, found[0]).data
    witness = Witness()
    merge_into(torch.empty_like(weight), weight, [Term(witness, 1.0, part=found[1])])
    return witness.seen


def assert_all_found(targets: Targets, prefix: str, converted: Mapping[str, Tensor]) -> None:
    """Hold what each name leads to against what a converter put there."""
    assert converted
    for name, tensor in converted.items():
        path, _, role = name.rpartition(".")
        assert torch.equal(seen_by_name(targets, prefix + path, role), tensor), name


UNETS = ["sd1", "sd2", "sdxl", "refiner"]


def converted_unet(kind: str, unet: nn.Module) -> dict[str, Tensor]:
    config = {"layers_per_block": 2, "class_embed_type": None, "num_class_embeds": None, "addition_embed_type": None}
    if tiny_ldm.TINY[kind].vector:
        config["addition_embed_type"] = "text_time"
    found: dict[str, Tensor] = convert_ldm_unet_checkpoint(tiny_ldm.state(unet, "model.diffusion_model."), config)
    return found


@pytest.mark.quick
@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("prefix", ["lora_unet_", "unet.", "", "base_model.model.unet."])
def test_a_live_original_unet_answers_to_the_names_of_diffusers(kind: str, prefix: str) -> None:
    model = tiny_ldm.model(kind)
    unet: Any = view(model).components["unet"]
    converted = converted_unet(kind, unet)
    assert len(converted) == len(unet.state_dict())
    assert_all_found(Targets(view(model)), prefix, converted)


@pytest.mark.quick
@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", "model.diffusion_model.", "oft_unet_"])
def test_a_live_original_unet_answers_to_its_own_names(kind: str, prefix: str) -> None:
    model = tiny_ldm.model(kind)
    assert_all_found(Targets(view(model)), prefix, tiny_ldm.state(view(model).components["unet"]))


@pytest.mark.parametrize("kind", UNETS)
def test_the_two_directions_between_ldm_and_diffusers_agree_at_the_real_sizes(kind: str) -> None:
    with torch.device("meta"):
        paths = tiny.weighted_paths(tiny_ldm.unet(tiny_ldm.REAL[kind]))
    pairs = [(path, theirs) for path, theirs, part in UNET_NAMES.translations(paths) if part == WHOLE]
    assert {path for path, _ in pairs} == set(paths)
    back = dict(UNET_NAMES.spellings([theirs for _, theirs in pairs]))
    assert [(path, theirs) for path, theirs in pairs if back[theirs] != path] == []
    if kind != "refiner":
        assert set(tiny.weighted_paths(tiny.real_unet(kind))) <= {theirs for _, theirs in pairs}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_key_of_a_kohya_file_for_the_pipeline_finds_its_module_in_the_original_model(
    kind: tiny.Kind, tmp_path: Any
) -> None:
    keys = tiny.write_kohya_lora(tmp_path / "a.safetensors", tiny.pipeline(kind))
    targets = Targets(view(tiny_ldm.model(kind)))
    assert [stem for stem in tiny_ldm.stems(keys) if targets.find(stem) is None] == []


def converted_open_clip(encoder: nn.Module) -> dict[str, Tensor]:
    prefix = "conditioner.embedders.1.model."  # under that of SD2 it leaves the projection out
    found: dict[str, Tensor] = convert_open_clip_checkpoint(
        SimpleNamespace(config=SimpleNamespace()), tiny_ldm.state(encoder, prefix), prefix
    )
    return found


@pytest.mark.parametrize(
    ("kind", "component", "prefix"),
    [
        ("sd2", "text_encoder", "lora_te_"),
        ("sd2", "text_encoder", "text_encoder."),
        ("sd2", "text_encoder", "oft_te_"),
        ("sdxl", "text_encoder_2", "lora_te2_"),
        ("sdxl", "text_encoder_2", "text_encoder_2."),
        ("refiner", "text_encoder_2", "lora_te2_"),
    ],
)
def test_a_live_open_clip_encoder_answers_to_the_names_of_transformers(kind: str, component: str, prefix: str) -> None:
    model = tiny_ldm.model(kind)
    encoder: Any = view(model).components[component]
    converted = converted_open_clip(encoder)
    names = {"text_model.encoder.layers.1.self_attn.k_proj.bias", "text_projection.weight"}
    assert names < set(converted)
    assert_all_found(Targets(view(model)), prefix, converted)


def test_a_live_open_clip_encoder_answers_to_the_older_names_of_transformers() -> None:
    targets = Targets(view(tiny_ldm.model("sd2")))
    for new, old in (("self_attn.q_proj", "self_attn.to_q"), ("self_attn.out_proj", "self_attn.to_out")):
        expected = targets.find(f"text_encoder.text_model.encoder.layers.0.{new}")
        assert expected is not None
        assert targets.find(f"text_encoder.text_model.encoder.layers.0.{old}") == expected
        assert targets.find(f"text_encoder.encoder.layers.0.{new}") == expected


@pytest.mark.parametrize("prefix", ["cond_stage_model.model.", "lora_te_"])
def test_a_live_open_clip_encoder_answers_to_its_own_names(prefix: str) -> None:
    model = tiny_ldm.model("sd2")
    own = tiny_ldm.state(view(model).components["text_encoder"])
    named = {name: tensor for name, tensor in own.items() if name.endswith((".weight", ".bias"))}
    assert len(named) == 2 * (6 + 4) + 3 - 4 + 4  # two layers of ten, the table of tokens and the last norm
    assert_all_found(Targets(view(model)), prefix, named)


@pytest.mark.parametrize("dual", [0, 1])
@pytest.mark.parametrize("prefix", ["transformer.", "lora_transformer_", "base_model.model.transformer.", "lora_unet_"])
def test_a_live_mmdit_answers_to_the_names_of_diffusers(prefix: str, dual: int) -> None:
    model = tiny_ldm.model("sd3")
    if dual:
        model.model.diffusion_model = tiny_ldm.mmdit(depth=3, dual=dual)  # type: ignore[union-attr]
    mmdit: Any = view(model).components["transformer"]
    converted = convert_sd3_transformer_checkpoint_to_diffusers(tiny_ldm.state(mmdit))
    del converted["pos_embed.pos_embed"]  # a buffer
    assert ("transformer_blocks.0.attn2.to_k.weight" in converted) == bool(dual)
    assert_all_found(Targets(view(model)), prefix, converted)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", "model.diffusion_model."])
def test_a_live_mmdit_answers_to_its_own_names(prefix: str) -> None:
    model = tiny_ldm.model("sd3")
    own = tiny_ldm.state(view(model).components["transformer"])
    del own["pos_embed"]
    assert_all_found(Targets(view(model)), prefix, own)


def sd3_encoders() -> Iterator[tuple[str, str, str]]:
    for component, short, name in (
        ("text_encoder", "lora_te1_", "clip_l"),
        ("text_encoder_2", "lora_te2_", "clip_g"),
        ("text_encoder_3", "lora_te3_", "t5xxl"),
    ):
        yield component, short, name
        yield component, f"{component}.", name
        yield component, f"text_encoders.{name}.transformer.", name


@pytest.mark.parametrize(("component", "prefix", "name"), list(sd3_encoders()))
def test_the_three_text_encoders_of_sd3(component: str, prefix: str, name: str) -> None:
    model: Any = tiny_ldm.model("sd3")
    encoder = getattr(model.text_encoders, name).transformer
    assert view(model).components[component] is encoder
    assert_all_found(Targets(view(model)), prefix, tiny_ldm.state(encoder))


@pytest.mark.parametrize("hijacked", [True, False])
def test_a_first_text_encoder_keeps_its_names_under_the_wrappers_of_the_webui(hijacked: bool) -> None:
    for kind, prefixes in (("sd1", ("lora_te_", "cond_stage_model.transformer.")), ("sdxl", ("lora_te1_",))):
        model = tiny_ldm.model(kind, hijacked=hijacked)
        for prefix in (*prefixes, "text_encoder."):
            assert_all_found(Targets(view(model)), prefix, tiny_ldm.state(view(model).components["text_encoder"]))


# ---- walks, read by a person -----------------------------------------------------------------------------------------


def test_any_number_of_layers_and_a_middle_of_one_block_are_walked() -> None:
    paths = [
        "input_blocks.0.0",
        "input_blocks.1.0.in_layers.2",
        "input_blocks.1.1.proj_in",
        # input_blocks.2 is a sampler without weights
        "input_blocks.3.0.out_layers.3",
        "middle_block.0.in_layers.0",
        "output_blocks.0.0.skip_connection",
        "output_blocks.0.0.in_layers.0",
        "output_blocks.0.1.conv",
        "output_blocks.1.0.in_layers.0",
        "output_blocks.1.1.proj_out",
    ]
    found = {path: theirs for path, theirs, _ in UNET_NAMES.translations(paths)}
    assert found == {
        "input_blocks.0.0": "conv_in",
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
        "input_blocks.3.0.out_layers.3": "down_blocks.1.resnets.0.conv2",
        "middle_block.0.in_layers.0": "mid_block.resnets.0.norm1",
        "output_blocks.0.0.skip_connection": "up_blocks.0.resnets.0.conv_shortcut",
        "output_blocks.0.0.in_layers.0": "up_blocks.0.resnets.0.norm1",
        "output_blocks.0.1.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.1.0.in_layers.0": "up_blocks.1.resnets.0.norm1",
        "output_blocks.1.1.proj_out": "up_blocks.1.attentions.0.proj_out",
    }


def test_other_models_have_no_translations() -> None:
    paths = ["encoder.layers.0.mlp.fc1", "transformer.h.0.attn", "conv_in", "out.0", "down_blocks.0.resnets.0.conv1"]
    for dialect in (UNET_NAMES, OPEN_CLIP, SD3_NAMES):
        assert list(dialect.translations(paths)) == []


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_translations_stand_for_one_path_each_and_no_name_is_ambiguous(kind: str) -> None:
    for component in view(tiny_ldm.model(kind)).components.values():
        paths = tiny.weighted_paths(component)
        meant: dict[str, set[tuple[str, Part]]] = {}
        for path, name, part in spellings(paths):
            meant.setdefault(normalise(name), set()).add((path, part))
        assert [name for name, found in meant.items() if len(found) > 1] == []


def test_a_part_shares_elements_with_the_whole_and_with_itself() -> None:
    assert Part(0, 3).overlaps(Part(0, 3)) and Part(0, 3).overlaps(WHOLE) and WHOLE.overlaps(Part(2, 3))
    assert not Part(0, 3).overlaps(Part(1, 3))
    assert str(Part(1, 3)) == "2/3"
