"""What the studio's cards ask for: behind the page's login, of files that are there, and from no other site's page."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from handmade import write
from PIL import Image

pytest.importorskip("fastapi", minversion="0.100")  # the WebUI's is of before the studio's gradio

from hypothesis import given
from hypothesis import strategies as st
from odd_requests import TEXTS, bodies, many

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import UnknownLoraError
from lora_runtime.panel import CatalogLibrary, tags
from lora_runtime.panel.marks import Marks
from lora_runtime.studio.card_routes import add_cards
from lora_runtime.studio.fitting import Fitting
from lora_runtime.studio.gallery import Gallery
from lora_runtime.studio.models import Models

INK = "0/ink.safetensors"
SDXL = {"ss_base_model_version": "sdxl_base_v1-0"}


@pytest.fixture
def catalog(folder: Path) -> LoraCatalog:
    return LoraCatalog(folder)


@pytest.fixture
def cards_of(client: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return what makes a client of a page with the cards of a catalog."""

    def made(catalog: LoraCatalog, *, allowed: bool = True, logged_in: bool = True) -> Any:
        gallery = Gallery(catalog, Marks(folder / "marks.json"), Fitting(Models()), lambda: allowed)
        return client(partial(add_cards, gallery=gallery), logged_in)

    return made


@pytest.fixture
def page(cards_of: Callable[..., Any], catalog: LoraCatalog) -> Any:
    return cards_of(catalog)


def shown(page: Any, **asked: Any) -> list[str]:
    """Return the titles of the cards that are found."""
    return [card["title"] for card in page.get("/lora-runtime/cards", params=asked).json()["cards"]]


def change(page: Any, **asked: Any) -> dict[str, Any]:
    answer = page.post("/lora-runtime/file", json=asked)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder with what is in them, the marks left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and "marks" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- which cards there are ---


def test_cards_are_asked_for_in_parts_with_the_numbers_of_families_and_folders(page: Any, folder: Path) -> None:
    for index in range(70):
        write(folder / "many" / f"{index:03}.safetensors", metadata=SDXL)
    first = page.get("/lora-runtime/cards").json()
    assert (first["total"], len(first["cards"])) == (71, 60)
    assert (first["families"], first["folders"]) == ({"SDXL": 70, "unknown": 1}, {"many": 70})
    rest = page.get("/lora-runtime/cards", params={"offset": 60}).json()
    assert (rest["total"], len(rest["cards"])) == (71, 11)
    names = [card["name"] for card in first["cards"] + rest["cards"]]
    assert sorted(set(names)) == sorted([INK, *(f"0/many/{index:03}.safetensors" for index in range(70))])
    assert page.get("/lora-runtime/cards", params={"limit": 10_000}).status_code == 422


def test_folders_are_hidden_by_patterns_and_pictures_blurred(page: Any, folder: Path) -> None:
    for name in ("old/a", "style/trial 1/b", "style/private c"):
        write(folder / f"{name}.safetensors")
    assert shown(page, hide="OLD, style/trial*") == ["ink", "style/private c"]
    assert shown(page, folder="style") == ["style/private c", "style/trial 1/b"]
    cards = page.get("/lora-runtime/cards", params={"blur": "priv?te, nsfw"}).json()["cards"]
    assert [card["title"] for card in cards if card["blurred"]] == ["style/private c"]


def test_what_cannot_be_used_is_told_with_its_reason(page: Any, folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"no")
    found = page.get("/lora-runtime/cards").json()
    assert (found["total"], found["refused"]) == (1, 1)
    [[place, why]] = found["reasons"]
    assert place == "broken.safetensors"
    assert why


