"""Say what a prompt would do to a pipeline and what memory that takes, from configs and headers alone."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import (
    CommandError,
    human_size,
    lora_places_argument,
    needs_extra,
    print_json,
    printable,
    say_by_oneself,
    table,
)

if TYPE_CHECKING:
    from lora_runtime.cli.outline import Outline
    from lora_runtime.lookup import Loras
    from lora_runtime.lora import Lora
    from lora_runtime.prompt import Prompt
    from lora_runtime.requests import Request

__all__ = ["Component", "Found", "Machine", "add_arguments", "foresee", "run"]

OFFLOADS = ("none", "model", "group")
_ORIGINALS = ("auto", "device", "host", "inplace", "beside")
_STORAGES = ("fp32", "bf16", "fp16", "fp8", "nf4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `plan`."""
    parser.add_argument("--model", metavar="DIR", required=True, help="a pipeline as diffusers saves it")
    parser.add_argument("--prompt", required=True, help='for example "a red circle <lora:watercolor:0.7>"')
    lora_places_argument(parser)
    parser.add_argument("--device-memory", metavar="SIZE", help="what the GPU has, such as 24GB (default: no limit)")
    parser.add_argument("--host-memory", metavar="SIZE", help="what is free, such as 32GB (default: no limit)")
    parser.add_argument(
        "--dtype",
        choices=_STORAGES,
        default="bf16",
        help="fp8: the denoiser by layerwise casting; nf4: denoiser and large text encoders by bitsandbytes "
        "(default: bf16); a config that says how it is quantised counts more",
    )
    parser.add_argument(
        "--offload",
        choices=OFFLOADS,
        default="none",
        help="model: enable_model_cpu_offload; group: group offloading with a stream (default: none)",
    )
    parser.add_argument("--originals", choices=_ORIGINALS, default="auto", help="as in apply (default: auto)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; CommandError for a folder that holds no pipeline, UnknownLoraError for a tag without a file."""
    with needs_extra():
        import diffusers  # noqa: F401
        import transformers  # noqa: F401

    from lora_runtime.cli.outline import read_pipeline
    from lora_runtime.memory_policy import read_bytes

    try:
        device_memory = read_bytes(arguments.device_memory, "--device-memory")
        host_memory = read_bytes(arguments.host_memory, "--host-memory")
    except ValueError as error:
        raise CommandError(str(error)) from error
    outline = read_pipeline(Path(arguments.model), arguments.dtype)
    say_by_oneself()
    prompt, requests = _requests(arguments.prompt, arguments.loras)
    machine = Machine(device_memory, host_memory, arguments.offload)
    found = foresee(outline, requests, machine, arguments.originals)
    found = replace(found, notes=(*_said(prompt, requests, outline), *found.notes))
    if arguments.json:
        print_json(asdict(found))
    else:
        print("\n".join(_lines(found)))
    return 0


def _requests(prompt: str, loras: Loras) -> tuple[Prompt, list[Request]]:
    """Return the prompt as it is read and what its tags ask for; raises for the first that cannot be.

    Of their files only the headers are read.
    """
    from lora_runtime.lookup import catalog_for
    from lora_runtime.lora import outline
    from lora_runtime.requests import request_of
    from lora_runtime.sets import parse_with_sets, read_sets
    from lora_runtime.tag_files import files_of

    catalog = catalog_for(loras)
    outlines: dict[Path, Lora] = {}
    found = []
    read = parse_with_sets(prompt, lambda: read_sets(*catalog.folders), strict=True)
    for tag, entry in (each for asked in read.tags for each in files_of(catalog, asked)):
        if entry.path not in outlines:
            # Its path stands for the hash of its content, which only reading it all would tell.
            outlines[entry.path] = replace(
                outline(entry.path), name=entry.name, hashed=partial(str, entry.path), nbytes=entry.size
            )
        found.append(request_of(tag, outlines[entry.path]))
    return read, found


def _said(prompt: Prompt, requests: Sequence[Request], outline: Outline) -> Iterator[str]:
    """Yield what `apply` would warn of before it applies anything."""
    from lora_runtime.idle_blocks import warn_of_idle_blocks
    from lora_runtime.pipelines import view
    from lora_runtime.problems import Problems, warn_of_idle_files

    looked_at, problems = view(outline.pipe), Problems(strict=False, prompts=[prompt])
    warn_of_idle_files([], requests, looked_at, problems)
    warn_of_idle_blocks([prompt], looked_at, problems)
    for each in problems.diagnostics:
        if each.severity != "info":
            yield f"{each.message} ({each.hint})" if each.hint else each.message


# ---- what will be ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a pipeline is to run on. Bytes; None: as much as it takes."""

    device_memory: int | None = None
    host_memory: int | None = None
    offload: str = "none"


@dataclass(frozen=True)
class Component:
    """What becomes of one component; sizes are bytes beside the model's own weights.

    Of the `weights` that the files change, `merged` are summed into; adapters act beside `acting` modules, beside
    `moved` of them for want of memory alone; `beside` maps the other reasons to the number of weights. `step` is where
    originals are kept: "device", "host" or "inplace", "beside" where all act so, "-" where nothing is changed.
    `factor_bytes` stay on the device beside `device_kept`, of what was sent there to be summed.
    `first_copies` and `switch_copies` go between host and device: at the first apply, at a change of strength.
    """

    name: str
    size: int
    weights: int
    merged: int
    acting: int
    moved: int
    step: str
    beside: Mapping[str, int]
    device_kept: int
    factor_bytes: int
    device_peak: int
    host_kept: int
    first_copies: int
    switch_copies: int


@dataclass(frozen=True)
class Found:
    """What becomes of a pipeline. `unused` maps reasons to the number of keys that change nothing."""

    model: str
    machine: Machine
    size: int
    files: int
    components: tuple[Component, ...]
    why: tuple[str, ...]
    unused: Mapping[str, int]
    fixed: Mapping[str, int]
    notes: tuple[str, ...]


def foresee(outline: Outline, requests: Sequence[Request], machine: Machine, originals: Any = "auto") -> Found:
    """Return what these requests do to a pipeline on a machine; MemoryBudgetError where no step has room."""
    import torch

    from lora_runtime.cli.outline import stream
    from lora_runtime.limits import Limits
    from lora_runtime.memory_policy import Room, decide
    from lora_runtime.pipelines import view
    from lora_runtime.placement import place_adapters
    from lora_runtime.plan import make_plan
    from lora_runtime.scopes import scope_of

    looked_at = view(outline.pipe)
    if machine.offload == "group":
        for root in looked_at.components.values():
            stream(root)
    targets = scope_of(looked_at).targets
    plan = make_plan(requests, targets, looked_at.description, Limits(looked_at))
    size = sum(outline.sizes.values())
    gpu, on_gpu = torch.device("cuda:0"), machine.offload == "none"
    room = Room(_rest(machine.device_memory, size if on_gpu else 0))
    host = Room(_rest(machine.host_memory, 0 if on_gpu else size))
    decision = decide(plan, targets, originals, lambda _: room, host, on=gpu if on_gpu else None)
    placements = {id(request.lora): place_adapters(request.lora, targets) for request in requests}
    reasons: dict[str, Counter[str]] = {}
    weights: dict[str, set[object]] = {}
    for placement in placements.values():
        for place in placement.placed:
            key = place.target.component
            weights.setdefault(key, set()).add((place.target.path, place.name))
            if place.route.kind == "beside":
                reasons.setdefault(key, Counter())[place.route.reason] += 1
    components: list[Component] = []
    for name in looked_at.components:
        counted, kept = len(weights.get(name, ())), sum(one.factor_bytes for one in components)
        components.append(
            _component(name, outline.sizes[name], counted, reasons.get(name, {}), plan, decision, gpu, kept)
        )
    unused = Counter(reason for placement in placements.values() for reason in placement.unused.values())
    fixed: Counter[str] = Counter()
    for report in plan.report.loras:
        fixed.update(report.fixed)
    return Found(
        looked_at.description,
        machine,
        size,
        sum({id(request.lora): request.lora.nbytes for request in requests}.values()),
        tuple(components),
        tuple(f"{choice.step} ({choice.why})" for choice in decision.choices),
        dict(unused),
        dict(fixed),
        (*outline.notes, *_fit(outline, machine)),
    )


def _component(
    name: str, size: int, weights: int, beside: Mapping[str, int], plan: Any, decision: Any, gpu: Any, kept: int
) -> Component:
    """Return what becomes of one component, as the policy's own forecast says it.

    `kept`: the bytes of factors that stay for the components before it.
    """
    from lora_runtime.forecast import forecast, shares_host_memory

    merged = [assignment for assignment in decision.plan.assignments if assignment.target.component == name]
    acting = [live for live in decision.plan.lives if live.component == name]
    before = sum(live.component == name for live in plan.lives)
    (device, (step, room)), *_ = decision.merging.items() or [(gpu, ("device", None))]
    shared = shares_host_memory(device)
    summed = forecast(step, merged, () if shared else acting, device, None if room is None else room - kept)
    # What acts beside a module is where the module computes.
    running = forecast("beside", [], acting, gpu)
    return Component(
        name,
        size,
        weights,
        len(merged),
        len(acting),
        len(acting) - before,
        step if merged else "beside" if acting else "-",
        dict(beside),
        running.kept if shared else summed.kept,
        summed.factor_bytes,
        running.peak if shared else summed.peak,
        summed.kept if shared else summed.host_kept,
        running.uploads if shared else summed.uploads + summed.downloads,
        running.switch_uploads if shared else summed.switch_uploads,
    )


def _rest(memory: int | None, taken: int) -> int | None:
    return None if memory is None else max(0, memory - taken)


def _fit(outline: Outline, machine: Machine) -> Iterator[str]:
    """Yield what does not fit on the machine by itself."""
    size, largest = sum(outline.sizes.values()), max(outline.sizes.values())
    needed = {"none": size, "model": largest, "group": 0}[machine.offload]
    if machine.device_memory is not None and needed > machine.device_memory:
        what = "the model" if machine.offload == "none" else "the largest component"
        way_out = "offload it, or store it in fewer bits" if machine.offload == "none" else "try --offload group"
        yield f"{what} alone takes {human_size(needed)} of the device's {human_size(machine.device_memory)}: {way_out}"
    if machine.offload != "none" and machine.host_memory is not None and size > machine.host_memory:
        yield f"the model alone takes {human_size(size)} of the host's {human_size(machine.host_memory)}"


# ---- printing -------------------------------------------------------------------------------------------------------


_TITLES = (
    "component",
    "size",
    "weights",
    "merged",
    "beside",
    "originals",
    "device",
    "factors",
    "peak",
    "host",
    "first",
    "switch",
)


def _lines(found: Found) -> Iterator[str]:
    machine = found.machine
    device, host = (
        "no limit" if size is None else human_size(size) for size in (machine.device_memory, machine.host_memory)
    )
    yield printable(found.model)
    yield f"  model {human_size(found.size)}, files {human_size(found.files)}; device {device}, host {host}" + (
        f", {machine.offload} offload" if machine.offload != "none" else ""
    )
    rows = []
    for one in found.components:
        on_device = one.device_kept, one.factor_bytes, one.device_peak
        kept = (*on_device, one.host_kept, one.first_copies, one.switch_copies)
        counts = map(str, (one.weights, one.merged, one.acting))
        rows.append((one.name, human_size(one.size), *counts, one.step, *map(human_size, kept)))
    yield table(_TITLES, rows)
    yield "  bytes beside the model: device, factors, peak and host; first and switch: copies between host and device"
    if any(one.weights for one in found.components):
        for why in found.why:
            yield f"  originals: {printable(why)}"
    for one in found.components:
        for reason, count in one.beside.items():
            yield f"  {one.name}: {count} beside, {printable(reason)}"
        if one.moved:
            yield f"  {one.name}: {one.moved} beside, for want of memory"
    for reason, count in found.unused.items():
        yield f"  {count} {'key' if count == 1 else 'keys'} unused: {printable(reason)}"
    for reason, count in found.fixed.items():
        yield f"  {count} {'weight' if count == 1 else 'weights'}: {printable(reason)}"
    for note in found.notes:
        yield f"  note: {printable(note)}"
