"""What Forge Neo's weights are, and what it loads: it keeps them, and replaces its parameters as it likes."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double.loras import File, differences, patched, write
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from neo.program import Neo


def of(neo: Neo, *files: tuple[File, float]) -> dict[str, torch.Tensor]:
    return patched(neo.plain(), files)


def wrong(neo: Neo, done: Any, *files: tuple[File, float], index: int = 0) -> list[str]:
    """Return the names of the weights that a pass was not painted with."""
    return differences(done.passes[index].weights, neo.plain(), of(neo, *files))


def test_the_tags_are_ours_with_the_builtin_enabled(neo: Neo) -> None:
    assert type(neo.owner("lora")).__module__ == "lora_runtime_webui_extension.hosts.forge_neo.tags"
    assert neo.errors == []


def test_a_picture_is_painted_with_what_its_tags_ask_for(neo: Neo, ink: File, wash: File) -> None:
    done = neo.generate("a cat <lora:ink:0.7> <lora:wash:-0.4>")
    assert wrong(neo, done, (ink, 0.7), (wash, -0.4)) == []
    assert done.comments == []


def test_its_text_is_encoded_with_them_too(neo: Neo, ink: File) -> None:
    done = neo.generate("a cat <lora:ink:0.7>")
    encoded = done.passes[0].text[0][0].weights
    expected = {name: w for name, w in of(neo, (ink, 0.7)).items() if not name.startswith("model.")}
    assert differences(encoded, neo.plain(), expected) == []


def test_without_tags_all_weights_are_those_of_the_file_again(neo: Neo, ink: File) -> None:
    neo.generate("a cat <lora:ink:0.7>")
    done = neo.generate("a cat")
    assert wrong(neo, done) == []
    assert neo.not_whole() == []
    assert neo.model.current_lora_hash == "[]"
    objects = neo.model.forge_objects_original
    assert objects.unet.patches == {} == objects.clip.patcher.patches


def test_the_order_of_tags_changes_no_bit(neo: Neo, ink: File, wash: File) -> None:
    one = neo.generate("<lora:ink:0.7><lora:wash:0.4>").passes[0].weights
    neo.generate("a cat")
    two = neo.generate("<lora:wash:0.4><lora:ink:0.7>").passes[0].weights
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_lora_twice_is_the_sum_of_its_strengths(neo: Neo, ink: File) -> None:
    assert wrong(neo, neo.generate("<lora:ink:0.3><lora:ink:0.4>"), (ink, 0.7)) == []


def test_a_tag_that_cannot_be_used_costs_itself(neo: Neo, ink: File) -> None:
    (neo.loras / "broken.safetensors").write_bytes(b"nothing")
    done = neo.generate("<lora:ink:0.7><lora:broken:1><lora:absent:1><lora:ink:x>")
    assert wrong(neo, done, (ink, 0.7)) == []
    assert len(done.comments) == 3


def test_equal_requests_load_nothing_again(neo: Neo, ink: File, wash: File) -> None:
    neo.generate("a cat <lora:ink:0.7><lora:wash:0.4>")
    before = neo.loads
    neo.generate("a dog <lora:wash:0.4><lora:ink:0.7>")
    neo.generate("a dog <lora:wash:0.4><lora:ink:0.7>", seed=2)
    assert neo.loads == before
    neo.generate("a dog <lora:wash:0.5><lora:ink:0.7>")
    assert neo.loads == (before[0] + 1, before[1] + 1)


def test_what_changes_the_denoiser_alone_leaves_the_text_encoders(neo: Neo, ink: File) -> None:
    neo.generate("a cat <lora:ink:0.7>")
    before = neo.loads
    done = neo.generate("a cat <lora:ink:te=0.7:unet=0.2>")
    assert neo.loads == (before[0] + 1, before[1])
    assert differences(done.passes[0].weights, neo.plain(), patched(neo.plain(), [(ink, 0.7, 0.2)])) == []


def test_a_file_written_anew_under_its_name_is_seen(neo: Neo, ink: File) -> None:
    neo.generate("<lora:ink:0.7>")
    anew = write(ink.path, neo.plain(), seed=5)
    done = neo.generate("<lora:ink:0.7>")
    assert wrong(neo, done, (anew, 0.7)) == []


def test_where_memory_is_short_w_is_made_in_each_forward_pass(neo: Neo, ink: File) -> None:
    expected = neo.generate("<lora:ink:0.7>").passes[0].effective
    neo.generate("a cat")
    neo.memory.free = 0.0
    done = neo.generate("<lora:ink:0.7>")
    assert sorted(set(done.passes[0].weights) - set(neo.changed(done.passes[0].weights))) != []
    for step, other in zip(done.passes[0].effective, expected, strict=True):
        for key, rows in step.items():
            assert torch.equal(rows, other[key])


def test_on_the_fly_no_weight_is_written(neo: Neo, ink: File) -> None:
    expected = neo.generate("<lora:ink:0.7>").passes[0].effective
    neo.dynamic_args.online_lora = True
    done = neo.generate("<lora:ink:0.7> ")
    linear = [name for name in neo.changed(done.passes[0].weights) if "to_q" in name or "net.0.proj" in name]
    assert linear == []
    assert torch.equal(done.passes[0].effective[0]["positive", 0], expected[0]["positive", 0])


def test_w_is_made_of_the_original_where_the_host_computes_in_half_precision(neo: Neo, ink: File) -> None:
    """A card with fast halves is given a copy of W₀ in half precision: its digits would be lost."""
    importlib.import_module("backend.patcher.base").COMPUTES_LORAS_IN["dtype"] = torch.float16
    assert wrong(neo, neo.generate("<lora:ink:0.7>"), (ink, 0.7)) == []


def test_a_patch_of_another_extension_before_ours_stays(neo: Neo, ink: File) -> None:
    neo.generate("a cat")
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = neo.plain()[f"model.{key}"]
    neo.model.forge_objects_original.unet.add_patches({key: torch.ones_like(weight)}, 0.25)
    done = neo.generate("<lora:ink:0.7>")
    expected = of(neo, (ink, 0.7))
    expected[f"model.{key}"] = expected[f"model.{key}"] + 0.25
    assert differences(done.passes[0].weights, neo.plain(), expected) == []


def test_the_second_pass_has_its_own_tags(neo: Neo, ink: File, wash: File) -> None:
    done = neo.generate("<lora:ink:0.7>", enable_hr=True, hr_prompt="<lora:wash:0.4>")
    assert [one.name for one in done.passes] == ["first", "hires"]
    assert wrong(neo, done, (ink, 0.7)) == []
    assert wrong(neo, done, (wash, 0.4), index=1) == []


def test_another_checkpoint_has_its_own_weights_with_the_loras(neo: Neo, ink: File) -> None:
    neo.generate("<lora:ink:0.7>")
    neo.choose_checkpoint("b")
    done = neo.generate("<lora:ink:0.7>")
    assert done.passes[0].checkpoint == "b"
    assert wrong(neo, done, (ink, 0.7)) == []
    neo.choose_checkpoint("a")
    assert wrong(neo, neo.generate("<lora:ink:0.7>"), (ink, 0.7)) == []


def test_a_refiner_in_the_very_modules_of_the_checkpoint_has_them(neo: Neo, ink: File) -> None:
    done = neo.generate("<lora:ink:0.7>", refiner_checkpoint="b")
    other = neo.module("sd_models").checkpoints["b"].weights
    mixed = {name: other[name] if name.startswith("model.") else w for name, w in neo.plain().items()}
    assert differences(done.passes[1].weights, mixed, patched(mixed, [(ink, 0.7)])) == []


def test_no_engine_and_no_parameter_is_kept(neo: Neo, ink: File) -> None:
    """A parameter may be memory of a card, which the program counts as free once it has put another one there."""
    neo.generate("<lora:ink:0.7><lora:ink:unet=0@0,1@1>")
    layer = neo.model.forge_objects_original.unet.model.diffusion_model.middle_block[1].proj_in
    shown, engine = weakref.ref(layer.weight), weakref.ref(neo.model)
    neo.generate("a cat")
    gc.collect()
    assert shown() is None
    neo.choose_checkpoint("b")
    neo.generate("a cat")
    gc.collect()
    assert engine() is None


def test_without_extra_networks_nothing_is_shown(neo: Neo, ink: File) -> None:
    neo.generate("<lora:ink:0.7>")
    assert wrong(neo, neo.generate("a cat", disable_extra_networks=True)) == []


def test_reload_ui_gives_the_program_its_own_patchers_back(neo: Neo, ink: File) -> None:
    neo.generate("<lora:ink:0.7>")
    objects = neo.model
    neo.module("script_callbacks").script_unloaded_callback()
    assert objects.forge_objects_after_applying_lora.unet is objects.forge_objects_original.unet
    assert objects.current_lora_hash == "[]"


@pytest.mark.parametrize(
    "gone", ["base.LowVramPatch", "lora.weight_adapter", "unet.UnetPatcher.add_conditioning_modifier"]
)
def test_another_forge_is_told_so_and_keeps_its_own_lora(
    start_neo: Callable[..., Neo], gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare() -> None:
        module, *names, last = gone.split(".")
        delattr(reduce(getattr, names, importlib.import_module(f"backend.patcher.{module}")), last)

    neo = start_neo(prepare=prepare)
    assert type(neo.owner("lora")).__module__ == "lora_script.py"
    lines = [line for line in capsys.readouterr().out.splitlines() if "[lora-runtime]" in line]
    assert len(lines) == 1
    assert "not started, the built-in Lora extension stays" in lines[0]
    assert "Forge Neo is supported from 2.26 on" in lines[0]


def test_a_weight_beyond_half_precision_leaves_its_tag_out_before_anything_is_loaded(
    start_neo: Callable[..., Neo],
) -> None:
    neo = start_neo(half=True)
    files = neo.module("sd_models").checkpoints["a"].weights
    small = write(neo.loras / "small.safetensors", files, only="te_text")
    huge = {name: w * 400 for name, w in files.items()}
    large = write(neo.loras / "large.safetensors", huge, seed=3, only="proj_in")
    tensors = load_file(large.path)
    save_file({name: t * 200 if "lora_" in name.rpartition(".")[0] else t for name, t in tensors.items()}, large.path)
    done = neo.generate("<lora:small:0.5><lora:large:50>")
    assert wrong(neo, done, (small, 0.5)) == []
    assert [comment for comment in done.comments if "beyond 65504" in comment]


def test_what_goes_wrong_while_the_program_loads_costs_that_weight_and_is_said(neo: Neo, ink: File) -> None:
    neo.generate("a cat")
    module = sys.modules["lora_runtime.hosted"]
    merged = module.HostPatch.merged

    def fails(patch: Any, weight: torch.Tensor) -> torch.Tensor:
        if patch.target.path.endswith("proj_in"):
            raise RuntimeError("no memory for it")
        made: torch.Tensor = merged(patch, weight)
        return made

    module.HostPatch.merged = fails
    done = neo.generate("<lora:ink:0.7>")
    without = {name: w for name, w in of(neo, (ink, 0.7)).items() if "proj_in" not in name}
    assert differences(done.passes[0].weights, neo.plain(), without) == []
    assert [
        comment for comment in done.comments if "proj_in: RuntimeError: no memory for it; left out there" in comment
    ]


def with_word(neo: Neo, width: int = 12, value: float = 1.0) -> File:
    more = {"bundle_emb.word.string_to_param.*": torch.full((2, width), value)}
    return write(neo.loras / "with-word.safetensors", neo.module("sd_models").checkpoints["a"].weights, more=more)


def words(done: Any) -> list[Any]:
    texts = [text for passed in done.passes for parts in passed.text for text in parts]
    return [embedding for text in texts for embedding in text.embeddings]


def test_the_words_in_a_file_are_known_while_its_tag_is_in_the_prompt(neo: Neo) -> None:
    file = with_word(neo)
    done = neo.generate("a word <lora:with-word:0.7>")
    assert wrong(neo, done, (file, 0.7)) == []
    assert done.comments == []
    (embedding,) = words(done)
    assert torch.equal(embedding.vec, torch.ones(2, 12))
    assert embedding.vectors == 2
    assert words(neo.generate("a word")) == []
    assert neo.model.text_processing_engine.embeddings.ids_lookup == {}


def test_a_word_of_a_file_that_is_written_anew(neo: Neo) -> None:
    with_word(neo)
    neo.generate("a word <lora:with-word:0>")
    with_word(neo, value=2.0)
    (embedding,) = words(neo.generate("a word <lora:with-word:0>"))
    assert torch.equal(embedding.vec, torch.full((2, 12), 2.0))


def test_a_word_of_the_user_s_own_stays_that(neo: Neo) -> None:
    with_word(neo)
    neo.generate("a")
    make = importlib.import_module("backend.text_processing.textual_inversion").create_embedding_from_data
    table = neo.model.text_processing_engine.embeddings
    own = make({"x": torch.zeros(1, 12)}, "word")
    table.register_embedding_by_name(own, "word")
    for prompt in ("a word <lora:with-word>", "a word"):
        assert words(neo.generate(prompt)) == [own]


def test_a_word_for_a_text_encoder_of_another_width_is_said(neo: Neo) -> None:
    with_word(neo, width=16)
    done = neo.generate("a word <lora:with-word>")
    assert words(done) == []
    (comment,) = done.comments
    assert 'the embedding "word" in "with-word" cannot be used: it is 16 wide, and this model\'s are 12' in comment


def test_a_model_without_a_table_of_words_is_said(neo: Neo) -> None:
    with_word(neo)
    neo.generate("a")
    neo.model.text_processing_engine.embeddings = None
    neo.model.get_learned_conditioning = lambda text: neo.module("prompt_parser").Conditioning(text, {})
    (comment,) = neo.generate("a word <lora:with-word>").comments
    assert 'the embedding "word" in "with-word" cannot be used: this model reads no embeddings' in comment


def test_words_are_known_again_after_another_checkpoint_was_loaded(neo: Neo) -> None:
    with_word(neo)
    neo.generate("a word <lora:with-word>")
    neo.choose_checkpoint("b")
    assert len(words(neo.generate("a word <lora:with-word>"))) == 1


def test_reload_ui_forgets_the_words(neo: Neo) -> None:
    with_word(neo)
    neo.generate("a word <lora:with-word>")
    neo.reload_ui()
    assert neo.model.text_processing_engine.embeddings.word_embeddings == {}


def test_the_report_is_of_the_checkpoint_that_is_loaded(neo: Neo, ink: File, wash: File) -> None:
    neo.generate("a cat <lora:ink:0.7>")
    prompt, found, notices = neo.owner("lora").reported("a cat <lora:ink:0.7> <lora:wash:-0.4>")
    assert (found.names, notices) == (("ink", "wash"), [])
    assert prompt.text == "a cat  "
    plain = neo.plain()
    deltas = [
        {name: weight - plain[name].double() for name, weight in of(neo, (file, strength)).items()}
        for file, strength in ((ink, 0.7), (wash, -0.4))
    ]
    norms = [sum(float(delta.square().sum()) for delta in each.values()) ** 0.5 for each in deltas]
    assert found.total.norms == pytest.approx(norms, rel=1e-6)
    assert found.total.base is None  # Forge keeps the weights, patched or not
