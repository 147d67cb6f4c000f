"""The state of the extension: which model shows which LoRAs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_ldm
import torch
from extension_package import module
from safetensors.torch import save_file

from lora_runtime.prompt import parse_prompt
from lora_runtime.regions import Place
from lora_runtime.requests import of_batch
from lora_runtime.stage import Row

explaining = module("engine.explaining")
loading = module("engine.loading")
session_module = module("engine.session")
identity = module("engine.shown").identity
Shelf = module("library.shelf").Shelf

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
    return session_module.Session()


@pytest.fixture
def loader(folder: Path) -> Any:
    return loading.Loader(Shelf([folder]))


def _weight(model: Any) -> torch.Tensor:
    return model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight.data


def requests(loader: Any, text: str) -> Any:
    found, notices = loader.load(parse_prompt(text).tags, text)
    assert not notices
    return found


def test_tags_change_the_model_and_their_absence_gives_it_back(session: Any, loader: Any) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model).clone()
    report, notices = session.show(model, requests(loader, "<lora:ink:0.5> <lora:wash>"))
    assert not notices
    assert [lora.used for lora in report.loras] == [2, 2]
    assert not torch.equal(_weight(model), before)
    session.show(model, ())
    assert torch.equal(_weight(model), before)


def test_the_same_tags_again_compute_nothing(session: Any, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_ldm.model("sd1")
    session.show(model, requests(loader, "<lora:ink:0.5>"))
    shown = _weight(model)
    monkeypatch.setattr("lora_runtime.patcher.merge_into", lambda *_: pytest.fail("computed again"))
    session.show(model, requests(loader, "<lora:ink:0.5>"))
    assert _weight(model).data_ptr() == shown.data_ptr()


def test_another_model_takes_over_and_the_first_is_whole_again(session: Any, loader: Any) -> None:
    first, second = tiny_ldm.model("sd1"), tiny_ldm.model("sd1")
    before = _weight(first).clone()
    session.show(first, requests(loader, "<lora:ink>"))
    session.show(second, requests(loader, "<lora:ink>"))
    assert torch.equal(_weight(first), before)
    assert not torch.equal(_weight(second), before)


def test_what_was_hidden_is_shown_again_on_the_next_model(session: Any, loader: Any) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model).clone()
    session.show(model, requests(loader, "<lora:ink>"))
    shown = _weight(model).clone()
    session.hide()
    assert torch.equal(_weight(model), before)
    session.show_again(model)
    assert torch.equal(_weight(model), shown)


def test_a_tag_that_leads_nowhere_costs_only_itself(loader: Any) -> None:
    text = "a <lora:inc:1> <lora:wash:1>"
    found, notices = loader.load(parse_prompt(text).tags, text)
    assert [request.lora.name for request in found] == ["wash"]
    (notice,) = notices
    assert (notice.severity, notice.column) == ("error", 3)
    assert 'Did you mean "ink"' in notice.message


def test_explaining_changes_nothing(loader: Any) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model)
    report, _ = explaining.explain(model, requests(loader, "<lora:ink>"))
    assert report.loras[0].used == 2
    assert _weight(model).data_ptr() == before.data_ptr()


def test_a_file_for_another_model_says_how_much_of_it_fits(loader: Any, folder: Path) -> None:
    model = tiny_ldm.model("sd1")
    tensors = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2)}
    tensors["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2, 4)
    tensors[f"{TO_Q}.lora_up.weight"] = torch.ones(_weight(model).shape[0], 2)
    tensors[f"{TO_Q}.lora_down.weight"] = torch.ones(2, _weight(model).shape[1])
    save_file(tensors, folder / "xl.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    loader.shelf.refresh()
    assert explaining.Coverage()(model, loader.shelf.entry("xl")) == "2 of 4 keys, made for SDXL"


def test_identity_is_of_content_and_strengths_in_any_order(loader: Any) -> None:
    first = identity(requests(loader, "<lora:ink:0.5> <lora:wash>"))
    assert first == identity(requests(loader, "<lora:wash> <lora:ink:0.5>"))
    assert first != identity(requests(loader, "<lora:ink:0.6> <lora:wash>"))
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


def test_any_error_while_a_file_is_read_costs_that_tag_alone(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_for(monkeypatch, loader.cache, "load", "ink")
    text = "a <lora:ink:1> <lora:wash:1>"
    found, notices = loader.load(parse_prompt(text).tags, text)
    assert [request.lora.name for request in found] == ["wash"]
    (notice,) = notices
    assert (notice.severity, notice.column) == ("error", 3)
    assert notice.message == '"ink" cannot be used: RuntimeError: "aminmax_cpu" not implemented for \'Half\''


@pytest.mark.parametrize("text", ["a <lora:ink:1> <lora:wash:1>", "a <lora:wash:1> <lora:ink:1>"])
def test_any_error_while_a_file_is_applied_costs_that_tag_alone(
    session: Any, loader: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    model, other = tiny_ldm.model("sd1"), tiny_ldm.model("sd1")
    asked = requests(loader, text)
    session.show(other, requests(loader, "<lora:wash:1>"))
    fails_for(monkeypatch, session_module, "make_plan", "ink")
    report, notices = session.show(model, asked, lambda _: text)
    assert torch.equal(_weight(model), _weight(tiny_ldm.model("sd1"))) is False
    assert [lora.name for lora in report.loras] == [request.lora.name for request in session.wanted] == ["wash"]
    (notice,) = notices
    assert (notice.severity, notice.column) == ("error", text.index("<lora:ink") + 1)
    assert notice.message.startswith('"ink" cannot be applied: RuntimeError: ')
    alone = tiny_ldm.model("sd1")
    session.show(alone, requests(loader, "<lora:wash:1>"))
    wash = _weight(alone).clone()
    session.show(model, asked, lambda _: text)
    assert torch.equal(_weight(model), wash)


def test_where_none_can_be_applied_weights_are_whole_and_that_is_said_once(
    session: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_ldm.model("sd1")
    before = _weight(model).clone()
    asked = requests(loader, "<lora:ink> <lora:wash>")

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no memory left")

    monkeypatch.setattr(session_module, "make_plan", fail)
    _, notices = session.show(model, asked)
    assert [notice.message for notice in notices] == ["no LoRA is applied: MemoryError: no memory left"]
    assert session.wanted == ()
    assert torch.equal(_weight(model), before)


# --- what would overflow, and what has no place ---


def overflowing(folder: Path, name: str, stem: str, weight: torch.Tensor) -> None:
    """Write a file whose change is beyond float16 by itself: 100 · 1000 in each element, of rank 1."""
    up, down = torch.full((weight.shape[0], 1), 100.0), torch.full((1, weight.shape[1]), 1000.0)
    save_file({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, folder / f"{name}.safetensors")


@pytest.mark.parametrize("text", ["a <lora:ink:1> <lora:huge:1>", "a <lora:huge:1> <lora:ink:1> <lora:huge:0.5>"])
def test_a_weight_beyond_its_dtype_costs_the_tags_of_the_file_that_asks_for_most(
    session: Any, loader: Any, folder: Path, text: str
) -> None:
    model, alone = tiny_ldm.model("sd1").half(), tiny_ldm.model("sd1").half()
    overflowing(folder, "huge", TO_Q, _weight(model))
    loader.shelf.refresh()
    other = session_module.Session()
    other.show(alone, requests(loader, "<lora:ink:1>"))
    report, notices = session.show(model, requests(loader, text), lambda _: text)
    assert torch.equal(_weight(model), _weight(alone))
    assert [lora.name for lora in report.loras] == ["ink"]
    assert [request.lora.name for request in session.wanted] == ["ink"]
    columns = [index + 1 for index in range(len(text)) if text.startswith("<lora:huge", index)]
    assert [(notice.severity, notice.column) for notice in notices] == [("error", column) for column in columns]
    assert all('LoRA "huge": ' in notice.message and "use a lower strength" in notice.message for notice in notices)


def test_where_every_file_overflows_the_weights_are_whole(session: Any, loader: Any, folder: Path) -> None:
    model = tiny_ldm.model("sd1").half()
    before = _weight(model).clone()
    overflowing(folder, "huge", TO_Q, _weight(model))
    loader.shelf.refresh()
    text = "a <lora:huge:1>"
    _, notices = session.show(model, requests(loader, text), lambda _: text)
    assert torch.equal(_weight(model), before)
    assert [notice.column for notice in notices] == [3]
    assert session.wanted == ()


FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def _fc1(model: Any) -> torch.Tensor:
    found = (module for name, module in model.named_modules() if name.endswith("encoder.layers.0.mlp.fc1"))
    weight: torch.Tensor = next(found).weight.data
    return weight


def test_what_overflows_in_the_text_of_one_picture_is_left_out_there_and_said_as_long_as_it_is_wanted(
    session: Any, loader: Any, folder: Path
) -> None:
    model = tiny_ldm.model("sd1").half()
    before = _fc1(model).clone()
    overflowing(folder, "huge", FC1, _fc1(model))
    loader.shelf.refresh()
    asked = of_batch([requests(loader, "<lora:ink:1>"), requests(loader, "<lora:huge:1>")])
    _, notices = session.show(model, asked)
    assert notices == []
    assert session.encode_for(model, Row(0)) == []
    (said,) = session.encode_for(model, Row(1))
    assert "use a lower strength; left out of the text of picture 2 alone" in said.message
    assert torch.equal(_fc1(model), before)
    assert session.show(model, asked)[1] == [said]
    assert session.show(model, requests(loader, "<lora:ink:1>"))[1] == []


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("sd1", "input_blocks.1.1.transformer_blocks.0.attn2.to_k"),
        ("sd1", "input_blocks.1.0.emb_layers.1"),
        ("sd1", "time_embed.0"),
        ("sdxl", "label_emb.0.0"),
        ("sd3", "t_embedder.mlp.0"),
        ("sd3", "y_embedder.mlp.0"),
        ("sd3", "joint_blocks.0.context_block.attn.qkv"),
    ],
)
def test_a_layer_that_reads_text_or_time_is_left_out_of_a_region(
    session: Any, loader: Any, folder: Path, kind: str, path: str
) -> None:
    model = tiny_ldm.model(kind)
    weight = model.model.diffusion_model.get_submodule(path).weight
    torch.manual_seed(5)
    factors = {"lora_up.weight": torch.randn(weight.shape[0], 2), "lora_down.weight": torch.randn(2, weight.shape[1])}
    layer = "lora_unet_" + path.replace(".", "_")
    save_file({f"{layer}.{key}": value for key, value in factors.items()}, folder / "one.safetensors")
    loader.shelf.refresh()
    (request,) = requests(loader, "<lora:one:1>")
    asked = [replace(request, place=Place((0.0, 0.0, 0.5, 1.0)))]
    for report, notices in (session.show(model, asked), explaining.explain(model, asked)):
        assert report.live == 0
        (notice,) = notices
        assert "have no place in the picture" in notice.message


def test_what_is_for_one_picture_acts_in_a_model_whose_rows_only_the_host_can_tell(session: Any, loader: Any) -> None:
    model = tiny_ldm.model("sd1")
    asked = of_batch([requests(loader, "<lora:ink:1>"), []])
    report, notices = session.show(model, asked)
    assert (report.live, notices) == (1, [])
