"""Other extensions that work on the same tags, beside ours."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI


class Taker:
    """As loractl does it: an owner of its own at the start of each picture, and the old one at its end."""

    def __init__(self, webui: WebUI, module: str = "taker") -> None:
        networks, scripts = webui.module("extra_networks"), webui.module("scripts")
        taker = self
        self.active = True
        self.calls: list[int] = []

        class Network(networks.ExtraNetwork):  # type: ignore[name-defined, misc]
            def activate(self, p: Any, params_list: Any) -> None:
                taker.calls.append(len(params_list))

            def deactivate(self, p: Any) -> None: ...

        Network.__module__ = module

        class Script(scripts.Script):  # type: ignore[name-defined, misc]
            def process(self, p: Any, *args: Any, **kwargs: Any) -> None:
                if taker.active:
                    networks.register_extra_network(Network("lora"))

        self.owner = networks.extra_network_registry["lora"]
        self.give_back = lambda: networks.register_extra_network(self.owner)
        scripts.scripts_txt2img.alwayson_scripts.insert(0, Script())


def test_while_another_has_the_tag_the_weights_are_whole_and_it_is_said(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink>")
    taker = Taker(webui)
    done = webui.generate("a <lora:ink>")
    assert taker.calls == [1]
    assert webui.changed(done.passes[0].weights) == []
    [comment] = done.comments
    assert comment.startswith("LoRA note: ")
    assert "has taken the tag" in comment
    taker.active = False
    taker.give_back()
    again = webui.generate("a <lora:ink:0.7>")
    assert loras.differences(again.passes[0].weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []
    assert again.comments == []


LORACTL = "loractl.lib.lora_ctl_network"


def test_loractl_s_tags_are_taken_back_and_its_syntax_is_read(webui: WebUI, ink: loras.File) -> None:
    taker = Taker(webui, LORACTL)
    for said in (["LoRA note: loractl is installed too"], []):
        done = webui.generate("a <loractl:ink:0.7@0,0.7@1:hrte=0.2>", n_iter=2)
        assert taker.calls == []
        weights = loras.patched(plain(), [(ink, 0.7, 0)])
        assert loras.differences(done.passes[0].weights, plain(), weights) == []
        assert [comment.partition(";")[0] for comment in done.comments] == said
    assert webui.owner("lora") is webui.owner("loractl")


def test_loractl_keeps_the_tags_where_the_settings_say_so(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_runtime_stand_back = True
    taker = Taker(webui, LORACTL)
    done = webui.generate("a <lora:ink>")
    assert taker.calls == [1]
    assert webui.changed(done.passes[0].weights) == []
    [comment] = done.comments
    assert "loractl has taken the tag" in comment


def patch_as_the_builtin(webui: WebUI) -> Any:
    """Change a layer as the built-in does, which keeps a copy to write back at some later forward pass."""
    layer = webui.model.model.diffusion_model.middle_block[1].proj_in
    layer.network_weights_backup = layer.weight.detach().clone()
    layer.weight.data += 1.0
    sys.modules["networks"].loaded_networks.append("ink")
    return layer


def is_calm(layer: Any) -> bool:
    return layer.network_weights_backup is None and sys.modules["networks"].loaded_networks == []


def test_what_the_builtin_patched_for_another_is_given_back_before_ours_patches(webui: WebUI, ink: loras.File) -> None:
    taker = Taker(webui)
    webui.generate("a <lora:ink>")
    layer = patch_as_the_builtin(webui)
    taker.active = False
    taker.give_back()
    done = webui.generate("a <lora:ink:0.7>")
    assert loras.differences(done.passes[0].weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []
    assert is_calm(layer)
    webui.generate("a")
    assert webui.not_whole() == []


def test_what_the_builtin_patched_until_ours_was_installed_is_given_back(start: Callable[..., WebUI]) -> None:
    from double.webui import BUILTIN, REPOSITORY

    webui = start(extensions=(BUILTIN,))
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    webui.generate("a <lora:ink>")
    layer = patch_as_the_builtin(webui)
    webui.extensions.append(REPOSITORY)
    webui.reload_ui()
    assert webui.not_whole() == []
    assert is_calm(layer)
    done = webui.generate("a <lora:ink:0.7>")
    assert loras.differences(done.passes[0].weights, plain(), loras.patched(plain(), [(ink, 0.7)])) == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("sd_webui_loractl", "loractl"),
        ("sd-webui-lora-block-weight", "LoRA Block Weight"),
        ("sd-webui-additional-networks", "Additional Networks"),
        ("something else", ""),
    ],
)
def test_the_console_says_what_is_installed_beside_it(
    start: Callable[..., WebUI], tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, name: str
) -> None:
    from double.webui import OTHERS, REPOSITORY

    beside = tmp_path / folder
    shutil.copytree(OTHERS, beside)
    start(extensions=(REPOSITORY, beside))
    said = capsys.readouterr().out
    assert (name in said and "[lora-runtime]" in said) if name else said == ""
