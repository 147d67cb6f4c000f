"""Stars and films of the studio's cards: behind the page's login, and from no other site's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

fastapi = pytest.importorskip("fastapi", minversion="0.100")  # the WebUI's is of before the studio's gradio

from fastapi.testclient import TestClient  # noqa: E402

from lora_runtime.catalog import LoraCatalog  # noqa: E402
from lora_runtime.panel.marks import Marks  # noqa: E402
from lora_runtime.studio.card_routes import add_cards  # noqa: E402


def client(folder: Path, logged_in: bool = True) -> Any:
    """Return a client of an app with a question about logins, as gradio's has one."""
    app = fastapi.FastAPI()

    @app.get("/login_check")
    def login_check() -> None:
        if not logged_in:
            raise fastapi.HTTPException(401)

    add_cards(app, LoraCatalog(folder), Marks(folder / "marks.json"))
    return TestClient(app)


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    tiny.write_kohya_lora(tmp_path / "ink.safetensors", tiny.unet("sd1"), components=("unet",))
    return tmp_path


def test_a_star_is_kept(loras: Path) -> None:
    page = client(loras)
    assert page.post("/lora-runtime/star", json={"name": "ink", "on": True}).json() == {"favourite": True}
    [mark] = Marks(loras / "marks.json").seen().all
    assert (Path(mark.path).name, mark.favourite, len(mark.sha256)) == ("ink.safetensors", True, 64)
    assert "no LoRA named" in page.post("/lora-runtime/star", json={"name": "nobody", "on": True}).json()["error"]
    assert page.post("/lora-runtime/star", json={"name": 3}).status_code == 422


def test_a_page_of_another_site_gives_no_star(loras: Path) -> None:
    page = client(loras)
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}):
        answer = page.post("/lora-runtime/star", json={"name": "ink", "on": True}, headers=headers)
        assert answer.status_code == 403
    assert not (loras / "marks.json").exists()


def test_a_film_is_asked_for_by_the_name_of_its_file(loras: Path) -> None:
    page = client(loras)
    assert page.get("/lora-runtime/film", params={"name": "ink"}).status_code == 404
    (loras / "ink.webm").write_bytes(b"film")
    answer = page.get("/lora-runtime/film", params={"name": "ink"})
    assert (answer.content, answer.headers["content-type"]) == (b"film", "video/webm")
    for name in ("../ink", str(loras / "ink"), "ink.webm", "nobody"):
        assert page.get("/lora-runtime/film", params={"name": name}).status_code == 404


def test_nobody_is_answered_without_the_pages_login(loras: Path) -> None:
    page = client(loras, logged_in=False)
    assert page.post("/lora-runtime/star", json={"name": "ink", "on": True}).status_code == 401
    assert page.get("/lora-runtime/film", params={"name": "ink"}).status_code == 401
