"""The report on a prompt, of the checkpoint that is loaded: what the route answers, and what it costs."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI

PROMPT = "a cat <lora:ink:0.7:0.5> b <lora:wash:0.8>"


@pytest.fixture
def wash(webui: WebUI) -> loras.File:
    return loras.write(webui.loras / "wash.safetensors", plain(), seed=1)


def ask(webui: WebUI, prompt: Any) -> Any:
    return webui.client().post("/lora-runtime/report", json={"prompt": prompt})


def changes(file: loras.File, te: float, unet: float) -> dict[str, Any]:
    """Return s·Δ of each weight, float64, by the plain model's names."""
    before = plain()
    found = {}
    for name, after in loras.patched(before, [(file, 1.0)]).items():
        strength = unet if "diffusion_model" in name else te
        found[name] = (after.double() - before[name].double()) * strength
    return found


def norm(*several: dict[str, Any]) -> float:
    total = 0.0
    for name in several[0]:
        total += float(sum(each[name] for each in several).square().sum())
    return float(total**0.5)


def test_the_report_has_figures_tables_a_picture_and_the_balanced_prompt(
    webui: WebUI, ink: loras.File, wash: loras.File
) -> None:
    webui.generate("a")
    answer = ask(webui, PROMPT)
    assert answer.status_code == 200
    found = answer.json()
    assert found["names"] == ["ink", "wash"]
    assert found["notices"] == []
    [norms, between] = found["tables"]
    assert norms["title"] == "1: ink, 2: wash" and between["title"] == "ink and wash"
    assert norms["heads"] == ["block", "‖Δ1‖", "‖Δ2‖", "together", "‖W₀‖", "of W₀", "rank 1", "rank 2"]
    for part in ("<h4>1: ink, 2: wash</h4>", "<th>together</th>", "data:image/png;base64,"):
        assert part in found["html"]
    picture = found["html"].partition("base64,")[2].partition('"')[0]
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert 0 < found["balance"] < 1
    assert found["balanced"].startswith("a cat <lora:ink:te=") and found["balanced"] != PROMPT


def test_its_norms_are_those_of_the_weights_whatever_is_shown(webui: WebUI, ink: loras.File, wash: loras.File) -> None:
    webui.generate("a")
    first = ask(webui, PROMPT).json()
    webui.generate("a <lora:ink:2>")  # W′ shows now
    shown = webui.weights()
    assert ask(webui, PROMPT).json()["tables"] == first["tables"]
    assert all(tensor is not None and tensor.equal(shown[name]) for name, tensor in webui.weights().items())
    last = first["tables"][0]["rows"][-1]
    own, other = changes(ink, 0.7, 0.5), changes(wash, 0.8, 0.8)
    expected = [norm(own), norm(other), norm(own, other)]
    assert [float(cell) for cell in last[1:4]] == pytest.approx(expected, rel=0.01)  # of three digits
    changed = {name for name in own if own[name].any() or other[name].any()}
    weights = sum(float(tensor.double().square().sum()) for name, tensor in plain().items() if name in changed) ** 0.5
    assert float(last[4]) == pytest.approx(weights, rel=0.01)


def test_a_tag_that_cannot_be_in_it_costs_itself(webui: WebUI, ink: loras.File, wash: loras.File) -> None:
    webui.generate("a")
    found = ask(webui, "<lora:ink:0@0,1@1> <lora:wash:1> <lora:nobody> <lora:ink:0.3>").json()
    assert found["names"] == ["wash", "ink"]
    said = [notice["message"] for notice in found["notices"]]
    assert any("its strength depends on the step" in message for message in said)
    assert any('no LoRA named "nobody"' in message for message in said)
    assert all(message.replace('"', "&quot;").replace("'", "&#x27;") in found["html"] for message in said)


def test_what_does_not_fit_the_checkpoint_is_not_counted(webui: WebUI, ink: loras.File) -> None:
    name, *_ = (name for name in ink.factors if "attn1_to_q" in name)
    wide = {f"{name}.lora_up.weight": torch.ones(999, 2), f"{name}.lora_down.weight": torch.ones(2, 999)}
    loras.write(webui.loras / "wide.safetensors", plain(), only="mid_block", more=wide, seed=1)
    loras.write(webui.loras / "same.safetensors", plain(), only="mid_block", seed=1)
    webui.generate("a")
    [wide_table, same_table] = [
        ask(webui, f"<lora:ink:1><lora:{name}:1>").json()["tables"][1] for name in ("wide", "same")
    ]
    assert wide_table["rows"] == same_table["rows"]


