"""The server under load, over loopback: mixed LoRAs in one call beside one at a time, and what must never happen.

    PYTHONPATH=. python -m benchmarks.serving [--requests 64] [--loras 8] [--steps 8] [--clients 8] [--bad 10000]

Each answer is held to the picture that its prompt and seed give by hand: bit for bit where the server paints one at a
time, else nearer to it than to that of any other request. Then requests that cannot be answered are sent, of which none
may be a fault of the server, and more at a time than its line holds, of which those too many get 429.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lora_runtime
from benchmarks.sweeping import make_rows, write_loras
from lora_runtime.demo import scene_pipeline

PAINT = "/v1/images/generations"


@contextmanager
def server(loras: Path, *options: str) -> Iterator[str]:
    """Run the command; give its host and port."""
    command = [sys.executable, "-m", "lora_runtime", "serve", "--model", str(scene_pipeline.PIPELINE), "--port", "0"]
    command += ["--loras", str(loras), "--device", "cpu", *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: other numbers of threads round in another order
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=one_thread, **pipes) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[-1].removeprefix("http://")
            # It writes a line for each request, and waits where nobody reads them.
            threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
            yield address
        finally:
            process.terminate()


def send(address: str, body: bytes, path: str = PAINT) -> tuple[int, bytes, str | None]:
    """Return status, body and Retry-After of one request on a connection of its own."""
    with closing(http.client.HTTPConnection(address, timeout=600)) as connection:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Retry-After")


def body_of(row: dict[str, Any]) -> bytes:
    """Return a row of a sweep as a request."""
    return json.dumps({name: row[name] for name in ("prompt", "seed", "steps")}).encode()


def picture_in(content: bytes) -> Any:
    """Return the pixels of an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(json.loads(content)["data"][0]["b64_json"])))).astype(int)


def by_hand(rows: Sequence[dict[str, Any]], loras: Path) -> list[Any]:
    """Return the pixels that the rows give one by one, without a server."""
    pipe, found = scene_pipeline.load_pipeline(), []
    for row in rows:
        with lora_runtime.apply(pipe, row["prompt"], loras=loras) as applied:
            noise = torch.Generator("cpu").manual_seed(row["seed"])
            painted = pipe(applied.prompt, num_inference_steps=row["steps"], generator=noise)
        found.append(np.asarray(painted.images[0]).astype(int))
    return found


def load(address: str, rows: Sequence[dict[str, Any]], clients: int) -> tuple[list[Any], float, list[float]]:
    """Send all rows from so many clients; return the pictures, the seconds of all and those of each."""

    def one(row: dict[str, Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        status, content, _ = send(address, body_of(row))
        assert status == 200, content
        return picture_in(content), time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(one, rows))
    return [picture for picture, _ in answers], time.perf_counter() - began, [seconds for _, seconds in answers]


def wrong(pictures: Sequence[Any], expected: Sequence[Any], *, exact: bool) -> int:
    """Return how many pictures are not those of their requests."""
    found = 0
    for index, picture in enumerate(pictures):
        if exact:
            found += not np.array_equal(picture, expected[index])
        else:
            found += int(np.argmin([np.abs(picture - other).sum() for other in expected])) != index
    return found


def bad_bodies(count: int) -> Iterator[bytes]:
    """Yield requests that cannot be answered with a picture, in no order and always the same."""
    dice = random.Random(0)
    values: list[Any] = [
        None,
        True,
        -1,
        10**30,
        1.5,
        "",
        "x",
        "é" * 50,
        "\ud800",
        [],
        [1],
        {},
        {"a": [{}]},
        "1x1",
        "0x0",
    ]
    fields = ("prompt", "n", "size", "seed", "steps", "guidance_scale", "model", "response_format", "stream", "quality")
    tags = ("<lora:none>", "<lora:l0", "<lora:../l0:1>", "<lora:l0:1e99>", "<lora:l0:x>", "<lora:l0:1:mask=/etc/hosts>")
    for _ in range(count):
        kind = dice.randrange(4)
        if kind == 0:
            yield bytes(dice.randrange(256) for _ in range(dice.randrange(60)))
        elif kind == 1:
            yield json.dumps({"prompt": f"a {dice.choice(tags)}", "steps": 1}).encode()
        elif kind == 2:
            yield b'{"prompt": ' + b"[" * dice.randrange(1, 3000)
        else:
            given = {name: dice.choice(values) for name in dice.sample(fields, dice.randrange(1, 5))}
            yield json.dumps({"prompt": "a boat", "unknown": 1, **given}).encode()


def main() -> None:
    """Print a line for each way; fail where an answer is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in (("requests", 64), ("loras", 8), ("steps", 8), ("clients", 8), ("bad", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = make_rows(arguments.requests, arguments.loras, arguments.steps)
    with tempfile.TemporaryDirectory() as made:
        loras = Path(made)
        write_loras(loras, arguments.loras)
        expected = by_hand(rows, loras)
        for batch in (1, 4, 8):
            with server(loras, "--max-batch", str(batch)) as address:
                load(address, rows[:batch], batch)  # the files are read, and memory is had
                pictures, wall, each = load(address, rows, arguments.clients)
            bad = wrong(pictures, expected, exact=batch == 1)
            p50, p95 = (statistics.quantiles(each, n=100)[place - 1] for place in (50, 95))
            print(
                f"--max-batch {batch}: {len(rows) / wall:.2f} pictures a second, {arguments.clients} clients wait "
                f"{p50:.2f} s (p50), {p95:.2f} s (p95); wrong pictures: {bad}",
                flush=True,
            )
            assert not bad
        with server(loras, "--max-queue", "4", "--max-batch", "1") as address:
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda body: send(address, body), bad_bodies(arguments.bad)))
            statuses = Counter(status for status, _, _ in answers)
            print(f"{arguments.bad} bad requests: {dict(sorted(statuses.items()))}", flush=True)
            assert all(400 <= status < 500 for status in statuses)
            with ThreadPoolExecutor(24) as pool:
                answers = list(pool.map(lambda row: send(address, body_of(row)), rows[:24]))
            statuses = Counter(status for status, _, _ in answers)
            print(f"24 at a time where 4 may wait: {dict(sorted(statuses.items()))}", flush=True)
            assert set(statuses) == {200, 429}
            assert all(after and int(after) > 0 for status, _, after in answers if status == 429)


if __name__ == "__main__":
    main()
