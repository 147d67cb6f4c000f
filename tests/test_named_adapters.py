"""LoRAs asked for by name, strengths that change in place, and what an `Applied` says of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime.prompt import Curve


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline("sd1")


@pytest.fixture
def folder(tmp_path: Path, pipe: Any) -> Path:
    for seed, name in enumerate(["ink", "wash", "odd;name"], start=1):
        tiny.write_kohya_lora(tmp_path / f"{name}.safetensors", pipe, rank=3, seed=seed)
    return tmp_path


def weights(pipe: Any) -> list[Tensor]:
    """Return copies of all weights of a pipeline."""
    return [p.detach().clone() for part in (pipe.unet, pipe.text_encoder) for p in part.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def shown(pipe: Any, folder: Path, *args: Any, **options: Any) -> list[Tensor]:
    with lora_runtime.apply(pipe, *args, loras=folder, strict=True, **options):
        return weights(pipe)


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    ("value", "tag"),
    [
        (0.7, "<lora:ink:0.7>"),
        (1, "<lora:ink>"),
        ((0.5, 0.9), "<lora:ink:0.5:0.9>"),
        ([0.5, 0.9], "<lora:ink:te=0.5:unet=0.9>"),
        ("0.7:IN=0", "<lora:ink:0.7:in=0>"),
        ({"te": 0.2, "unet": 0.4, "dyn": 2}, "<lora:ink:0.2:0.4:2>"),
        ({"unet": 1, "mid": "0"}, "<lora:ink:unet=1:mid=0>"),
    ],
)
def test_a_name_with_a_value_is_the_tag_that_it_stands_for(pipe: Any, folder: Path, value: Any, tag: str) -> None:
    before = weights(pipe)
    assert equal(shown(pipe, folder, adapters={"ink": value}), shown(pipe, folder, tag))
    assert equal(weights(pipe), before)


def test_names_and_tags_add_up(pipe: Any, folder: Path) -> None:
    both = shown(pipe, folder, "a cat <lora:wash:0.5>", adapters={"ink": 0.25})
    assert equal(both, shown(pipe, folder, "<lora:ink:0.25><lora:wash:0.5>"))
    assert equal(
        shown(pipe, folder, "<lora:ink:0.25>", adapters={"ink": 0.5}), shown(pipe, folder, adapters={"ink": 0.75})
    )


def test_names_act_for_every_prompt_of_a_batch(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, ["a cat", "a dog"], loras=folder, adapters={"ink": 0.5}) as applied:
        assert applied.prompt == ["a cat", "a dog"]
        assert applied.report.loras[0].images is None
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink:0.5>"))


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", ["a: b", 'say "ink"', "back\\slash", "<ink>", "te=1", " ink ", "odd;name"])
def test_any_name_can_be_asked_for(pipe: Any, folder: Path, name: str) -> None:
    applied = lora_runtime.apply(pipe, adapters={name: 0.5}, loras=folder)
    assert applied.strengths == {name: 0.5}
    assert [d.message for d in applied.diagnostics if "odd" not in name] == [
        d.message for d in applied.diagnostics if name in d.message or name.strip() in d.message
    ]
    assert bool(applied.report.loras) == (name == "odd;name")


@pytest.mark.parametrize("value", [None, (1, 2, 3), (1,), object(), {"te": None}])
def test_what_is_no_strength_is_an_error_at_once(pipe: Any, folder: Path, value: Any) -> None:
    before = weights(pipe)
    with pytest.raises(TypeError, match=r"adapters\['ink'\]"):
        lora_runtime.apply(pipe, adapters={"ink": value, "wash": 1}, loras=folder)
    assert equal(weights(pipe), before)


@pytest.mark.parametrize(
    ("adapters", "reason"),
    [
        (["ink"], "adapters is .'ink'.: give a mapping of names"),
        ("ink", "adapters is 'ink': give a mapping of names"),
        ({5: 1}, "adapters has the name 5: give the name"),
        ({"ink": 10**400}, r"adapters\['ink'\] is beyond"),
        ({"ink": {"te": -(10**5000)}}, r"adapters\['ink'\] is beyond"),
    ],
)
def test_what_names_no_strengths_is_an_error_at_once(pipe: Any, folder: Path, adapters: Any, reason: str) -> None:
    before = weights(pipe)
    with pytest.raises(TypeError, match=reason):
        lora_runtime.apply(pipe, adapters=adapters, loras=folder)
    assert equal(weights(pipe), before)


@pytest.mark.parametrize("value", ["strong", "0@", float("nan"), {"unet": "x"}])
def test_a_value_that_cannot_be_read_costs_its_own_name(pipe: Any, folder: Path, value: Any) -> None:
    applied = lora_runtime.apply(pipe, adapters={"ink": value, "wash": 0.5}, loras=folder)
    assert [diagnostic.severity for diagnostic in applied.diagnostics] == ["error"]
    assert [lora.name for lora in applied.report.loras] == ["wash"]
    with pytest.raises(lora_runtime.TagSyntaxError):
        lora_runtime.apply(pipe, adapters={"ink": value}, loras=folder, strict=True)


def test_a_strength_changes_in_place(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with lora_runtime.apply(pipe, "a cat <lora:ink:0.7>", adapters={"wash": (0.5, 0.9)}, loras=folder) as applied:
        assert applied.strengths == {"ink": 0.7, "wash": (0.5, 0.9)}
        applied.set("ink", 0.25)
        applied.set("wash", (0, 0.125))
        assert applied.strengths == {"ink": 0.25, "wash": (0, 0.125)}
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink:0.25><lora:wash:te=0:unet=0.125>"))
        assert {lora.name: lora.unet for lora in applied.report.loras} == {"ink": 0.25, "wash": 0.125}
        applied.set("ink", 0)
        applied.set("wash", 0)
        assert equal(weights(pipe), before)
        applied.set("ink", 1)
    assert equal(weights(pipe), before)


def test_a_number_leaves_what_else_a_tag_says(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "<lora:ink:0.7:IN=0:stop=50%>", loras=folder) as applied:
        applied.set("ink", 0.5)
        (tag,) = applied.tags
        assert tag.unet == 0.5
        assert tag.conditions.when
        assert tag.conditions.blocks is not None
        applied.set("ink", {"unet": "0@0,1@1"})
        (tag,) = applied.tags
        assert isinstance(tag.unet, Curve)
        assert not tag.conditions.when
        assert applied.report.live > 0


def test_of_several_tags_the_first_gets_the_strength(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "<lora:ink:0.7> and <lora:ink:0.2>", loras=folder) as applied:
        assert applied.strengths == {"ink": 0.7}
        applied.set("ink", 0.5)
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink:0.5>"))
        assert applied.infotext() == f"<lora:ink:0.5> and \n{hashes_of(folder, 'ink')}"


def test_each_image_keeps_its_own_tags(pipe: Any, folder: Path) -> None:
    prompts = ["<lora:ink:0.7>", "<lora:wash:0.7>", "<lora:ink:0.1><lora:wash:0.1>"]
    with lora_runtime.apply(pipe, prompts, loras=folder) as applied:
        applied.set("ink", 0.5)
        found = {(lora.name, lora.images): lora.unet for lora in applied.report.loras}
    assert found == {
        ("ink", frozenset({0, 2})): 0.5,
        ("wash", frozenset({1})): 0.7,
        ("wash", frozenset({2})): 0.1,
    }


def test_an_unknown_name_has_no_strength_to_change(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as applied:
        before = weights(pipe)
        with pytest.raises(lora_runtime.UnknownLoraError, match="there are ink"):
            applied.set("wash", 1)
        with pytest.raises(lora_runtime.TagSyntaxError):
            applied.set("ink", "strong")
        assert applied.strengths == {"ink": 1}
        assert equal(weights(pipe), before)


def test_a_change_of_what_does_not_show_waits_until_it_does(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    applied = lora_runtime.apply(pipe, "<lora:ink>", loras=folder)
    covering = lora_runtime.apply(pipe, "<lora:wash>", loras=folder)
    other = weights(pipe)
    applied.set("ink", 0.5)
    assert equal(weights(pipe), other)
    covering.restore()
    applied.restore()
    assert equal(weights(pipe), before)
    with applied:
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink:0.5>"))
    assert equal(weights(pipe), before)


def test_a_change_under_another_block_is_the_blocks_that_show(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as outer:
        with lora_runtime.apply(pipe, "<lora:wash>", loras=folder) as inner:
            inner.set("wash", 0.25)
            assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:wash:0.25>"))
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink>"))
        outer.set("ink", 0.5)
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink:0.5>"))


def test_a_file_that_is_gone_is_said_at_the_change(pipe: Any, folder: Path) -> None:
    before = weights(pipe)
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder) as applied:
        (folder / "ink.safetensors").unlink()
        applied.set("ink", 0.5)
        assert [diagnostic.severity for diagnostic in applied.diagnostics] == ["error"]
        assert equal(weights(pipe), before)


def test_a_step_that_was_said_stays_said_and_none_takes_it_back(pipe: Any, folder: Path) -> None:
    query = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(1, 4, query.in_features, generator=torch.Generator().manual_seed(0))
    plain = query(x)

    def run(step: int | None) -> Tensor:
        seen: list[Tensor] = []
        hook = query.register_forward_hook(lambda module, args, out: seen.append(out.detach().clone()))
        latents = torch.zeros(1, 4, 8, 8)
        text = torch.zeros(1, 3, pipe.unet.config.cross_attention_dim)
        pipe.unet(latents, pipe.scheduler.timesteps[0 if step is None else step], text)
        hook.remove()
        return seen[0]

    pipe.scheduler.set_timesteps(2)
    bare = run(0), run(1)
    with lora_runtime.apply(pipe, "<lora:ink:0@0,1@1>", loras=folder) as applied:
        assert torch.equal(run(0), bare[0])
        applied.at(1, 2)
        at_the_end = run(0)
        assert not torch.equal(at_the_end, bare[0])
        applied.set("ink", "0@0,2@1")
        assert not torch.equal(run(0), at_the_end)
        assert not torch.equal(run(0), bare[0])
        applied.at(None)
        assert torch.equal(run(0), bare[0])
        assert not torch.equal(run(1), bare[1])
    assert torch.equal(query(x), plain)


def test_tags_of_other_texts_act_and_are_taken_out(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "a cat", prompt_2="in ink<lora:ink:0.5>", loras=folder) as applied:
        assert (applied.prompt, applied.prompt_2, applied.prompt_3) == ("a cat", "in ink", None)
        assert equal(weights(pipe), shown(tiny.pipeline("sd1"), folder, "<lora:ink:0.5>"))
    batch = lora_runtime.apply(pipe, ["a", "b"], prompt_2=["c", "d<lora:ink>"], prompt_3="e", loras=folder)
    assert (batch.prompt_2, batch.prompt_3) == (["c", "d"], "e")
    assert batch.report.loras[0].images == frozenset({1})
    batch.restore()
    with pytest.raises(ValueError, match="1 prompt_2 for 2 prompts"):
        lora_runtime.apply(pipe, ["a", "b"], prompt_2=["c"], loras=folder)
    with pytest.raises(ValueError, match="go with a prompt"):
        lora_runtime.apply(pipe, None, prompt_2="c", loras=folder)


def test_the_words_that_a_prompt_lacks(pipe: Any, folder: Path) -> None:
    path = folder / "ink.safetensors"
    save_file(load_file(path), path, {"modelspec.trigger_phrase": "Ink Style, brush, paper"})
    with lora_runtime.apply(pipe, "a boat, ink style <lora:ink><lora:wash>", loras=folder) as applied:
        assert applied.triggers == {"ink": ("brush", "paper")}


def hashes_of(folder: Path, *names: str) -> str:
    """Return the field that the WebUI writes: the first 12 digits of the SHA-256 of what is behind the header."""
    import hashlib

    found = []
    for name in names:
        raw = (folder / f"{name}.safetensors").read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        found.append(f"{name}: {hashlib.sha256(raw[start:]).hexdigest()[:12]}")
    return f'Lora hashes: "{", ".join(found)}"'


def test_the_infotext_is_what_the_webui_writes(pipe: Any, folder: Path) -> None:
    negative, text = "people", "a boat <lora:ink:0.7>"
    applied = lora_runtime.apply(pipe, text, negative_prompt=negative, adapters={"wash": 0.5}, loras=folder)
    assert applied.infotext(
        num_inference_steps=20, Sampler="Euler a", guidance_scale=7.0, seed=1, width=512, height=768
    ) == (
        "a boat <lora:ink:0.7><lora:wash:0.5>\nNegative prompt: people\n"
        f"Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1, Size: 512x768, {hashes_of(folder, 'ink', 'wash')}"
    )


def test_an_optimiser_of_patched_weights_is_warned_of_once(
    pipe: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = nn.Linear(2, 2)
    other = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = torch.optim.SGD([*pipe.unet.parameters()], lr=0.0)
    for parameter in (*pipe.unet.parameters(), *layer.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with lora_runtime.apply(pipe, "<lora:ink>", loras=folder), caplog.at_level(logging.WARNING, "lora_runtime"):
        other.step()
        assert not caplog.records
        optimizer.step()
        optimizer.step()
    (record,) = caplog.records
    count = len([*pipe.unet.parameters()])
    assert record.getMessage().startswith("SGD trains ")
    assert f"of its {count} parameters while LoRAs are in their weights" in record.getMessage()
