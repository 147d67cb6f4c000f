"""The panel's routes: what they answer for the checkpoint that is loaded, and that nothing brings them down."""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from double import loras
from double.loras import plain
from hypothesis import given
from hypothesis import strategies as st
from odd_requests import PROMPTS, TEXTS, VALUES, bodies, many

if TYPE_CHECKING:
    from double.webui import WebUI


def ask(webui: WebUI, path: str, **body: Any) -> Any:
    answer = webui.client().post(f"/lora-runtime/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_rows_have_cards_fit_and_the_blocks_of_the_checkpoint(webui: WebUI, ink: loras.File) -> None:
    notes = {"activation text": "ink wash, sea", "preferred weight": 0.8}
    ink.path.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")
    loras.write(webui.loras / "other.safetensors", plain("sdxl"), "sdxl")
    prompt = "a sea <lora:ink:0.5> <lora:other:1>"
    assert ask(webui, "tags", prompt=prompt)["blocks"] == []  # no checkpoint is loaded, and this loads none
    assert webui.model is None
    webui.generate("a")
    found = ask(webui, "tags", prompt=prompt)
    first, second = found["tags"]
    assert {"BASE", "IN01", "M00", "OUT03"} <= set(found["blocks"])
    assert (first["range"], first["file"]["fit"]) == ([-0.8, 1.6], "")
    assert first["words"] == [{"word": "ink wash", "present": False}, {"word": "sea", "present": True}]
    assert second["file"]["fit"].endswith("made for SDXL")
    assert webui.not_whole() == []


def test_a_name_that_comes_near_has_a_button(webui: WebUI, ink: loras.File) -> None:
    [row] = ask(webui, "tags", prompt="<lora:inkk:0.5>")["tags"]
    [said] = row["notices"]
    assert said["fixes"] == [{"label": "ink", "span": [0, 15], "text": "<lora:ink:0.5>"}]


def test_a_change_and_a_completion_are_those_of_the_library(webui: WebUI, ink: loras.File) -> None:
    change = ask(webui, "edit", prompt="\U0001f431 <lora:ink:0.5>", tag=0, field="unet", value=0.7)
    assert change == {"span": [3, 17], "text": "<lora:ink:te=0.5:unet=0.7>"}
    found = ask(webui, "complete", prompt="a <lora:in", cursor=10)
    assert [(item["text"], item["label"]) for item in found["items"]] == [("ink:1>", "ink")]


def test_the_users_own_presets_and_scope_count(webui: WebUI, ink: loras.File) -> None:
    presets = webui.loras.parent.parent / "lora_runtime_presets.txt"
    presets.write_text(f"MINE:{','.join('1' * 17)}\n", encoding="utf-8")
    assert "MINE" in ask(webui, "tags", prompt="")["presets"]
    change = ask(webui, "edit", prompt="<lora:ink:1>", tag=0, field="preset", value="MINE")
    assert change["text"] == "<lora:ink:1:lbw=MINE>"


def test_a_tag_that_is_muted_in_the_panel_paints_nothing(webui: WebUI, ink: loras.File) -> None:
    prompt = "a <lora:ink:te=0.5:unet=0.9:hr=1>"
    change = ask(webui, "edit", prompt=prompt, tag=0, field="mute", value=True)
    muted = prompt[: change["span"][0]] + change["text"]
    done = webui.generate(muted)
    assert webui.changed(done.passes[0].weights) == []
    assert done.comments == []
    assert webui.changed(webui.generate(prompt).passes[0].weights) != []


def test_the_modules_are_there_under_their_hash_for_ever_and_no_other_file(webui: WebUI) -> None:
    client = webui.client()
    digest = client.get("/lora-runtime/web").json()["hash"]
    answer = client.get(f"/lora-runtime/web/{digest}/stack.js")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"  # the framework adds the second half
    assert "immutable" in answer.headers["cache-control"]
    for imported in re.findall(r'from "\./(\w+\.js)"', answer.text):
        assert client.get(f"/lora-runtime/web/{digest}/{imported}").status_code == 200
    for path in ("0000000000000000/stack.js", f"{digest}/rows.py", f"{digest}/..%2frows.py", f"{digest}/%2e%2e"):
        assert client.get(f"/lora-runtime/web/{path}").status_code == 404


@pytest.mark.slow
def test_prompts_wait_in_line_and_are_turned_away_before_they_take_all_threads(
    webui: WebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: Any = sys.modules["lora_runtime.panel.questions"]
    go_on = threading.Event()
    monkeypatch.setattr(questions, "_SECONDS_IN_LINE", 0.1)
    monkeypatch.setattr(questions, "tags", lambda *_, **__: {"ok": go_on.wait(60)})
    statuses: list[int] = []

    def asking() -> None:
        statuses.append(webui.client().post("/lora-runtime/tags", json={"prompt": "a"}).status_code)

    threads = [threading.Thread(target=asking) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200] * 4 + [503] * 2


def test_sets_are_files_beside_the_loras_and_names_stay_there(webui: WebUI, ink: loras.File) -> None:
    client = webui.client()
    assert client.get("/lora-runtime/sets").json() == {"sets": []}
    kept = ask(webui, "save-set", name="por trait", text="<lora:ink:0.5>")
    assert (
        kept == {"sets": [{"name": "por trait", "text": "<lora:ink:0.5>"}]} == client.get("/lora-runtime/sets").json()
    )
    assert (webui.loras / "por trait.set.txt").read_text(encoding="utf-8") == "<lora:ink:0.5>\n"
    before = sorted(webui.loras.parent.rglob("*"))
    for name, text, why in (
        ("../x", "<lora:ink>", "is no name for a set"),
        ("", "<lora:ink>", "is no name for a set"),
        ("x", "no tag", "has no tag in it"),
        ("x", "<lora:ink>" * 9999, "bytes"),
        (3, "<lora:ink>", "a set is a name and the text"),
        ("x", None, "a set is a name and the text"),
    ):
        assert why in ask(webui, "save-set", name=name, text=text)["error"]
    for gone in ("../ink", "nobody", "", None, {}):
        assert "error" in ask(webui, "delete-set", name=gone)
    assert sorted(webui.loras.parent.rglob("*")) == before
    assert ask(webui, "delete-set", name="por trait") == {"sets": []}


FIELDS = st.sampled_from(
    ["te", "mute", "move", "word", "name", "delete", "preset", "block:IN04", "curve", "box", "mask"]
)
EDITS = st.sampled_from(["0.5", "1@0,0@1", "0,0,0.5,1", {"unit": "step", "keys": [[0, 1], [5, 2]]}])
POSTED = bodies(
    prompt=PROMPTS,
    tag=st.integers(-1, 3),
    cursor=st.integers(-5, 90),
    field=FIELDS,
    name=TEXTS,
    text=st.sampled_from(["", "<lora:ink>", "a"]),
    value=EDITS,
    metadata=VALUES,
)


def test_no_body_brings_a_route_down(webui: WebUI, ink: loras.File) -> None:
    webui.generate("a")
    client = webui.client(raise_server_exceptions=False)
    posted = sorted(
        route.path
        for route in webui.app.router.routes
        if re.match("/lora-runtime/", route.path) and "POST" in route.methods
    )
    assert {"/lora-runtime/conflicts", "/lora-runtime/explain", "/lora-runtime/report", "/lora-runtime/tags"} <= {
        *posted
    }

    @many(250)
    @given(st.sampled_from(posted), POSTED)
    def check(path: str, body: bytes) -> None:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (path, body[:200], answer.text)
        answer.json()

    check()
    assert webui.errors == []


def test_no_address_brings_a_route_down(webui: WebUI, ink: loras.File) -> None:
    client = webui.client(raise_server_exceptions=False)
    fetched = sorted(
        route.path
        for route in webui.app.router.routes
        if re.match("/lora-runtime/|/sdapi/v1/loras", route.path) and "GET" in route.methods
    )
    names = ("tabname", "q", "folder", "sort", "dir", "offset", "limit", "name")
    asked = st.dictionaries(
        st.sampled_from(names), st.text(max_size=30) | st.sampled_from(["ink", "..", "-1", "9" * 400])
    )

    @many(150)
    @given(st.sampled_from(fetched), asked, st.text(max_size=9))
    def check(path: str, query: dict[str, str], part: str) -> None:
        answer = client.get(re.sub(r"\{\w+\}", quote(part, safe=""), path), params=query)
        assert answer.status_code < 500, (path, query, answer.text)

    check()
    assert webui.errors == []
