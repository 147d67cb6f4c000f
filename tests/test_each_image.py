"""What an apply to a list of prompts says of each of its images: what it would say of that prompt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

PROMPTS = ["a boat <lora:ink:0.8>", "a tree <lora:wash:0.5> <lora:ink:0.3>", "a sea"]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = tiny.pipeline(request.param)
    # States that are normed alone have the mean 0, which weighted words cannot be given back.
    torch.nn.init.constant_(getattr(made.text_encoder, "text_model", made.text_encoder).final_layer_norm.bias, 0.5)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    made = tmp_path_factory.mktemp("loras")
    (made / "styles").mkdir()
    for seed, name in enumerate(("ink", "wash", "styles/one", "styles/two"), start=1):
        tiny.write_kohya_lora(made / f"{name}.safetensors", pipe, rank=2, seed=seed, std=0.5)
    return made


def alone(pipe: Any, prompt: str, **more: Any) -> Any:
    """Return what apply says of one prompt, restored."""
    with lora_runtime.apply(pipe, prompt, **more) as applied:
        return applied


def test_a_report_has_the_files_of_its_own_image_and_counts_their_modules_alone(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, PROMPTS, loras=folder) as applied:
        reports = [applied.report_of(image) for image in range(3)]
    names = [[(lora.name, lora.te, lora.unet, lora.images) for lora in report.loras] for report in reports]
    assert [sorted(own) for own in names] == [
        [("ink", 0.8, 0.8, None)],
        [("ink", 0.3, 0.3, None), ("wash", 0.5, 0.5, None)],
        [],
    ]
    # Each of these files changes the weight of each linear layer and convolution, one a module.
    weights = sum(reports[0].loras[0].targets.values())
    assert [report.live for report in reports] == [weights, weights, 0]
    assert "image" not in str(reports[1])
    assert str(reports[2]) == "no LoRA applied"


def test_what_is_said_of_an_image_is_what_is_said_of_its_prompt_alone(pipe: Any, folder: Path) -> None:
    prompts = [
        "a <lora:ink:5.0>",  # as long as the tag below, and an odd strength
        "a <lora:ink:0.5> (heavy:1.2)",
        "a <lora:inc:0.5>",
        "b <lora:styles/*:1>",
        "b <lora:styles/*:1>",
        "b <lora:ink:1:OUT97=0>",
        "plain",
    ]
    negatives = ["", "", "<lora:wash:1>", "", "", "", "<lora:ink:1>"]
    with lora_runtime.apply(pipe, prompts, negative_prompt=negatives, seeds=[*range(7)], loras=folder) as applied:
        found = [applied.diagnostics_of(image) for image in range(7)]
    for image, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        expected = alone(pipe, prompt, negative_prompt=negative, seeds=image, loras=folder).diagnostics
        assert set(found[image]) == set(expected), prompt
    assert {said for own in found for said in own} == set(applied.diagnostics)
    assert sum(map(bool, found)) >= 5  # it was about something


def test_the_text_of_each_picture_is_of_its_own_prompt(pipe: Any, folder: Path) -> None:
    prompts, negatives = [*PROMPTS, "b <lora:styles/*:1>"], ["no", "", "grey", ""]
    with lora_runtime.apply(pipe, prompts, negative_prompt=negatives, seeds=[4, 5, 6, 7], loras=folder) as applied:
        found = [applied.infotext(image, seed=image) for image in range(4)]
    for image, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        own = alone(pipe, prompt, negative_prompt=negative, seeds=4 + image, loras=folder)
        assert found[image] == own.infotext(seed=image)
    assert found[2].startswith("a sea\nNegative prompt: grey\n")


def test_weighted_words_are_encoded_with_the_loras_of_their_own_image(pipe: Any, folder: Path) -> None:
    prompts = ["a (boat:1.3) <lora:ink:0.8>", "a tree BREAK by night <lora:wash:0.5>"]
    options: dict[str, Any] = {"loras": folder, "weights": "a1111"}
    with lora_runtime.apply(pipe, prompts, negative_prompt=["no BREAK never", "grey"], **options) as applied:
        found = applied.embeds
        assert not applied.diagnostics
    for image, (prompt, negative) in enumerate(zip(prompts, ("no BREAK never", "grey"), strict=True)):
        with lora_runtime.apply(pipe, prompt, negative_prompt=negative, **options) as own:
            expected = own.embeds
        with lora_runtime.apply(pipe, own.prompt, negative_prompt=negative, **options) as bare:
            without = bare.embeds
        for name in expected:
            assert close(found[name][image : image + 1], expected[name]), (image, name)
            assert not close(expected[name], without[name]), name


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=5e-5)


def test_texts_of_other_numbers_of_chunks_are_for_calls_of_their_own(pipe: Any, folder: Path) -> None:
    prompts = ["a", "b BREAK c", "d <lora:ink:1>", "e", "f"]
    negatives = ["", "", "", "no BREAK never", "no"]
    options: dict[str, Any] = {"negative_prompt": negatives, "loras": folder}
    with lora_runtime.apply(pipe, prompts, weights="a1111", **options) as applied:
        assert applied.calls == ((0, 2, 4), (1, 3))
    with lora_runtime.apply(pipe, prompts, **options) as applied:
        assert applied.calls == ((0, 1, 2, 3, 4),)  # the pipeline reads as much of each as it always does


def test_a_file_that_brings_a_word_along_is_for_a_call_of_its_own(pipe: Any, tmp_path: Path) -> None:
    width = int(pipe.text_encoder.get_input_embeddings().embedding_dim)
    save_file({"bundle_emb.zqx.emb_params": torch.ones(2, width)}, tmp_path / "pivotal.safetensors")
    prompts = ["a zqx", "a zqx <lora:pivotal:1>", "b zqx <lora:pivotal:1>"]
    with lora_runtime.apply(pipe, prompts, loras=tmp_path) as applied:
        assert applied.calls == ((0,), (1, 2))
    with lora_runtime.apply(pipe, prompts[1:], loras=tmp_path) as applied:
        assert applied.calls == ((0, 1),)


class Doubling(nn.Module):
    """A denoiser that no family is known of, which calls its layer with a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample + self.layer(torch.ones(1, 4))


def test_where_images_cannot_be_told_apart_each_has_a_call_of_its_own(tmp_path: Path) -> None:
    tensors = {"layer.lora_A.weight": torch.ones(1, 4), "layer.lora_B.weight": torch.ones(4, 1)}
    for name in ("ink", "wash"):
        save_file({key: value * len(name) for key, value in tensors.items()}, tmp_path / f"{name}.safetensors")
    model = Doubling()
    prompts = ["a <lora:ink:1>", "b <lora:wash:1>", "c <lora:ink:1>"]
    with lora_runtime.apply(model, prompts, loras=tmp_path) as applied:
        model(torch.zeros(3, 4), torch.tensor(1.0))
        assert applied.calls == ((0, 2), (1,))
    with lora_runtime.apply(model, [prompts[0], prompts[2]], loras=tmp_path) as applied:
        model(torch.zeros(2, 4), torch.tensor(1.0))
        assert applied.calls == ((0, 1),)
