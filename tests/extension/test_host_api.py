"""What the HTTP API answers, and what pasted prompts become."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI


@pytest.fixture
def ink(webui: WebUI) -> loras.File:
    return loras.write(
        webui.loras / "style" / "ink.safetensors", plain(), metadata={"ss_output_name": "inkwash", "ss_epoch": "3"}
    )


@pytest.fixture
def client(webui: WebUI) -> Any:
    return webui.client()


# --- the files ---


def test_the_files_are_listed_as_the_builtin_lists_them(webui: WebUI, ink: loras.File, client: Any) -> None:
    loras.write(webui.loras / "bare.safetensors", plain())
    client.post("/sdapi/v1/refresh-loras")
    assert client.get("/sdapi/v1/loras").json() == [
        {"name": "bare", "alias": "bare", "path": str(webui.loras / "bare.safetensors"), "metadata": {}},
        {
            "name": "ink",
            "alias": "inkwash",
            "path": str(ink.path),
            "metadata": {"ss_output_name": "inkwash", "ss_epoch": "3"},
        },
    ]


def test_refresh_finds_new_files_and_forgets_old_ones(webui: WebUI, ink: loras.File, client: Any) -> None:
    assert [each["name"] for each in client.get("/sdapi/v1/loras").json()] == ["ink"]
    ink.path.rename(ink.path.with_name("wash.safetensors"))
    answer = client.post("/sdapi/v1/refresh-loras")
    assert answer.status_code == 200
    assert [each["name"] for each in client.get("/sdapi/v1/loras").json()] == ["wash"]


def test_each_header_is_read_once_for_all_lists(
    webui: WebUI, ink: loras.File, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sys.modules["lora_runtime_webui_extension.library.metadata"]
    read: list[str] = []
    original = store.read_header
    monkeypatch.setattr(store, "read_header", lambda path: (read.append(path.stem), original(path))[1])
    for _ in range(3):
        assert [each["metadata"]["ss_epoch"] for each in client.get("/sdapi/v1/loras").json()] == ["3"]
    assert read == ["ink"]
    loras.write(ink.path, plain(), metadata={"ss_epoch": "40"})
    assert [each["metadata"] for each in client.get("/sdapi/v1/loras").json()] == [{"ss_epoch": "40"}]
    assert read == ["ink", "ink"]


def test_a_file_that_is_damaged_since_is_listed_without_metadata(webui: WebUI, ink: loras.File, client: Any) -> None:
    client.get("/sdapi/v1/loras")
    ink.path.write_bytes(b"gone")
    assert client.get("/sdapi/v1/loras").json()[0]["metadata"] == {}


def test_a_search_that_finds_nothing_is_answered_in_words(webui: WebUI, ink: loras.File, client: Any) -> None:
    found = client.get("/lora-runtime/cards", params={"q": "nobody"}).json()
    assert found["total"] == 0
    assert "Nothing found for “nobody”" in found["html"]
    assert "Nothing found" not in client.get("/lora-runtime/cards").json()["html"]


def test_cards_follow_the_chosen_checkpoint_and_not_the_refiner(start: Callable[..., WebUI]) -> None:
    webui = start(checkpoint="a", options={"sd_checkpoints_limit": 2})
    loras.write(webui.loras / "ink.safetensors", plain(), metadata={"ss_base_model_version": "sd_v1"})
    webui.generate("a", refiner_checkpoint="sdxl")
    assert webui.model.sd_checkpoint_info.name == "sdxl"
    assert "lora-runtime-other" not in webui.client().get("/lora-runtime/cards").json()["html"]
    webui.choose_checkpoint("sdxl")
    assert "lora-runtime-other" in webui.client().get("/lora-runtime/cards").json()["html"]


# --- explain ---


def test_explain_says_how_a_prompt_is_read_and_what_it_would_do(webui: WebUI, ink: loras.File, client: Any) -> None:
    webui.generate("a")
    answer = client.post("/lora-runtime/explain", json={"prompt": "a cat\n  <lora:ink:0.7:0.3> b <lora:imk>"})
    assert answer.status_code == 200
    found = answer.json()
    assert found["text"] == "a cat\n   b "
    assert found["weights"] == len(ink.places)
    assert "LatentDiffusion" in found["model"]
    first, second = found["tags"]
    assert (first["tag"], first["line"], first["column"]) == ("<lora:ink:0.7:0.3>", 2, 3)
    assert (first["name"], first["te"], first["unet"], first["dyn"]) == ("ink", 0.7, 0.3, None)
    assert first["file"] == str(ink.path)
    assert first["sha256"] == hashlib.sha256(ink.path.read_bytes()).hexdigest()
    assert first["keys"] == first["used"] == 3 * len(ink.factors)
    assert sum(first["targets"].values()) == len(ink.factors)
    assert first["unused"] == {}
    assert (second["file"], second["used"], second["line"], second["column"]) == (None, None, 2, 24)
    [notice] = found["notices"]
    assert (notice["severity"], notice["line"], notice["column"]) == ("error", 2, 24)
    assert webui.not_whole() == []


def test_explain_shows_schedules_as_tags_have_them(webui: WebUI, ink: loras.File, client: Any) -> None:
    webui.generate("a")
    [tag] = client.post("/lora-runtime/explain", json={"prompt": "<lora:ink:te=0.5:unet=0@0,1@0.5>"}).json()["tags"]
    assert (tag["te"], tag["unet"]) == (0.5, "0@0,1@0.5")
    assert tag["live"] == sum(name.startswith("lora_unet") for name in ink.factors)


def test_explain_tells_a_file_for_another_model_and_changes_nothing(webui: WebUI, ink: loras.File, client: Any) -> None:
    loras.write(webui.loras / "other.safetensors", plain("sdxl"), "sdxl")
    webui.generate("a <lora:ink:0.5>")
    before = webui.weights()
    found = client.post("/lora-runtime/explain", json={"prompt": "<lora:other>"}).json()
    [tag] = found["tags"]
    assert tag["used"] < tag["keys"]
    assert sum(tag["unused"].values()) == tag["keys"] - tag["used"]
    assert found["notices"]
    assert all(tensor is not None and tensor.equal(before[name]) for name, tensor in webui.weights().items())


def test_explain_before_a_checkpoint_is_loaded_loads_none(webui: WebUI, ink: loras.File, client: Any) -> None:
    found = client.post("/lora-runtime/explain", json={"prompt": "a <lora:ink>"}).json()
    assert webui.model is None
    assert found["tags"][0]["file"] == str(ink.path)
    assert [notice["message"] for notice in found["notices"]] == ["no checkpoint is loaded yet"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"prompt": None}, 422),
        ({"prompt": "x" * 100_001}, 422),
        ({"prompt": ["a"]}, 422),
        ({"prompt": ""}, 200),
        ({"prompt": "<lora:" * 5000}, 200),
        ({"prompt": "<lora:a:1>" * 5000}, 200),
        ({"prompt": "<lora:../../etc/passwd:1><lora:/etc/passwd><lora:C:\\x><lora:\u0000>"}, 200),
        ({"prompt": "<lora:<script>alert(1)</script>:1> \ud83d\ude00 \u202e"}, 200),
    ],
    ids=["nothing", "null", "too long", "a list", "empty", "never closed", "many", "paths", "markup"],
)
def test_explain_bears_whatever_is_sent(client: Any, body: dict[str, Any], status: int) -> None:
    answer = client.post("/lora-runtime/explain", json=body)
    assert answer.status_code == status
    if status == 200:
        assert all(tag["file"] is None for tag in answer.json()["tags"])


def test_explain_reads_headers_only_and_keeps_nothing(
    webui: WebUI, ink: loras.File, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wash = loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    webui.generate("a")
    loader = webui.owner("lora").loader
    monkeypatch.setattr(type(loader.cache), "load", lambda *_, **__: pytest.fail("read whole"))
    found = client.post("/lora-runtime/explain", json={"prompt": "<lora:ink><lora:wash:0@0,1@0.5><lora:ink>"}).json()
    assert [tag["used"] for tag in found["tags"]] == [3 * len(ink.factors), 3 * len(wash.factors), 3 * len(ink.factors)]
    assert found["weights"] == len(ink.places | wash.places)
    assert "cannot vary" in "".join(notice["message"] for notice in found["notices"])  # on the text encoder


def test_explain_without_known_hashes_tells_files_apart(
    webui: WebUI, ink: loras.File, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras.write(webui.loras / "wash.safetensors", plain(), seed=1, only="unet")
    webui.generate("a")
    monkeypatch.setattr("lora_runtime.folder.hashes", _raises)
    first, second = client.post("/lora-runtime/explain", json={"prompt": "<lora:ink><lora:wash>"}).json()["tags"]
    assert first["sha256"] is second["sha256"] is None
    assert second["used"] == second["keys"] < first["keys"] == first["used"]


def _raises(path: Path) -> Any:
    from lora_runtime.errors import LoraFileError  # that of the double's process

    raise LoraFileError(f"{path}: gone")


def test_explain_looks_at_no_more_than_fifty_files(webui: WebUI, client: Any) -> None:
    ink = loras.write(webui.loras / "0.safetensors", plain())
    for number in range(1, 52):
        (webui.loras / f"{number}.safetensors").write_bytes(ink.path.read_bytes())
    webui.generate("a")
    prompt = "".join(f"<lora:{number}:0.1>" for number in range(52))
    found = client.post("/lora-runtime/explain", json={"prompt": prompt}).json()
    assert sum(tag["file"] is not None for tag in found["tags"]) == 50
    assert [notice["message"] for notice in found["notices"]] == [
        "not looked at: only the first 50 files of a prompt are"
    ] * 2


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    scans: list[int] = []
    catalog = sys.modules["lora_runtime.catalog"].LoraCatalog
    scan = catalog._scan
    monkeypatch.setattr(catalog, "_scan", lambda self: (scans.append(1), scan(self)))
    return scans


def test_names_that_nobody_has_make_explain_look_through_the_folders_at_most_once(
    webui: WebUI, ink: loras.File, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.generate("a <lora:ink>")
    scans = count_scans(monkeypatch)
    for _ in range(3):
        prompt = "".join(f"<lora:nobody{number}>" for number in range(200))
        found = client.post("/lora-runtime/explain", json={"prompt": prompt}).json()
        assert len(found["notices"]) == 200
    assert len(scans) <= 1


def test_names_that_nobody_has_make_a_job_look_through_the_folders_once(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.generate("a <lora:ink>")
    scans = count_scans(monkeypatch)
    done = webui.generate("a <lora:nobody> <lora:imk> <lora:0123456789ab>", n_iter=2, enable_hr=True)
    assert len(scans) == 1
    assert len(done.comments) == 3
    new = loras.write(webui.loras / "new.safetensors", plain())
    webui.generate("a <lora:new>")
    assert webui.job.comments == {}
    assert loras.differences(webui.job.passes[0].weights, plain(), loras.patched(plain(), [(new, 1.0)])) == []


def test_a_picture_is_painted_while_explain_reads_files(
    webui: WebUI, ink: loras.File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And cards are listed; the editor hashes a file in the same way."""
    webui.generate("a <lora:ink>")
    loras.write(webui.loras / "wash.safetensors", plain(), seed=1)
    webui.client().post("/sdapi/v1/refresh-loras")
    reading, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> Any:
        reading.set()
        assert go_on.wait(60)
        return hashes(path)

    hashes = sys.modules["lora_runtime.folder"].hashes
    monkeypatch.setattr("lora_runtime.folder.hashes", slow)
    answers: list[Any] = []

    def ask() -> None:
        answers.append(webui.client().post("/lora-runtime/explain", json={"prompt": "<lora:#0123456789ab>"}))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert reading.wait(60)
        webui.options.lora_add_hashes_to_infotext = False
        webui.generate("b <lora:ink:0.5>")
        assert webui.client().get("/lora-runtime/cards").json()["total"] == 2
        webui.client().post("/sdapi/v1/refresh-loras")
    finally:
        go_on.set()
        thread.join(60)
    assert answers[0].json()["notices"][0]["severity"] == "error"
    assert loras.differences(webui.job.passes[0].weights, plain(), loras.patched(plain(), [(ink, 0.5)])) == []


