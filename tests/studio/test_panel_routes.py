"""The panel's routes beside a page of gradio's: they ask for its login, and answer any text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from docs_pages import text_of

fastapi = pytest.importorskip("fastapi", minversion="0.100")  # the WebUI's is of before the studio's gradio

from fastapi.testclient import TestClient  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from odd_requests import PROMPTS, TEXTS, bodies, many  # noqa: E402

from lora_runtime.blocks import UNET  # noqa: E402
from lora_runtime.catalog import LoraCatalog  # noqa: E402
from lora_runtime.panel import CatalogLibrary, PromptFacts, Questions, web_hash  # noqa: E402
from lora_runtime.studio.faults import StudioError  # noqa: E402
from lora_runtime.studio.panel_routes import add_panel  # noqa: E402
from lora_runtime.workbench.conflicts import Conflicts  # noqa: E402

HALF = "\ud83d"
QUESTIONS = ("tags", "edit", "complete", "save-set", "delete-set", "save-preset", "conflicts")
POSTED = bodies(
    prompt=PROMPTS,
    tag=st.integers(-1, 3),
    cursor=st.integers(-5, 90),
    field=st.sampled_from(["te", "mute", "move", "word", "name", "delete", "preset", "block:IN04", "box", "mask"]),
    value=st.sampled_from(["0.5", "1@0,0@1", "0,0,0.5,1", {"unit": "step", "keys": [[0, 1], [5, 2]]}]),
    name=TEXTS,
    text=st.sampled_from(["", "<lora:ink>", "a"]),
)


def questions(folder: Path) -> Questions:
    catalog = LoraCatalog(folder)
    library = CatalogLibrary(catalog)
    return Questions(lambda: library, lambda: PromptFacts(blocks=UNET), lambda: [folder], Conflicts(catalog))


@pytest.fixture
def ask(client: Callable[..., Any], folder: Path) -> Any:
    """Return a client of a page with the panel."""
    return client(partial(add_panel, questions=questions(folder)))


def test_half_of_a_character_costs_no_answer(ask: Any) -> None:
    prompt = f"{HALF} <lora:ink:0.5> <lora:{HALF}:1>"
    sent = json.dumps({"prompt": prompt})  # in ASCII, as no client sends it by itself
    rows = ask.post("/lora-runtime/tags", content=sent, headers={"Content-Type": "application/json"})
    assert rows.status_code == 200
    assert [row["name"] for row in rows.json()["tags"]] == ["ink", HALF]
    sent = json.dumps({"prompt": prompt, "tag": 0, "field": "strength", "value": 0.7})
    changed = ask.post("/lora-runtime/edit", content=sent, headers={"Content-Type": "application/json"}).json()
    assert changed["text"] == "<lora:ink:0.7>"


def test_nobody_is_answered_without_the_pages_login(client: Callable[..., Any], folder: Path) -> None:
    page = client(partial(add_panel, questions=questions(folder)), logged_in=False)
    assert page.post("/lora-runtime/tags", json={"prompt": "a"}).status_code == 401
    assert page.get(f"/lora-runtime/web/{web_hash()}/stack.js").status_code == 401


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_page_of_another_site_cannot_have_a_browser_write(ask: Any, folder: Path, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    sent = json.dumps({"name": "sea", "text": "<lora:ink>"}).encode()
    assert ask.post("/lora-runtime/save-set", content=sent, headers=headers).status_code in (415, 422)
    assert not (folder / "sea.set.txt").exists()


def test_a_page_without_logins_of_its_own_is_refused(folder: Path) -> None:
    with pytest.raises(StudioError, match="keeps its logins elsewhere"):
        add_panel(fastapi.FastAPI(), questions(folder))


def test_no_body_brings_a_route_down(ask: Any) -> None:
    posted = sorted(path for path in (f"/lora-runtime/{name}" for name in QUESTIONS))

    @many(400)
    @given(st.sampled_from(posted), POSTED)
    def check(path: str, body: bytes) -> None:
        answer = ask.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (path, body[:200], answer.text)
        answer.json()

    check()


@pytest.mark.parametrize(
    "path", ["sets", "masks", "mask", "mask?name=%00", "mask?name=../x", "web", "web/x/y", "web/x/%2e"]
)
def test_what_is_fetched_is_answered_whatever_is_asked(ask: Any, path: str) -> None:
    answer = ask.get(f"/lora-runtime/{path}")
    assert answer.status_code in (200, 404)


def test_the_page_of_the_documents_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loras").mkdir()
    tiny.write_kohya_lora(tmp_path / "loras" / "ink.safetensors", tiny.unet("sd1"), components=("unet",))
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", text_of("panel.md"), re.DOTALL)
    assert found is not None
    namespace: dict[str, Any] = {}
    exec(compile(found[1], "panel.md", "exec"), namespace)
    page = TestClient(namespace["app"])
    [module] = re.findall(r'src="([^"]+)"', page.get("/").text)
    assert "customElements.define" in page.get(module).text
    rows = page.post("/lora-runtime/tags", json={"prompt": "<lora:ink:0.5>"}).json()["tags"]
    assert [row["file"]["title"] for row in rows] == ["ink"]
    page.post("/lora-runtime/save-set", json={"name": "sea", "text": "<lora:ink:0.5>"})
    assert page.get("/lora-runtime/sets").json() == {"sets": [{"name": "sea", "text": "<lora:ink:0.5>"}]}