def test_what_the_checkpoint_has_no_place_for_is_not_counted(webui: WebUI, ink: loras.File) -> None:
    loras.write(webui.loras / "other.safetensors", plain("sdxl"), "sdxl", only="output_blocks")
    webui.generate("a")
    alone = ask(webui, "<lora:ink:1>").json()
    both = ask(webui, "<lora:ink:1><lora:other:1>").json()
    assert both["tables"] == alone["tables"]
    assert any('"other" has nothing for this checkpoint' in notice["message"] for notice in both["notices"])


@pytest.mark.parametrize("prompt", ["a cat", "", "<lora:nobody>", "<lora:" * 3000, "\ud83d\ude00 <lora:<b>x</b>:1>"])
def test_without_a_file_there_is_nothing_to_report_of(webui: WebUI, ink: loras.File, prompt: str) -> None:
    webui.generate("a")
    answer = ask(webui, prompt)
    assert answer.status_code == 200
    assert (answer.json()["tables"], answer.json()["balanced"]) == ([], None)
    assert "there is nothing to report of" in answer.json()["html"]
    assert "<b>" not in answer.json()["html"]


@pytest.mark.parametrize("prompt", [None, 3, ["a"], "x" * 100_001])
def test_what_is_no_prompt_is_refused(webui: WebUI, prompt: Any) -> None:
    assert ask(webui, prompt).status_code == 422


def test_before_a_checkpoint_is_loaded_it_loads_none(webui: WebUI, ink: loras.File) -> None:
    found = ask(webui, "<lora:ink:1>").json()
    assert webui.model is None
    assert [notice["message"] for notice in found["notices"]] == ["no checkpoint is loaded yet"]


def test_without_matplotlib_the_tables_are_there(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.generate("a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = ask(webui, "<lora:ink:1>").json()
    assert "<img" not in found["html"] and "<table>" in found["html"]


def test_it_reads_no_more_than_eight_files(webui: WebUI, ink: loras.File) -> None:
    for number in range(10):
        (webui.loras / f"{number}.safetensors").write_bytes(ink.path.read_bytes())
    webui.generate("a")
    found = ask(webui, "".join(f"<lora:{number}:0.1>" for number in range(10))).json()
    assert len(found["names"]) == 8
    assert "only the first 8 tags are in the report" in [notice["message"] for notice in found["notices"]]


def test_what_takes_too_long_is_said_and_has_no_figures(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.generate("a")
    monkeypatch.setattr(sys.modules["lora_runtime_webui_extension.engine.reporting"], "_SECONDS", 0.0)
    found = ask(webui, "<lora:ink:1>").json()
    assert found["tables"] == []
    [notice] = found["notices"]
    assert (notice["severity"], "take longer than 0 s" in notice["message"]) == ("error", True)


def test_one_report_at_a_time(webui: WebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    routes: Any = sys.modules["lora_runtime_webui_extension.panel.routes"]
    go_on = threading.Event()
    monkeypatch.setattr(routes, "_SECONDS_IN_LINE", 0.1)
    monkeypatch.setattr(routes, "report_json", lambda *_: {"ok": go_on.wait(60)})
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(webui, "a").status_code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200, 503, 503]


def test_a_picture_is_painted_while_a_report_is_made(
    start: Callable[..., WebUI], monkeypatch: pytest.MonkeyPatch
) -> None:
    webui = start()
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    webui.generate("a")
    reporting: Any = sys.modules["lora_runtime_webui_extension.engine.reporting"]
    begun, go_on = threading.Event(), threading.Event()
    original = reporting.report

    def slow(*given: Any, **more: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return original(*given, **more)

    monkeypatch.setattr(reporting, "report", slow)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask(webui, "<lora:ink:1>")))
    thread.start()
    try:
        assert begun.wait(60)
        done = webui.generate("b <lora:ink:0.5>")
    finally:
        go_on.set()
        thread.join(60)
    assert loras.differences(done.passes[0].weights, plain(), loras.patched(plain(), [(ink, 0.5)])) == []
    assert answers[0].json()["names"] == ["ink"]