def test_those_who_ask_for_explanations_do_not_take_all_threads(
    webui: WebUI, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = sys.modules["lora_runtime_webui_extension.panel.routes"]
    go_on = threading.Event()
    monkeypatch.setattr(routes, "_SECONDS_IN_LINE", 0.1)
    monkeypatch.setattr(routes, "_explanation", lambda *_: {"ok": go_on.wait(60)})
    statuses: list[int] = []

    def ask() -> None:
        answer = webui.client().post("/lora-runtime/explain", json={"prompt": "a"})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads[:]:
        thread.join(0.5)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200, 200, 503, 503, 503]


# --- pasted prompts ---


def tensors_hash(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def test_a_name_of_another_machine_becomes_that_of_the_file_here(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_preferred_name = "Filename"
    hashes = f"my ink: {tensors_hash(ink.path)[:12]}, other: 0123456789ab"
    prompt = "a <lora:my ink:0.7> <lyco:my ink:te=1:unet=2> <lora:my ink> <lora:other:1> <hypernet:my ink:1>"
    found = webui.paste(prompt, Lora_hashes=hashes, Hires_prompt="b <lora:my ink:0.2>")
    assert found["Prompt"] == ("a <lora:ink:0.7> <lyco:ink:te=1:unet=2> <lora:ink> <lora:other:1> <hypernet:my ink:1>")
    assert found["Hires prompt"] == "b <lora:ink:0.2>"


def test_the_name_is_the_alias_where_the_settings_prefer_it(webui: WebUI, ink: loras.File) -> None:
    found = webui.paste("<lora:x:1>", Lora_hashes=f"x: {tensors_hash(ink.path)[:12]}")
    assert found["Prompt"] == "<lora:inkwash:1>"


def test_a_name_with_a_comma_is_found_by_its_hash(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_preferred_name = "Filename"
    found = webui.paste("<lora:ink, wet:1>", Lora_hashes=f"ink wet: {tensors_hash(ink.path)[:12]}")
    assert found["Prompt"] == "<lora:ink:1>"


def test_what_was_painted_here_is_read_back_as_it_was(webui: WebUI) -> None:
    for name in ("ink", "wash, soft", "a(b)"):
        loras.write(webui.loras / f"{name}.safetensors", plain(), seed=len(name))
    prompt = "a <lora:ink:0.7> <lora:wash, soft:te=0.2:unet=1> <lyco:a(b)>"
    done = webui.generate(prompt)
    found = webui.paste(prompt, Lora_hashes=done.extra_generation_params["Lora hashes"])
    assert found["Prompt"] == prompt


def test_the_whole_file_s_hash_is_known_too(webui: WebUI, ink: loras.File) -> None:
    webui.options.lora_preferred_name = "Filename"
    digits = hashlib.sha256(ink.path.read_bytes()).hexdigest()[:10]
    assert webui.paste("<lora:x:1>", Lora_hashes=f"x: {digits}")["Prompt"] == "<lora:ink:1>"


def test_the_hash_of_nothing_names_no_file(webui: WebUI) -> None:
    from safetensors.torch import save_file

    save_file({}, webui.loras / "empty.safetensors", {"a": "b"})
    nothing = hashlib.sha256(b"").hexdigest()[:12]
    assert webui.paste("<lora:x:1>", Lora_hashes=f"x: {nothing}")["Prompt"] == "<lora:x:1>"


@pytest.mark.parametrize("hashes", ["", "x", "x:", "x: zz", ",,,", "x: 0123", "<lora:x:1>: 0123456789ab"])
def test_hashes_that_are_none_leave_the_prompt_alone(webui: WebUI, ink: loras.File, hashes: str) -> None:
    assert webui.paste("a <lora:x:1>", Lora_hashes=hashes)["Prompt"] == "a <lora:x:1>"
    assert webui.errors == []


def test_the_fields_of_additional_networks_become_tags(webui: WebUI) -> None:
    fields = {"AddNet_Module_1": "LoRA", "AddNet_Model_1": "ink(0123456789ab)", "AddNet_Weight_A_1": "0.7"}
    fields |= {"AddNet_Weight_B_1": "0.2", "AddNet_Module_2": "LoRA", "AddNet_Model_2": "wash(0123456789ab)"}
    found = webui.paste("a", AddNet_Enabled="True", **fields)
    assert found["Prompt"] == "a\n<lora:ink:te=0.2:unet=0.7><lora:wash:1.0>"


def test_where_additional_networks_is_installed_its_fields_are_its_own(webui: WebUI) -> None:
    webui.module("scripts").scripts_txt2img.infotext_fields.append((None, "AddNet Module 1"))
    fields = {"AddNet_Module_1": "LoRA", "AddNet_Model_1": "ink(0123456789ab)", "AddNet_Weight_A_1": "0.7"}
    assert webui.paste("a", **fields)["Prompt"] == "a"
