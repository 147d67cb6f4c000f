"""The state of the extension: which model shows which LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_ldm
import torch
from extension_package import module
from safetensors.torch import save_file

from lora_runtime.prompt import parse_prompt

session_module = module("session")
shelf_module = module("shelf")

TO_Q = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weight = _weight(tiny_ldm.model("sd1"))
    for index, name in enumerate(("ink", "wash")):
        torch.manual_seed(index)
        factors = {
            f"{TO_Q}.lora_up.weight": torch.randn(weight.shape[0], 2),
            f"{TO_Q}.lora_down.weight": torch.randn(2, weight.shape[1]),
        }
        save_file(factors, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def session(folder: Path) -> Any:
    return session_module.Session(shelf_module.Shelf([folder]))


def _weight(model: Any) -> torch.Tensor:
    return model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight.data


def requests(session: Any, text: str) -> Any:
    found, notices = session.load(parse_prompt(text).tags, text)
    assert not notices
    return found


def test_tags_change_the_model_and_their_absence_gives_it_back(session: Any) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model).clone()
    report, notices = session.show(model, requests(session, "<lora:ink:0.5> <lora:wash>"))
    assert not notices
    assert [lora.used for lora in report.loras] == [2, 2]
    assert not torch.equal(_weight(model), before)
    session.show(model, ())
    assert torch.equal(_weight(model), before)


def test_the_same_tags_again_compute_nothing(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_ldm.model("sd1")
    session.show(model, requests(session, "<lora:ink:0.5>"))
    shown = _weight(model)
    monkeypatch.setattr("lora_runtime.patcher.merge_into", lambda *_: pytest.fail("computed again"))
    session.show(model, requests(session, "<lora:ink:0.5>"))
    assert _weight(model).data_ptr() == shown.data_ptr()


def test_another_model_takes_over_and_the_first_is_whole_again(session: Any) -> None:
    first, second = tiny_ldm.model("sd1"), tiny_ldm.model("sd1")
    before = _weight(first).clone()
    session.show(first, requests(session, "<lora:ink>"))
    session.show(second, requests(session, "<lora:ink>"))
    assert torch.equal(_weight(first), before)
    assert not torch.equal(_weight(second), before)


def test_what_was_hidden_is_shown_again_on_the_next_model(session: Any) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model).clone()
    session.show(model, requests(session, "<lora:ink>"))
    shown = _weight(model).clone()
    session.hide()
    assert torch.equal(_weight(model), before)
    session.show_again(model)
    assert torch.equal(_weight(model), shown)


def test_a_tag_that_leads_nowhere_costs_only_itself(session: Any) -> None:
    text = "a <lora:inc:1> <lora:wash:1>"
    found, notices = session.load(parse_prompt(text).tags, text)
    assert [request.lora.name for request in found] == ["wash"]
    (notice,) = notices
    assert (notice.severity, notice.column) == ("error", 3)
    assert 'Did you mean "ink"' in notice.message


def test_explaining_changes_nothing(session: Any) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model)
    report, _ = session.explain(model, requests(session, "<lora:ink>"))
    assert report.loras[0].used == 2
    assert _weight(model).data_ptr() == before.data_ptr()


def test_a_file_for_another_model_says_how_much_of_it_fits(session: Any, folder: Path) -> None:
    model = tiny_ldm.model("sd1")
    tensors = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2)}
    tensors["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2, 4)
    tensors[f"{TO_Q}.lora_up.weight"] = torch.ones(_weight(model).shape[0], 2)
    tensors[f"{TO_Q}.lora_down.weight"] = torch.ones(2, _weight(model).shape[1])
    save_file(tensors, folder / "xl.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    session.shelf.refresh()
    assert session.coverage(model, session.shelf.entry("xl")) == "2 of 4 keys, made for SDXL"


def test_identity_is_of_content_and_strengths_in_any_order(session: Any) -> None:
    identity = session_module.identity
    first = identity(requests(session, "<lora:ink:0.5> <lora:wash>"))
    assert first == identity(requests(session, "<lora:wash> <lora:ink:0.5>"))
    assert first != identity(requests(session, "<lora:ink:0.6> <lora:wash>"))
    assert identity([]) == ""


# --- what nobody foresaw ---


def fails_for(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, broken: str) -> None:
    """Make a function raise where it is given something of the LoRA `broken`."""
    original = getattr(target, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        loras = [request.lora for part in args[:1] if isinstance(part, (list, tuple)) for request in part]
        if broken in [getattr(args[0], "stem", ""), *(lora.name for lora in loras)]:
            raise RuntimeError("\"aminmax_cpu\" not implemented for 'Half'")
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, function)


def test_any_error_while_a_file_is_read_costs_that_tag_alone(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_for(monkeypatch, session.cache, "load", "ink")
    text = "a <lora:ink:1> <lora:wash:1>"
    found, notices = session.load(parse_prompt(text).tags, text)
    assert [request.lora.name for request in found] == ["wash"]
    (notice,) = notices
    assert (notice.severity, notice.column) == ("error", 3)
    assert notice.message == '"ink" cannot be used: RuntimeError: "aminmax_cpu" not implemented for \'Half\''


@pytest.mark.parametrize("text", ["a <lora:ink:1> <lora:wash:1>", "a <lora:wash:1> <lora:ink:1>"])
def test_any_error_while_a_file_is_applied_costs_that_tag_alone(
    session: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    model, other = tiny_ldm.model("sd1"), tiny_ldm.model("sd1")
    asked = requests(session, text)
    session.show(other, requests(session, "<lora:wash:1>"))
    fails_for(monkeypatch, session_module, "make_plan", "ink")
    report, notices = session.show(model, asked, lambda _: text)
    assert torch.equal(_weight(model), _weight(tiny_ldm.model("sd1"))) is False
    assert [lora.name for lora in report.loras] == [request.lora.name for request in session.wanted] == ["wash"]
    (notice,) = notices
    assert (notice.severity, notice.column) == ("error", text.index("<lora:ink") + 1)
    assert notice.message.startswith('"ink" cannot be applied: RuntimeError: ')
    alone = tiny_ldm.model("sd1")
    session.show(alone, requests(session, "<lora:wash:1>"))
    wash = _weight(alone).clone()
    session.show(model, asked, lambda _: text)
    assert torch.equal(_weight(model), wash)


def test_where_none_can_be_applied_weights_are_whole_and_that_is_said_once(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model).clone()
    asked = requests(session, "<lora:ink> <lora:wash>")

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no memory left")

    monkeypatch.setattr(session_module, "make_plan", fail)
    _, notices = session.show(model, asked)
    assert [notice.message for notice in notices] == ["no LoRA is applied: MemoryError: no memory left"]
    assert session.wanted == ()
    assert torch.equal(_weight(model), before)
