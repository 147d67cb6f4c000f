"""Replicas on Ray: what the front does while painters are elsewhere, and all of it where Ray Serve is installed."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

import sweep_pipes
import tiny
from serve_client import Client

from lora_runtime import LoraCatalog
from lora_runtime.serve import Limits, ServeError
from lora_runtime.serve.app import app_of
from lora_runtime.serve.on_ray import Afar, deploy, set_of
from lora_runtime.sweep.manifest import line_of
from lora_runtime.sweep.paint import Painted
from lora_runtime.sweep.rows import Row

HAS_SERVE = all(importlib.util.find_spec(name) for name in ("ray", "fastapi", "opencensus"))


class Handle:
    """What Ray gives for a deployment; its answers come when `free` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled = 0
        self.free = asyncio.Event()
        self.refusing = False
        self.paint = self

    def options(self, *, multiplexed_model_id: str) -> Handle:
        self.asked.append(multiplexed_model_id)
        return self

    def remote(self, rows: Sequence[Row]) -> Response:
        return Response(self, rows)


class Response:
    def __init__(self, handle: Handle, rows: Sequence[Row]) -> None:
        self._handle, self._rows = handle, rows

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        await self._handle.free.wait()
        if self._handle.refusing:
            return {"status": 429, "message": "full", "code": "queue_full", "param": None, "retry_after": 7}
        more = {"infotext": "", "files": {}, "diagnostics": [], "batch": 1, "seconds": 0.1}
        return [Painted(b"x", line_of(row, **more)) for row in self._rows]

    def cancel(self) -> None:
        self._handle.cancelled += 1


def test_a_set_of_files_has_one_name_whatever_the_order_and_the_strengths() -> None:
    one, two = Row("a", "x <lora:ink:1><lora:oil:0.5>"), Row("b", "y <lora:oil:1> z <lora:ink:0.2>")
    assert set_of([one]) == set_of([two]) == set_of([two, one])
    assert set_of([one]) != set_of([Row("c", "x <lora:ink:1>")])
    assert set_of([Row("d", "no tags")]) == ""


def test_rows_are_sent_where_their_files_are_and_the_front_keeps_the_limit(tmp_path: Path) -> None:
    async def run() -> None:
        handle = Handle()
        line = Afar(handle, Limits(max_queue=2))
        async with Client(app_of(line, LoraCatalog(tmp_path), "tiny", Limits(), None), line) as client:
            hang_up = asyncio.Event()
            first, gone = (asyncio.create_task(client.post(hang_up=event, prompt="a")) for event in (None, hang_up))
            while line.waiting < 2:
                await asyncio.sleep(0.005)
            full = await client.post(prompt="a")
            assert (full.status, full.error["code"]) == (429, "queue_full")
            assert int(full.headers["retry-after"]) >= 1
            hang_up.set()
            assert (await gone).status == 499
            assert (handle.cancelled, line.waiting) == (1, 1)
            handle.free.set()
            assert base64.b64decode((await first).json["data"][0]["b64_json"]) == b"x"
            handle.refusing = True
            refused = await client.post(prompt="a")
            assert (refused.status, refused.headers["retry-after"], line.waiting) == (429, "7", 0)
            assert handle.asked == [""] * 3

    asyncio.run(run())


def test_without_ray_serve_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ServeError, match=r'replicas need Ray Serve: python -m pip install "ray\[serve\]>=2\.50"'):
        deploy(sweep_pipes.plain, loras=[]).__enter__()
    with pytest.raises(ServeError, match="can be reached by others"):
        deploy(sweep_pipes.plain, loras=[], host="0.0.0.0").__enter__()


@pytest.mark.skipif(not HAS_SERVE, reason="Ray Serve is not installed")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_replicas_answer_with_the_pictures_of_their_own_loras(tmp_path: Path) -> None:
    for seed, name in enumerate(("ink", "oil")):
        tiny.write_kohya_lora(tmp_path / f"{name}.safetensors", tiny.pipeline(), seed=seed, std=0.3)
    answers: dict[str, Any] = {}

    def ask(address: str, prompt: str) -> None:
        content = {"prompt": prompt, "steps": 1, "seed": 1, "size": "32x32"}
        headers = {"Content-Type": "application/json"}
        sent = urllib.request.Request(f"{address}/v1/images/generations", json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(sent, timeout=120) as answer:
                answers[prompt] = json.loads(answer.read())["data"][0]["files"]
        except urllib.error.HTTPError as error:
            answers[prompt] = error.code

    with deploy(sweep_pipes.plain, loras=tmp_path, port=8765, limits=Limits()) as address:
        prompts = ("a <lora:ink:1>", "a <lora:oil:1>", "a", "a <lora:no:1>")
        threads = [threading.Thread(target=ask, args=(address, prompt)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers["a"] == {}
    assert [list(answers[prompt]) for prompt in prompts[:2]] == [["ink"], ["oil"]]
    assert answers["a <lora:no:1>"] == 400
