"""Who may come to the page, and what it gives them; its API."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from studio_line import SECONDS, until

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


@contextmanager
def loading_held() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Give an event that says that a model is to be loaded, and one that it waits for, until the block ends at most."""
    from lora_runtime.studio import models

    begun, go_on = threading.Event(), threading.Event()
    load = models.load_model

    def held(*given: Any) -> Any:
        begun.set()
        go_on.wait()
        return load(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_model", held)
        try:
            yield begun, go_on
        finally:
            go_on.set()


@NEEDS_GRADIO
def test_two_programs_at_once_share_a_call_and_each_gets_its_own_picture(served: Any, tmp_path: Path) -> None:
    from gradio_client import Client

    from lora_runtime import read_infotext

    prompts = ["a red circle <lora:stripes:1>", "a boat <lora:night:0.7>"]
    with served() as (studio, url), loading_held() as (begun, go_on):
        first, *others = (Client(url, verbose=False, download_files=tmp_path / str(number)) for number in range(3))
        waited_for = first.submit("a tree", steps=1, seed=1, api_name="/paint")
        assert begun.wait(SECONDS)
        asked = [
            client.submit(prompt, steps=2, seed=4, api_name="/paint")
            for client, prompt in zip(others, prompts, strict=True)
        ]
        until(lambda: studio.shop.line_length == 3)
        go_on.set()
        found = [job.result(SECONDS) for job in asked]
        assert waited_for.result(SECONDS)[1]["batches"] == [1]
    for (pictures, said), prompt, name in zip(found, prompts, ("stripes", "night"), strict=True):
        assert read_infotext(pictures[0]).prompt == prompt
        assert said["batches"] == [2]
        assert f"{name} × " in said["report"]
        assert {"stripes": "night", "night": "stripes"}[name] not in str(said)


@NEEDS_GRADIO
def test_whoever_closes_the_page_waits_no_more(served: Any) -> None:
    import httpx

    with served() as (studio, url), loading_held() as (begun, _):
        fields = ["a", "", "embedded", 48, 48, "model's own", 2, 4.0, 1, 1, None, 0.75]

        def ask(who: str, length: int) -> None:
            given = {"data": fields, "session_hash": who}
            assert httpx.post(f"{url}gradio_api/call/paint", json=given, timeout=SECONDS).status_code == 200
            until(lambda: studio.shop.line_length == length)

        ask("ben", 1)
        assert begun.wait(SECONDS)
        with httpx.stream("GET", f"{url}gradio_api/heartbeat/anna", timeout=SECONDS) as page:
            lines = page.iter_lines()  # which ends the connection where nothing has it any more
            assert next(lines)
            ask("anna", 2)
        until(lambda: studio.shop.line_length == 1)


@pytest.mark.parametrize("most", [0, -1])
def test_a_batch_has_one_picture_at_least(most: int) -> None:
    with pytest.raises(StudioError, match="--max-batch is"):
        Options(max_batch=most)
