"""The command: a server on loopback that a signal ends, and what it will not do."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

for needed in ("starlette", "uvicorn", "prometheus_client", "diffusers", "PIL", "numpy"):
    pytest.importorskip(needed)

import numpy as np  # noqa: E402 - without a server nothing else is needed
from PIL import Image  # noqa: E402

import lora_runtime  # noqa: E402
from lora_runtime.cli import main  # noqa: E402
from lora_runtime.demo import scene_pipeline  # noqa: E402
from lora_runtime.serve import Limits, ServeError, serve  # noqa: E402
from lora_runtime.serve.gate import checked_key, is_loopback  # noqa: E402

SERVE = [sys.executable, "-m", "lora_runtime", "serve", "--model", f"demo={scene_pipeline.PIPELINE}"]
SERVE += ["--loras", str(scene_pipeline.LORAS), "--port", "0", "--device", "cpu", "--max-batch", "1"]
KEY = "a-key-of-many-letters"


def ask(address: str, content: dict[str, Any], key: str = KEY) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    with closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)) as connection:
        connection.request("POST", "/v1/images/generations", json.dumps(content), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def metrics(address: str) -> bytes:
    with closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)) as connection:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().read()


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="a signal to one process alone is not what ^C is there")
def test_a_server_paints_and_finishes_its_picture_when_it_is_interrupted() -> None:
    prompt = "a boat on the sea <lora:night:0.7>"
    environment = {**os.environ, "LORA_RUNTIME_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    # Who runs these tests in the background may have ^C ignored, which a child inherits.
    with subprocess.Popen(SERVE, preexec_fn=_heed_interrupts, **pipes) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        assert address.startswith("http://127.0.0.1:")
        assert ask(address, {"prompt": prompt}, "wrong")[0] == 401
        status, said = ask(address, {"prompt": prompt, "seed": 3, "steps": 2, "model": "demo"})
        assert status == 200
        found: list[tuple[int, Any]] = []
        late = threading.Thread(target=lambda: found.append(ask(address, {"prompt": prompt, "steps": 40})))
        late.start()
        wanted = b"lora_runtime_images_in_hand 1.0"
        while wanted not in metrics(address):
            assert late.is_alive()
        server.send_signal(signal.SIGINT)
        late.join(120)
        assert found[0][0] == 200
        assert server.wait(60) == 130
        errors = server.stderr.read() if server.stderr else ""
    assert "Traceback" not in errors
    pipe = scene_pipeline.load_pipeline()
    with lora_runtime.apply(pipe, prompt, loras=scene_pipeline.LORAS) as applied:
        noise = torch.Generator("cpu").manual_seed(3)
        (expected,) = pipe(applied.prompt, num_inference_steps=2, generator=noise).images
    painted = Image.open(io.BytesIO(base64.b64decode(said["data"][0]["b64_json"])))
    assert np.array_equal(np.asarray(painted), np.asarray(expected))


def test_others_are_let_in_only_with_a_key() -> None:
    assert checked_key(None, "127.0.0.1") is None
    assert checked_key(KEY, "0.0.0.0") == KEY
    for host in ("0.0.0.0", "::", "192.168.0.2", "pictures.example"):
        with pytest.raises(
            ServeError, match=r"can be reached by others, and there is no key: set LORA_RUNTIME_API_KEY"
        ):
            checked_key(None, host)
    for weak in ("", "short", "with blanks in it, and long", "ключ-из-многих-букв"):
        with pytest.raises(ServeError, match="is no key"):
            checked_key(weak, "127.0.0.1")
    assert [is_loopback(host) for host in ("localhost", "127.8.0.1", "::1", "0.0.0.0", "")] == [True] * 3 + [False] * 2


def test_nothing_is_loaded_where_it_will_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_RUNTIME_API_KEY", raising=False)
    with pytest.raises(ServeError, match=r"0\.0\.0\.0 can be reached by others"):
        serve(lambda: pytest.fail("a pipeline was made"), host="0.0.0.0", loras=[])
    with pytest.raises(ServeError, match="max_batch is 0"):
        Limits(max_batch=0)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--model", "nowhere"), "the model nowhere does not exist"),
        (("--host", "0.0.0.0"), "can be reached by others"),
        (("--loras", "nowhere"), "nowhere"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, str],
    reason: str,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("LORA_RUNTIME_API_KEY", raising=False)
    usual = {"--model": str(tmp_path), "--loras": str(tmp_path)} | dict([more])
    assert main(["serve", "--port", "0", *(part for pair in usual.items() for part in pair)]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.splitlines()) == 1
