"""A sweep beside the plain way: rows a second on the embedded pipeline, and with two workers of Ray beside one.

    PYTHONPATH=. OMP_NUM_THREADS=1 python -m benchmarks.sweeping [--rows 40] [--loras 10] [--steps 8] [--workers 2]

The plain way is one pipeline, rows in order, and `load_lora_weights`, `set_adapters` and `unload_lora_weights` of
diffusers for each. All on one thread; pictures and manifest are written by both. Pipelines are loaded before the clock
starts, but by workers: there from the first row that is done to the last. CPU seconds are of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import lora_runtime
from lora_runtime.demo import scene_pipeline
from lora_runtime.sweep import load_pipeline, sweep

Rows = list[dict[str, Any]]


def write_loras(folder: Path, count: int) -> list[Path]:
    """Write files of different content: the embedded LoRAs, some of them a little stronger than they are."""
    sources = sorted(scene_pipeline.LORAS.glob("*.safetensors"))
    found = []
    for n in range(count):
        tensors = load_file(sources[n % len(sources)])
        factor = 1 + 0.01 * (n // len(sources))
        changed = {key: tensor * factor if "lora_up" in key else tensor for key, tensor in tensors.items()}
        found.append(folder / f"l{n}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in changed.items()}, found[-1])
    return found


def make_rows(count: int, loras: int, steps: int) -> Rows:
    """Return rows in no order, with one of the LoRAs at one of three strengths each."""
    dice = random.Random(0)
    return [
        {
            "name": f"r{n}",
            "prompt": f"a boat on the sea {n} <lora:l{n % loras}:{dice.choice((0.5, 0.7, 1))}>",
            "seed": n,
            "steps": steps,
        }
        for n in dice.sample(range(count), count)
    ]


def paint_plainly(pipe: Any, rows: Rows, folder: Path, out: Path) -> None:
    """Load the LoRA of each row, paint it, and unload it."""
    with (out / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for row in rows:
            (tag,) = lora_runtime.parse_prompt(row["prompt"]).tags
            pipe.load_lora_weights(folder / f"{tag.name}.safetensors", adapter_name=tag.name)
            pipe.set_adapters(tag.name, float(f"{tag.unet:g}"))
            picture = pipe(
                lora_runtime.parse_prompt(row["prompt"]).text,
                num_inference_steps=row["steps"],
                generator=torch.Generator("cpu").manual_seed(row["seed"]),
            ).images[0]
            pipe.unload_lora_weights()
            picture.save(out / f"{row['name']}.png")
            manifest.write(json.dumps(row) + "\n")


def counted(manifest: Path, wall: float) -> Iterator[str]:
    """Yield for each worker what it read, how often it changed its LoRAs, and how long it did not paint."""
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for worker in sorted({line["worker"] for line in lines}):
        own = [line for line in lines if line["worker"] == worker]
        sets = {frozenset(line["files"].values()) for line in own}
        switches = sum(former["tags"] != latter["tags"] for former, latter in pairwise(own))
        read, busy = sum(line["read"] for line in own), sum(line["seconds"] for line in own)
        yield (
            f"worker {worker}: {len(own)} rows, {read} files read for {len(sets)} sets of files, "
            f"{switches} changes of LoRAs, idle for {max(0.0, wall - busy):.1f} s of {wall:.1f}"
        )


@contextmanager
def clock(said: Callable[[float, float], None]) -> Iterator[None]:
    """Tell the seconds of the wall and of this process's CPU within the block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    said(time.perf_counter() - wall, time.process_time() - cpu)


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in (("rows", 40), ("loras", 10), ("steps", 8), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = make_rows(arguments.rows, arguments.loras, arguments.steps)

    def said(name: str, wall: float, cpu: float | None = None, count: int = len(rows)) -> None:
        of_cpu = "" if cpu is None else f", {count / cpu:.2f} a CPU second"
        print(f"{name}: {count / wall:.2f} rows a second{of_cpu}", flush=True)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "loras").mkdir()
        write_loras(folder / "loras", arguments.loras)
        (folder / "plain").mkdir()
        pipe = scene_pipeline.load_pipeline()
        pipe("a", num_inference_steps=1)
        with clock(partial(said, "one by one, loaded and unloaded for each")):
            paint_plainly(pipe, rows, folder / "loras", folder / "plain")
        pipe = scene_pipeline.load_pipeline()
        pipe("a", num_inference_steps=1)
        for batch in (1, 4, 16):
            lora_runtime.clear_cache()
            lora_runtime.restore(pipe)
            with clock(partial(said, f"a sweep, batch {batch}")):
                done = sweep(rows, lambda: pipe, folder / f"b{batch}", loras=folder / "loras", batch=batch)
            assert (done.painted, done.failed) == (len(rows), 0)
        make_pipe = partial(load_pipeline, str(scene_pipeline.PIPELINE), "cpu")
        for batch, workers in product((1, 4), (1, arguments.workers)):
            times: list[float] = []
            out = folder / f"w{workers}b{batch}"
            done = sweep(
                rows,
                make_pipe,
                out,
                loras=folder / "loras",
                batch=batch,
                workers=workers,
                ray="local",
                on_line=lambda line, total, times=times: times.append(time.perf_counter()),
            )
            assert (done.painted, done.failed) == (len(rows), 0)
            said(f"a sweep, batch {batch}, {workers} of Ray's workers", times[-1] - times[0], count=len(rows) - batch)
            for line in counted(out / "manifest.jsonl", times[-1] - times[0]):
                print(f"    {line}")
            same = sum(
                (out / f"r{n}.png").read_bytes() == (folder / f"b{batch}/r{n}.png").read_bytes()
                for n in range(len(rows))
            )
            print(f"    {done.read} files read in all; {same} pictures of {len(rows)} as of one process", flush=True)


if __name__ == "__main__":
    main()
