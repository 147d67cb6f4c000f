"""What is said about a generation, where and how often; and what one mistake costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI


def shows(webui: WebUI, file: loras.File, strength: float, index: int = 0) -> bool:
    """Return whether a pass of the last job had just this LoRA."""
    weights = webui.job.passes[index].weights
    return loras.differences(weights, plain(), loras.patched(plain(), [(file, strength)])) == []


# --- tags that cannot be used ---


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("bad", "column", "about"),
    [
        ("<lora:ink:>", 13, "the strength is empty"),
        ("<lora:ink:1=2=3>", 13, '"1=2=3"'),
        ("<lora:ink:1,0>", 13, '"1,0"'),
        ("<lora:ink:nan>", 13, '"nan"'),
        ("<lora:ink:dyn=x>", 17, '"x"'),
        ("<lora::1>", 9, "the name is empty"),
    ],
)
def test_a_malformed_tag_costs_only_itself(webui: WebUI, ink: loras.File, bad: str, column: int, about: str) -> None:
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    done = webui.generate(f"a {bad} b <lora:wash:0.5>")
    [comment] = done.comments
    assert comment.startswith(f"LoRA error: column {column}: ")
    assert about in comment
    weights = done.passes[0].weights
    assert loras.differences(weights, plain(), loras.patched(plain(), [(wash, 0.5)])) == []
    assert done.passes[0].conditioning.prompts == ("a  b ",)


def test_an_unknown_name_is_said_with_the_nearest_names_and_costs_only_itself(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:imk:1> <lora:ink:0.5>")
    [comment] = done.comments
    assert comment.startswith('LoRA error: column 3: no LoRA named "imk"')
    assert "ink" in comment
    assert shows(webui, ink, 0.5)


def test_a_damaged_file_is_said_and_costs_only_itself(webui: WebUI, ink: loras.File) -> None:
    (webui.loras / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      garbage")
    done = webui.generate("a <lora:broken:1> <lora:ink:0.5>")
    [comment] = done.comments
    assert comment.startswith("LoRA error: column 3: ")
    assert "broken" in comment
    assert shows(webui, ink, 0.5)


def test_a_file_that_vanishes_between_two_pictures_is_said(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a <lora:ink>")
    ink.path.unlink()
    done = webui.generate("b <lora:ink>")
    [comment] = done.comments
    assert comment.startswith("LoRA error: ")
    assert webui.changed(done.passes[0].weights) == []


def test_a_file_for_another_model_is_said(start: Callable[..., WebUI]) -> None:
    webui = start(checkpoint="sdxl")
    loras.write(webui.loras / "ink.safetensors", plain("sd3"), "sd3", only="joint_blocks")
    done = webui.generate("a <lora:ink>")
    [comment] = done.comments
    assert '"ink"' in comment
    assert webui.changed(done.passes[0].weights) == []


def test_two_lora_files_of_one_name_are_said(webui: WebUI, ink: loras.File) -> None:
    loras.write(webui.loras / "more" / "ink.safetensors", plain(), seed=2)
    done = webui.generate("a <lora:ink>")
    assert len(done.comments) == 1
    assert "ink" in done.comments[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_files_of_every_precision_are_applied(webui: WebUI, dtype: str) -> None:
    """On the WebUI's own torch, 2.1, a CPU cannot do everything with halves."""
    import torch

    file = loras.write(webui.loras / "ink.safetensors", plain(), dtype=getattr(torch, dtype))
    assert webui.generate("a <lora:ink:0.5>").comments == []
    assert shows(webui, file, 0.5)


