"""What an apply costs beside its arithmetic: planning for a model of Flux's depth, and restoring many small weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import lora_runtime
from benchmarks import model
from benchmarks.records import Options, Record, record_of
from benchmarks.timing import Times, seconds
from lora_runtime.held import owned
from lora_runtime.limits import Limits
from lora_runtime.lookup import Lookup
from lora_runtime.pipelines import view
from lora_runtime.plan import key_of, make_plan
from lora_runtime.problems import Problems
from lora_runtime.requests import of_batch

__all__ = ["WEIGHTS", "planning"]

WEIGHTS = 800  # as many linear layers as SDXL's UNet has in its attention, about


def planning(options: Options) -> Iterator[Record]:
    """Yield the time to plan tags, and to restore `WEIGHTS` weights of 8 × 8.

    `planned`: tags that are on the model already, as each picture of a series has them; `make_plan`: the same from
    scratch, the places of the model known; `unchanged`: the whole apply of such tags, parsing and the look at the files
    included. The model has the layers of Flux (57 blocks), each narrow, and the file changes all of them.
    """
    folder = Path(options.folder) / "plans"
    transformer = model.make_flux(model.FLUX_NARROW if not options.quick else model.FLUX_TINY)
    layers = model.all_linears(transformer)
    file = model.write_lora(folder / "flux.safetensors", layers, rank=4, prefix="transformer.")
    many = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(80 if options.quick else WEIGHTS))
    many.requires_grad_(False)
    many_file = model.write_lora(folder / "many.safetensors", model.all_linears(many), rank=4, prefix="")
    tag, many_tag = f"a <lora:{file.stem}:0.7>", f"a <lora:{many_file.stem}:0.7>"
    lora_runtime.apply(transformer, tag, loras=folder, strict=True)
    lookup = Lookup(folder, Problems(strict=True))
    requests = of_batch([lookup.requests(lora_runtime.parse_prompt(tag))])

    def planned() -> None:
        with owned(view(transformer)) as state:
            assert state.planned(key_of(requests)) is not None

    def anew() -> None:
        with owned(view(transformer)) as state:
            looked_at = view(transformer)
            assert make_plan(requests, state.targets, looked_at.description, Limits(looked_at)).assignments

    def unchanged() -> None:
        lora_runtime.apply(transformer, tag, loras=folder, strict=True)

    def patched() -> Callable[[], None]:
        return lora_runtime.apply(many, many_tag, loras=folder, strict=True).restore

    # Each gives what is timed, made ready.
    ways: dict[str, Callable[[], Callable[[], None]]] = {
        "planned": lambda: planned,
        "make_plan": lambda: anew,
        "unchanged": lambda: unchanged,
        f"restore{len(many)}": patched,
    }
    times: Times[str] = Times(options.limits)
    for counts in times.rounds():
        for case in times.shuffled(ways):
            taken = seconds(ways[case]())
            if counts:
                times.add(case, taken)
    for case, timing in times.timings().items():
        yield record_of(case, "-", "ours", timing)
