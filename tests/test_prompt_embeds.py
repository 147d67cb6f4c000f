"""Weighted words on diffusers' pipelines, against the formula in the words of the WebUI's documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import lora_runtime

START = 1


@pytest.fixture(params=["sd1", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return tiny.pipeline(request.param)


def is_large(pipe: Any) -> bool:
    return hasattr(pipe, "text_encoder_2")


def plain(pipe: Any, prompt: str, negative: str = "", **options: Any) -> dict[str, Tensor]:
    """Return what the pipeline itself makes of a prompt."""
    found = pipe.encode_prompt(
        prompt,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=negative,
        **options,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, found, strict=False))


def embeds(pipe: Any, prompt: Any, negative: Any = "no", **options: Any) -> dict[str, Tensor]:
    options = {"weights": "a1111", **options}
    with lora_runtime.apply(pipe, prompt, negative_prompt=negative, **options) as applied:
        return applied.embeds


def close(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=2e-5)


def test_without_weights_it_is_what_the_pipeline_makes_of_it(pipe: Any) -> None:
    expected = plain(pipe, "a red cat", "no")
    found = embeds(pipe, "a red cat")
    assert found.keys() == expected.keys()
    assert all(close(found[name], expected[name]) for name in expected)


def test_layers_at_the_end_are_skipped_as_diffusers_counts_them(pipe: Any) -> None:
    sides = []
    for number in ("", "_2") if is_large(pipe) else ("",):
        encoder, tokenizer = getattr(pipe, f"text_encoder{number}"), getattr(pipe, f"tokenizer{number}")
        ids = tokenizer("a red cat", padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = encoder(ids, output_hidden_states=True).hidden_states
        # SD1: the last but one, normed; SDXL: one layer further from the end, as it is.
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        sides.append(states[-3] if is_large(pipe) else norm(states[-2]))
    assert close(embeds(pipe, "a red cat", clip_skip=1)["prompt_embeds"], torch.cat(sides, -1))


def test_a_pipeline_paints_with_them(pipe: Any, tmp_path: Path) -> None:
    tiny.write_kohya_lora(tmp_path / "ink.safetensors", pipe, rank=2, seed=1)
    settings: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}

    def paint(**texts: Any) -> Tensor:
        return pipe(generator=torch.Generator().manual_seed(0), **settings, **texts).images

    with lora_runtime.apply(
        pipe, "a cat <lora:ink:0.8>", negative_prompt="no", loras=tmp_path, weights="a1111"
    ) as applied:
        by_words = paint(prompt=applied.prompt, negative_prompt="no")
        assert torch.allclose(paint(**applied.embeds), by_words, rtol=0, atol=1e-4)
        applied.set("ink", 0.2)
        changed = paint(prompt=applied.prompt, negative_prompt="no")
        assert torch.allclose(paint(**applied.embeds), changed, rtol=0, atol=1e-4)
        assert not torch.allclose(changed, by_words, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", [True, False])
def test_words_are_multiplied_and_the_mean_is_given_back(norm: bool) -> None:
    pipe = tiny.pipeline("sd1")
    # States that are normed alone have the mean 0, which nothing can be given back.
    torch.nn.init.constant_(getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm.bias, 0.5)
    states = plain(pipe, "a red cat")["prompt_embeds"].double()
    ids = pipe.tokenizer("a red cat", padding="max_length", truncation=True).input_ids
    (a, red, cat) = (pipe.tokenizer(word, add_special_tokens=False).input_ids for word in ("a", " red", " cat"))
    weights = torch.ones(1, len(ids), 1, dtype=torch.float64)
    weights[:, START + len(a) : START + len(a) + len(red)] = 1.3
    expected = states * weights
    if norm:
        expected *= states.mean() / expected.mean()
    weights_option = "a1111" if norm else "a1111-no-norm"
    found = embeds(pipe, "a (red:1.3) cat", weights=weights_option)["prompt_embeds"]
    assert START + len(a) + len(red) + len(cat) < len(ids)
    assert close(found.double(), expected)


def test_states_of_the_mean_0_stay_where_no_word_has_a_weight() -> None:
    pipe = tiny.pipeline("sd1")
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    torch.nn.init.zeros_(norm.weight)  # each state is the norm's bias then
    torch.nn.init.zeros_(norm.bias)
    assert torch.equal(embeds(pipe, "a red cat")["prompt_embeds"], plain(pipe, "a red cat")["prompt_embeds"])


def test_break_encodes_each_part_by_itself(pipe: Any) -> None:
    found = embeds(pipe, "a cat BREAK a dog", negative="no")
    parts = plain(pipe, "a cat", "no"), plain(pipe, "a dog", "")
    assert close(found["prompt_embeds"], torch.cat([part["prompt_embeds"] for part in parts], 1))
    # The shorter side is filled up with an empty text.
    empty = plain(pipe, "")["prompt_embeds"]
    assert close(found["negative_prompt_embeds"], torch.cat([parts[0]["negative_prompt_embeds"], empty], 1))
    if is_large(pipe):
        assert close(found["pooled_prompt_embeds"], parts[0]["pooled_prompt_embeds"])


def test_a_long_prompt_is_cut_at_a_comma() -> None:
    pipe = tiny.pipeline("sd1")
    room = pipe.text_encoder.config.max_position_embeddings - 2
    comma = pipe.tokenizer(",", add_special_tokens=False).input_ids
    assert len(comma) == 1
    first = "a, " * ((room - 2) // 2 // len(pipe.tokenizer("a", add_special_tokens=False).input_ids))
    begin = len(pipe.tokenizer(first, add_special_tokens=False).input_ids)
    second = "cat"
    rest = pipe.tokenizer(second, add_special_tokens=False).input_ids
    while begin + len(rest) <= room:
        second += " cat"
        rest = pipe.tokenizer(second, add_special_tokens=False).input_ids
    found = embeds(pipe, first + second)["prompt_embeds"]
    expected = torch.cat([plain(pipe, text)["prompt_embeds"] for text in (first, second)], 1)
    assert close(found, expected)


def test_a_batch_has_a_row_each(pipe: Any) -> None:
    both = embeds(pipe, ["a (cat:1.2)", "a dog"], negative="no")
    for index, prompt in enumerate(["a (cat:1.2)", "a dog"]):
        alone = embeds(pipe, prompt, negative="no")
        assert all(close(both[name][index : index + 1], alone[name]) for name in alone)


def test_an_empty_negative_prompt_of_sdxl_is_zeros_where_the_pipeline_says_so() -> None:
    pipe = tiny.pipeline("sdxl")
    pipe.register_to_config(force_zeros_for_empty_prompt=True)
    found = embeds(pipe, "a cat", negative=None)
    assert not found["negative_prompt_embeds"].any()
    assert not found["negative_pooled_prompt_embeds"].any()


def test_what_cannot_be_said_so() -> None:
    pipe = tiny.pipeline("sd1")
    with pytest.raises(ValueError, match="weights is 'compel'"):
        lora_runtime.apply(pipe, "a", weights="compel")  # type: ignore[arg-type]
    applied = lora_runtime.apply(pipe, "a (cat:1.2)")
    (note,) = applied.diagnostics
    assert note.severity == "info"
    assert 'weights="a1111"' in note.message
    with pytest.raises(lora_runtime.ModelError, match="no weights were asked for"):
        _ = applied.embeds
    applied = lora_runtime.apply(pipe, "a (cat:1.2)", weights="a1111")
    assert not applied.diagnostics
    layer = torch.nn.Linear(2, 2)
    applied = lora_runtime.apply(layer, "a", weights="a1111")
    with pytest.raises(lora_runtime.ModelError, match="CLIPs"):
        _ = applied.embeds
