"""The server's side of it: who is let in, who waits, who is sent away, and with which words. Nothing is painted."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
parser = pytest.importorskip("prometheus_client.parser")

from hypothesis import given  # noqa: E402 - without a server nothing else is needed
from hypothesis import strategies as st  # noqa: E402
from odd_requests import PROMPTS, TEXTS, bodies, many  # noqa: E402
from serve_client import PAINT, Client, Easel  # noqa: E402

from lora_runtime import LoraCatalog  # noqa: E402
from lora_runtime.serve import Limits, make_app  # noqa: E402

KEY = "a-key-of-many-letters"
Story = Callable[[Client], Awaitable[None]]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    (folder / "style").mkdir()
    header = json.dumps(
        {
            f"lora_unet_x.lora_{side}.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * n, 4 * n + 4]}
            for n, side in enumerate(("up", "down"))
        }
    ).encode()
    for name in ("ink", "style/oil"):
        content = len(header).to_bytes(8, "little") + header + bytes(8)
        (folder / f"{name}.safetensors").write_bytes(content)
    (folder / "old.ckpt").write_bytes(b"x")
    (folder.parent / "secret.png").write_bytes(b"x")
    return folder


def tell(story: Story, loras: Path, easel: Easel | None = None, *, key: str | None = None, **limits: int) -> Easel:
    """Run what clients do with a server."""
    if easel is None:
        easel = Easel()
        easel.free.set()

    async def run() -> None:
        limits_ = Limits(**{"max_wait_ms": 0, **limits})
        app, line = make_app(easel, LoraCatalog(loras), model="tiny", limits=limits_, key=key)
        async with Client(app, line) as client:
            await story(client)

    asyncio.run(run())
    return easel


class Began:
    """An event of a loop that the painter's thread sets when it begins."""

    def __init__(self, easel: Easel) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        easel.began = lambda: self._loop.call_soon_threadsafe(self._event.set) and None

    async def wait(self) -> None:
        await asyncio.wait_for(self._event.wait(), 20)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(4000):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never was so")


# --- what is answered ----------------------------------------------------------------------------------------------


def test_a_request_gets_its_pictures_in_openais_shape(loras: Path) -> None:
    async def story(client: Client) -> None:
        answer = await client.post(prompt="a <lora:ink:0.7>", n=3, seed=5, size="64x32", model="tiny")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert isinstance(answer.json["created"], int)
        data = answer.json["data"]
        assert [base64.b64decode(each["b64_json"]) for each in data] == [b"a <lora:ink:0.7>"] * 3
        assert [each["seed"] for each in data] == [5, 6, 7]
        assert {each["revised_prompt"] for each in data} == {"a "}

    assert tell(story, loras).batches == [["a <lora:ink:0.7>"] * 3]


def test_one_of_a_folder_can_be_asked_for(loras: Path) -> None:
    async def story(client: Client) -> None:
        assert (await client.post(prompt="a <lora:style/*:0.7>", n=2)).status == 200
        refused = await client.post(prompt="a <lora:none/*:0.7>")
        assert (refused.status, refused.error["code"]) == (400, "unknown_lora")
        explained = await client.send("POST", "/v1/explain", b'{"prompt": "<lora:style/*>"}')
        assert (explained.json["tags"][0]["drawn_from"], explained.json["tags"][0]["error"]) == (1, None)

    assert tell(story, loras).batches == [["a <lora:style/*:0.7>"] * 2]


def test_a_request_without_a_seed_gets_one_and_is_told(loras: Path) -> None:
    async def story(client: Client) -> None:
        seeds = [(await client.post(prompt="a")).json["data"][0]["seed"] for _ in range(3)]
        assert len(set(seeds)) == 3

    tell(story, loras)


def test_who_asks_at_the_same_time_shares_a_batch_and_the_first_is_never_passed_over(loras: Path) -> None:
    easel = Easel()

    async def story(client: Client) -> None:
        began = Began(easel)
        first = asyncio.create_task(client.post(prompt="0"))
        await began.wait()
        sizes = ["32x32", "64x64", "32x32", "32x32", "64x64", "32x32", "32x32"]
        tasks = []
        for n, size in enumerate(sizes):
            tasks.append(asyncio.create_task(client.post(prompt=f"{n + 1}", size=size)))
            await until(lambda n=n: client.line.waiting == n + 1)
        easel.free.set()
        answers = [await task for task in (first, *tasks)]
        assert [base64.b64decode(each.json["data"][0]["b64_json"]) for each in answers] == [b"%d" % n for n in range(8)]

    tell(story, loras, easel, max_batch=4)
    assert easel.batches[0] == ["0"]
    assert [sorted(batch) for batch in easel.batches[1:]] == [["1", "3", "4", "6"], ["2", "5"], ["7"]]


