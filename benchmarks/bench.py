"""Measure apply, change, restore, memory and steps against the other ways, print a table and write bench.json.

    python -m benchmarks.bench [--device cpu|cuda|mps] [--dtype float32 bfloat16] [--only PART] [--quick]

bench.json is a list of {case, dtype, who, seconds, bytes, spread, rounds}. Cases: `apply` (files and buffers warm),
`change` (other strengths), `restore`, `step` (one pass of the UNet afterwards, 32 × 32 latents, batch 2), for 3 LoRAs
of rank 32 on the attention blocks of a UNet of SD1.5's size; `first` (the first apply of a process, page faults
included) and `again` (apply after restore, adapters still loaded: for diffusers without its load_lora_weights). The
same cases with `-10x16` (10 LoRAs of rank 16) and `-conv` (3 LoCons of rank 16 on the 3×3 convolutions) behind their
names. `parse10k`, `parse2k` (2,000 characters with five tags; `first2k` in a new process; `-plain` without tags) and
`import` need no model. `live` and `batch8`: see cases/models.py; `nf4` and `linear`: cases/layers.py; `planned`,
`make_plan`, `unchanged` and `restore800`: cases/plans.py. `merge` and `extract` are the workbench's, beside a plain
loop (plain_svd.py): cases/merging.py and cases/extracting.py. `train` is a step of training a LoRA, beside diffusers'
example with peft: cases/train.py.

`load200` is load_lora of a file of 200 MB, beside `read` (Path.read_bytes: into new memory, as any loader needs it)
and `sha256` (the hash alone, of bytes in memory); `keys100k` a file of 100,000 keys. The page cache is warm. `delta …`
is one layer of SDXL in float32, for each kind of adapter that LyCORIS or PEFT makes (judges.py): our Δ(W₀), of the file
that the library wrote, and the library's own merged weight. (Ours joins a sum in merge.py; PEFT adds in place.)

Seconds are minima over rounds in which the order of who goes is shuffled. Rounds go on until of each case and each who
the two lowest times agree within 3 %, or until --rounds or --seconds; `spread` says how far apart they were then. The
table has it behind each time, with a "!" where they do not agree: take such a figure for an upper bound.

Bytes are the most memory that was in use above that of the loaded model, taken in a process of its own; null where it
was not taken. The bytes of the floor are those of the touched weights, and those of `files` the size of the LoRA files,
which whoever reads them may hold too.

Each measurement runs in a process of its own, so that none inherits another's memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from benchmarks.aims import aims
from benchmarks.records import MAIN, VARIANTS, Options, Record, merged
from benchmarks.tables import table
from benchmarks.timing import AGREE

ROOT = Path(__file__).resolve().parent.parent
# The module and the function in benchmarks/cases: what one needs is not imported for another.
WORKERS = {
    "rounds": ("models", "rounds"),
    "live": ("models", "live"),
    "first": ("models", "first"),
    "parse": ("files", "parsing"),
    "import": ("files", "importing"),
    "first_parse": ("files", "first_parsing"),
    "first_plain": ("files", "first_plain"),
    "load": ("files", "loading"),
    "delta": ("layers", "deltas"),
    "layers": ("layers", "beside"),
    "plans": ("plans", "planning"),
    "merge": ("merging", "merging"),
    "extract": ("extracting", "extracting"),
    "train": ("train", "training"),
}


Job = tuple[str, Options]
MOST_PROCESSES = 6  # of what only a new process can tell


def work(jobs: Sequence[Job]) -> list[Record]:
    """Run jobs one after another in a process of their own and return their records."""
    for worker, options in jobs:
        what = " ".join(filter(None, [worker, options.dtype, options.variant, options.who]))
        print(f"  {what} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "LORA_RUNTIME_CACHE": cache}
        travelling = json.dumps([[worker, asdict(options)] for worker, options in jobs])
        command = [sys.executable, "-m", "benchmarks.bench", "--worker", travelling]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"bench: a worker failed (exit status {done.returncode})")
    return [Record(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def work_again(job: Job, processes: int) -> list[Record]:
    """Run a job in one process after another, as many at most, until the lowest two of its times agree."""
    found: list[Record] = []
    for number in range(processes):
        found += work([job])
        spreads = [record.spread for record in merged(found) if record.seconds is not None]
        if number and all(spread is not None and spread <= AGREE for spread in spreads):
            break
    return found


def jobs_of(arguments: argparse.Namespace, options: Options) -> Iterator[tuple[Job, int]]:
    """Yield what is to be measured, and in how many processes at most."""
    only, device = arguments.only, arguments.device
    for dtype in arguments.dtype:
        here = replace(options, device=device, dtype=dtype, variant=MAIN)
        if only in (None, "live"):
            yield ("live", here), 1
        for name in arguments.variant if only in (None, "models") else ():
            yield ("rounds", replace(here, variant=name)), 1
            for who in VARIANTS[name].who:
                if name == MAIN or who in ("ours", "loop", "floor"):
                    # What the floor tells of a process of its own are sizes.
                    yield ("first", replace(here, variant=name, who=who)), 1 if who == "floor" else MOST_PROCESSES
    for part in ("load", "delta", "layers", "plans", "merge", "extract", "train"):
        if only in (None, part):
            yield (part, replace(options, device=device if part == "layers" else "cpu")), 1
    if only is None:
        yield ("parse", options), 1
        for part in ("import", "first_parse", "first_plain"):
            yield (part, options), 2 * MOST_PROCESSES


# They measure a process into which nobody has imported torch.
NEEDS_NOTHING = ("parse", "import", "first_parse", "first_plain")


def measure(arguments: argparse.Namespace, folder: str) -> Iterator[list[Record]]:
    """Yield what each part found, one record for each case, dtype and who."""
    options = Options("cpu", "-", "", folder, arguments.quick, arguments.rounds, arguments.seconds)
    jobs = list(jobs_of(arguments, options))
    if not arguments.quick:
        for job, processes in jobs:
            yield work_again(job, processes)
        return
    # Most of a quick run would be imports: there jobs share one process.
    together = [job for job, _ in jobs if job[0] not in NEEDS_NOTHING]
    alone = [[job] for job, _ in jobs if job[0] in NEEDS_NOTHING]
    for process in filter(None, [together, *alone]):
        yield work(process)


def write(records: list[Record], path: Path) -> None:
    """Write bench.json."""
    lines = ",\n".join(json.dumps(asdict(record)) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def heading(arguments: argparse.Namespace) -> str:
    """Return what was measured on, for whoever compares figures."""
    import torch

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    line = f"torch {torch.__version__}, {arguments.device} ({name}), {arguments.rounds} rounds at most"
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        line += f"; load {os.getloadavg()[0]:.1f}: other programs are running, take no figure for exact"
    return line


def main(argv: list[str]) -> None:
    """Run the benchmark, or with `--worker` one part of it."""
    if argv[:1] == ["--worker"]:
        quieten()
        for worker, options in json.loads(argv[1]):
            module, function = WORKERS[worker]
            found = getattr(import_module(f"benchmarks.cases.{module}"), function)
            for record in found(Options(**options)):
                print(json.dumps(asdict(record)), flush=True)
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, help="at most so many of each part (default: 40; 2 of a quick run)")
    parser.add_argument(
        "--seconds", type=float, default=150.0, help="no round of a part begins after so many (default: 150)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument(
        "--only",
        choices=("models", "live", "load", "delta", "layers", "plans", "merge", "extract", "train"),
        help="one part of the measurements",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    arguments = parser.parse_args(argv)
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 40
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    print(heading(arguments))
    measured: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder, suppress(KeyboardInterrupt):
        # All of it takes half an hour: what is there stays when it is broken off.
        for found in measure(arguments, folder):
            measured += found
            write(merged(measured), arguments.out)
    records = merged(measured)
    print("\n".join(table(records)))
    if not arguments.quick:
        print("\nAims (milliseconds above; ratios below)")
        print("\n".join(map(str, aims(records))))
    print(f"\nWrote {arguments.out}")


def quieten() -> None:
    """Keep the advice that diffusers logs for each file off the screen."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main(sys.argv[1:])