def test_a_folder_that_is_gone_is_said(cards_of: Callable[..., Any], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    page = cards_of(LoraCatalog(gone))
    gone.rmdir()
    assert "does not exist" in page.get("/lora-runtime/cards").json()["error"]


# --- one card ---


def test_a_star_is_kept(page: Any, folder: Path) -> None:
    assert page.post("/lora-runtime/star", json={"name": INK, "on": True}).json() == {"favourite": True}
    [mark] = Marks(folder / "marks.json").seen().all
    assert (Path(mark.path).name, mark.favourite, len(mark.sha256)) == ("ink.safetensors", True, 64)
    assert "there is no LoRA" in page.post("/lora-runtime/star", json={"name": "nobody", "on": True}).json()["error"]
    assert page.post("/lora-runtime/star", json={"name": 3}).status_code == 422


def test_a_film_is_asked_for_by_the_name_of_its_card_and_comes_in_parts(page: Any, folder: Path) -> None:
    assert page.get("/lora-runtime/film", params={"name": INK}).status_code == 404
    (folder / "ink.webm").write_bytes(b"a film")
    answer = page.get("/lora-runtime/film", params={"name": INK})
    assert (answer.content, answer.headers["content-type"]) == (b"a film", "video/webm")
    part = page.get("/lora-runtime/film", params={"name": INK}, headers={"Range": "bytes=2-3"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"fi", "bytes 2-3/6")


def test_a_picture_is_small_on_a_card_and_whole_in_its_window(page: Any, folder: Path) -> None:
    Image.new("RGB", (800, 400), (1, 200, 3)).save(folder / "ink.preview.png")
    [card] = page.get("/lora-runtime/cards").json()["cards"]
    small = page.get(f"/lora-runtime/{card['picture']}")
    with Image.open(io.BytesIO(small.content)) as opened:
        assert opened.size == (256, 128)
    details = page.get("/lora-runtime/details", params={"name": INK}).json()
    large = page.get(f"/lora-runtime/{details['preview']}")
    assert (large.content, large.headers["content-type"]) == ((folder / "ink.preview.png").read_bytes(), "image/png")
    assert large.headers["x-content-type-options"] == "nosniff"
    (folder / "ink.preview.png").write_bytes(b"no picture")
    assert page.get("/lora-runtime/picture", params={"name": INK}).status_code == 404


def test_without_a_picture_beside_it_a_file_has_the_one_in_its_metadata(page: Any, folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    thumbnail = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    write(folder / "covered.safetensors", metadata={"modelspec.thumbnail": thumbnail})
    card, _ = page.get("/lora-runtime/cards").json()["cards"]
    answer = page.get(f"/lora-runtime/{card['picture']}")
    assert (answer.content, answer.headers["content-type"]) == (buffer.getvalue(), "image/png")
    write(folder / "no picture.safetensors", metadata={"modelspec.thumbnail": base64.b64encode(b"<script>").decode()})
    page.get("/lora-runtime/cards")
    assert page.get("/lora-runtime/picture", params={"name": "0/no picture.safetensors"}).status_code == 404


@pytest.mark.parametrize("name", ["../ink.safetensors", "0/../ink.safetensors", "ink", "0/ink", "", "0/ink.webm", "\0"])
def test_no_other_name_leads_to_a_file(page: Any, folder: Path, name: str) -> None:
    (folder / "ink.webm").write_bytes(b"film")
    for path in ("film", "picture"):
        assert page.get(f"/lora-runtime/{path}", params={"name": name}).status_code == 404
    assert "there is no LoRA" in page.get("/lora-runtime/details", params={"name": name}).json()["error"]
    before = tree(folder)
    assert change(page, action="bin", name=name)["error"]
    assert change(page, action="bin", name=str(folder / "ink.safetensors"))["error"]
    assert tree(folder) == before


def test_details_have_the_words_the_page_and_what_fits(page: Any, folder: Path) -> None:
    (folder / "ink.civitai.info").write_text(json.dumps({"id": 2, "modelId": 1, "trainedWords": ["ink wash"]}))
    found = page.get("/lora-runtime/details", params={"name": INK, "model": "embedded"}).json()
    assert (found["words"], found["page"]) == (["ink wash"], "https://civitai.com/models/1?modelVersionId=2")
    assert (found["stem"], found["family"], found["used"], found["allowed"]) == ("ink", "", 0, True)
    assert found["coverage"] == "0 of 846 keys"  # the embedded model has other layers


# --- names and places ---


def test_a_renamed_file_is_found_by_its_new_name_at_once_with_all_that_belongs_to_it(
    page: Any, folder: Path, catalog: LoraCatalog
) -> None:
    (folder / "ink.png").write_bytes(b"picture")
    (folder / "ink.civitai.info").write_text("{}")
    page.post("/lora-runtime/star", json={"name": INK, "on": True})
    before = tree(folder)
    done = change(page, action="rename", name=INK, to="wash")
    assert (done["said"], done["name"]) == ("Renamed ink to wash.", "0/wash.safetensors")
    assert done["tags"] == ["ink", "wash"]
    assert tree(folder) == {name.replace("ink", "wash"): content for name, content in before.items()}
    # What paints and what the panel shows have the same catalog.
    assert catalog.resolve("wash", look_again=False).path == folder / "wash.safetensors"
    with pytest.raises(UnknownLoraError):
        catalog.resolve("ink", look_again=False)
    rows = tags("<lora:wash:1> <lora:ink:1>", CatalogLibrary(catalog))["tags"]
    assert [row["file"] is not None for row in rows] == [True, False]
    assert shown(page, favourites=True) == ["wash"]
    change(page, **done["undo"])
    assert tree(folder) == before
    assert shown(page, favourites=True) == ["ink"]


def test_a_file_is_moved_to_a_folder_that_is_there(page: Any, folder: Path) -> None:
    (folder / "style").mkdir()
    details = page.get("/lora-runtime/details", params={"name": INK}).json()
    assert (details["folders"], details["folder"]) == (["", "style"], "")
    done = change(page, action="move", name=INK, to="style")
    assert (folder / "style" / "ink.safetensors").is_file()
    assert shown(page) == ["style/ink"]
    change(page, **done["undo"])
    assert (folder / "ink.safetensors").is_file()
    for to in ("..", "../..", "/tmp", "style/../..", "new"):
        assert "there is no folder" in change(page, action="move", name=INK, to=to)["error"]


def test_what_is_thrown_away_is_put_back(page: Any, folder: Path) -> None:
    (folder / "ink.txt").write_text("notes")
    before = tree(folder)
    done = change(page, action="bin", name=INK)
    assert done["said"] == "Put ink with 1 file beside it into the bin."
    assert shown(page) == []
    found = page.get("/lora-runtime/bin").json()
    assert (found["allowed"], [one["place"] for one in found["bin"]]) == (True, ["ink"])
    assert change(page, **done["undo"])["name"] == INK
    assert tree(folder) == before
    assert shown(page) == ["ink"]


def test_of_two_files_of_one_name_the_one_of_the_card_is_changed(
    cards_of: Callable[..., Any], tmp_path: Path, folder: Path
) -> None:
    for root in ("a", "b"):
        write(tmp_path / "roots" / root / "ink.safetensors")
    page = cards_of(LoraCatalog(tmp_path / "roots" / "a", tmp_path / "roots" / "b"))
    change(page, action="rename", name="1/ink.safetensors", to="wash")
    files = sorted(path.relative_to(tmp_path / "roots").as_posix() for path in tmp_path.rglob("roots/*/*"))
    assert files == ["a/ink.safetensors", "b/wash.safetensors"]


def test_what_cannot_be_done_is_said_and_changes_nothing(page: Any, folder: Path) -> None:
    write(folder / "wash.safetensors")
    (folder / "sea.PNG").write_bytes(b"mine")
    (folder / "ink.png").write_bytes(b"picture")
    before = tree(folder)
    for to, why in {
        "wash": "nothing is overwritten",
        "sea": "nothing is overwritten",
        "a/b": "no name for a file",
        "../ink": "no name for a file",
        "": "no name for a file",
        "nul": "Windows keeps it",
        "x" * 300: "more than 200 bytes",
    }.items():
        assert why in change(page, action="rename", name=INK, to=to)["error"], to
    for asked in (
        {"action": "rename", "name": INK},
        {"action": "delete", "name": INK},
        {"action": "bin", "name": 3},
        {},
    ):
        assert "asked for is" in change(page, **asked)["error"]
    assert "in no bin any more" in change(page, action="restore", token="../x")["error"]
    assert tree(folder) == before


def test_a_disk_that_cannot_be_written_to_loses_nothing(
    page: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some files are renamed before the disk refuses: they go back."""
    for ending in ("png", "txt"):
        (folder / f"ink.{ending}").write_text(ending)
    before, rename = tree(folder), Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "ink.txt":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    for asked in ({"action": "rename", "to": "wash"}, {"action": "bin"}):
        error = change(page, name=INK, **asked)["error"]
        assert error == f"nothing was changed: {os.strerror(errno.EROFS)}: {folder / 'ink.txt'}"
    assert tree(folder) == before
    assert shown(page) == ["ink"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_what_lies_outside_of_the_folders_is_shown_and_not_changed(
    cards_of: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path / "elsewhere" / "ink.safetensors")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "linked").symlink_to(tmp_path / "elsewhere")
    page = cards_of(LoraCatalog(tmp_path / "given"))
    assert shown(page) == ["linked/ink"]
    name = "0/linked/ink.safetensors"
    assert page.get("/lora-runtime/details", params={"name": name}).json()["allowed"] is False
    for asked in ({"action": "rename", "to": "wash"}, {"action": "move", "to": ""}, {"action": "bin"}):
        assert "lies outside of" in change(page, name=name, **asked)["error"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["ink.safetensors"]


def test_files_stay_where_nobody_may_change_them(cards_of: Callable[..., Any], folder: Path) -> None:
    page = cards_of(LoraCatalog(folder), allowed=False)
    assert "a setting forbids it" in change(page, action="bin", name=INK)["error"]
    found = page.get("/lora-runtime/details", params={"name": INK}).json()
    assert found["allowed"] is False
    assert "folders" not in found
    assert (folder / "ink.safetensors").is_file()


# --- who may ask ---


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}, {"Content-Type": "text/plain"}],
)
def test_a_page_of_another_site_changes_nothing(page: Any, folder: Path, headers: dict[str, str]) -> None:
    before = tree(folder)
    for path, body in (
        ("star", {"name": INK, "on": True}),
        ("file", {"action": "rename", "name": INK, "to": "wash"}),
        ("file", {"action": "bin", "name": INK}),
    ):
        sent = {"Content-Type": "application/json", **headers}
        assert page.post(f"/lora-runtime/{path}", content=json.dumps(body), headers=sent).status_code == 403
    assert tree(folder) == before
    assert not (folder / "marks.json").exists()


def test_nobody_is_answered_without_the_pages_login(cards_of: Callable[..., Any], folder: Path) -> None:
    page = cards_of(LoraCatalog(folder), logged_in=False)
    for path, asked in (("star", {"name": INK, "on": True}), ("file", {"action": "bin", "name": INK})):
        assert page.post(f"/lora-runtime/{path}", json=asked).status_code == 401
    for path in ("cards", "bin", "film", "picture", "details"):
        assert page.get(f"/lora-runtime/{path}", params={"name": INK}).status_code == 401
    assert (folder / "ink.safetensors").is_file()


def test_no_body_brings_a_route_down(page: Any, folder: Path) -> None:
    names = st.sampled_from([INK, "0/ink", "../ink"]) | TEXTS
    actions = st.sampled_from(["rename", "move", "bin", "restore"])
    posted = bodies(name=names, on=st.booleans(), action=actions, to=TEXTS, token=TEXTS)

    @many(300)
    @given(st.sampled_from(["star", "file"]), posted)
    def check(path: str, body: bytes) -> None:
        answer = page.post(f"/lora-runtime/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (path, body[:200], answer.text)
        answer.json()

    check()
    # Whatever it was called, nothing has led out of the folder, and nothing is gone.
    assert len(list(folder.rglob("*.safetensors*"))) == 1