def test_explain_says_what_each_tag_means_and_where_it_is(loras: Path) -> None:
    async def story(client: Client) -> None:
        answer = await client.post("/v1/explain", prompt="a\nboat <lora:oil:0.5:0.7> <lora:inkk:1> <lora:ink:x>")
        assert answer.status == 200
        first, second = answer.json["tags"]
        assert (first["line"], first["column"], first["te"], first["unet"]) == (2, 6, "0.5", "0.7")
        assert first["file"]["id"] == "style/oil"
        assert second["file"] is None
        assert 'Did you mean "ink"' in second["error"]
        (said,) = (each for each in answer.json["diagnostics"] if each["severity"] == "error")
        assert (said["line"], said["message"]) == (2, 'the strength "x" is not a number; this tag is not applied')
        assert (await client.post("/v1/explain", text="a")).error["code"] == "unknown_field"

    tell(story, loras)


def test_the_list_has_names_and_no_places_on_the_disk(loras: Path) -> None:
    async def story(client: Client) -> None:
        answer = await client.get("/v1/loras")
        assert [each["id"] for each in answer.json["data"]] == ["ink", "style/oil"]
        assert [each["name"] for each in answer.json["refused"]] == ["old.ckpt"]
        assert str(loras.parent.parent) not in answer.body.decode()
        assert (await client.get("/v1/models")).json["data"][0]["id"] == "tiny"

    tell(story, loras)


def test_prometheus_gets_its_numbers(loras: Path) -> None:
    async def story(client: Client) -> None:
        await client.post(prompt="a", n=2)
        await client.post(prompt="a <lora:no:1>")
        await client.get("/wp-admin")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        families = parser.text_string_to_metric_families(answer.body.decode())
        found = {
            (each.name, *sorted(each.labels.values())): each.value for family in families for each in family.samples
        }
        assert found["lora_runtime_requests_total", PAINT, "200"] == 1
        assert found["lora_runtime_requests_total", PAINT, "400"] == 1
        assert found["lora_runtime_requests_total", "404", "other"] == 1
        assert found["lora_runtime_batch_images_sum",] == 2
        assert found["lora_runtime_waiting_images",] == 0

    tell(story, loras)


# --- who is let in -------------------------------------------------------------------------------------------------


def test_without_the_key_nothing_is_answered(loras: Path) -> None:
    wrong = ["", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer é", "Bearer"]

    async def story(client: Client) -> None:
        for path in (PAINT, "/v1/explain", "/v1/loras", "/v1/models", "/metrics", "/nowhere"):
            for sent in wrong:
                method = "POST" if path in (PAINT, "/v1/explain") else "GET"
                answer = await client.send(method, path, b"{}", authorization=sent)
                assert (answer.status, answer.error["code"]) == (401, "bad_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/health")).json == {"status": "ok"}

    assert tell(story, loras, key=KEY).batches == []


def test_with_the_key_it_answers_under_any_name(loras: Path) -> None:
    async def story(client: Client) -> None:
        body = b'{"prompt": "a"}'
        answer = await client.send("POST", PAINT, body, authorization=f"Bearer {KEY}", host="pictures.example")
        assert answer.status == 200

    tell(story, loras, key=KEY)


def test_without_a_key_only_who_means_this_machine_is_answered(loras: Path) -> None:
    async def story(client: Client) -> None:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
            assert (await client.send("GET", "/v1/loras", host=host)).status == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example:8000", ""):
            assert (await client.send("GET", "/v1/loras", host=host)).status == 403

    tell(story, loras)


def test_a_form_of_a_page_elsewhere_is_not_read(loras: Path) -> None:
    async def story(client: Client) -> None:
        answer = await client.send("POST", PAINT, b'{"prompt": "a"}', content_type="text/plain")
        assert (answer.status, answer.error["code"]) == (415, "bad_type")

    assert tell(story, loras).batches == []


