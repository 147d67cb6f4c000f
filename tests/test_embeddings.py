"""Words that a LoRA file brings along: diffusers' own loader of textual inversions says what they come to."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

WORD = "zqx"


def vectors(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def bundle(folder: Path, tensors: dict[str, Tensor], name: str = "pivotal", word: str = WORD) -> Path:
    """Write a LoRA that holds nothing but a word."""
    save_file({f"bundle_emb.{word}.{key}": tensor for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    return folder


def width_of(pipe: Any, encoder: str = "text_encoder") -> int:
    return int(getattr(pipe, encoder).get_input_embeddings().embedding_dim)


def encoded(pipe: Any, prompt: str) -> list[Tensor]:
    with torch.no_grad():
        found = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def everything(pipe: Any) -> tuple[list[dict[str, int]], dict[str, Tensor], list[int]]:
    """Return the vocabularies, the weights, and how many hooks the tables of words have (transformers hooks layers)."""
    names = [name for name in pipe.components if name.startswith("text_encoder")]
    tokenizers = [pipe.components[name.replace("text_encoder", "tokenizer")] for name in names]
    modules = [module for name in names for module in pipe.components[name].modules()]
    modules = [module for module in modules if isinstance(module, nn.Embedding)]
    return (
        [copy.deepcopy(tokenizer.get_vocab()) for tokenizer in tokenizers],
        {f"{name}.{key}": value.clone() for name in names for key, value in pipe.components[name].state_dict().items()},
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
    )


def unchanged(pipe: Any, before: tuple[list[dict[str, int]], dict[str, Tensor], list[int]]) -> bool:
    words, weights, hooks = everything(pipe)
    same = weights.keys() == before[1].keys() and all(torch.equal(weights[key], before[1][key]) for key in weights)
    return words == before[0] and hooks == before[2] and same


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layout", ["string_to_param.*", "emb_params", f"<{WORD}>"])
def test_a_word_means_what_diffusers_reads_it_as(layout: str, count: int, tmp_path: Path) -> None:
    pipe, judge = tiny.pipeline("sd1"), tiny.pipeline("sd1")
    vector = vectors(count, width_of(pipe))
    judge.load_textual_inversion(vector, token=WORD)
    before, prompt = everything(pipe), f"a {WORD} cat"
    plain = encoded(pipe, prompt)
    with lora_runtime.apply(pipe, f"{prompt}<lora:pivotal>", loras=bundle(tmp_path, {layout: vector})) as applied:
        found, expected = encoded(pipe, applied.prompt), encoded(judge, prompt)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert not torch.equal(found[0], plain[0])
        assert [d.severity for d in applied.diagnostics] == ["info"]
    assert unchanged(pipe, before)
    assert all(torch.equal(*pair) for pair in zip(encoded(pipe, prompt), plain, strict=True))


def test_a_word_with_capitals_has_all_its_vectors(tmp_path: Path) -> None:
    """The tokenizer reads all else in small letters. The judge knows the same vectors by a name without capitals."""
    pipe, judge = tiny.pipeline("sd1"), tiny.pipeline("sd1")
    vector = vectors(3, width_of(pipe))
    judge.load_textual_inversion(vector, token=WORD)
    before, loras = everything(pipe), bundle(tmp_path, {"emb_params": vector}, word="InkWord")
    with lora_runtime.apply(pipe, "a InkWord cat <lora:pivotal>", loras=loras) as applied:
        found, expected = encoded(pipe, applied.prompt), encoded(judge, f"a {WORD} cat ")
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert unchanged(pipe, before)


@pytest.mark.parametrize("count", [1, 2])
def test_both_encoders_of_sdxl_learn_the_word(count: int, tmp_path: Path) -> None:
    pipe, judge = tiny.pipeline("sdxl"), tiny.pipeline("sdxl")
    first, second = vectors(count, width_of(pipe)), vectors(count, width_of(pipe, "text_encoder_2"), 1)
    judge.load_textual_inversion(first, token=WORD, tokenizer=judge.tokenizer, text_encoder=judge.text_encoder)
    judge.load_textual_inversion(second, token=WORD, tokenizer=judge.tokenizer_2, text_encoder=judge.text_encoder_2)
    before, prompt = everything(pipe), f"a {WORD} cat, {WORD}"
    loras = bundle(tmp_path, {"clip_l": first, "clip_g": second})
    with lora_runtime.apply(pipe, f"{prompt}<lora:pivotal>", loras=loras) as applied:
        found, expected = encoded(pipe, applied.prompt), encoded(judge, prompt)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert unchanged(pipe, before)


def test_the_next_apply_forgets_the_word(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1")
    before, loras = everything(pipe), bundle(tmp_path, {"emb_params": vectors(2, width_of(pipe))})
    lora_runtime.apply(pipe, "a <lora:pivotal>", loras=loras)
    assert WORD in pipe.tokenizer.get_vocab()
    lora_runtime.apply(pipe, "a <lora:pivotal:0.5>", loras=loras)
    assert f"{WORD}_1" in pipe.tokenizer.get_vocab()
    lora_runtime.apply(pipe, "a", loras=loras)
    assert unchanged(pipe, before)


def test_two_pipelines_that_share_a_tokenizer_forget_in_any_order(tmp_path: Path) -> None:
    one, two = tiny.pipeline("sd1"), tiny.pipeline("sd1")
    two.tokenizer = one.tokenizer
    before = everything(one), everything(two)
    bundle(tmp_path, {"emb_params": vectors(2, width_of(one))}, "first")
    bundle(tmp_path, {"emb_params": vectors(1, width_of(one), 1)}, "second", "qqz")
    judge = tiny.pipeline("sd1")
    judge.load_textual_inversion(vectors(1, width_of(one), 1), token="qqz")
    a = lora_runtime.apply(one, f"{WORD} <lora:first>", loras=tmp_path)
    b = lora_runtime.apply(two, "a qqz <lora:second>", loras=tmp_path)
    a.restore()
    assert torch.equal(encoded(two, "a qqz ")[0], encoded(judge, "a qqz ")[0])
    b.restore()
    assert unchanged(one, before[0])
    assert unchanged(two, before[1])


@pytest.mark.parametrize(
    ("tensors", "word", "reason"),
    [
        ({"emb_params": torch.ones(1, 7)}, WORD, "it is made for words 7 wide, those of this model are"),
        ({"emb_params": torch.ones(1, 2, 3)}, WORD, "emb_params is no vector and no list of vectors"),
        ({"emb_params": torch.ones(0, 64)}, WORD, "emb_params is a list of no vectors"),
        ({"emb_params": None}, "</w>", "its name is a word of the tokenizer already"),
    ],
)
def test_a_word_that_cannot_be_loaded_is_said(
    tensors: dict[str, Tensor | None], word: str, reason: str, tmp_path: Path
) -> None:
    pipe = tiny.pipeline("sd1")
    if word != WORD:
        word = next(token for token in pipe.tokenizer.get_vocab() if token.isalpha())
    filled = {key: vectors(1, width_of(pipe)) if value is None else value for key, value in tensors.items()}
    before = everything(pipe)
    applied = lora_runtime.apply(pipe, "a <lora:pivotal>", loras=bundle(tmp_path, filled, word=word))
    (told,) = applied.diagnostics
    assert told.severity == "warning"
    assert told.message.startswith(f'the embedding "{word}" in "pivotal" is not loaded: {reason}')
    assert unchanged(pipe, before)


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    loras = bundle(tmp_path, {"emb_params": torch.ones(1, 4)})
    for model in (nn.Linear(4, 4), SimpleNamespace(components={"transformer": nn.Linear(4, 4)})):
        (told,) = lora_runtime.apply(model, "a <lora:pivotal>", loras=loras).diagnostics
        assert told.message.endswith("is not loaded: this model has no tokenizer with a text encoder")


def test_a_pipeline_that_does_not_spell_words_out_gets_them_spelled(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1")
    loras = bundle(tmp_path, {"emb_params": vectors(3, width_of(pipe))})
    other = SimpleNamespace(components=pipe.components, tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)
    assert lora_runtime.apply(other, f"a {WORD}<lora:pivotal>", loras=loras).prompt == f"a {WORD} {WORD}_1 {WORD}_2"


def test_tokens_that_are_added_meanwhile_are_said_to_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their numbers follow those of the file's words, so the tokenizer cannot keep them without these."""
    pipe = tiny.pipeline("sd1")
    vector = vectors(1, width_of(pipe))
    bundle(tmp_path, {"emb_params": vector})
    words = pipe.tokenizer.get_vocab()
    with lora_runtime.apply(pipe, "<lora:pivotal>", loras=tmp_path):
        pipe.load_textual_inversion(vector, token="mine")
        assert not caplog.records
    assert pipe.tokenizer.get_vocab() == words
    (said,) = caplog.messages
    assert "'mine'" in said
    assert WORD not in said


def test_words_that_come_and_go_are_said_to_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny.pipeline("sd1")
    vector = vectors(2, width_of(pipe))
    bundle(tmp_path, {"emb_params": vector})
    bundle(tmp_path, {"emb_params": vector}, name="other", word="qqz")
    for prompt in ("<lora:pivotal>", "<lora:pivotal><lora:other>", "<lora:other>", ""):
        lora_runtime.apply(pipe, prompt, loras=tmp_path)
    assert not caplog.records
