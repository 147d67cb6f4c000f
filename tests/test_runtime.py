"""The whole line on real (tiny) pipelines: apply, restore, and what may come between them."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime import patcher, runtime
from lora_runtime.pipelines import view
from lora_runtime.scopes import PATCHER

PATCHED = ("unet", "text_encoder")


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline("sd1")


@pytest.fixture
def folder(tmp_path: Path, pipe: Any) -> Path:
    for seed, name in enumerate(["ink", "wash", "grain"], start=1):
        tiny.write_kohya_lora(tmp_path / f"{name}.safetensors", pipe, rank=3, seed=seed, dtype=torch.float16)
    tiny.write_kohya_lora(tmp_path / "words.safetensors", pipe, seed=4, components=("text_encoder",))
    tiny.write_kohya_lora(tmp_path / "shapes.safetensors", pipe, seed=5, components=("unet",))
    return tmp_path


def weights(pipe: Any) -> dict[str, Tensor]:
    """Return copies of all weights of a pipeline."""
    return {
        f"{part}.{name}": p.detach().clone() for part in PATCHED for name, p in getattr(pipe, part).named_parameters()
    }


def assert_untouched(pipe: Any, before: dict[str, Tensor]) -> None:
    for name, value in weights(pipe).items():
        assert torch.equal(value, before[name]), name


def paint(pipe: Any, prompt: str | list[str]) -> Tensor:
    """Return a picture of two steps as a tensor."""
    generator = torch.Generator().manual_seed(0)
    made = pipe(
        prompt, num_inference_steps=2, guidance_scale=2.0, height=32, width=32, generator=generator, output_type="pt"
    )
    return made.images


def expected_weight(file: Path, stem: str, weight: Tensor, strength: float) -> Tensor:
    """Return W₀ + strength·alpha/rank·up·down in float64, of a kohya file."""
    tensors = {key: value.double() for key, value in load_file(file).items()}
    up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
    scale = strength * tensors[f"{stem}.alpha"].item() / down.shape[0]
    return weight.double() + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def test_a_tag_changes_the_picture_and_leaving_the_block_brings_it_back(pipe: Any, folder: Path) -> None:
    plain, before = paint(pipe, "a cat"), weights(pipe)
    with lora_runtime.apply(pipe, "a cat<lora:ink:0.7>", loras=folder) as applied:
        assert applied.prompt == "a cat"
        assert not torch.equal(paint(pipe, applied.prompt), plain)
    assert_untouched(pipe, before)
    assert torch.equal(paint(pipe, "a cat"), plain)


def test_the_strengths_reach_the_weights_as_the_formula_says(pipe: Any, folder: Path) -> None:
    query = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    words = next(m for n, m in pipe.text_encoder.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    before = query.weight.detach().clone(), words.weight.detach().clone()
    lora_runtime.apply(pipe, "<lora:ink:0.25:0.5>", loras=folder)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    unet = expected_weight(folder / "ink.safetensors", stem, before[0], 0.5)
    te = expected_weight(
        folder / "ink.safetensors", "lora_te_text_model_encoder_layers_0_self_attn_q_proj", before[1], 0.25
    )
    assert torch.allclose(query.weight.double(), unet, rtol=0, atol=1e-6)
    assert torch.allclose(words.weight.double(), te, rtol=0, atol=1e-6)


def test_any_order_of_tags_gives_the_same_bits(pipe: Any, folder: Path) -> None:
    lora_runtime.apply(pipe, "<lora:ink:0.3><lora:wash:0.7><lora:grain:-0.2>", loras=folder)
    first = weights(pipe)
    lora_runtime.apply(pipe, "<lora:grain:-0.2><lora:ink:0.3><lora:wash:0.7>", loras=folder)
    assert_untouched(pipe, first)


def test_the_same_file_twice_adds_up(pipe: Any, folder: Path) -> None:
    lora_runtime.apply(pipe, "<lora:ink:0.25><lora:ink:0.5>", loras=folder)
    twice = weights(pipe)
    lora_runtime.apply(pipe, "<lora:ink:0.75>", loras=folder)
    assert_untouched(pipe, twice)


def test_a_copy_of_a_file_under_another_name_is_the_same_file(pipe: Any, folder: Path) -> None:
    (folder / "copy.safetensors").write_bytes((folder / "ink.safetensors").read_bytes())
    applied = lora_runtime.apply(pipe, "<lora:ink:0.25><lora:copy:0.5>", loras=folder)
    assert len(applied.report.loras) == 1
    assert applied.report.loras[0].te == 0.75


def test_dyn_takes_the_first_ranks_only(pipe: Any, folder: Path) -> None:
    query = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    before = query.detach().clone()
    lora_runtime.apply(pipe, "<lora:ink:1:1:1>", loras=folder)
    assert torch.linalg.matrix_rank((query - before).double(), tol=1e-5) == 1
    lora_runtime.apply(pipe, "<lora:ink:1:1>", loras=folder)
    assert torch.linalg.matrix_rank((query - before).double(), tol=1e-5) == 3


def test_a_rank_that_nothing_can_be_cut_to_is_said(pipe: Any, folder: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    whole = {f"{stem}.diff": torch.ones(width, width)}
    save_file(whole, folder / "whole.safetensors")
    save_file(whole | load_file(folder / "ink.safetensors"), folder / "both.safetensors")
    (said,) = lora_runtime.apply(pipe, "<lora:whole:1:dyn=1>", loras=folder).diagnostics
    assert (said.severity, said.span) == ("warning", (0, 20))
    assert said.message == (
        '"whole": dyn= has no effect on 1 of its 1 changes of weights (full): only the ranks of a plain LoRA can be cut'
    )
    (said,) = lora_runtime.apply(pipe, "<lora:both:1:dyn=1>", loras=folder).diagnostics
    assert said.severity == "info"
    assert " has no effect on 1 of its " in said.message
    for text in ("<lora:whole>", "<lora:ink:dyn=1>"):
        assert not lora_runtime.apply(pipe, text, loras=folder).diagnostics


@pytest.mark.parametrize("fields", ["stop=5", "D00=0", "module=low", "1@0,0@1"])
def test_of_a_file_that_is_not_there_nothing_else_is_said(folder: Path, fields: str) -> None:
    model = torch.nn.ModuleDict({"to_q": torch.nn.Linear(4, 4)})  # which has neither steps nor blocks nor experts
    for images in (["<lora:nosuch:{}>"], ["<lora:nosuch:{}>", "<lora:ink:{}>"]):
        prompts = [text.format(fields) for text in images]
        said = lora_runtime.apply(model, prompts, loras=folder).diagnostics_of(0)
        assert [one.message.partition(" in ")[0] for one in said] == ['no LoRA named "nosuch"']
    assert any("ink" in one.message for one in lora_runtime.apply(model, prompts, loras=folder).diagnostics_of(1))


def test_strength_zero_touches_nothing(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    applied = lora_runtime.apply(pipe, "<lora:ink:0>", loras=folder)
    assert applied.report.weights == 0
    assert_untouched(pipe, before)


def test_a_later_apply_replaces_the_first(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    alone = weights(pipe)
    first = lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    second = lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    assert (first.active, second.active) == (False, True)
    assert_untouched(pipe, alone)
    first.restore()  # replaced: nothing of it is left to undo
    assert_untouched(pipe, alone)
    second.restore()
    assert_untouched(pipe, before)


def test_leaving_an_inner_block_gives_the_outer_ones_state_again(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as outer:
        ink = weights(pipe)
        with lora_runtime.apply(pipe, "<lora:wash>", loras=folder) as inner:
            assert (outer.active, inner.active) == (False, True)
        assert (outer.active, inner.active) == (True, False)
        assert_untouched(pipe, ink)
    assert_untouched(pipe, before)


def test_a_block_entered_again_applies_again(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    applied = lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    patched = weights(pipe)
    for _ in range(2):
        with applied:
            assert_untouched(pipe, patched)
        assert_untouched(pipe, before)


def test_an_exception_in_the_block_restores(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with pytest.raises(ZeroDivisionError), lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        _ = 1 / 0
    assert_untouched(pipe, before)


def test_restore_undoes_without_the_object_and_frees_the_buffers(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    lora_runtime.restore(pipe)
    assert_untouched(pipe, before)
    kept = [weight.buffer for module in pipe.unet.modules() for weight in PATCHER.home(module).weights.values()]
    assert set(kept) == {None}
    lora_runtime.restore(pipe)  # safe to repeat


def test_restore_on_a_model_never_applied_to_does_nothing(pipe: Any) -> None:
    before = weights(pipe)
    lora_runtime.restore(pipe)
    assert_untouched(pipe, before)


def test_pipelines_that_share_a_unet_share_its_patches(pipe: Any, folder: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    twin = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    before = weights(pipe)
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    lora_runtime.apply(twin, "<lora:wash>", loras=folder)
    lora_runtime.restore(twin)
    assert_untouched(pipe, before)


def test_components_patched_one_by_one_are_united_by_a_pipeline(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    lora_runtime.apply(pipe.unet, "<lora:shapes>", loras=folder)
    lora_runtime.apply(pipe.text_encoder, "<lora:words>", loras=folder)
    applied = lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    wash = weights(pipe)
    applied.restore()
    assert_untouched(pipe, before)
    lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    assert_untouched(pipe, wash)


def test_a_bare_module_is_a_model(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with lora_runtime.apply(pipe.unet, "<lora:shapes:0.5>", loras=folder) as applied:
        assert applied.report.loras[0].used == applied.report.loras[0].keys
    assert_untouched(pipe, before)


def test_a_pipeline_without_a_text_encoder_works_with_what_it_has(pipe: Any, folder: Path) -> None:
    pipe.text_encoder, pipe.tokenizer = None, None
    applied = lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    (report,) = applied.report.loras
    assert 0 < report.used < report.keys
    assert "text_encoder, which this pipeline does not have" in str(report)


def test_a_list_of_prompts_with_the_same_tags_gives_a_list(pipe: Any, folder: Path) -> None:
    applied = lora_runtime.apply(
        pipe, ["a cat <lora:ink:0.5><lora:wash:1>", "<lora:wash:1> a dog<lora:ink:0.5>"], loras=folder
    )
    assert applied.prompt == ["a cat ", " a dog"]
    assert [tag.name for tag in applied.tags] == ["ink", "wash"]


def test_an_empty_list_of_prompts_gives_an_empty_list(pipe: Any, folder: Path) -> None:
    assert lora_runtime.apply(pipe, [], loras=folder).prompt == []


def test_a_broken_tag_in_any_prompt_of_a_list_is_said(
    pipe: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied = lora_runtime.apply(pipe, ["a<lora:ink>", "b<lora:ink> <lora:wash:x>"], loras=folder)
    assert applied.prompt == ["a", "b "]
    assert [d.span for d in applied.diagnostics] == [(23, 24)]
    assert "b<lora:ink> <lora:wash:x>" in caplog.text


def test_an_unknown_name_costs_only_itself_and_is_said(
    pipe: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lora_runtime"):
        applied = lora_runtime.apply(pipe, "a <lora:inc:1> <lora:wash:1>", loras=folder)
    assert [report.name for report in applied.report.loras] == ["wash"]
    (diagnostic,) = applied.diagnostics
    assert (diagnostic.severity, diagnostic.span) == ("error", (2, 14))
    assert 'no LoRA named "inc"' in diagnostic.message
    assert 'Did you mean "ink"?' in caplog.text


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("a <lora:ink:abc>", lora_runtime.TagSyntaxError),
        ("a <lora:nothing_like_it>", lora_runtime.UnknownLoraError),
        ("a <lora:xl>", lora_runtime.NoMatchError),
        ("a <lora:broken>", lora_runtime.CorruptFileError),
        ("a <lora:pickled>", lora_runtime.RefusedFileError),
    ],
)
def test_strict_raises_and_keeps_what_was(
    pipe: Any, folder: Path, prompt: str, error: type[lora_runtime.LoraError]
) -> None:
    tiny.write_kohya_lora(folder / "xl.safetensors", tiny.pipeline("sdxl"), components=("text_encoder_2",))
    (folder / "broken.safetensors").write_bytes(b"\xff" * 100)
    (folder / "pickled.pt").write_bytes(b"PK\x03\x04")
    lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    patched = weights(pipe)
    with pytest.raises(error):
        lora_runtime.apply(pipe, prompt, loras=folder, strict=True)
    assert_untouched(pipe, patched)
    applied = lora_runtime.apply(pipe, prompt + "<lora:wash>", loras=folder)
    assert any(d.severity == "error" for d in applied.diagnostics)
    assert_untouched(pipe, patched)


def test_a_file_that_matches_nothing_names_the_model_it_is_made_for(pipe: Any, folder: Path) -> None:
    tiny.write_kohya_lora(
        folder / "xl.safetensors",
        tiny.pipeline("sdxl"),
        components=("text_encoder_2",),
        metadata={"ss_base_model_version": "sdxl_base_v1-0"},
    )
    with pytest.raises(lora_runtime.NoMatchError) as caught:
        lora_runtime.apply(pipe, "<lora:xl>", loras=folder, strict=True)
    assert "made for SDXL" in str(caught.value)
    assert "text_encoder_2, which this pipeline does not have" in str(caught.value)
    assert "StableDiffusionPipeline" in str(caught.value)


def test_a_file_for_another_family_that_fits_in_part_is_applied_with_a_warning(
    pipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first text encoder of SDXL is that of SD1, so this happens; tiny models are too small to have a family.
    monkeypatch.setattr(runtime, "view", lambda model: replace(view(model), family="SD1"))
    made_for_xl = {"ss_base_model_version": "sdxl_base_v1-0"}
    tiny.write_kohya_lora(folder / "xl.safetensors", tiny.pipeline("sdxl"), metadata=made_for_xl)
    applied = lora_runtime.apply(pipe, "a <lora:xl>", loras=folder)
    (diagnostic,) = applied.diagnostics
    assert (diagnostic.severity, diagnostic.span) == ("warning", (2, 11))
    assert '"xl" seems to be made for SDXL, this model is SD1: 315 of 1197 keys fit' in diagnostic.message


def test_a_tag_in_the_negative_prompt_is_left_and_reported(pipe: Any, folder: Path) -> None:
    applied = lora_runtime.apply(pipe, "a", negative_prompt="bad <lora:ink:1>", loras=folder)
    assert applied.negative_prompt == "bad <lora:ink:1>"
    assert [d.severity for d in applied.diagnostics] == ["warning"]
    assert "<lora:ink:1> in the negative prompt is not applied" in applied.diagnostics[0].message


def test_a_retrained_file_takes_effect_at_once(pipe: Any, folder: Path) -> None:
    lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    wash = weights(pipe)
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    (folder / "ink.safetensors").write_bytes((folder / "wash.safetensors").read_bytes())
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    assert_untouched(pipe, wash)


def test_loras_may_be_a_catalog_or_several_folders_or_left_out(
    pipe: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("LORA_RUNTIME_PATH", str(folder))
    for loras in (lora_runtime.LoraCatalog(folder), [other, str(folder)], None):
        assert lora_runtime.apply(pipe, "<lora:wash>", loras=loras).report.weights > 0


def test_a_folder_that_is_not_there_is_an_error(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(lora_runtime.CatalogError, match="missing"):
        lora_runtime.apply(pipe, "<lora:ink>", loras=tmp_path / "missing")


def test_what_is_no_model_is_an_error() -> None:
    with pytest.raises(lora_runtime.ModelError, match="str"):
        lora_runtime.apply("no model", "a")


def test_each_layer_of_a_shared_weight_has_its_own_adapters(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.two.weight = self.one.weight

    model, inputs = Tied(), torch.randn(3, 6)
    before = model.one.weight.detach().clone()
    up, down = torch.randn(6, 2), torch.randn(2, 6)
    save_file({"one.lora_B.weight": up, "one.lora_A.weight": down}, tmp_path / "tied.safetensors")
    with lora_runtime.apply(model, "<lora:tied>", loras=tmp_path) as applied:
        expected = inputs.double() @ (before.double() + up.double() @ down.double()).t()
        torch.testing.assert_close(model.one(inputs).double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.two(inputs), inputs @ before.t())
        assert torch.equal(model.one.weight, before)
        assert "1 of them beside weights shared by 2 layers (Linear, Linear)" in str(applied.report)
    assert torch.equal(model.one(inputs), inputs @ before.t())


def test_what_reads_text_is_left_out_of_a_region_and_said(pipe: Any, folder: Path) -> None:
    unet = pipe.unet
    text = {name: value.clone() for name, value in unet.state_dict().items() if ".attn2.to_k" in name}
    with lora_runtime.apply(unet, "a <lora:shapes:1:box=0,0,0.5,1>", loras=folder) as applied:
        assert text
        assert all(torch.equal(unet.state_dict()[name], value) for name, value in text.items())
        assert applied.report.live > 0
    (said,) = applied.diagnostics
    assert said.message.startswith('"shapes" cannot vary on ')
    assert said.message.endswith("which have no place in the picture; left out")


def test_tags_for_what_the_model_does_not_have_are_said(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with lora_runtime.apply(pipe, "a <lora:shapes:1:low>", loras=folder) as applied:
        assert_untouched(pipe, before)
    (said,) = applied.diagnostics
    assert said.message.startswith('"shapes" is for the denoiser "transformer_2", which this model does not have')
    assert "unet" in said.hint
    with lora_runtime.apply(pipe, "a <lora:ink> AND b <lora:wash>", loras=folder, scope="and") as applied:
        (said,) = applied.diagnostics
    assert said.message.startswith('"wash" belongs to part 2 of a prompt with AND')


def test_a_weight_that_is_used_without_calling_its_module_has_the_first_value(tmp_path: Path) -> None:
    attention = nn.MultiheadAttention(4, 1)
    up, down = torch.randn(4, 1), torch.randn(1, 4)
    tensors = {"out_proj.lora_up.weight": up, "out_proj.lora_down.weight": down}
    save_file(tensors, tmp_path / "a.safetensors")
    before = attention.out_proj.weight.detach().clone()
    with lora_runtime.apply(attention, "<lora:a:0.5@0,1@1>", loras=tmp_path) as applied:
        # at 0.5, from the first step to the last
        torch.testing.assert_close(attention.out_proj.weight.detach(), before + 0.5 * up @ down)
    steps, said = applied.diagnostics
    assert "no time step" in steps.message
    assert said.message.startswith('"a" cannot vary on 1 weight: ')
    assert said.message.endswith("; the first value counts throughout")


def test_a_thread_waits_while_another_paints(pipe: Any, folder: Path) -> None:
    lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    wash = weights(pipe)
    lora_runtime.restore(pipe)
    order: list[str] = []
    entered = threading.Event()

    def other() -> None:
        entered.wait(10)
        with lora_runtime.apply(pipe, "<lora:wash>", loras=folder):
            order.append("second")
            assert_untouched(pipe, wash)

    thread = threading.Thread(target=other)
    thread.start()
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        ink = weights(pipe)
        entered.set()
        time.sleep(0.2)
        order.append("first")
        assert_untouched(pipe, ink)
    thread.join(10)
    assert order == ["first", "second"]


@pytest.mark.slow
def test_many_threads_never_see_a_mixture(pipe: Any, folder: Path) -> None:
    expected = {}
    for name in ("ink", "wash", "grain"):
        with lora_runtime.apply(pipe, f"<lora:{name}>", loras=folder):
            expected[name] = weights(pipe)
    before, failures = weights(pipe), []

    def work(name: str) -> None:
        try:
            for _ in range(3):
                with lora_runtime.apply(pipe, f"<lora:{name}>", loras=folder):
                    assert_untouched(pipe, expected[name])
        except BaseException as error:  # a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert_untouched(pipe, before)


def test_a_block_may_be_left_in_another_thread(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    applied = lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:  # both alive: a dead thread's number is reused
        one.submit(applied.__enter__).result(60)
        other.submit(applied.__exit__, None, None, None).result(60)
        assert_untouched(pipe, before)
        other.submit(lora_runtime.apply, pipe, "<lora:ink>", loras=folder).result(60)  # nobody holds the model


def test_a_model_is_not_kept_alive(pipe: Any, folder: Path) -> None:
    unet = tiny.unet()
    with lora_runtime.apply(unet, "<lora:shapes>", loras=folder):
        pass
    lora_runtime.apply(unet, "<lora:shapes>", loras=folder)
    gone = weakref.ref(unet)
    gc.collect()
    gc.disable()
    try:
        del unet
        assert gone() is None
    finally:
        gc.enable()


def test_load_state_dict_between_applies_is_seen(pipe: Any, folder: Path) -> None:
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    other = {name: value + 0.01 for name, value in tiny.unet(seed=9).state_dict().items()}
    pipe.unet.load_state_dict(other)
    lora_runtime.restore(pipe)
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_a_module_replaced_between_applies_is_seen(pipe: Any, folder: Path) -> None:
    lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    block.to_q = nn.Linear(block.to_q.in_features, block.to_q.out_features, bias=False)
    fresh = block.to_q.weight.detach().clone()
    lora_runtime.apply(pipe, "<lora:ink:0.5>", loras=folder)
    assert not torch.equal(block.to_q.weight, fresh)
    lora_runtime.restore(pipe)
    assert torch.equal(block.to_q.weight, fresh)


@pytest.mark.quick
@pytest.mark.parametrize("originals", ["device", "host"])
@pytest.mark.parametrize("failing", [0, 1, 150, 293])
def test_a_fault_at_any_module_leaves_no_module_patched(
    pipe: Any, folder: Path, failing: int, originals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real, calls = weights(pipe), patcher.merge_into, count()

    def merge_or_fail(*args: Any) -> None:
        if next(calls) == failing:
            raise MemoryError("injected")
        real(*args)

    monkeypatch.setattr(patcher, "merge_into", merge_or_fail)
    with pytest.raises(MemoryError, match="injected"):
        lora_runtime.apply(pipe, "<lora:ink>", loras=folder, originals=originals)
    assert_untouched(pipe, before)


@pytest.mark.slow
def test_a_compiled_denoiser_shows_the_patch_without_compiling_again(pipe: Any, folder: Path) -> None:
    plain = paint(pipe, "a cat")
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        inked = paint(pipe, "a cat")
    compiled = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(graph)
        return graph.forward

    pipe.unet = torch.compile(pipe.unet, backend=count)
    assert torch.allclose(paint(pipe, "a cat"), plain, atol=1e-5)
    graphs = len(compiled)
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as applied:
        assert applied.report.loras[0].used == applied.report.loras[0].keys
        assert torch.allclose(paint(pipe, "a cat"), inked, atol=1e-5)
    assert torch.allclose(paint(pipe, "a cat"), plain, atol=1e-5)
    assert len(compiled) == graphs


def test_accelerate_offload_hooks_move_patched_weights(pipe: Any, folder: Path) -> None:
    from accelerate import cpu_offload_with_hook

    before, plain = weights(pipe), paint(pipe, "a cat")
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        inked = paint(pipe, "a cat")
    hooks = [cpu_offload_with_hook(getattr(pipe, part), execution_device="cpu")[1] for part in PATCHED]
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder):
        assert torch.equal(paint(pipe, "a cat"), inked)
        for hook in hooks:
            hook.offload()
    assert_untouched(pipe, before)
    assert torch.equal(paint(pipe, "a cat"), plain)


def test_painting_under_inference_mode_leaves_no_trace(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with torch.inference_mode(), lora_runtime.apply(pipe, "a cat<lora:ink>", loras=folder) as applied:
        paint(pipe, applied.prompt)
    assert_untouched(pipe, before)
    assert not any(p.is_inference() for p in pipe.unet.parameters())


class _Steps(nn.Module):
    """A denoiser of one layer, in a loop of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "severity", "words"),
    [(_Steps, "info", "comes without a scheduler"), (lambda: nn.Sequential(_Steps().layer), "warning", "no time step")],
)
def test_a_schedule_on_a_model_that_nobody_tells_the_step_is_said(
    tmp_path: Path, make: Callable[[], nn.Module], severity: str, words: str
) -> None:
    model = make()
    name = next(iter(model._modules))
    factors = {f"{name}.lora_A.weight": torch.randn(2, 4), f"{name}.lora_B.weight": torch.randn(4, 2)}
    save_file(factors, tmp_path / "ink.safetensors")
    with lora_runtime.apply(model, "<lora:ink:1@0,0@1>", loras=tmp_path) as applied:
        (said,) = applied.diagnostics
        assert (said.severity, words in said.message, ".at(" in said.message + said.hint) == (severity, True, True)
    with lora_runtime.apply(model, "<lora:ink:0.5>", loras=tmp_path) as applied:
        assert applied.diagnostics == ()