def test_what_one_file_does_to_the_library_costs_that_file_alone(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras.write(webui.loras / "odd.safetensors", plain(), seed=3)
    cache = webui.owner("lora").loader.cache
    load = type(cache).load

    def fail(self: Any, path: Any, **kwargs: Any) -> Any:
        if path.stem == "odd":
            raise RuntimeError("not implemented for 'Half'")
        return load(self, path, **kwargs)

    monkeypatch.setattr(type(cache), "load", fail)
    done = webui.generate("a <lora:odd:1> <lora:ink:0.5>")
    assert done.comments == ["LoRA error: column 3: \"odd\" cannot be used: RuntimeError: not implemented for 'Half'"]
    assert shows(webui, ink, 0.5)


def test_prompts_encoded_without_a_lora_are_not_kept_as_if_they_had_been_with_it(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_runtime import patcher

    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(patcher, "merge_into", fail)
        webui.generate("a <lora:ink>")
    done = webui.generate("a <lora:ink>")
    assert webui.changed(done.passes[0].conditioning.weights)


def test_an_embedding_that_the_program_cannot_read_costs_itself_alone(webui: WebUI) -> None:
    import torch

    more = {"bundle_emb.bad.string_to_param.a": torch.zeros(1, 12), "bundle_emb.bad.string_to_param.b": torch.zeros(1)}
    ink = loras.write(webui.loras / "ink.safetensors", plain(), more=more)
    webui.module("textual_inversion.textual_inversion").create_embedding_from_data = _raises
    done = webui.generate("a <lora:ink:0.5>")
    assert done.comments == ['LoRA error: the embedding "bad" in "ink" cannot be used: ValueError: no embedding']
    assert shows(webui, ink, 0.5)


def _raises(*_: Any, **__: Any) -> Any:
    raise ValueError("no embedding")


@pytest.mark.parametrize(
    ("written", "applied", "severity"),
    [("4", 4.0, None), ("7", 7.0, "note"), ("-7", -7.0, "note"), ("1e3", 0.0, "error"), ("0@0,500@1", 0.0, "error")],
)
def test_a_strength_that_can_hardly_be_meant_is_said(
    webui: WebUI, ink: loras.File, written: str, applied: float, severity: str | None
) -> None:
    done = webui.generate(f"a <lora:ink:{written}>")
    said = [comment for comment in done.comments if "a strength of" in comment]
    assert [comment.split()[1] for comment in said] == ([f"{severity}:"] if severity else [])
    assert shows(webui, ink, applied) if applied else webui.changed(done.passes[0].weights) == []


# --- prompts that ask for what the program cannot do ---


def test_what_is_wrong_in_a_later_prompt_of_a_batch_is_said_with_its_place_there(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate(["a <lora:ink:0.7>", "the b <lora:nobody>", "a <lora:ink:0.7>"], batch_size=3)
    [comment] = done.comments
    assert comment.startswith('LoRA error: column 7: no LoRA named "nobody"')


@pytest.mark.parametrize(
    ("prompts", "job"),
    [
        (["a <lora:ink:0.7>", "b <lora:ink:0.7>"], {"batch_size": 2}),
        (["a <lora:ink:0.7>", "b <lora:ink:0.2>"], {"n_iter": 2}),
        (["a <lora:ink:0.7><lora:ink:0.1>", "b <lora:ink:0.1><lora:ink:0.7>"], {"batch_size": 2}),
    ],
    ids=["the same tags", "one picture a batch", "another order"],
)
def test_a_batch_of_equal_tags_is_not_warned_of(
    webui: WebUI, ink: loras.File, prompts: list[str], job: dict[str, int]
) -> None:
    comments = webui.generate(prompts, **job).comments
    assert [comment for comment in comments if "batch" in comment] == []


def test_each_batch_of_a_job_has_its_own_tags(webui: WebUI, ink: loras.File) -> None:
    webui.generate(["a <lora:ink:0.7>", "b", "c <lora:ink:0.2>"], n_iter=3)
    assert shows(webui, ink, 0.7, 0)
    assert webui.changed(webui.job.passes[1].weights) == []
    assert shows(webui, ink, 0.2, 2)


@pytest.mark.parametrize("hires", [False, True])
def test_a_tag_in_a_negative_prompt_is_warned_of_once(webui: WebUI, ink: loras.File, hires: bool) -> None:
    done = webui.generate(
        "a <lora:ink:0.7>", negative_prompt="bad <lora:ink:0.4>", n_iter=2, enable_hr=hires, hr_negative_prompt=""
    )
    [comment] = done.comments
    assert comment.startswith("LoRA warning: <lora:ink:0.4> in the negative prompt is not applied")
    assert shows(webui, ink, 0.7)


def test_the_negative_prompt_of_the_hires_pass_is_looked_at_too(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:ink>", enable_hr=True, hr_negative_prompt="bad <lora:ink:0.1>")
    assert ["<lora:ink:0.1> in the negative prompt" in comment for comment in done.comments] == [True]


@pytest.mark.parametrize("comments", [True, False])
def test_a_tag_that_the_program_takes_for_a_comment_is_said(webui: WebUI, ink: loras.File, comments: bool) -> None:
    webui.options.enable_prompt_comments = comments
    digits = webui.owner("lora").loader.shelf.hashes.short(webui.owner("lora").loader.shelf.entry("ink"))
    done = webui.generate(f"a <lora:#{digits}:0.5> sketch\nby hand", enable_hr=True)
    said = [comment for comment in done.comments if '"#"' in comment]
    assert len(said) == int(comments)
    assert bool(webui.changed(done.passes[0].weights)) is not comments
    explained = webui.client().post("/lora-runtime/explain", json={"prompt": f"a <lora:#{digits}> sketch"}).json()
    assert ["a comment" in notice["message"] for notice in explained["notices"]] == [True] * comments


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
def test_what_a_click_writes_for_an_odd_name_is_no_comment(webui: WebUI) -> None:
    odd = loras.write(webui.loras / "no. #1: best.safetensors", plain())
    webui.client().post("/sdapi/v1/refresh-loras")
    page = webui.module("ui_extra_networks").extra_pages[0]
    tag = page.card(page.shelf.entry("no. #1: best")).tag_name
    done = webui.generate(f"a <lora:{tag}:0.5> sketch")
    assert done.comments == []
    assert shows(webui, odd, 0.5)


def test_a_script_that_changes_the_prompts_is_followed(webui: WebUI, ink: loras.File) -> None:
    """What the WebUI hands over counts, whatever is in `all_prompts`."""
    scripts = webui.module("scripts")

    class Wildcards(scripts.Script):  # type: ignore[name-defined, misc]
        def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            p.prompts = [prompt.replace("__style__", "<lora:ink:0.3> <lora:nobody>") for prompt in p.prompts]

    scripts.scripts_txt2img.alwayson_scripts.append(Wildcards())
    done = webui.generate("a __style__")
    assert shows(webui, ink, 0.3)
    [comment] = done.comments
    assert comment.startswith('LoRA error: no LoRA named "nobody"')  # without a place: it is not in the user's text


# --- where it is said ---


def test_the_answer_of_the_api_has_the_notices_and_the_saved_texts_have_not(webui: WebUI, ink: loras.File) -> None:
    done = webui.generate("a <lora:imk:1>\n b <lora:ink:nan>")
    notices = done.extra_generation_params["LoRA notices"]
    assert sorted((notice["severity"], notice["line"], notice["column"]) for notice in notices) == [
        ("error", 1, 3),
        ("error", 2, 14),
    ]
    assert {"severity", "message", "hint", "line", "column"} == set(notices[0])
    assert "LoRA notices" not in webui.job.extra_generation_params
    assert "LoRA notices" not in webui.generate("a <lora:ink>").extra_generation_params


def test_what_is_said_of_one_job_is_not_said_of_the_next(webui: WebUI, ink: loras.File) -> None:
    assert len(webui.generate("a <lora:imk>").comments) == 1
    assert webui.generate("a <lora:ink>").comments == []


@pytest.mark.parametrize("on", [False, True])
def test_the_console_has_it_where_the_settings_say_so(
    webui: WebUI, capsys: pytest.CaptureFixture[str], on: bool
) -> None:
    webui.options.lora_not_found_warning_console = on
    webui.generate("a <lora:nobody>", n_iter=2)
    assert capsys.readouterr().out.count('no LoRA named "nobody"') == int(on)


def test_a_console_without_the_characters_loses_no_notice(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    written = io.BytesIO()
    console = io.TextIOWrapper(written, encoding="cp1252", write_through=True)
    webui.options.lora_not_found_warning_console = True
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", console)
        done = webui.generate("a <lora:日本:1> <lora:nobody> <lora:ink:0.5>")
    lines = written.getvalue().decode("cp1252").splitlines()
    assert len(done.comments) == len(lines) == 2
    assert "\\u65e5\\u672c" in lines[0]
    assert shows(webui, ink, 0.5)


@pytest.mark.parametrize("on", [False, True])
def test_a_popup_has_it_where_the_settings_say_so(webui: WebUI, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    import gradio

    shown: list[str] = []
    monkeypatch.setattr(gradio, "Warning", shown.append)
    webui.options.lora_not_found_gradio_warning = on
    webui.generate("a <lora:nobody>", negative_prompt="<lora:ink>")
    assert len(shown) == int(on)  # the error; the warning about the negative prompt is no reason for one


# --- errors ---


def test_an_error_inside_leaves_whole_weights_and_says_so(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.generate("a <lora:ink>")
    owner = webui.owner("lora")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(owner.loader, "load", fail)
        done = webui.generate("b <lora:ink>")
    assert webui.changed(done.passes[0].weights) == []
    assert done.comments == ["LoRA error: no LoRA is applied: MemoryError: no memory left"]
    assert [type(error) for _, error in webui.errors] == [MemoryError]
    webui.generate("c <lora:ink>")
    assert shows(webui, ink, 1.0)


def test_an_error_in_the_middle_of_patching_leaves_whole_weights(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_runtime import patcher

    original, calls = patcher.merge_into, []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return original(*args, **kwargs)

    monkeypatch.setattr(patcher, "merge_into", fail)
    done = webui.generate("a <lora:ink>")
    assert len(calls) == 3
    assert webui.changed(done.passes[0].weights) == webui.not_whole() == []
    assert "the device is gone" in done.comments[0]
    assert webui.changed(webui.generate("b <lora:ink>").passes[0].weights)
