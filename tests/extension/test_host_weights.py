"""What a prompt does to the weights of the WebUI's models, and that nothing is left of it: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI


# --- what is computed ---


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sd3"])
def test_the_weights_are_those_of_the_formula_and_then_those_of_the_file(
    start: Callable[..., WebUI], kind: str
) -> None:
    name = "a" if kind == "sd1" else kind
    webui = start(checkpoint=name)
    file = loras.write(webui.loras / "ink.safetensors", plain(name), kind)
    done = webui.generate("a cat <lora:ink:0.7>")
    [only] = done.passes
    assert loras.differences(only.weights, plain(name), loras.patched(plain(name), [(file, 0.7)])) == []
    assert sorted(webui.changed(only.weights)) == sorted(file.places)
    assert done.comments == []
    again = webui.generate("a cat")
    assert webui.changed(again.passes[0].weights) == webui.not_whole() == []
    assert webui.errors == []


def test_half_precision_is_rounded_once(start: Callable[..., WebUI]) -> None:
    webui = start(half=True)
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    done = webui.generate("a <lora:ink:0.7> <lora:wash:-0.4>")
    half = plain(half=True)
    assert loras.differences(done.passes[0].weights, half, loras.patched(half, [(ink, 0.7), (wash, -0.4)])) == []
    turned = webui.generate("a <lora:wash:-0.4> <lora:ink:0.7>")
    assert turned.comments == []
    assert all(torch.equal(done.passes[0].weights[name], w) for name, w in turned.passes[0].weights.items())
    webui.generate("a")
    assert webui.not_whole() == []


@pytest.mark.quick(5)
@pytest.mark.parametrize(
    ("tag", "te", "unet", "dyn"),
    [
        ("<lora:ink>", 1.0, 1.0, 2),
        ("<lora:ink:0.5>", 0.5, 0.5, 2),
        ("<lora:ink:0.5:0.25>", 0.5, 0.25, 2),
        ("<lora:ink:0.5:0.25:1>", 0.5, 0.25, 1),
        ("<lora:ink:te=0.5:unet=-1>", 0.5, -1.0, 2),
        ("<lora:ink:unet=2>", 1.0, 2.0, 2),
        ("<lora:ink:1:dyn=1>", 1.0, 1.0, 1),
        ("<lyco:ink:0.3>", 0.3, 0.3, 2),
        ("<lora:ink:0>", 0.0, 0.0, 2),
    ],
)
def test_a_tag_s_numbers_mean_what_they_mean_to_the_builtin(
    webui: WebUI, tag: str, te: float, unet: float, dyn: int
) -> None:
    file = loras.write(webui.loras / "ink.safetensors", plain())
    weights = webui.generate(f"a {tag} b").passes[0].weights
    assert loras.differences(weights, plain(), loras.patched(plain(), [(file, te, unet)], dyn=dyn)) == []


def test_no_module_pays_for_it_while_painting(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a")

    def shape() -> dict[str, Any]:
        found = {}
        for name, module in webui.model.named_modules():
            hooks = [key for key in vars(module) if key.endswith("hooks") and getattr(module, key)]
            found[name] = type(module), type(module).forward, module.__dict__.get("forward"), sorted(hooks)
        return found

    before = shape()
    torch_before = {cls: cls.forward for cls in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.MultiheadAttention)}
    identities = [id(parameter) for parameter in webui.model.parameters()]
    webui.generate("a <lora:ink>")
    assert webui.changed()
    assert shape() == before
    assert {cls: cls.forward for cls in torch_before} == torch_before
    assert [id(parameter) for parameter in webui.model.parameters()] == identities
    assert all(hooks == [] for *_, hooks in before.values())


# --- what may happen to a model while it is patched ---


def is_whole_without_tags(webui: WebUI) -> None:
    """Paint without tags: every model in memory must then be, bit for bit, what its file is."""
    done = webui.generate("a cat")
    assert webui.changed(done.passes[-1].weights) == webui.not_whole() == []


@pytest.mark.quick
@pytest.mark.parametrize("other", ["b", "sd2", "sdxl", "sd3"])
@pytest.mark.parametrize("limit", [1, 2])
def test_another_checkpoint_is_chosen(webui: WebUI, ink: loras.File, other: str, limit: int) -> None:
    webui.options.sd_checkpoints_limit = limit
    webui.generate("a <lora:ink>")
    assert webui.changed()
    webui.choose_checkpoint(other)
    assert webui.model.sd_checkpoint_info.name == other
    assert webui.not_whole() == []
    is_whole_without_tags(webui)
    webui.generate("a <lora:ink>")
    webui.choose_checkpoint("a")
    assert webui.not_whole() == []
    again = webui.generate("a <lora:ink:0.5>").passes[0]
    assert loras.differences(again.weights, plain(), loras.patched(plain(), [(ink, 0.5)])) == []
    is_whole_without_tags(webui)
    assert webui.errors == []


@pytest.mark.quick
@pytest.mark.parametrize("fault", ["unreadable", "misfit"])
@pytest.mark.parametrize("limit", [1, 2])
def test_another_checkpoint_cannot_be_loaded(webui: WebUI, ink: loras.File, fault: str, limit: int) -> None:
    webui.options.sd_checkpoints_limit = limit
    webui.add_checkpoint("broken", "sd1", plain("b"), fault)
    webui.generate("a <lora:ink>")
    model = webui.model
    with pytest.raises((OSError, RuntimeError), match=r"broken\.safetensors"):
        webui.choose_checkpoint("broken")
    assert webui.changed(webui.weights(model), "a") == []
    webui.choose_checkpoint("b")
    is_whole_without_tags(webui)
    webui.choose_checkpoint("a")
    is_whole_without_tags(webui)


@pytest.mark.quick
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize(("refiner", "half"), [("b", False), ("b", True), ("refiner", False)])
def test_the_refiner_is_patched_and_both_are_whole_afterwards(
    start: Callable[..., WebUI], refiner: str, limit: int, half: bool
) -> None:
    webui = start(half=half, checkpoint="a" if refiner == "b" else "sdxl", options={"sd_checkpoints_limit": limit})
    name = webui.options.sd_model_checkpoint.removesuffix(".safetensors")
    file = loras.write(webui.loras / "ink.safetensors", plain(name), "sd1" if name == "a" else "sdxl")
    for _ in range(2):  # the second time both may be in memory already
        done = webui.generate("a <lora:ink:0.7>", refiner_checkpoint=refiner, n_iter=2)
        assert [(run.name, run.batch, run.checkpoint) for run in done.passes] == [
            ("first", 0, name),
            ("refiner", 0, refiner),
            ("first", 1, name),
            ("refiner", 1, refiner),
        ]
        base = plain(name, half=half)
        for run in done.passes:
            if run.name == "first":
                assert loras.differences(run.weights, base, loras.patched(base, [(file, 0.7)])) == []
            elif refiner == "b":
                other = plain("b", half=half)
                assert loras.differences(run.weights, other, loras.patched(other, [(file, 0.7)])) == []
                assert webui.changed(run.conditioning.weights, "b")
    is_whole_without_tags(webui)
    assert webui.errors == []


@pytest.mark.parametrize("limit", [1, 2])
def test_the_hires_pass_has_its_own_checkpoint_and_its_own_tags(webui: WebUI, ink: loras.File, limit: int) -> None:
    webui.options.sd_checkpoints_limit = limit
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    done = webui.generate(
        "a <lora:ink:0.7>", enable_hr=True, hr_prompt="b <lora:wash:0.6>", hr_checkpoint_name="b", n_iter=2
    )
    assert [(run.name, run.checkpoint) for run in done.passes] == [("first", "a"), ("hires", "b")] * 2
    for run in done.passes:
        base, wanted = plain(run.checkpoint), (ink, 0.7) if run.name == "first" else (wash, 0.6)
        assert loras.differences(run.weights, base, loras.patched(base, [wanted])) == []
        text = loras.patched(base, [wanted])
        assert loras.differences(run.conditioning.weights, base, text) == []
    is_whole_without_tags(webui)


@pytest.mark.parametrize(
    ("hires", "wanted"), [("", 0.7), ("b", None), ("b <lora:ink:0.2>", 0.2)], ids=["the same", "none", "another"]
)
def test_the_hires_pass_follows_its_own_prompt(webui: WebUI, ink: loras.File, hires: str, wanted: float | None) -> None:
    done = webui.generate("a <lora:ink:0.7>", enable_hr=True, hr_prompt=hires)
    expected = loras.patched(plain(), [(ink, wanted)]) if wanted else {}
    assert loras.differences(done.passes[1].weights, plain(), expected) == []
    is_whole_without_tags(webui)


@pytest.mark.quick(2)
@pytest.mark.parametrize("where", ["first", "refiner", "hires", "hires refiner"])
def test_a_generation_that_ends_with_an_error(webui: WebUI, ink: loras.File, where: str) -> None:
    """The program calls nobody then; the next picture without tags must be whole all the same."""
    with pytest.raises(RuntimeError, match="asked to fail"):
        webui.generate("a <lora:ink>", enable_hr=True, refiner_checkpoint="b", fail_in=where)
    is_whole_without_tags(webui)
    webui.choose_checkpoint("a")
    is_whole_without_tags(webui)


def test_disable_extra_networks_hides_what_the_last_picture_showed(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink>")
    done = webui.generate("a <lora:ink>", disable_extra_networks=True)
    assert webui.changed(done.passes[0].weights) == webui.not_whole() == []


def test_the_weights_stay_between_two_pictures_with_the_same_tags(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink>")
    places = {name: tensor.data_ptr() for name, tensor in webui.weights().items()}
    versions = {name: tensor._version for name, tensor in webui.weights().items()}
    webui.generate("another <lora:ink>")
    assert {name: tensor.data_ptr() for name, tensor in webui.weights().items()} == places
    assert {name: tensor._version for name, tensor in webui.weights().items()} == versions


def test_the_weights_move_between_devices_while_patched(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink:0.7>")
    webui.module("sd_models").unload_model_weights()
    webui.model.to(torch.float64)
    webui.model.to(torch.float32)
    again = webui.generate("a <lora:ink:0.7>").passes[0]
    assert loras.differences(again.weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []
    is_whole_without_tags(webui)


def test_a_forced_reload_writes_the_same_checkpoint_into_a_patched_model(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink:0.7>")
    webui.module("sd_models").reload_model_weights(forced_reload=True)
    assert webui.not_whole() == []
    again = webui.generate("a <lora:ink:0.7>").passes[0]
    assert loras.differences(again.weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []
    is_whole_without_tags(webui)


def test_reload_ui_gives_the_weights_back_and_the_next_picture_has_the_lora_again(
    webui: WebUI, ink: loras.File
) -> None:
    for _ in range(2):
        webui.generate("a <lora:ink:0.7>")
        assert webui.changed()
        webui.reload_ui()
        assert webui.not_whole() == []
    again = webui.generate("a <lora:ink:0.7>").passes[0]
    assert loras.differences(again.weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []
    is_whole_without_tags(webui)
    assert webui.errors == []


def test_reload_ui_gives_the_program_its_own_functions_back(webui: WebUI) -> None:
    sd_models = webui.module("sd_models")
    for _ in range(2):
        functions = sd_models.reload_model_weights, sd_models.reuse_model_from_already_loaded
        assert [hasattr(function, "__wrapped__") for function in functions] == [True, True]
        # One wrapper, not one more with each reload.
        assert [hasattr(function.__wrapped__, "__wrapped__") for function in functions] == [False, False]
        webui.reload_ui()
    webui.module("script_callbacks").script_unloaded_callback()
    assert not hasattr(sd_models.reload_model_weights, "__wrapped__")


def test_a_checkpoint_that_is_loaded_outside_of_a_job_is_whole(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink>")
    webui.choose_checkpoint("b")
    assert webui.not_whole() == []


def test_the_empty_prompt_of_a_new_model_does_not_take_the_lora_away(webui: WebUI, ink: loras.File) -> None:
    """At a limit of 2 the refiner is loaded as a new model in the middle of the picture, which calls activate."""
    webui.options.sd_checkpoints_limit = 2
    seen: list[int] = []
    network, original = webui.owner("lora"), webui.owner("lora").activate
    network.activate = lambda p, params: (seen.append(len(params)), original(p, params))[1]
    done = webui.generate("a <lora:ink:0.7>", refiner_checkpoint="b")
    assert 0 in seen
    assert loras.differences(done.passes[1].weights, plain("b"), loras.patched(plain("b"), [(ink, 0.7)])) == []
