"""Where a region and the rows of a call lie in the layers of real (tiny) denoisers, against the formula at each layer.

The judge adds Δ·x to the output of each changed layer by a hook of its own, with a mask that is written down here for
each family: which tokens of which layer are the picture's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

# diffusers 0.42 makes Chroma of a name that it has given up.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
HEIGHT, WIDTH, FRAMES, WORDS = 4, 6, 3, 5
PICTURE = HEIGHT * WIDTH
_GENERATOR = torch.Generator()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR.manual_seed(seed))


def ids(height: int, width: int, number: int = 0, more: int = 0) -> Tensor:
    places = torch.cartesian_prod(
        torch.tensor([float(number)]), torch.arange(height).float(), torch.arange(width).float()
    )
    return torch.cat([places, torch.zeros(len(places), more)], dim=1)


FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
}


def flux(references: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.FluxTransformer2DModel(in_channels=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), **FLUX)
    places = [ids(HEIGHT, WIDTH), *(ids(3, 5, number + 1) for number in range(references))]
    return net, {
        "hidden_states": rand(1, sum(map(len, places)), 16),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "pooled_projections": rand(1, 16, seed=2),
        "img_ids": torch.cat(places),
        "txt_ids": torch.zeros(WORDS, 3),
    }


def chroma() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.ChromaTransformer2DModel(
        in_channels=16, axes_dims_rope=(4, 6, 6), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1, **FLUX,
    )  # fmt: skip
    _, call = flux()
    del call["pooled_projections"]
    return net, call


def flux_2() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.Flux2Transformer2DModel(
        in_channels=16, axes_dims_rope=(4, 4, 4, 4), timestep_guidance_channels=16, guidance_embeds=False, **FLUX
    )
    places = [ids(HEIGHT, WIDTH, 0, 1), ids(3, 5, 10, 1)]
    _, call = flux()
    del call["pooled_projections"]
    call |= {"hidden_states": rand(1, PICTURE + 15, 16), "img_ids": torch.cat(places), "txt_ids": torch.zeros(WORDS, 4)}
    return net, call


def qwen(references: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, PICTURE + 15 * references, 16),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "encoder_hidden_states_mask": torch.ones(1, WORDS, dtype=torch.int64),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, HEIGHT, WIDTH), *[(1, 3, 5)] * references]],
    }


def ltx() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, FRAMES * PICTURE, 16),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "timestep": torch.tensor([500]),
        "encoder_attention_mask": torch.ones(1, WORDS),
        "num_frames": FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
    }


def hunyuan_video() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=False, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "encoder_attention_mask": torch.ones(1, WORDS),
        "pooled_projections": rand(1, 8, seed=2),
    }


def cogvideox() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=1, sample_width=2 * WIDTH, sample_height=2 * HEIGHT, sample_frames=9,
        max_text_seq_length=WORDS,
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, FRAMES, 4, 2 * HEIGHT, 2 * WIDTH),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
    }


def wan() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=64, num_layers=1,
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
    }


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=16,
        pos_embed_max_size=16,
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "pooled_projections": rand(1, 16, seed=2),
        "timestep": torch.tensor([500]),
    }


def aura_flow() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=32, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "timestep": torch.tensor([0.5]),
    }


def lumina_2() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=1, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=2, multiple_of=16, cap_feat_dim=16, axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 64, 64),
    )  # fmt: skip
    return net, {
        "hidden_states": rand(1, 4, 2 * HEIGHT, 2 * WIDTH),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": rand(1, WORDS, 16, seed=1),
        "encoder_attention_mask": torch.ones(1, WORDS, dtype=torch.bool),
    }


def z_image() -> tuple[nn.Module, dict[str, Any]]:
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[64, 64, 64],
    )  # fmt: skip
    return net, {
        "x": [rand(4, 1, 2 * HEIGHT, 2 * WIDTH)],
        "t": torch.tensor([0.5]),
        "cap_feats": [rand(WORDS, 16, seed=1)],
    }


# The spans of tokens that a layer sees, by how many they are: True the picture's, False others'.
P, V, T = (PICTURE, True), (FRAMES * PICTURE, True), (WORDS, False)
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, dict[str, Any]]], list[list[tuple[int, bool]]]]] = {
    "Flux": (flux, [[P], [T, P]]),
    "Flux Kontext": (lambda: flux(1), [[P, (15, False)], [T, P, (15, False)]]),
    "Flux with two pictures": (lambda: flux(2), [[P, (30, False)], [T, P, (30, False)]]),
    "Flux 2 with a picture": (flux_2, [[P, (15, False)], [T, P, (15, False)]]),
    "Chroma": (chroma, [[P], [T, P]]),
    "Qwen-Image": (qwen, [[P]]),
    "Qwen-Image-Edit": (lambda: qwen(1), [[P, (15, False)]]),
    "Qwen-Image-Edit-Plus": (lambda: qwen(2), [[P, (30, False)]]),
    "LTX": (ltx, [[V]]),
    "HunyuanVideo": (hunyuan_video, [[V], [V, T]]),
    "CogVideoX": (cogvideox, [[T, V]]),
    "Wan": (wan, [[V]]),
    "SD3": (sd3, [[P]]),
    "AuraFlow": (aura_flow, [[P], [(WORDS + 8, False), P]]),
    "Lumina 2": (lumina_2, [[P], [T, P]]),
    "Z-Image": (z_image, [[P, (8, False)], [P, (8 + 32, False)]]),
}
_CHANGED = ("attn.to_q", "attn.to_v", "attn1.to_q", "attn1.to_v", "attention.to_q", "attention.to_v", "proj_mlp")
_TEXT = ("context", "refiner_blocks")


def prepared(name: str) -> tuple[nn.Module, dict[str, Any], list[list[tuple[int, bool]]]]:
    make, sequences = CASES[name]
    net, call = make()
    for number, parameter in enumerate(net.parameters()):
        parameter.data = rand(*parameter.shape, seed=number) * 0.2 if parameter.ndim > 1 else parameter.data
    return net.eval().requires_grad_(False), call, sequences


def changed(net: nn.Module) -> dict[str, nn.Linear]:
    return {
        path: module
        for path, module in net.named_modules()
        if isinstance(module, nn.Linear) and path.endswith(_CHANGED) and not any(piece in path for piece in _TEXT)
    }


def write(net: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Write a LoRA for the changed layers; return the deltas."""
    tensors, deltas = {}, {}
    for number, (path, module) in enumerate(changed(net).items()):
        down, up = rand(2, module.in_features, seed=number) * 0.3, rand(module.out_features, 2, seed=number + 1) * 0.3
        tensors |= {f"transformer.{path}.lora_A.weight": down, f"transformer.{path}.lora_B.weight": up}
        deltas[path] = up @ down
    assert deltas
    save_file(tensors, folder / "ink.safetensors")
    return deltas