# --- what is refused -----------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "no_prompt", "there is no prompt"),
    ({"prompt": 3}, "bad_value", "give a text"),
    ({"prompt": "a" * 5000}, "bad_value", "it has 5000 characters; 4000 are the most"),
    ({"prompt": "\ud800"}, "bad_value", "half of a character"),
    ({"prompt": "a", "n": 5}, "bad_value", "a whole number from 1 to 4"),
    ({"prompt": "a", "n": True}, "bad_value", "a whole number"),
    ({"prompt": "a", "steps": 101}, "bad_value", "from 1 to 100"),
    ({"prompt": "a", "steps": 2.0}, "bad_value", "a whole number"),
    ({"prompt": "a", "size": "8x8"}, "bad_value", "sides are from 16"),
    ({"prompt": "a", "size": "99999x99999"}, "bad_value", "are the most"),
    ({"prompt": "a", "size": "512"}, "bad_value", "give WIDTHxHEIGHT"),
    ({"prompt": "a", "seed": -1}, "bad_value", "from 0 to"),
    ({"prompt": "a", "seed": 1 << 64}, "bad_value", "from 0 to"),
    ({"prompt": "a", "guidance_scale": "7"}, "bad_value", "give a number from 0 to 100"),
    ({"prompt": "a", "response_format": "url"}, "bad_value", 'there is only "b64_json"'),
    ({"prompt": "a", "model": "dall-e-3"}, "bad_value", 'there is only "tiny"'),
    ({"prompt": "a", "strength": 1}, "unknown_field", "known are prompt, negative_prompt"),
    ({"prompt": "a <lora:inkk:1>"}, "unknown_lora", 'Did you mean "ink"?'),
    ({"prompt": "a <lora:../secret:1>"}, "unknown_lora", r"leads out of the folders"),
    ({"prompt": "a <lora:/etc/passwd:1>"}, "unknown_lora", r"absolute path"),
    ({"prompt": "a <lora:old:1>"}, "bad_file", "old"),
    ({"prompt": "a <lora:ink:nan>"}, "bad_tag", "is not a finite number"),
    ({"prompt": "a <lora:ink:1:mask=../secret.png>"}, "bad_file", "is not used"),
    ({"prompt": "a <lora:ink:1:mask=pyproject.toml>"}, "bad_file", "there is no mask"),
    ({"prompt": "row's fault"}, "cannot_be_painted", "it is the row's"),
]


def test_what_cannot_be_is_refused_with_the_reason(loras: Path) -> None:
    async def story(client: Client) -> None:
        for content, code, reason in BAD:
            answer = await client.post(**content)
            assert (answer.status, answer.error["code"]) == (400, code), (content, answer.body)
            assert re.search(reason, answer.error["message"]), answer.error["message"]
            assert answer.error["type"] == "invalid_request_error"
            assert str(loras.parent) not in answer.error["message"]

    assert tell(story, loras).batches == [["row's fault"]]


def test_a_bad_tag_has_its_line_and_column(loras: Path) -> None:
    async def story(client: Client) -> None:
        answer = await client.post(prompt="a boat\non the <lora:inkk:1> sea")
        assert {"line": 2, "column": 8, "param": "prompt", "candidates": ["ink"]}.items() <= answer.error.items()
        assert answer.error["message"].startswith("line 2, column 8: no LoRA named")

    tell(story, loras)


