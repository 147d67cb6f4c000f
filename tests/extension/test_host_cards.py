"""What one does with cards beside choosing them, over HTTP: which are shown, stars, dates of use, names and places."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI

CIVITAI_INFO = {"id": 130072, "modelId": 118827, "trainedWords": ["inkwash, loose lines"]}


def write(webui: WebUI, *names: str, kind: str = "sd1") -> list[Path]:
    checkpoint = "a" if kind == "sd1" else kind
    return [loras.write(webui.loras / f"{name}.safetensors", plain(checkpoint), kind).path for name in names]


def cards(webui: WebUI, **asked: Any) -> dict[str, Any]:
    answer = webui.client().get("/lora-runtime/cards", params=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def named(html: str) -> list[str]:
    return [
        part.partition('"')[0] for part in html.split('<div class="card')[1:] for part in [part.split('data-name="')[1]]
    ]


def shown(webui: WebUI, **asked: Any) -> list[str]:
    return named(cards(webui, **asked)["html"])


def post(webui: WebUI, path: str, **values: Any) -> dict[str, Any]:
    answer = webui.client().post(f"/lora-runtime/{path}", json=values)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def details(webui: WebUI, name: str) -> dict[str, Any]:
    found: dict[str, Any] = webui.client().get("/lora-runtime/details", params={"name": name}).json()
    return found


# --- which are shown ---


def test_families_are_counted_and_chosen(webui: WebUI) -> None:
    write(webui, "ink", "wash")
    write(webui, "big", kind="sdxl")
    found = cards(webui)
    assert found["families"] == {"SDXL": 1, "unknown": 2}
    assert shown(webui, families="SDXL") == ["big"]
    assert sorted(shown(webui, families="SDXL|unknown")) == ["big", "ink", "wash"]
    assert "families" not in cards(webui, offset=1)
    nothing = cards(webui, families="Flux")
    assert "Nothing found" in nothing["html"]
    assert nothing["families"] == {"SDXL": 1, "unknown": 2}  # or nobody could choose another


def test_what_fits_is_what_was_made_for_the_checkpoint(webui: WebUI) -> None:
    write(webui, "ink")
    write(webui, "big", kind="sdxl")
    webui.generate("a")
    assert shown(webui, fits=True) == ["ink"]
    # A person's word on the family goes before the file's.
    (webui.loras / "big.json").write_text(json.dumps({"sd version": "SD1"}))
    webui.client().post("/sdapi/v1/refresh-loras")
    assert sorted(shown(webui, fits=True)) == ["big", "ink"]


def test_favourites_are_shown_alone_and_last_over_a_restart(webui: WebUI) -> None:
    write(webui, "ink", "wash")
    assert 'aria-pressed="true"' not in cards(webui)["html"]
    assert post(webui, "star", name="wash", on=True) == {"favourite": True}
    assert shown(webui, favourites=True) == ["wash"]
    webui.reload_ui()
    assert shown(webui, favourites=True) == ["wash"]
    # By its content: another program has renamed it, and its hash is known again.
    (webui.loras / "wash.safetensors").rename(webui.loras / "renamed.safetensors")
    webui.client().post("/sdapi/v1/refresh-loras")
    assert details(webui, "renamed")["favourite"] is False
    [page] = webui.module("ui_extra_networks").extra_pages
    page.shelf.hashes.short(page.shelf.entry("renamed"))
    assert details(webui, "renamed")["favourite"] is True


def test_two_files_of_one_content_share_a_star(webui: WebUI) -> None:
    [ink] = write(webui, "ink")
    (webui.loras / "copy.safetensors").write_bytes(ink.read_bytes())
    post(webui, "star", name="ink", on=True)
    [page] = webui.module("ui_extra_networks").extra_pages
    page.shelf.hashes.short(page.shelf.entry("copy"))
    assert sorted(shown(webui, favourites=True)) == ["copy", "ink"]
    post(webui, "star", name="copy", on=False)
    assert shown(webui, favourites=True) == []


def test_what_acts_in_a_picture_is_used_then_and_comes_first(webui: WebUI) -> None:
    write(webui, "a", "b")
    loras.write(webui.loras / "c.safetensors", plain(), seed=7)
    assert details(webui, "c")["used"] == 0
    webui.generate("a boat <lora:c:1> <lora:nobody:1>")
    assert details(webui, "c")["used"] > 1_600_000_000
    assert shown(webui, sort="date_used", dir="Descending") == ["c", "a", "b"]
    assert shown(webui, sort="date_used") == ["a", "b", "c"]


def test_folders_are_hidden_by_the_settings_and_their_files_still_found_by_tags(webui: WebUI) -> None:
    write(webui, "ink", "Old/a", "style/trial 1/b", "style/c")
    webui.client().post("/sdapi/v1/refresh-loras")
    webui.options.lora_runtime_hide_folders = " old , style/trial* "
    assert sorted(shown(webui)) == ["c", "ink"]
    [page] = webui.module("ui_extra_networks").extra_pages
    html = page.create_html("txt2img")
    assert 'data-folder="style"' in html
    assert "Old" not in html
    assert "trial" not in html
    assert not webui.generate("x <lora:a:1>").comments
    webui.options.lora_runtime_hide_folders = "*"
    assert shown(webui) == ["ink"]


def test_pictures_are_blurred_by_words_of_path_and_notes(webui: WebUI) -> None:
    write(webui, "ink", "private/boat", "wash")
    (webui.loras / "wash.json").write_text(json.dumps({"notes": "NSFW"}))
    assert "lora-runtime-blurred" not in cards(webui)["html"]
    webui.options.lora_runtime_blur = "private, nsfw"
    blurred = [
        part
        for part in cards(webui)["html"].split('<div class="card')[1:]
        if "lora-runtime-blurred" in part.partition('"')[0]
    ]
    assert sorted(part.split('data-name="')[1].partition('"')[0] for part in blurred) == ["boat", "wash"]


# --- details ---


def test_details_have_words_and_page_from_side_cars_and_fetch_nothing(webui: WebUI) -> None:
    write(webui, "style/ink")
    (webui.loras / "style" / "ink.civitai.info").write_text(json.dumps(CIVITAI_INFO))
    (webui.loras / "style" / "ink.json").write_text(json.dumps({"activation text": "my ink", "description": "wet"}))
    found = details(webui, "ink")
    assert found["words"] == ["my ink", "inkwash", "loose lines"]
    assert found["page"] == "https://civitai.com/models/118827?modelVersionId=130072"
    assert (found["place"], found["family"], found["description"]) == ("style/ink", "", "wet")
    assert (found["folders"], found["folder"], found["allowed"]) == (["", "style"], "style", True)
    assert "error" in details(webui, "nobody")


def test_a_film_is_handed_out_by_the_name_of_its_file(webui: WebUI) -> None:
    write(webui, "ink", "wash")
    (webui.loras / "ink.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (webui.loras / "ink.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    client = webui.client()
    html = cards(webui)["html"]
    address = html.split('<video src="./')[1].partition('"')[0].replace("&amp;", "&")
    answer = client.get(f"/{address}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.content == b"\0\0\0\x18ftypmp42"
    for name in ("wash", "nobody", "../ink", str(webui.loras / "ink")):
        assert client.get("/lora-runtime/film", params={"name": name}).status_code == 404
    assert html.count("<img") == 0  # the picture is what the film shows while it stands


@pytest.mark.parametrize(
    ("asked", "status", "content", "part"),
    [
        ("bytes=0-1", 206, b"01", "bytes 0-1/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=5-4", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),  # of several parts the whole is as good an answer
        ("bytes=-", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=" + "9" * 100 + "-", 200, b"0123456789", None),
    ],
)
def test_a_film_is_handed_out_in_the_parts_that_are_asked_for(
    webui: WebUI, asked: str, status: int, content: bytes, part: str | None
) -> None:
    write(webui, "ink")
    (webui.loras / "ink.webm").write_bytes(b"0123456789")
    answer = webui.client().get("/lora-runtime/film", params={"name": "ink"}, headers={"Range": asked})
    assert (answer.status_code, answer.content, answer.headers.get("Content-Range")) == (status, content, part)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_a_pipe_is_no_film(webui: WebUI) -> None:
    write(webui, "ink")
    os.mkfifo(webui.loras / "ink.webm")  # who opened it would wait for ever
    for headers in ({}, {"Range": "bytes=0-1"}):
        answer = webui.client().get("/lora-runtime/film", params={"name": "ink"}, headers=headers)
        assert answer.status_code == 404


# --- names and places ---


def test_a_file_is_renamed_with_what_belongs_to_it_and_keeps_its_star(webui: WebUI) -> None:
    write(webui, "ink", "ink.v2")
    for name in ("ink.json", "ink.preview.png", "ink.v2.png"):
        (webui.loras / name).write_text("{}")
    post(webui, "star", name="ink", on=True)
    done = post(webui, "file", action="rename", name="ink", to="wash")
    assert (done["said"], done["name"]) == ("Renamed ink to wash.", "wash")
    files = sorted(path.name for path in webui.loras.iterdir())
    assert files == ["ink.v2.png", "ink.v2.safetensors", "wash.json", "wash.preview.png", "wash.safetensors"]
    assert sorted(shown(webui)) == ["ink.v2", "wash"]
    assert details(webui, "wash")["favourite"] is True
    post(webui, "file", **done["undo"])
    assert sorted(shown(webui)) == ["ink", "ink.v2"]
    assert details(webui, "ink")["favourite"] is True


def test_a_file_is_moved_to_a_folder_that_is_there(webui: WebUI) -> None:
    write(webui, "ink", "style/wash")
    assert details(webui, "ink")["folders"] == ["", "style"]
    done = post(webui, "file", action="move", name="ink", to="style")
    assert (webui.loras / "style" / "ink.safetensors").is_file()
    assert details(webui, done["name"])["place"] == "style/ink"
    post(webui, "file", **done["undo"])
    assert (webui.loras / "ink.safetensors").is_file()
    assert "there is no folder" in post(webui, "file", action="move", name="ink", to="../..")["error"]


@pytest.mark.parametrize("style", ["Dirs", "Tree"])
def test_the_folders_beside_the_cards_can_be_asked_for_after_a_change(webui: WebUI, style: str) -> None:
    webui.options.extra_networks_tree_view_style = style
    write(webui, "ink")
    (webui.loras / "style").mkdir()

    def folders() -> str:
        return str(webui.client().get("/lora-runtime/folders").json()["html"])

    assert "style" not in folders()
    done = post(webui, "file", action="move", name="ink", to="style")
    assert "style" in folders()
    post(webui, "file", **done["undo"])
    assert "style" not in folders()


def test_what_is_thrown_away_is_in_the_bin_and_can_be_put_back(webui: WebUI) -> None:
    write(webui, "style/ink", "wash")
    (webui.loras / "style" / "ink.txt").write_text("notes")
    before = sorted(webui.loras.rglob("*"))
    done = post(webui, "file", action="bin", name="ink")
    assert done["said"] == "Put ink with 1 file beside it into the bin."
    assert shown(webui) == ["wash"]
    # Nor does the program's own list have it, which hides no hidden folders by itself.
    webui.client().post("/sdapi/v1/refresh-loras")
    assert [each["name"] for each in webui.client().get("/sdapi/v1/loras").json()] == ["wash"]
    assert not [path for path in webui.loras.rglob("*.safetensors") if "ink" in path.name]
    [thing] = webui.client().get("/lora-runtime/bin").json()["bin"]
    assert (thing["place"], thing["files"]) == ("style/ink", 2)
    assert done["undo"] == {"action": "restore", "token": thing["token"]}
    assert post(webui, "file", **done["undo"])["name"] == "ink"
    assert sorted(webui.loras.rglob("*")) == before
    assert webui.client().get("/lora-runtime/bin").json()["bin"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_linked_folder_has_a_bin_of_its_own_that_is_found_when_it_is_all_there_is(
    webui: WebUI, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (webui.loras / "linked").symlink_to(elsewhere)
    write(webui, "linked/ink")
    webui.client().post("/sdapi/v1/refresh-loras")
    done = post(webui, "file", action="bin", name="ink")
    assert (elsewhere / ".lora-bin").is_dir()
    webui.reload_ui()
    assert post(webui, "file", **done["undo"])["name"] == "ink"
    assert (elsewhere / "ink.safetensors").is_file()


def test_what_cannot_be_done_is_said_and_changes_nothing(webui: WebUI) -> None:
    write(webui, "ink", "wash")
    before = sorted(webui.loras.rglob("*"))
    for values in (
        {"action": "rename", "name": "ink", "to": "wash"},
        {"action": "rename", "name": "ink", "to": "a/b"},
        {"action": "rename", "name": "ink"},
        {"action": "rename", "name": "nobody", "to": "x"},
        {"action": "delete", "name": "ink"},
        {"action": "bin", "name": 3},
        {"action": "restore", "token": "../x"},
        {},
    ):
        assert post(webui, "file", **values)["error"], values
    assert "error" in post(webui, "star", name="nobody", on=True)
    assert webui.client().post("/lora-runtime/star", json={"name": "ink", "on": "yes"}).status_code == 422
    assert sorted(webui.loras.rglob("*")) == before


def test_a_setting_keeps_files_as_they_are(webui: WebUI) -> None:
    write(webui, "ink")
    webui.options.lora_runtime_file_operations = False
    assert "a setting forbids it" in post(webui, "file", action="bin", name="ink")["error"]
    assert (webui.loras / "ink.safetensors").is_file()
    found = details(webui, "ink")
    assert found["allowed"] is False
    assert "folders" not in found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Content-Type": "text/plain"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_change_nothing(webui: WebUI, headers: dict[str, str], status: int) -> None:
    write(webui, "ink")
    client = webui.client()
    for path, body in (
        ("star", {"name": "ink", "on": True}),
        ("file", {"action": "rename", "name": "ink", "to": "wash"}),
    ):
        sent = {"Content-Type": "application/json", **headers}
        answer = client.post(f"/lora-runtime/{path}", content=json.dumps(body), headers=sent)
        assert answer.status_code == status
    assert (webui.loras / "ink.safetensors").is_file() is (status == 403)
