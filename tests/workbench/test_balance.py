"""`balanced`: strengths written anew, so that the sum is no stronger than the strongest file alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from workbench.files import TO_K, TO_Q, delta, factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.lora import load_lora
from lora_runtime.prompt import parse_prompt
from lora_runtime.workbench import balanced
from lora_runtime.workbench.balance import scaled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("ink", "wash", "oil")):
        written(tmp_path / f"{name}.safetensors", factors(TO_Q, 3, seed=seed) | factors(TO_K, 2, seed=10 + seed))
    return tmp_path


def test_together_they_have_the_norm_of_the_strongest_alone(folder: Path) -> None:
    prompt = "a boat <lora:ink:0.7> and <lora:wash:-0.4> a tree <lora:oil:1.5>"
    found = parse_prompt(balanced(prompt, loras=[folder]))
    assert found.text == parse_prompt(prompt).text
    deltas = {name: load_lora(folder / f"{name}.safetensors") for name in ("ink", "wash", "oil")}
    dense = {name: torch.cat([delta(lora, stem).flatten() for stem in (TO_Q, TO_K)]) for name, lora in deltas.items()}
    asked = {tag.name: tag.unet for tag in parse_prompt(prompt).tags}
    strongest = max(float((dense[name] * asked[name]).norm()) for name in dense)
    together = sum((dense[tag.name] * tag.unet for tag in found.tags), torch.zeros(1).double())
    assert float(together.norm()) == pytest.approx(strongest, rel=2e-3)  # of strengths with three digits
    # What each is to the others stays as it was asked.
    ratios = [tag.unet / asked[tag.name] for tag in found.tags]  # type: ignore[operator]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=2e-3)


def test_what_is_in_balance_stays_to_the_letter(folder: Path) -> None:
    for prompt in ("a  boat <lora:ink:.70>", "<lora:ink:1><lora:ink:-0.5:IN01=1>"):
        assert balanced(prompt, loras=[folder]) == prompt


def test_all_that_is_a_strength_is_scaled_and_nothing_else() -> None:
    prompt = "a (b:1.2) <lora:ink:te=0.5:unet=0@0,1@0.5:dyn=4:hr=0.4:in=0.2:OUT03=0.5:stop=10s> [c] <hypernet:x:1>"
    found = scaled(prompt, 0.5)
    again = "a (b:1.2) <lora:ink:te=0.25:unet=0@0,0.5@0.5:dyn=4:hr=0.2:in=0.1:OUT03=0.5:stop=10s> [c] <hypernet:x:1>"
    assert parse_prompt(found).tags[0].conditions == parse_prompt(again).tags[0].conditions
    assert [(tag.te, tag.unet, tag.dyn) for tag in parse_prompt(found).tags] == [
        (tag.te, tag.unet, tag.dyn) for tag in parse_prompt(again).tags
    ]
    assert found.startswith("a (b:1.2) <lora:ink:") and found.endswith("> [c] <hypernet:x:1>")


def test_a_strength_that_varies_has_no_norm(folder: Path) -> None:
    with pytest.raises(LoraFileError, match="its strength depends on the step"):
        balanced("<lora:ink:0@0,1@1><lora:wash:1>", loras=[folder])
    with pytest.raises(LoraFileError, match="or the place"):
        balanced("<lora:ink:1:box=0,0,0.5,1><lora:wash:1>", loras=[folder])
