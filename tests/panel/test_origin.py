"""Requests that change something: from the page itself or from a program, never from a page of another site."""

from __future__ import annotations

import pytest

from lora_runtime.panel.origin import foreign

JSON = {"content-type": "application/json", "host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json; charset=utf-8"},
        {"sec-fetch-site": "same-origin", "origin": "https://lab.example"},
        {"sec-fetch-site": "none"},
        {"origin": "http://127.0.0.1:7860"},
        {"host": "Box.local:7860", "origin": "http://box.local:7860"},
        {"origin": "https://lab.example", "x-forwarded-host": "lab.example"},
    ],
)
def test_the_page_and_programs_are_let_in(headers: dict[str, str]) -> None:
    assert foreign({**JSON, **headers}) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "text/plain; application/json"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:7860"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:7861"},
    ],
)
def test_another_site_is_not(headers: dict[str, str]) -> None:
    assert foreign({**JSON, **headers}) != ""