def output(net: nn.Module, call: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found = net(**call, return_dict=False)[0]
    return torch.stack(found) if isinstance(found, list) else found


def judged(net: nn.Module, call: dict[str, Any], deltas: dict[str, Tensor], mask: Callable[[int], Tensor]) -> Tensor:
    """Return the output with Δ·x added in each changed layer, weighed by the mask for its number of tokens."""
    handles = [
        changed(net)[path].register_forward_hook(
            lambda _, args, out, delta=delta: out + mask(args[0].shape[1])[None, :, None] * (args[0] @ delta.t())
        )
        for path, delta in deltas.items()
    ]
    try:
        return output(net, call)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_a_region_acts_on_the_picture_s_tokens_inside_of_it_and_on_no_others(name: str, tmp_path: Path) -> None:
    net, call, sequences = prepared(name)
    deltas = write(net, tmp_path)
    inside = torch.zeros(HEIGHT, WIDTH)
    inside[:, WIDTH // 2 :] = 1

    def mask(tokens: int) -> Tensor:
        (sequence,) = [spans for spans in sequences if sum(count for count, _ in spans) == tokens]
        return torch.cat(
            [
                inside.flatten().repeat(count // PICTURE) if picture else torch.zeros(count)
                for count, picture in sequence
            ]
        )

    expected, plain = judged(net, call, deltas, mask), output(net, call)
    pipe = SimpleNamespace(components={"transformer": net})
    with lora_runtime.apply(pipe, "<lora:ink:1:box=0.5,0,1,1>", loras=tmp_path) as applied:
        got = output(net, call)
    assert applied.diagnostics == ()
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["Flux Kontext", "Wan", "Z-Image"])
def test_a_region_that_is_the_whole_picture_is_none(name: str, tmp_path: Path) -> None:
    net, call, _ = prepared(name)
    write(net, tmp_path)
    pipe = SimpleNamespace(components={"transformer": net})
    with lora_runtime.apply(pipe, "<lora:ink:0.5>", loras=tmp_path):
        expected = output(net, call)
    with lora_runtime.apply(pipe, "<lora:ink:0.5:box=0,0,1,1>", loras=tmp_path):
        assert torch.equal(output(net, call), expected)


@pytest.mark.parametrize("name", ["Qwen-Image", "LTX", "Wan", "SD3"])
def test_two_halves_are_the_whole_where_layers_see_the_picture_alone(name: str, tmp_path: Path) -> None:
    net, call, _ = prepared(name)
    write(net, tmp_path)
    pipe = SimpleNamespace(components={"transformer": net})
    with lora_runtime.apply(pipe, "<lora:ink:0.5>", loras=tmp_path):
        expected = output(net, call)
    halves = "<lora:ink:0.5:box=0,0,0.5,1><lora:ink:0.5:box=0.5,0,1,1>"
    with lora_runtime.apply(pipe, halves, loras=tmp_path):
        torch.testing.assert_close(output(net, call), expected, rtol=1e-3, atol=1e-4)


class Pipeline:
    """A pipeline as the library sees one."""

    def __init__(self, net: nn.Module, guided: bool) -> None:
        self.components = {"transformer": net}
        self.do_classifier_free_guidance = guided


def stacked(call: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return one call of two rows: those of two calls, one after the other."""
    alone = ("img_ids", "txt_ids", "num_frames", "height", "width")
    return {
        key: value
        if key in alone
        else value + other[key]
        if isinstance(value, list)
        else torch.cat([value, other[key]])
        for key, value in call.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_each_image_of_a_batch_is_as_if_painted_alone(name: str, tmp_path: Path) -> None:
    net, call, _ = prepared(name)
    write(net, tmp_path)
    both, pipe = stacked(call, call), Pipeline(net, guided=False)
    plain = output(net, call)
    with lora_runtime.apply(pipe, "<lora:ink>", loras=tmp_path):
        changed_ = output(net, call)
    with lora_runtime.apply(pipe, ["a", "b <lora:ink>"], loras=tmp_path) as applied:
        got = output(net, both)
    assert applied.diagnostics == ()
    torch.testing.assert_close(got, torch.cat([plain, changed_]), rtol=1e-3, atol=1e-4)


FIRST = ("Z-Image",)
STACKED = ("LTX", "CogVideoX", "SD3", "AuraFlow", *FIRST)


@pytest.mark.parametrize("name", CASES)
def test_a_tag_of_the_negative_side_changes_that_side_alone(name: str, tmp_path: Path) -> None:
    net, call, _ = prepared(name)
    write(net, tmp_path)
    text = "cap_feats" if name == "Z-Image" else "encoder_hidden_states"
    words = [rand(WORDS, 16, seed=9)] if name == "Z-Image" else rand(1, WORDS, 16, seed=9)
    negative = {**call, text: words}
    pipe = Pipeline(net, guided=True)
    with lora_runtime.apply(pipe, "<lora:ink>", loras=tmp_path):
        changed_ = output(net, negative)
    expected = [output(net, call), changed_]
    with lora_runtime.apply(pipe, "a", negative_prompt="<lora:ink>", negative_tags="apply", loras=tmp_path) as applied:
        if name in FIRST:
            got = list(output(net, stacked(call, negative)).chunk(2))
        elif name in STACKED:
            got = list(output(net, stacked(negative, call)).chunk(2))[::-1]
        else:
            got = [output(net, call), output(net, negative)]
    assert applied.diagnostics == ()
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_what_no_family_describes_is_refused_with_the_pipeline_s_name(tmp_path: Path) -> None:
    class SomebodysTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn1 = nn.ModuleDict({"to_q": nn.Linear(8, 8)})

    net = SomebodysTransformer()
    write(net, tmp_path)
    for tag in ("<lora:ink:1:box=0,0,0.5,1>", "<lora:ink:0.5>"):
        prompts: Any = [tag, "b"] if "box" not in tag else tag
        with lora_runtime.apply(Pipeline(net, guided=False), prompts, loras=tmp_path) as applied:
            assert applied.report.live == 0
        (diagnostic,) = applied.diagnostics
        assert diagnostic.severity == "warning"
        assert "SomebodysTransformer in a Pipeline" in diagnostic.message
        assert "left out" in diagnostic.message


def test_what_only_a_call_shows_is_among_the_diagnostics_after_it(tmp_path: Path) -> None:
    """Places of tokens that are no grid's."""
    net, call = flux()
    write(net, tmp_path)
    call["img_ids"] = call["img_ids"].flip(0)
    for _ in range(2):
        with lora_runtime.apply(Pipeline(net, guided=False), "<lora:ink:1:box=0,0,0.5,1>", loras=tmp_path) as applied:
            before = applied.diagnostics
            output(net, call)
        said = [found.message for found in applied.diagnostics if found not in before]
        assert any('"ink": where the picture lies' in message and "left out" in message for message in said)


def test_a_pipeline_whose_calls_do_not_say_where_the_picture_lies_is_refused_a_region(tmp_path: Path) -> None:
    class LTXConditionPipeline(Pipeline): ...

    net, _ = ltx()
    write(net, tmp_path)
    with lora_runtime.apply(LTXConditionPipeline(net, False), "<lora:ink:1:box=0,0,0.5,1>", loras=tmp_path) as applied:
        assert applied.report.live == 0
    assert any("LTXConditionPipeline do not say" in found.message for found in applied.diagnostics)
