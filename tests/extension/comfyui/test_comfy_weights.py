"""What the weights of clones are: the program keeps them, replaces its parameters, and may write none at all."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double.loras import File, differences, patched, write
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from comfyui.program import Comfy

LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def wrong(comfy: Comfy, shown: tuple[Any, ...], *files: tuple[File, float] | tuple[File, float, float]) -> list[str]:
    """Return the names of the weights that a model and its text encoders do not have when they are loaded."""
    return differences(comfy.loaded(*shown[:2]), comfy.plain(), patched(comfy.plain(), files))


def test_a_text_gives_clones_with_its_loras(comfy: Comfy, ink: File, wash: File) -> None:
    shown = comfy.tags("a cat <lora:ink:0.7> on a wall <lora:style/wash:-0.4>")
    assert shown[2] == "a cat  on a wall "
    assert wrong(comfy, shown, (ink, 0.7), (wash, -0.4)) == []
    assert "LoRA" not in shown[3]
    assert "ink × 0.7: " in shown[3]


def test_what_comes_in_stays_as_it_is(comfy: Comfy, ink: File) -> None:
    comfy.loaded(*comfy.tags("<lora:ink:0.7>")[:2])
    assert wrong(comfy, (comfy.model, comfy.clip)) == []
    assert comfy.model.patches == {} == comfy.clip.patcher.patches
    assert comfy.tags("no tag")[:2] == (comfy.model, comfy.clip)


def test_of_two_numbers_the_first_is_the_models(comfy: Comfy, ink: File) -> None:
    assert wrong(comfy, comfy.tags("<lora:ink:0.2:0.9>"), (ink, 0.9, 0.2)) == []
    assert wrong(comfy, comfy.tags("<lora:ink:0.2:0.9>", dialect="a1111"), (ink, 0.2, 0.9)) == []


def test_the_order_of_tags_and_of_nodes_changes_no_bit(comfy: Comfy, ink: File, wash: File) -> None:
    one = comfy.loaded(*comfy.tags("<lora:ink:0.7><lora:wash:0.4>")[:2])
    model, clip, *_ = comfy.tags("<lora:wash:0.4>")
    other = comfy.loaded(*comfy.tags("<lora:ink:0.7>", model, clip)[:2])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_lora_in_two_nodes_is_the_sum_of_its_strengths(comfy: Comfy, ink: File) -> None:
    model, clip, *_ = comfy.tags("<lora:ink:0.3>")
    assert wrong(comfy, comfy.tags("<lora:ink:0.4>", model, clip), (ink, 0.7)) == []
    # A model and text encoders that come from two nodes have each their own.
    assert wrong(comfy, comfy.tags("<lora:ink:0.4>", model), (ink, 0.4, 0.7)) == []


def test_a_node_without_text_encoders_leaves_them_alone(comfy: Comfy, ink: File) -> None:
    node = comfy.nodes["LoraRuntimeTags"]()
    model, clip, _, report = node.apply(model=comfy.model, text="<lora:ink:0.7>")
    assert clip is None
    assert wrong(comfy, (model, comfy.clip), (ink, 0.0, 0.7)) == []
    assert "for text_encoder" in report


def test_several_clones_are_alive_at_once(comfy: Comfy, ink: File, wash: File) -> None:
    first, second = comfy.tags("<lora:ink:0.7>"), comfy.tags("<lora:wash:0.4>")
    for _ in range(2):
        assert wrong(comfy, first, (ink, 0.7)) == []
        assert wrong(comfy, second, (wash, 0.4)) == []
        assert wrong(comfy, (comfy.model, comfy.clip)) == []


def test_a_tag_that_cannot_be_used_costs_itself(comfy: Comfy, ink: File, capsys: pytest.CaptureFixture[str]) -> None:
    (comfy.loras / "broken.safetensors").write_bytes(b"nothing")
    shown = comfy.tags("<lora:ink:0.7><lora:broken:1><lora:absent:1><lora:ink:x>")
    assert wrong(comfy, shown, (ink, 0.7)) == []
    assert shown[3].count("LoRA error") == 3
    assert capsys.readouterr().out.count("[lora-runtime] LoRA error") == 3


def test_equal_requests_load_nothing_again(comfy: Comfy, ink: File, wash: File) -> None:
    comfy.loaded(*comfy.tags("a cat <lora:ink:0.7><lora:wash:0.4>")[:2])
    before = comfy.model.model.loads, comfy.clip.patcher.model.loads
    comfy.loaded(*comfy.tags("a dog <lora:wash:0.4><lora:ink:0.7>")[:2])
    assert (comfy.model.model.loads, comfy.clip.patcher.model.loads) == before
    comfy.loaded(*comfy.tags("a dog <lora:wash:0.4><lora:ink:0.7:0.8>")[:2])
    assert (comfy.model.model.loads, comfy.clip.patcher.model.loads) == (before[0], before[1] + 1)


@pytest.mark.parametrize("free", [0.0, 200.0])
def test_where_memory_is_short_w_is_made_in_each_forward_pass(comfy: Comfy, ink: File, free: float) -> None:
    expected = comfy.sample(comfy.tags("<lora:ink:0.7>")[0])
    comfy.sample(comfy.model)
    comfy.memory.free = free
    shown = comfy.tags("<lora:ink:0.7> ")
    for call, other in zip(comfy.sample(shown[0]), expected, strict=True):
        assert all(torch.equal(rows, other[key]) for key, rows in call.items())
    assert torch.equal(comfy.loaded(*shown[:2])[LAYER], comfy.plain()[LAYER])
    comfy.memory.free = 1e30


def test_the_patcher_that_writes_nothing_makes_the_same(start_comfy: Callable[..., Comfy]) -> None:
    """It works on copies of patches, which it makes from `loaded_keys` and `weights` alone."""
    comfy = start_comfy(dynamic=True)
    ink = write(comfy.loras / "ink.safetensors", comfy.plain())
    model, clip, *_ = comfy.tags("<lora:ink:0.7>")
    expected = patched(comfy.plain(), [(ink, 0.7)])[LAYER]
    for call in comfy.sample(model):
        assert all(torch.allclose(rows[0].double(), expected, rtol=1e-6, atol=1e-6) for rows in call.values())
    assert wrong(comfy, (model, clip)) == []  # no weight is written


def test_w_is_made_of_the_original_where_the_program_computes_in_half_precision(comfy: Comfy, ink: File) -> None:
    comfy.memory.computes_in = torch.float16
    assert wrong(comfy, comfy.tags("<lora:ink:0.7>"), (ink, 0.7)) == []


def test_a_patch_of_the_program_before_ours_stays(comfy: Comfy, ink: File) -> None:
    key = LAYER.removeprefix("model.")
    theirs = comfy.model.clone()
    theirs.add_patches({key: torch.ones_like(comfy.plain()[LAYER])}, 0.25)
    expected = patched(comfy.plain(), [(ink, 0.7)])
    expected[LAYER] = expected[LAYER] + 0.25
    model, clip, *_ = comfy.tags("<lora:ink:0.3>", theirs)
    for shown in (comfy.tags("<lora:ink:0.7>", theirs), comfy.tags("<lora:ink:0.4>", model, clip)):
        assert differences(comfy.loaded(*shown[:2]), comfy.plain(), expected) == []


def test_a_patch_of_the_program_after_ours_is_added(comfy: Comfy, ink: File) -> None:
    model, clip, *_ = comfy.tags("<lora:ink:0.7>")
    after = model.clone()
    after.add_patches({LAYER.removeprefix("model."): torch.ones_like(comfy.plain()[LAYER])}, 0.25)
    expected = patched(comfy.plain(), [(ink, 0.7)])
    expected[LAYER] = expected[LAYER] + 0.25
    assert differences(comfy.loaded(after, clip), comfy.plain(), expected) == []


def test_no_model_and_no_parameter_is_kept(comfy: Comfy, ink: File) -> None:
    """A parameter may be memory of a card, which the program counts as free once it has put another one there."""
    shown = comfy.tags("<lora:ink:0.7><lora:ink:te=0:unet=0@0,1@1>")
    comfy.sample(shown[0])
    layer = comfy.model.model.diffusion_model.middle_block[1].proj_in
    parameter, model = weakref.ref(layer.weight), weakref.ref(comfy.model.model)
    comfy.sample(comfy.model)
    gc.collect()
    assert parameter() is None
    del shown, layer
    comfy.model = comfy.clip = None
    sys.modules["comfy.model_management"].loaded.clear()
    gc.collect()
    assert model() is None


def test_a_weight_beyond_half_precision_leaves_its_tag_out(comfy: Comfy) -> None:
    plain = comfy.plain()
    small = write(comfy.loras / "small.safetensors", plain, only="te_text")
    large = write(comfy.loras / "large.safetensors", plain, seed=3, only="proj_in")
    tensors = load_file(large.path)
    save_file({name: t * 200 if "lora_" in name.rpartition(".")[0] else t for name, t in tensors.items()}, large.path)
    model, clip = comfy.checkpoint(half=True)
    shown = comfy.tags("<lora:small:0.5><lora:large:50>", model, clip)
    half = {name: tensor.half() for name, tensor in plain.items()}
    assert differences(comfy.loaded(*shown[:2]), half, patched(half, [(small, 0.5)])) == []
    assert "beyond 65504" in shown[3]


def test_what_goes_wrong_while_the_program_loads_costs_that_weight_and_is_said(
    comfy: Comfy, ink: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = sys.modules["lora_runtime.hosted"]
    merged = module.HostPatch.merged

    def fails(patch: Any, weight: torch.Tensor) -> torch.Tensor:
        if patch.target.path.endswith("proj_in"):
            raise RuntimeError("no memory for it")
        made: torch.Tensor = merged(patch, weight)
        return made

    monkeypatch.setattr(module.HostPatch, "merged", fails)
    without = {name: w for name, w in patched(comfy.plain(), [(ink, 0.7)]).items() if "proj_in" not in name}
    loaded = comfy.loaded(*comfy.tags("<lora:ink:0.7>")[:2])
    assert differences(loaded, comfy.plain(), without) == []
    assert "proj_in: RuntimeError: no memory for it; left out there" in capsys.readouterr().out


def test_what_cannot_be_planned_together_is_shown_one_by_one(
    comfy: Comfy, ink: File, wash: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["lora_runtime_comfyui_extension.hosts.comfyui.tags"]
    plan = module.make_plan

    def fails(requests: Any, *rest: Any) -> Any:
        if any(request.lora.name == "wash" for request in requests):
            raise RuntimeError("nobody foresaw this")
        return plan(requests, *rest)

    monkeypatch.setattr(module, "make_plan", fails)
    shown = comfy.tags("<lora:wash:0.4><lora:ink:0.7>")
    assert wrong(comfy, shown, (ink, 0.7)) == []
    assert '"wash" cannot be applied: RuntimeError: nobody foresaw this' in shown[3]


def test_a_model_without_a_denoiser_is_said_to_have_none(comfy: Comfy, ink: File) -> None:
    class Empty(torch.nn.Module):
        pass

    other = comfy.kind(Empty())
    shown = comfy.tags("<lora:ink:0.7>", other)
    assert shown[0] is other
    assert "no LoRA is applied: a Empty has no denoiser" in shown[3]


def with_word(comfy: Comfy, key: str = "string_to_param.*", width: int = 12) -> File:
    more = {f"bundle_emb.word.{key}": torch.ones(2, width)}
    return write(comfy.loras / "with-word.safetensors", comfy.plain(), more=more)


def read(clip: Any, text: str) -> list[Any]:
    """Return the tokens of a text; vectors as lists."""
    return [
        token.tolist() if isinstance(token, torch.Tensor) else token for token in clip.tokenizer.tokenize(text)["l"]
    ]


@pytest.mark.parametrize("key", ["string_to_param.*", "clip_l", "emb_params"])
def test_a_word_in_a_file_is_known_to_the_clone(comfy: Comfy, key: str) -> None:
    file = with_word(comfy, key)
    shown = comfy.tags("word <lora:with-word:0.7>")
    assert wrong(comfy, shown, (file, 0.7)) == []
    assert 'note: "with-word" brings the word "word" along (write embedding:word in a text)' in shown[3]
    vectors = [[1.0] * 12] * 2
    assert read(shown[1], "a embedding:word") == [*"a ", *vectors]
    assert read(shown[1], "embedding:word, b") == [*vectors, *", b"]
    assert read(shown[1], "embedding:other b") == [*"b"]
    assert read(comfy.clip, "a embedding:word") == [*"a "]


def test_words_of_two_nodes_are_both_known(comfy: Comfy) -> None:
    with_word(comfy)
    more = {"bundle_emb.second.clip_l": torch.zeros(1, 12)}
    write(comfy.loras / "second.safetensors", comfy.plain(), more=more)
    first = comfy.tags("<lora:with-word:1>")
    second = comfy.tags("<lora:second:1>", first[0], first[1])
    assert read(second[1], "embedding:word embedding:second") == [[1.0] * 12, [1.0] * 12, [0.0] * 12]


def test_the_user_s_own_embedding_of_that_name_stays_that(comfy: Comfy) -> None:
    with_word(comfy)
    comfy.clip.tokenizer.clip_l.files["word"] = torch.zeros(1, 12)
    shown = comfy.tags("<lora:with-word:1>")
    assert read(shown[1], "embedding:word") == [[0.0] * 12]


def test_a_word_for_another_model_is_said(comfy: Comfy) -> None:
    with_word(comfy, width=16)
    shown = comfy.tags("<lora:with-word:1>")
    assert (
        'the embedding "word" in "with-word" is not loaded: it is not as wide as this CLIP\'s words are, 12' in shown[3]
    )
    assert read(shown[1], "embedding:word") == []


def test_a_word_that_nothing_can_read_is_said(comfy: Comfy) -> None:
    with_word(comfy)
    (node,) = [comfy.nodes["LoraRuntimeTags"]]
    report = node().apply(model=comfy.model, text="<lora:with-word:1>")[3]
    assert 'the embedding "word" in "with-word" is not loaded: the node has no CLIP' in report
    comfy.clip.tokenizer = SimpleNamespace()
    assert (
        'the embedding "word" in "with-word" is not loaded: this CLIP reads no' in comfy.tags("<lora:with-word:1>")[3]
    )


def test_parameters_that_the_program_never_writes_are_left_out_and_said(
    comfy: Comfy, ink: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes none of a module that has others with parameters inside: such as of a block itself."""
    layer = comfy.model.model.get_submodule(LAYER.removeprefix("model.").removesuffix(".weight"))
    layer.add_module("inside", torch.nn.Linear(1, 1))
    shown = comfy.tags("<lora:ink:0.7>")
    assert "ComfyUI writes no parameters of a module that has others inside: unet." in shown[3]
    made = comfy.loaded(*shown[:2])
    assert torch.equal(made[LAYER], comfy.plain()[LAYER])


def test_a_file_in_a_folder_that_is_given_in_a_roundabout_way_is_found(comfy: Comfy, wash: File) -> None:
    folders = sys.modules["folder_paths"].folders
    folders["loras"] = [str(comfy.loras / "style" / ".." / "style")]
    (text,) = comfy.nodes["LoraRuntimeStack"]().write("", lora_1="wash.safetensors")
    assert text == "<lora:wash:1>"
    assert wrong(comfy, comfy.tags(text), (wash, 1.0)) == []


def test_a_file_that_has_just_come_is_found(comfy: Comfy) -> None:
    (comfy.loras / "deep").mkdir()
    node = comfy.nodes["LoraRuntimeStack"]
    assert node().write("", lora_1="None") == ("",)
    comfy.tags("<lora:nothing:1>")
    write(comfy.loras / "deep" / "new.safetensors", comfy.plain())
    write(comfy.loras / "new.safetensors", comfy.plain(), seed=2)
    name = str(Path("deep", "new.safetensors"))
    assert node().write("", lora_1=name)[0] in ("<lora:deep/new:1>", "<lora:new:1>")
