"""Who may call our routes: with each login and each kind of credentials that the program can ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI

PAGE = (
    "/lora-runtime/cards",
    "/lora-runtime/card?name=ink",
    "/lora-runtime/folders",
    "/lora-runtime/files?folder=/Lora",
    "/lora-runtime/cover?name=ink",
    "/lora-runtime/web",
    "/lora-runtime/web/{digest}/{name}",
    "/lora-runtime/tags",
    "/lora-runtime/edit",
    "/lora-runtime/complete",
    "/lora-runtime/sets",
    "/lora-runtime/save-set",
    "/lora-runtime/delete-set",
    "/lora-runtime/details?name=ink",
    "/lora-runtime/film?name=ink",
    "/lora-runtime/bin",
    "/lora-runtime/star",
    "/lora-runtime/file",
    "/lora-runtime/save-preset",
    "/lora-runtime/conflicts",
    "/lora-runtime/masks",
    "/lora-runtime/mask?name=ink.png",
)
# What is asked with a body; the other routes of the page are fetched.
BODIES = {
    "/lora-runtime/tags": {"prompt": "a <lora:ink>"},
    "/lora-runtime/edit": {"prompt": "a <lora:ink>", "tag": 0, "field": "te", "value": 1},
    "/lora-runtime/complete": {"prompt": "a <lora:in", "cursor": 10},
    "/lora-runtime/save-set": {"name": "x", "text": ""},
    "/lora-runtime/delete-set": {"name": "x"},
    "/lora-runtime/star": {"name": "ink", "on": True},
    "/lora-runtime/file": {"name": "ink", "action": "rename", "to": "ink"},
    "/lora-runtime/save-preset": {"prompt": "a <lora:ink>", "tag": 0, "name": "x"},
    "/lora-runtime/conflicts": {"prompt": "a <lora:ink>"},
}
API = ("/sdapi/v1/loras", "/sdapi/v1/refresh-loras")
EXPLAIN, REPORT = "/lora-runtime/explain", "/lora-runtime/report"
LOGIN, CREDENTIALS = ("ann", "secret"), ("bob", "hidden")


def opened(client: Any, path: str, **how: Any) -> bool:
    """Return whether a route answers; any other answer than "who are you" counts."""
    if path in BODIES:
        answer = client.post(path, json=BODIES[path], **how)
    elif path in (EXPLAIN, REPORT):
        answer = client.post(path, json={"prompt": "a <lora:ink>"}, **how)
    elif path.endswith("refresh-loras"):
        answer = client.post(path, **how)
    else:
        answer = client.get(path, **how)
    if answer.status_code == 401:
        assert "ink" not in answer.text
    return answer.status_code != 401


def our_paths(webui: WebUI) -> list[str]:
    paths = [getattr(route, "path", "") for route in webui.app.router.routes]
    return [path for path in paths if re.match(r"/lora-runtime/|/sdapi/v1/(refresh-)?loras", path)]


@pytest.fixture(params=["first start", "after Reload UI"])
def begin(start: Callable[..., WebUI], request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    def with_files(**given: Any) -> Any:
        webui = start(**given)
        loras.write(webui.loras / "ink.safetensors", plain())
        if request.param == "after Reload UI":
            webui.reload_ui()
        assert sorted(our_paths(webui)) == sorted([*(path.partition("?")[0] for path in PAGE), *API, EXPLAIN, REPORT])
        return webui.client()

    return with_files


def log_in(client: Any) -> None:
    name, password = LOGIN
    assert client.post("/login", data={"username": name, "password": password}).status_code == 200


def test_without_any_protection_all_are_open(begin: Callable[..., Any]) -> None:
    client = begin(api=True)
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [True] * (len(PAGE) + 4)


def test_with_a_login_they_ask_for_it(begin: Callable[..., Any]) -> None:
    client = begin(login=LOGIN)
    assert client.get("/config").status_code == 401  # the program's own
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [False] * (len(PAGE) + 4)
    assert [opened(client, path, auth=LOGIN) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [False] * (len(PAGE) + 4)
    log_in(client)
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [True] * (len(PAGE) + 4)


def test_with_credentials_of_the_api_its_routes_ask_for_them(begin: Callable[..., Any]) -> None:
    client = begin(api=True, api_auth=":".join(CREDENTIALS))
    assert client.post("/sdapi/v1/refresh-vae").status_code == 401  # the program's own
    assert [opened(client, path) for path in (*API, EXPLAIN, REPORT)] == [False] * 4
    assert [opened(client, path, auth=("bob", "wrong")) for path in (*API, EXPLAIN, REPORT)] == [False] * 4
    assert [opened(client, path, auth=CREDENTIALS) for path in (*API, EXPLAIN, REPORT)] == [True] * 4
    assert [opened(client, path) for path in PAGE] == [True] * len(PAGE)  # as the page that shows them


def test_with_both_each_asks_for_its_own_and_explain_and_report_take_either(begin: Callable[..., Any]) -> None:
    client = begin(login=LOGIN, api=True, api_auth=":".join(CREDENTIALS))
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [False] * (len(PAGE) + 4)
    assert [opened(client, path, auth=CREDENTIALS) for path in PAGE] == [False] * len(PAGE)
    assert [opened(client, path, auth=CREDENTIALS) for path in (*API, EXPLAIN, REPORT)] == [True] * 4
    assert not any(opened(client, path, auth=("bob", "wrong")) for path in (EXPLAIN, REPORT))
    log_in(client)
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [True] * len(PAGE) + [False] * 2 + [
        True
    ] * 2


def test_with_a_login_and_an_open_api_only_the_api_is_open(begin: Callable[..., Any]) -> None:
    client = begin(login=LOGIN, api=True)
    assert client.post("/sdapi/v1/refresh-vae").status_code == 200  # the program's own
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [False] * len(PAGE) + [True] * 2 + [
        False
    ] * 2


def test_where_logins_are_kept_elsewhere_nobody_is_let_in(start: Callable[..., WebUI]) -> None:
    webui = start(login=LOGIN)
    webui.app.router.routes[:] = [
        r for r in webui.app.router.routes if not getattr(r, "path", "").startswith("/login_c")
    ]
    webui.module("script_callbacks").app_started_callback(None, webui.app)
    client = webui.client()
    log_in(client)
    assert [opened(client, path) for path in (*PAGE, *API, EXPLAIN, REPORT)] == [False] * (len(PAGE) + 4)
