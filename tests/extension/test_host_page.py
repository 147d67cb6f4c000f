"""The Lora tab as a browser gets it: the page, more cards, folders, pictures; over HTTP where there are routes."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double import loras
from double.loras import plain

if TYPE_CHECKING:
    from double.webui import WebUI

PNG = b"\x89PNG\r\n\x1a\n and more"


def many(webui: WebUI, count: int, folder: str = "") -> list[Path]:
    """Write so many files, all alike."""
    first = loras.write(webui.loras / folder / "000.safetensors", plain())
    paths = [first.path]
    for number in range(1, count):
        paths.append(first.path.with_name(f"{number:03}.safetensors"))
        paths[-1].write_bytes(first.path.read_bytes())
    return paths


def page_of(webui: WebUI) -> Any:
    [page] = webui.module("ui_extra_networks").extra_pages
    return page


def cards(webui: WebUI, **asked: Any) -> dict[str, Any]:
    answer = webui.client().get("/lora-runtime/cards", params=asked)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def named(html: str) -> list[str]:
    """Return the names on the cards, in order."""
    return [part.partition('"')[0] for part in html.split('data-name="')[1:]]


# --- the page, and its Refresh ---


def test_the_page_comes_when_it_is_opened_and_refresh_finds_new_files(webui: WebUI) -> None:
    many(webui, 70)
    browser, ui = webui.open_page()
    [page], [refresh] = ui.pages, ui.buttons_refresh
    assert "Loading..." in page.value  # what the program's start waits for
    opened = browser.value(page)
    assert opened.startswith('<div class="lora-runtime-page" hidden></div>')
    assert named(opened) == [f"{number:03}" for number in range(60)]
    loras.write(webui.loras / "style" / "0ink.safetensors", plain())
    assert "0ink" not in cards(webui, q="0ink")["html"].partition("“")[0]
    browser.click(refresh)
    assert 'data-folder="style"' in browser.value(page)
    assert named(cards(webui, q="0ink")["html"]) == ["0ink"]
    assert webui.errors == []


def test_the_order_of_the_settings_is_that_of_the_page(webui: WebUI) -> None:
    for number, path in enumerate(many(webui, 3)):
        os.utime(path, (0, 1_000_000 - number))
    webui.client().post("/sdapi/v1/refresh-loras")
    webui.options.extra_networks_card_order_field = "Date Modified"
    assert named(page_of(webui).create_html("txt2img")) == ["002", "001", "000"]
    webui.options.extra_networks_card_order = "Descending"
    html = page_of(webui).create_html("txt2img")
    assert named(html) == ["000", "001", "002"]
    assert "data-sortdir='Descending'" in html
    assert html.count("extra-network-control--enabled") == 2  # the order, and the view of folders


def test_an_empty_folder_says_where_to_put_files(webui: WebUI) -> None:
    html = page_of(webui).create_html("txt2img")
    assert f"<li>{webui.loras}</li>" in html
    found = cards(webui)
    assert (found["total"], found["shown"]) == (0, 0)
    assert f"<li>{webui.loras}</li>" in found["html"]


def test_the_folders_are_read_while_the_program_starts(webui: WebUI) -> None:
    """In a thread of its own, once, and whatever fails there stays there."""
    loras.write(webui.loras / "ink.safetensors", plain())
    page, ran = page_of(webui), threading.Event()
    page.shelf.search = lambda *_, **__: ran.set() or sys.exit("the page is not read")  # as an error of any kind
    before = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        page.create_html("txt2img", empty=True)
        page.create_html("img2img", empty=True)
        assert ran.wait(30)
        for thread in threading.enumerate():
            if thread.name == "lora-runtime-warm-up":
                thread.join(30)
    finally:
        threading.excepthook = before


def test_cards_look_as_the_settings_say(webui: WebUI) -> None:
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    ink.path.with_suffix(".txt").write_text("<b>wet</b>")
    options = webui.options
    options.extra_networks_card_width, options.extra_networks_card_height = 120, 180
    options.extra_networks_card_text_scale = 1.5
    html = cards(webui)["html"]
    assert 'style="height: 180px; width: 120px; font-size: 150%"' in html
    assert "&lt;b&gt;wet&lt;/b&gt;" in html
    options.extra_networks_card_description_is_html = True
    assert "<b>wet</b>" in cards(webui)["html"]
    options.extra_networks_card_show_desc = False
    assert "wet" not in cards(webui)["html"]


# --- more cards ---


def test_cards_come_in_parts_until_all_are_shown(webui: WebUI) -> None:
    many(webui, 130)
    (webui.loras / "broken.safetensors").write_bytes(b"no file")
    seen: list[str] = []
    for offset, shown in ((0, 60), (60, 120), (120, 130), (130, 130)):
        found = cards(webui, offset=offset, limit=60)
        seen += named(found["html"])
        assert (found["total"], found["shown"]) == (130, shown)
        # What cannot be used is said once, behind the last card.
        assert ("broken.safetensors" in found.get("note", "")) is (shown == 130)
    assert seen == [f"{number:03}" for number in range(130)]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"limit": 301}, 422),
        ({"limit": 0}, 422),
        ({"offset": -1}, 422),
        ({"q": "x" * 1001}, 422),
        ({"folder": "x" * 4001}, 422),
        ({"sort": "nonsense", "dir": "nonsense", "tabname": "nonsense"}, 200),
        ({"offset": 10**9}, 200),
        ({"q": "\U0001f600 <script>", "folder": "../.."}, 200),
    ],
)
def test_whatever_is_asked_is_answered(webui: WebUI, asked: dict[str, Any], status: int) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    answer = webui.client().get("/lora-runtime/cards", params=asked)
    assert answer.status_code == status
    assert "nonsense" not in answer.text or status == 422
    assert "<script>" not in answer.text.replace("\\u003c", "<") or status == 422


def test_sorting_and_searching_are_the_server_s(webui: WebUI) -> None:
    for name in ("style/ink", "wash", "Zebra"):
        loras.write(webui.loras / f"{name}.safetensors", plain())
    assert named(cards(webui, sort="name")["html"]) == ["ink", "wash", "Zebra"]
    assert named(cards(webui, sort="name", dir="Descending")["html"]) == ["Zebra", "wash", "ink"]
    assert named(cards(webui, q="STYLE in")["html"]) == ["ink"]
    assert named(cards(webui, folder="style")["html"]) == ["ink"]
    assert named(cards(webui, folder="/Lora")["html"]) == ["wash", "Zebra", "ink"]
    found = cards(webui, q="wash", folder="style")
    assert "Nothing found for “wash” in style" in found["html"]


def test_one_card_as_it_is_now(webui: WebUI) -> None:
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    client = webui.client()
    assert named(client.get("/lora-runtime/card", params={"name": "ink"}).json()["html"]) == ["ink"]
    assert client.get("/lora-runtime/card", params={"name": "nobody"}).json()["html"] == ""
    assert client.get("/lora-runtime/card").status_code == 422
    html = client.get("/lora-runtime/card", params={"name": "ink", "tabname": "img2img"}).json()["html"]
    assert "extraNetworksEditUserMetadata(event, 'img2img', 'lora')" in html
    assert str(ink.path) in html


# --- folders ---


def test_the_tree_has_folders_and_fetches_the_files_of_one(webui: WebUI) -> None:
    webui.options.extra_networks_tree_view_style = "Tree"
    many(webui, 203, "style/water")
    loras.write(webui.loras / ".hidden" / "secret.safetensors", plain())
    html = page_of(webui).create_html("txt2img")
    assert 'data-folder="/Lora/style/water"' in html
    assert 'data-folder="/Lora/.hidden"' in html
    client = webui.client()
    files = client.get("/lora-runtime/files", params={"folder": "/Lora/style/water"}).json()["html"]
    assert len(named(files)) == 2 * 200  # of the line, and of its buttons
    assert "and 3 more, among the cards" in files
    assert client.get("/lora-runtime/files", params={"folder": "/Lora/style"}).json()["html"] == ""
    webui.options.extra_networks_show_hidden_directories = False
    assert ".hidden" not in page_of(webui).create_html("txt2img")


def test_buttons_of_folders_are_as_the_settings_say(webui: WebUI) -> None:
    loras.write(webui.loras / "style" / "ink.safetensors", plain())
    assert ">style/</button>" in page_of(webui).create_html("txt2img")
    webui.options.extra_networks_dir_button_function = True
    assert ">/style/</button>" in page_of(webui).create_html("txt2img")


@pytest.mark.parametrize(("setting", "found"), [("Always", 1), ("When searched", 0), ("Never", 0)])
def test_hidden_folders_are_listed_as_the_settings_say(webui: WebUI, setting: str, found: int) -> None:
    loras.write(webui.loras / ".hidden" / "secret.safetensors", plain())
    webui.options.extra_networks_hidden_models = setting
    assert cards(webui)["total"] == found
    assert cards(webui, q="secret")["total"] == (setting != "Never")
    webui.options.list_hidden_files = False
    assert cards(webui, q="secret")["total"] == 0


# --- which files are shown ---


def test_files_for_other_models_come_last_and_those_that_somebody_marked_are_hidden(webui: WebUI) -> None:
    webui.generate("a")
    loras.write(webui.loras / "a for xl.safetensors", plain("sdxl"), "sdxl", metadata={"ss_base_model_version": "sdxl"})
    loras.write(webui.loras / "b.safetensors", plain(), metadata={"ss_base_model_version": "sd_v1"})
    loras.write(webui.loras / "c marked.safetensors", plain())
    (webui.loras / "c marked.json").write_text('{"sd version": "SDXL"}')
    found = cards(webui)
    assert named(found["html"]) == ["b", "a for xl"]
    assert found["html"].count("lora-runtime-other") == 1
    webui.options.lora_show_all = True
    assert named(cards(webui)["html"]) == ["a for xl", "b", "c marked"]
    webui.options.lora_show_all = False
    webui.choose_checkpoint("sdxl")
    assert named(cards(webui)["html"]) == ["a for xl", "c marked", "b"]


def test_files_of_unknown_family_are_hidden_where_the_settings_say_so(webui: WebUI) -> None:
    from safetensors.torch import save_file

    torch = pytest.importorskip("torch")
    save_file({"some.module.lora_down.weight": torch.ones(2, 4), "some.module.lora_up.weight": torch.ones(4, 2)},
              webui.loras / "odd.safetensors")  # fmt: skip
    webui.options.lora_hide_unknown_for_versions = ["SD1"]
    assert cards(webui)["total"] == 1  # no checkpoint is loaded yet
    webui.generate("a")
    assert cards(webui)["total"] == 0
    (webui.loras / "odd.json").write_text('{"sd version": "SD1"}')
    webui.client().post("/sdapi/v1/refresh-loras")
    assert cards(webui)["total"] == 1


def test_a_card_says_how_much_of_a_file_fits(webui: WebUI) -> None:
    webui.generate("a")
    loras.write(webui.loras / "xl.safetensors", plain("sdxl"), "sdxl")
    assert " keys, made for SDXL" in cards(webui)["html"]


# --- pictures ---


def test_the_picture_beside_a_file_is_handed_out(webui: WebUI) -> None:
    ink = loras.write(webui.loras / "ink.safetensors", plain())
    client = webui.client()
    assert "<img" not in cards(webui)["html"]
    (webui.loras / "ink.preview.png").write_bytes(PNG)
    webui.client().post("/sdapi/v1/refresh-loras")
    html = cards(webui)["html"]
    address = html.partition('<img src="')[2].partition('"')[0].replace("&amp;", "&")
    answer = client.get(address.removeprefix("."))
    assert (answer.status_code, answer.content) == (200, PNG)
    assert page_of(webui).find_preview(str(ink.path)) == page_of(webui).find_preview(str(ink.path.with_suffix("")))
    assert page_of(webui).find_preview(str(webui.loras / "nobody")) is None


def test_a_preview_that_came_without_a_new_time_of_its_folder_is_seen_after_a_refresh(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    assert "<img" not in cards(webui)["html"]
    time = webui.loras.stat().st_mtime_ns
    (webui.loras / "ink.png").write_bytes(PNG)
    os.utime(webui.loras, ns=(time, time))  # as some network folders have it
    webui.client().post("/sdapi/v1/refresh-loras")
    assert "ink.png" in cards(webui)["html"]


def cover(data: bytes) -> dict[str, str]:
    return {"ssmd_cover_images": json.dumps([base64.b64encode(data).decode()])}


@pytest.mark.parametrize(
    ("metadata", "media_type"),
    [
        (cover(PNG), "image/png"),
        (cover(b"\xff\xd8\xff more"), "image/jpeg"),
        ({"modelspec.thumbnail": f"data:image/gif;base64,{base64.b64encode(b'GIF89a').decode()}"}, "image/gif"),
        ({"ssmd_cover_images": "no JSON", "modelspec.thumbnail": base64.b64encode(b"RIFFxxxx").decode()}, "image/webp"),
        (cover(b"<svg onload=alert(1)>"), None),
        ({"ssmd_cover_images": "[1, {}]", "modelspec.thumbnail": "x"}, None),
        ({"ssmd_cover_images": '{"a": 1}'}, None),
        ({"ssmd_cover_images": "[" * 100_000}, None),
    ],
)
def test_a_picture_in_the_metadata_is_handed_out_if_it_is_one(
    webui: WebUI, metadata: dict[str, str], media_type: str | None
) -> None:
    loras.write(webui.loras / "a #1.safetensors", plain(), metadata=metadata)
    html = cards(webui)["html"]
    address = html.partition('<img src="')[2].partition('"')[0].replace("&amp;", "&")
    assert address.startswith("./lora-runtime/cover?name=a%20%231&mtime=")
    answer = webui.client().get(address.removeprefix("."))
    if media_type is None:
        assert answer.status_code == 404
    else:
        assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == (media_type, "nosniff")


def test_without_a_picture_there_is_none(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    client = webui.client()
    assert client.get("/lora-runtime/cover", params={"name": "ink"}).status_code == 404
    assert client.get("/lora-runtime/cover", params={"name": "nobody"}).status_code == 404


# --- what other extensions and the program's own routes read ---


def test_items_are_what_the_builtin_s_are(webui: WebUI) -> None:
    ink = loras.write(webui.loras / "style" / "ink.safetensors", plain(), metadata={"ss_output_name": "inkwash"})
    notes = {"activation text": 'ink "wash"', "preferred weight": 0.7, "negative text": "photo", "other tool": 3}
    ink.path.with_suffix(".json").write_text(json.dumps(notes))
    page = page_of(webui)
    [item] = list(page.list_items())
    assert item["name"] == "ink"
    assert item["filename"] == str(ink.path)
    assert item["prompt"] == '"\\u003clora:inkwash:" + 0.7 + "\\u003e" + " ink \\"wash\\""'
    assert item["negative_prompt"] == '"(photo:1)"'
    assert item["user_metadata"]["other tool"] == 3
    assert item["local_preview"] == str(ink.path.with_suffix(".png"))
    assert item["search_terms"][0] == "Lora/style/ink.safetensors"
    assert item["metadata"] == {"ss_output_name": "inkwash"}
    client = webui.client()
    shown = client.get("/sd_extra_networks/metadata", params={"page": "lora", "item": "ink"}).json()["metadata"]
    assert json.loads(shown) == {"ss_output_name": "inkwash"}
    assert client.get("/sd_extra_networks/metadata", params={"page": "lora", "item": "nobody"}).json() == {}


def test_the_tables_of_items_can_be_written_and_read_like_any(webui: WebUI) -> None:
    loras.write(webui.loras / "ink.safetensors", plain())
    page = page_of(webui)
    page.refresh()
    assert list(page.items) == ["ink"] and len(page.items) == 1
    assert page.items.get("nobody") is None
    page.items["ink"] = {"name": "mine"}
    assert page.items["ink"] == {"name": "mine"}
    del page.items["ink"]
    assert page.items["ink"]["name"] == "ink"
    page.items["ink"] = {"name": "mine"}
    page.create_html("txt2img")
    assert page.items["ink"]["name"] == "ink"
    assert page.create_item_html("txt2img", None) == ""
    assert page.read_user_metadata(page.items["ink"]) is None


def test_an_item_of_a_file_for_another_model_is_none_where_the_program_filters(webui: WebUI) -> None:
    webui.generate("a")
    loras.write(webui.loras / "marked.safetensors", plain())
    (webui.loras / "marked.json").write_text('{"sd version": "SDXL"}')
    page = page_of(webui)
    assert page.create_item("marked") is None
    assert page.create_item("marked", enable_filter=False)["sd_version"] == "SDXL"
    assert page.create_item("nobody", enable_filter=False) is None


def test_a_file_whose_name_cannot_be_written_and_that_is_gone_has_a_card_all_the_same(webui: WebUI) -> None:
    odd = loras.write(webui.loras / "odd=name.safetensors", plain())
    page = page_of(webui)
    entry = page.shelf.entry("odd=name")
    odd.path.unlink()
    assert page.card(entry).tag_name == "odd=name"


# --- several at once ---


@pytest.mark.slow
def test_many_browsers_at_once_get_the_same_answers(webui: WebUI) -> None:
    """Each route runs in a thread of its own; some look while the folders are looked through again."""
    webui.generate("a")
    many(webui, 40)
    wanted = named(cards(webui)["html"])
    found: list[Any] = []
    refresh = threading.Event()

    def look() -> None:
        client = webui.client()
        for number in range(6):
            if number % 3 == 2:
                client.post("/sdapi/v1/refresh-loras")
                refresh.set()
            found.append(named(client.get("/lora-runtime/cards").json()["html"]))
            found.append(len(client.get("/sdapi/v1/loras").json()))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    refresh.wait(60)
    webui.generate("a <lora:005:0.5>")  # a picture meanwhile
    for thread in threads:
        thread.join(120)
    assert len(found) == 48
    assert [each for each in found if each not in (wanted, 40)] == []
    assert webui.errors == []
    assert webui.changed() != []


def test_a_route_that_fails_to_be_added_leaves_the_app_as_it_was(webui: WebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [route.path for route in webui.app.router.routes]
    original = webui.app.add_api_route

    def fail(path: str, *args: Any, **kwargs: Any) -> None:
        if path == "/lora-runtime/files":
            raise RuntimeError("this FastAPI takes no more")
        original(path, *args, **kwargs)

    monkeypatch.setattr(webui.app, "add_api_route", fail)
    webui.module("script_callbacks").app_started_callback(None, webui.app)
    assert [route.path for route in webui.app.router.routes] == before
    assert [type(error) for _, error in webui.errors] == [RuntimeError]


def test_a_program_whose_pages_are_made_otherwise_keeps_its_own(start: Callable[..., WebUI]) -> None:
    import importlib

    def prepare() -> None:
        pages = importlib.import_module("modules.ui_extra_networks")
        init = pages.ExtraNetworksPage.__init__

        def without_template(self: Any, title: str) -> None:
            init(self, title)
            del self.pane_content_tree_tpl

        pages.ExtraNetworksPage.__init__ = without_template

    webui = start(prepare=prepare)
    assert type(webui.owner("lora")).__module__.partition(".")[0] != "lora_runtime_webui_extension"
