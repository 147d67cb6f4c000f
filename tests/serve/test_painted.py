"""The pictures that are served are those of painting by hand, whoever else asks at the same time."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")

from serve_client import Answer, Client  # noqa: E402 - without a server nothing else is needed

import lora_runtime  # noqa: E402
from lora_runtime.serve import Limits, make_app  # noqa: E402
from lora_runtime.sweep.paint import Painter  # noqa: E402

ASKED: list[dict[str, Any]] = [
    {
        "prompt": f"a boat {n} <lora:{('ink', 'oil')[n % 2]}:{0.5 + n % 3}>",
        "seed": n,
        "size": "16x16",
        "steps": 2,
        "guidance_scale": 3.0,
    }
    for n in range(6)
]
ASKED[2]["prompt"] = "no tags"
ASKED[4]["prompt"] += "<lora:oil:0.4@0,0.9@1>"  # follows the steps
ASKED[5]["negative_prompt"] = "grey"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "oil")):
        tiny.write_kohya_lora(folder / f"{name}.safetensors", pipe, seed=seed, std=0.3)
    return folder


@pytest.fixture(scope="module")
def by_hand(pipe: Any, loras: Path) -> list[Any]:
    """The picture of each request as anybody would paint it."""
    found = []
    for asked in ASKED:
        with lora_runtime.apply(pipe, asked["prompt"], loras=loras) as applied:
            painted = pipe(
                applied.prompt,
                negative_prompt=asked.get("negative_prompt"),
                num_inference_steps=2,
                guidance_scale=3.0,
                width=16,
                height=16,
                generator=torch.Generator("cpu").manual_seed(asked["seed"]),
            )
        found.append(np.asarray(painted.images[0]).astype(int))
    return found


def ask(pipe: Any, loras: Path, asked: list[dict[str, Any]], **limits: int) -> list[Answer]:
    """Ask all at once; return the answers."""

    async def run() -> list[Answer]:
        catalog = lora_runtime.LoraCatalog(loras)
        app, line = make_app(Painter(lambda: pipe, catalog), catalog, limits=Limits(**limits))
        async with Client(app, line) as client:
            return list(await asyncio.gather(*(client.post(**each) for each in asked)))

    return asyncio.run(run())


def picture(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    content = base64.b64decode(answer.json["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def test_in_batches_of_one_each_answer_has_the_bits_of_painting_by_hand(
    pipe: Any, loras: Path, by_hand: list[Any]
) -> None:
    answers = ask(pipe, loras, ASKED, max_batch=1)
    for answer, expected in zip(answers, by_hand, strict=True):
        assert np.array_equal(picture(answer), expected)
    content = base64.b64decode(answers[1].json["data"][0]["b64_json"])
    said = lora_runtime.read_infotext(Image.open(io.BytesIO(content)))
    assert (said.prompt, said.parameters["Seed"]) == (ASKED[1]["prompt"], "1")
    assert answers[1].json["data"][0]["files"].keys() == {"oil"}


def test_requests_with_loras_of_their_own_share_a_call_and_none_gets_anothers_picture(
    pipe: Any, loras: Path, by_hand: list[Any]
) -> None:
    answers = ask(pipe, loras, ASKED[:5], max_batch=5, max_wait_ms=20_000)  # the last one has a negative prompt
    assert {answer.json["data"][0]["batch"] for answer in answers} == {5}
    for answer, expected in zip(answers, by_hand, strict=False):
        assert np.abs(picture(answer) - expected).max() <= 1  # float32 beside a layer, and in it
    assert all(np.abs(one - other).max() > 1 for n, one in enumerate(by_hand) for other in by_hand[:n])


def test_what_a_pipeline_refuses_is_the_requests_fault(pipe: Any, loras: Path) -> None:
    answers = ask(pipe, loras, [{**ASKED[0], "size": "33x32"}, {**ASKED[1], "prompt": "a <lora:ink:1e38>"}, ASKED[2]])
    assert [answer.status for answer in answers] == [400, 400, 200]
    assert "divisible by" in answers[0].error["message"]
    assert "its pixels are no numbers" in answers[1].error["message"]


def test_a_picture_that_nobody_waits_for_is_stopped_at_its_step(
    pipe: Any, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, began, go_on = [], threading.Event(), threading.Event()
    forward = pipe.unet.forward

    def slow(*given: Any, **more: Any) -> Any:
        steps.append(1)
        began.set()
        assert go_on.wait(60)
        return forward(*given, **more)

    async def run() -> None:
        catalog = lora_runtime.LoraCatalog(loras)
        app, line = make_app(Painter(lambda: pipe, catalog), catalog, limits=Limits(max_wait_ms=0))
        async with Client(app, line) as client:
            hang_up = asyncio.Event()
            asked = asyncio.create_task(client.post(hang_up=hang_up, **{**ASKED[0], "steps": 50}))
            await asyncio.to_thread(began.wait, 60)
            hang_up.set()
            assert (await asked).status == 499
            go_on.set()

    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", slow)
        asyncio.run(run())
    assert len(steps) == 1
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())
