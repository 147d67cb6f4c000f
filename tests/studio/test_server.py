"""Who may come to the page, and what it gives them; its API."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.cli import main
from lora_runtime.demo.scene_pipeline import LORAS
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.server import Options

NEEDS_GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: the extra `studio` has it"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own threads, which end when they end
DOCS = Path(__file__).resolve().parents[2] / "docs" / "studio.md"


def test_unless_told_otherwise_it_is_for_this_machine_alone_and_asks_nobody() -> None:
    options = Options()
    assert (options.host, options.share, options.login) == ("127.0.0.1", False, None)
    assert Options(auth="anna:a:b").login == ("anna", "a:b")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "192.168.1.2"}, False),
        ({"host": "studio.example"}, False),
        ({"host": "0.0.0.0", "auth": "anna:secret"}, True),
        ({"keep_files": True}, False),
        ({"keep_files": True, "auth": "anna:secret"}, False),
    ],
)
def test_files_are_changed_by_this_machine_or_whoever_has_a_login(options: dict[str, Any], changes: bool) -> None:
    assert Options(**options).changes_files is changes


@pytest.mark.parametrize("auth", ["anna", "anna:", ":secret", ":"])
def test_half_a_login_is_refused(auth: str) -> None:
    with pytest.raises(StudioError, match="no USER:PASSWORD"):
        Options(auth=auth)


def test_nothing_goes_into_the_public_internet_without_a_login(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", "--share"]) == 2
    assert "give --auth USER:PASSWORD too" in capsys.readouterr().err


def test_the_page_of_the_docs_shows_a_picture_that_is_not_large() -> None:
    assert "](studio.png)" in DOCS.read_text(encoding="utf-8")
    assert DOCS.with_name("studio.png").stat().st_size < 300_000


@pytest.fixture(scope="module")
def guarded(served: Any) -> Iterator[str]:
    """A page that asks for a name and a password."""
    with served(auth="anna:secret") as (_, url):
        yield url


@NEEDS_GRADIO
def test_whoever_has_no_login_gets_neither_pictures_nor_an_answer(guarded: str) -> None:
    import httpx

    for path in ("config", "gradio_api/info", f"gradio_api/file={LORAS / 'heart.safetensors'}"):
        assert httpx.get(guarded + path).status_code == 401, path
    for path in ("cards", "bin", "details?name=x", "picture?name=x", "film?name=x"):
        assert httpx.get(f"{guarded}lora-runtime/{path}").status_code == 401, path
    questions = {
        "tags": {"prompt": "a"},
        "edit": {},
        "complete": {},
        "star": {},
        "file": {"action": "bin", "name": "x"},
    }
    for path, given in questions.items():
        assert httpx.post(f"{guarded}lora-runtime/{path}", json=given).status_code == 401, path
    asked = httpx.post(f"{guarded}gradio_api/call/paint", json={"data": ["a"]})
    assert asked.status_code == 401


@NEEDS_GRADIO
def test_files_beside_the_pictures_are_given_to_nobody(guarded: str) -> None:
    import httpx

    with httpx.Client() as client:
        assert client.post(f"{guarded}login", data={"username": "anna", "password": "secret"}).status_code == 200
        for path in (LORAS / "heart.safetensors", DOCS, Path(__file__)):
            assert client.get(f"{guarded}gradio_api/file={path}").status_code == 403, path


@NEEDS_GRADIO
def test_the_example_in_the_docs_paints(guarded: str, tmp_path: Path) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    from lora_runtime import read_infotext

    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    said: dict[str, Any] = {}

    def client(address: str) -> Client:
        assert address == "http://127.0.0.1:7860/"
        return Client(guarded, auth=("anna", "secret"), verbose=False, download_files=tmp_path)

    exec(
        example.replace("from gradio_client import Client\n", "").replace("steps=20", "steps=2"),
        {"Client": client},
        said,
    )
    [path] = said["pictures"]
    assert read_infotext(path).prompt == "a red circle <lora:watercolor:0.7>"
    assert said["said"]["seed"] == 4
    assert "watercolor × 0.7: 252 of 252 keys" in said["said"]["report"]
    with pytest.raises(AppError, match="give a multiple of 8"):
        said["client"].predict("a", width=50, steps=2, api_name="/paint")
