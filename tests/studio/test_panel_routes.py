"""The panel's routes beside a page of gradio's: they ask for its login, and answer any text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

fastapi = pytest.importorskip("fastapi", minversion="0.100")  # the WebUI's is of before the studio's gradio

from fastapi.testclient import TestClient  # noqa: E402

from lora_runtime.catalog import LoraCatalog  # noqa: E402
from lora_runtime.panel import CatalogLibrary, web_hash  # noqa: E402
from lora_runtime.studio.faults import StudioError  # noqa: E402
from lora_runtime.studio.panel_routes import add_panel  # noqa: E402

HALF = "\ud83d"


def client(folder: Path, logged_in: bool = True) -> Any:
    """Return a client of an app with a question about logins, as gradio's has one."""
    app = fastapi.FastAPI()

    @app.get("/login_check")
    def login_check() -> None:
        if not logged_in:
            raise fastapi.HTTPException(401)

    add_panel(app, CatalogLibrary(LoraCatalog(folder)), lambda: ["IN04"])
    return TestClient(app)


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    tiny.write_kohya_lora(tmp_path / "ink.safetensors", tiny.unet("sd1"), components=("unet",))
    return tmp_path


def test_half_of_a_character_costs_no_answer(loras: Path) -> None:
    page = client(loras)
    prompt = f"{HALF} <lora:ink:0.5> <lora:{HALF}:1>"
    sent = json.dumps({"prompt": prompt})  # in ASCII, as no client sends it by itself
    rows = page.post("/lora-runtime/tags", content=sent, headers={"Content-Type": "application/json"})
    assert rows.status_code == 200
    assert [row["name"] for row in rows.json()["tags"]] == ["ink", HALF]
    sent = json.dumps({"prompt": prompt, "tag": 0, "field": "strength", "value": 0.7})
    changed = page.post("/lora-runtime/edit", content=sent, headers={"Content-Type": "application/json"}).json()
    assert changed["text"] == "<lora:ink:0.7>"


def test_nobody_is_answered_without_the_pages_login(loras: Path) -> None:
    page = client(loras, logged_in=False)
    assert page.post("/lora-runtime/tags", json={"prompt": "a"}).status_code == 401
    assert page.get(f"/lora-runtime/web/{web_hash()}/stack.js").status_code == 401


def test_a_page_without_logins_of_its_own_is_refused(loras: Path) -> None:
    with pytest.raises(StudioError, match="keeps its logins elsewhere"):
        add_panel(fastapi.FastAPI(), CatalogLibrary(LoraCatalog(loras)), list)
