"""A sweep on actors of Ray on this machine: the same pictures, also where workers die."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

import sweep_pipes  # noqa: E402 - Ray first: without it nothing else is needed
import tiny  # noqa: E402

from lora_runtime.sweep import SweepError, sweep  # noqa: E402

SIZE = {"width": 32, "height": 32, "steps": 1}
ROWS = [
    {"name": f"r{n}", "prompt": f"a boat <lora:{'ink' if n < 4 else 'oil'}:{0.5 + n % 2}>", "seed": n, **SIZE}
    for n in range(8)
]

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


TESTS = str(Path(__file__).resolve().parents[1])  # where workers find what makes their pipelines


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    paths = os.pathsep.join((TESTS, str(Path(TESTS).parent), os.environ.get("PYTHONPATH", "")))
    variables = {"env_vars": {"PYTHONPATH": paths}}
    try:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=variables)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is too busy: Ray gives a node 30 s to start")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "oil")):
        tiny.write_kohya_lora(folder / f"{name}.safetensors", tiny.pipeline(), seed=seed, std=0.3)
    return folder


def lines(out: Path) -> dict[str, Any]:
    text = (out / "manifest.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    assert len({line["key"] for line in found}) == len(found)
    return {line["key"]: line for line in found}


def pixels(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_workers_paint_the_pictures_of_one_process(loras: Path, tmp_path: Path, workers: int) -> None:
    here = sweep(ROWS, sweep_pipes.plain, tmp_path / "here", loras=loras)
    assert (here.painted, here.failed) == (8, 0)
    done = sweep(ROWS, sweep_pipes.plain, tmp_path / "out", loras=loras, workers=workers, ray="auto")
    assert (done.painted, done.failed) == (8, 0)
    assert pixels(tmp_path / "out") == pixels(tmp_path / "here")
    found = lines(tmp_path / "out").values()
    assert {line["worker"] for line in found} <= set(range(workers))
    # Two files, and no worker reads one twice.
    assert 2 <= done.read <= 2 * workers, {(line["worker"], line["read"]) for line in found}


@pytest.mark.slow
def test_a_row_that_kills_its_worker_twice_costs_only_itself(loras: Path, tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[1]["prompt"] = "die"
    rows[6]["prompt"] += " once"
    done = sweep(rows, partial(sweep_pipes.deadly, str(tmp_path)), tmp_path / "out", loras=loras, workers=2, batch=2)
    assert (done.painted, done.failed) == (7, 1)
    assert "it was tried on two workers, and both died" in lines(tmp_path / "out")["r1"]["error"]
    assert (tmp_path / "once").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "reason"), [(sweep_pipes.dead, "no worker gets"), (sweep_pipes.broken, "no such model")]
)
def test_where_no_worker_gets_a_pipeline_it_says_why(loras: Path, tmp_path: Path, make: Any, reason: str) -> None:
    with pytest.raises(SweepError, match=reason):
        sweep(ROWS[:2], make, tmp_path / "out", loras=loras, workers=2)


@pytest.mark.slow
def test_a_file_that_is_deleted_meanwhile_costs_its_rows(loras: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(loras, tmp_path / "loras"))

    def gone(line: dict[str, Any], total: int) -> None:
        (folder / "oil.safetensors").unlink(missing_ok=True)

    done = sweep(ROWS, sweep_pipes.plain, tmp_path / "out", loras=folder, workers=1, ray="auto", on_line=gone)
    assert done.painted + done.failed == 8
    assert all('"oil"' in line["error"] for line in lines(tmp_path / "out").values() if line["error"])
    assert done.failed > 0


def test_a_cluster_that_cannot_be_reached_is_one_line(
    loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**given: Any) -> None:
        raise ConnectionError(f"no answer from {given['address']}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(SweepError, match=r"Ray cannot be reached at 10\.0\.0\.1:1: ConnectionError: no answer"):
        sweep(ROWS[:1], sweep_pipes.plain, tmp_path / "out", loras=loras, ray="10.0.0.1:1")
