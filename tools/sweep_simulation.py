"""Count what a large sweep would read, with the painting left out: the table at the end of docs/sweep.md.

    PYTHONPATH=. python tools/sweep_simulation.py [--rows 1000000] [--loras 10000] [--machines 100] [--kept 20]

Each row wants one LoRA, the n-th most wanted with a probability of 1/n (Zipf, exponent 1). A machine keeps the files
that it used last. Rows become batches, and batches shares, by the code of a sweep; the other rules are what to compare
them with. One seed, so the numbers are always the same.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from lora_runtime.sweep.plan import Batch, make_batches, shares
from lora_runtime.sweep.rows import Row


@dataclass
class Machine:
    """Counts the files that it reads, and the rows that it paints."""

    kept: int
    reads: int = 0
    rows: int = 0
    files: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def paint(self, files: Iterable[str], rows: int = 1) -> list[str]:
        """Take a batch; return the files that are dropped for it."""
        for name in sorted(files):
            self.reads += name not in self.files
            self.files[name] = None
            self.files.move_to_end(name)
        self.rows += rows
        return [self.files.popitem(last=False)[0] for _ in range(len(self.files) - self.kept)]


def rows_of(count: int, loras: int) -> list[Row]:
    """Return rows that want one of so many LoRAs each."""
    weights = list(accumulate(1 / rank for rank in range(1, loras + 1)))
    wanted = random.Random(0).choices(range(loras), cum_weights=weights, k=count)
    first: dict[int, Row] = {}
    found = []
    for n, name in enumerate(wanted):
        row = Row(f"r{n}", f"x <lora:f{name}:1>", seed=n)
        # Equal prompts are read once here: a sweep takes another 0.1 ms for each.
        row.__dict__["tags"] = first.setdefault(name, row).tags
        found.append(row)
    return found


def name_of(row: Row) -> str:
    """Return the one file that a row wants."""
    return row.prompt[len("x <lora:") : -len(":1>")]


def in_stretches(batches: Sequence[Batch], machines: Sequence[Machine]) -> None:
    """As a sweep does it."""
    for machine, share in zip(machines, shares(batches, len(machines)), strict=True):
        for batch in share:
            machine.paint(batch.files, len(batch.rows))


def in_turn(batches: Sequence[Batch], machines: Sequence[Machine]) -> None:
    """The same batches, each to the next machine."""
    for n, batch in enumerate(batches):
        machines[n % len(machines)].paint(batch.files, len(batch.rows))


def as_they_come(rows: Sequence[Row], machines: Sequence[Machine]) -> None:
    """Rows in their own order, each to the next machine: what a load balancer does that knows no files."""
    for n, row in enumerate(rows):
        machines[n % len(machines)].paint([name_of(row)])


def at_home(rows: Sequence[Row], machines: Sequence[Machine]) -> None:
    """Each file has one machine."""
    home: dict[str, int] = {}
    dice = random.Random(1)
    for row in rows:
        machines[home.setdefault(name_of(row), dice.randrange(len(machines)))].paint([name_of(row)])


def by_who_has_it(rows: Sequence[Row], machines: Sequence[Machine], slack: float = 1.1) -> None:
    """In their own order, to whoever has the file and not more than its share of rows; else to who has fewest."""
    holders: dict[str, set[int]] = defaultdict(set)
    dice = random.Random(2)
    for n, row in enumerate(rows):
        name, most = name_of(row), slack * n / len(machines) + 1
        able = [each for each in holders[name] if machines[each].rows <= most]
        # Of two at random the better one, as routers do that cannot ask all.
        asked = able or dice.sample(range(len(machines)), 2)
        chosen = min(asked, key=lambda each: machines[each].rows)
        for dropped in machines[chosen].paint([name]):
            holders[dropped].discard(chosen)
        holders[name].add(chosen)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--loras", type=int, default=10_000)
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--kept", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    began = time.process_time()
    rows = rows_of(arguments.rows, arguments.loras)
    ones, batches = (make_batches(rows, size, lambda row: [name_of(row)]) for size in (1, arguments.batch))
    seconds = time.process_time() - began
    rules = [
        ("a sweep: stretches", lambda machines: in_stretches(ones, machines)),
        (f"a sweep, `--batch {arguments.batch}`", lambda machines: in_stretches(batches, machines)),
        ("the batches of a sweep, in turn", lambda machines: in_turn(ones, machines)),
        ("each file has its machine", lambda machines: at_home(rows, machines)),
        ("to whoever has the file, with at most 1.1 × its share", lambda machines: by_who_has_it(rows, machines)),
        ("rows as they come, in turn", lambda machines: as_they_come(rows, machines)),
    ]
    print("| | files read, mean | most | in all | rows, most / mean |")
    print("|---|---|---|---|---|")
    for name, place in rules:
        machines = [Machine(arguments.kept) for _ in range(arguments.machines)]
        place(machines)
        reads, painted = [each.reads for each in machines], [each.rows for each in machines]
        assert sum(painted) == len(rows)
        mean = sum(reads) / len(reads)
        most = max(painted) * len(machines) / len(rows)
        print(f"| {name} | {mean:,.0f} | {max(reads):,} | {sum(reads):,} | {most:.2f} |", flush=True)
    wanted = len({name_of(row) for row in rows})
    print(f"\n{wanted:,} files are wanted; {seconds:.0f} s of one core to make the rows and to plan them twice")


if __name__ == "__main__":
    main()