def test_what_is_asked_is_read_without_torch_and_without_a_server() -> None:
    code = (
        "import sys; from lora_runtime.serve import Limits, ServeError; import lora_runtime.serve.asking;"
        "import lora_runtime.serve.explaining, lora_runtime.serve.gate, lora_runtime.cli.serve;"
        "print({'torch', 'numpy', 'starlette', 'uvicorn', 'prometheus_client'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


BROKEN = [
    ("GET", PAINT, b"", 405),
    ("POST", "/nowhere", b"{}", 404),
    ("POST", PAINT, b'{"prompt": "' + b"a" * (1 << 16) + b'"}', 413),
    ("POST", PAINT, b"\xff\xfe", 400),
    ("POST", PAINT, b"[" * 60_000, 400),
    ("POST", PAINT, b'{"prompt": "a", "guidance_scale": NaN}', 400),
    ("POST", PAINT, b'{"seed": ' + b"9" * 60_000 + b"}", 400),
    ("POST", PAINT, b"null", 400),
    *(("POST", PAINT, b'{"n": ' + b"[" * deep + b"]" * deep + b"}", 400) for deep in range(500, 1000, 20)),
    ("POST", PAINT, b"", 400),
]


def test_what_is_no_request_is_refused(loras: Path) -> None:
    async def story(client: Client) -> None:
        for method, path, body, status in BROKEN:
            answer = await client.send(method, path, body)
            assert answer.status == status
            assert set(answer.error) >= {"message", "type", "param", "code"}

    assert tell(story, loras).batches == []


BODIES = bodies(
    prompt=PROMPTS,
    negative_prompt=PROMPTS,
    n=st.integers(1, 4),
    size=st.sampled_from(["64x64", "auto", "16x16", "1x1"]),
    seed=st.integers(0, 2**64 - 1),
    steps=st.integers(1, 40),
    guidance_scale=st.floats(0, 20),
    model=st.just(""),
    response_format=st.just("b64_json"),
    user=TEXTS,
)


def test_no_request_is_an_error_of_the_server(loras: Path) -> None:
    easel = Easel()
    easel.free.set()
    seen: Counter[int] = Counter()
    app, line = make_app(easel, LoraCatalog(loras), limits=Limits(max_wait_ms=0))
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(Client(app, line).__aenter__())

    @many(400)
    @given(st.sampled_from([PAINT, "/v1/explain"]), BODIES)
    def asked(path: str, body: bytes) -> None:
        answer = loop.run_until_complete(client.send("POST", path, body))
        seen[answer.status] += 1
        assert answer.status in (200, 400, 413), (body[:200], answer.body)
        assert answer.status == 200 or answer.error["message"]

    try:
        asked()
        print(*(f"{status}: {count}" for status, count in sorted(seen.items())), sep=", ")  # pytest -s shows it
    finally:
        loop.run_until_complete(client.__aexit__())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


# --- when it is too much -------------------------------------------------------------------------------------------


def test_who_finds_the_line_full_is_told_when_to_come_again(loras: Path) -> None:
    easel = Easel()

    async def story(client: Client) -> None:
        began = Began(easel)
        painting = asyncio.create_task(client.post(prompt="0"))
        await began.wait()
        waiting = asyncio.create_task(client.post(prompt="1", n=2))
        await until(lambda: client.line.waiting == 2)
        answer = await client.post(prompt="2")
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert answer.error["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
        easel.free.set()
        assert [(await each).status for each in (painting, waiting)] == [200, 200]
        assert (await client.post(prompt="3", n=2)).status == 200

    tell(story, loras, easel, max_queue=2, max_batch=1)


def test_a_request_that_takes_too_long_is_given_up_and_the_next_is_painted(loras: Path) -> None:
    easel = Easel()

    async def story(client: Client) -> None:
        answer = await client.post(prompt="slow")
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        await until(lambda: easel.stopped == [["slow"]])
        easel.free.set()
        assert (await client.post(prompt="next")).status == 200

    tell(story, loras, easel, timeout=1)


def test_who_hangs_up_leaves_the_line_and_the_easel(loras: Path) -> None:
    easel = Easel()

    async def story(client: Client) -> None:
        began, hang_up = Began(easel), asyncio.Event()
        painting = asyncio.create_task(client.post(hang_up=hang_up, prompt="painted"))
        await began.wait()
        waiting = asyncio.create_task(client.post(hang_up=hang_up, prompt="waiting"))
        await until(lambda: client.line.waiting == 1)
        hang_up.set()
        assert [(await each).status for each in (painting, waiting)] == [499, 499]
        await until(lambda: easel.stopped == [["painted"]])
        easel.free.set()
        assert (await client.post(prompt="next")).status == 200

    assert tell(story, loras, easel).batches == [["painted"], ["next"]]


def test_one_who_hangs_up_costs_nobody_else_of_the_batch(loras: Path) -> None:
    easel = Easel()

    async def story(client: Client) -> None:
        began, hang_up = Began(easel), asyncio.Event()
        gone, stays = (asyncio.create_task(client.post(hang_up=event, prompt="a")) for event in (hang_up, None))
        await began.wait()
        hang_up.set()
        assert (await gone).status == 499
        easel.free.set()
        assert (await stays).status == 200

    tell(story, loras, easel, max_batch=2, max_wait_ms=10_000)
    assert easel.stopped == []


def test_what_a_painter_does_not_expect_costs_its_batch_alone(loras: Path) -> None:
    easel = Easel(failing=RuntimeError("CUDA error"))
    easel.free.set()

    async def story(client: Client) -> None:
        with pytest.raises(RuntimeError, match="CUDA error"):  # for the server's log
            await client.post(prompt="a")
        easel.failing = None
        answer = await client.post(prompt="worker's fault")
        assert (answer.status, answer.error["code"]) == (500, "painting_failed")
        assert (await client.post(prompt="a")).status == 200

    tell(story, loras, easel)


def test_when_it_stops_what_is_being_painted_is_finished_and_who_waits_is_sent_away(loras: Path) -> None:
    easel = Easel()

    async def run() -> None:
        app, line = make_app(easel, LoraCatalog(loras), limits=Limits(max_wait_ms=0, max_batch=1))
        async with Client(app, line) as client:
            began = Began(easel)
            painting = asyncio.create_task(client.post(prompt="painting"))
            await began.wait()
            waiting = asyncio.create_task(client.post(prompt="waiting"))
            await until(lambda: line.waiting == 1)
            line.close_soon()
            answer = await waiting
            assert (answer.status, answer.error["code"]) == (503, "stopping")
            assert (await client.get("/health")).status == 503
            assert (await client.post(prompt="late")).status == 503
            easel.free.set()
            assert (await painting).status == 200

    asyncio.run(run())
    assert easel.batches == [["painting"]]


def test_when_it_is_told_again_what_is_being_painted_is_given_up(loras: Path) -> None:
    easel = Easel()

    async def story(client: Client) -> None:
        began = Began(easel)
        painting = asyncio.create_task(client.post(prompt="painting"))
        await began.wait()
        client.line.give_up()
        assert (await painting).status == 503

    tell(story, loras, easel)
    assert easel.stopped == [["painting"]]
