"""Many workers, on this machine or on a cluster: actors of Ray, each with a pipeline of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from lora_runtime.batching.halving import reason_of
from lora_runtime.lookup import Loras
from lora_runtime.sweep.dispatch import Dispatch
from lora_runtime.sweep.manifest import line_of
from lora_runtime.sweep.paint import Painted, Painter
from lora_runtime.sweep.pipes import MakePipe
from lora_runtime.sweep.plan import Batch, shares
from lora_runtime.sweep.rows import Row, SweepError

__all__ = ["paint_on_ray"]

_MOST_LOST_STARTS = 3  # workers in a row that died before they had a pipeline


def paint_on_ray(
    batches: Sequence[Batch],
    make_pipe: MakePipe,
    loras: Loras,
    workers: int,
    address: str | None = None,
    gpus: float | None = None,
) -> Iterator[list[Painted]]:
    """Yield what became of the rows of each batch, as they are done.

    Plain actors and not Ray Data: there a block goes to any worker that is free; here a batch goes where its files are,
    is written as soon as it is painted, and one that kills its worker is taken apart. `address` is that of a cluster;
    None starts one on this machine for as long as this lasts. `gpus` each worker has, left out 1 where the cluster has
    any. SweepError where Ray is not installed or not reached,
    or no worker gets a pipeline.
    """
    try:
        import ray
    except ImportError as error:
        raise SweepError('several workers need Ray: python -m pip install "ray>=2.9"') from error
    begun = not ray.is_initialized()
    if begun:
        more = {} if address else {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **more)
        except Exception as error:  # of a node that does not start in time Ray says so by a plain one
            where = f"cannot be reached at {address}" if address else "cannot be started here"
            raise SweepError(f"Ray {where}: {reason_of(error)}") from error
    try:
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        yield from _Crew(ray, make_pipe, loras, gpus).paint(Dispatch(shares(batches, workers)), workers)
    finally:
        if begun:
            ray.shutdown()


class _Worker:
    """What runs in a process of its own."""

    def __init__(self, make_pipe: MakePipe, loras: Loras, place: int) -> None:
        import torch

        # Ray has said how many cores are its own; torch read that before the variable was there, or not at all.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._painter = Painter(make_pipe, loras, place)

    def ready(self) -> None:
        """Return once there is a pipeline."""

    def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """Return what became of each row."""
        return self._painter.paint(rows)


class _Crew:
    """The actors by their places; in the place of one that dies comes another."""

    def __init__(self, ray: Any, make_pipe: MakePipe, loras: Loras, gpus: float) -> None:
        self._ray = ray
        self._class = ray.remote(_Worker).options(num_cpus=1, num_gpus=gpus)
        self._given = make_pipe, loras
        self._actors: dict[int, Any] = {}
        self._busy: dict[Any, tuple[int, Batch | None]] = {}  # by what is waited for: place, and its batch if ready
        self._idle: set[int] = set()
        self._lost_starts = 0

    def paint(self, dispatch: Dispatch, workers: int) -> Iterator[list[Painted]]:
        """Yield what became of the rows of each batch."""
        ray = self._ray
        try:
            for place in range(workers):
                self._start(place)
            while self._busy:
                (done,), _ = ray.wait(list(self._busy), num_returns=1)
                place, batch = self._busy.pop(done)
                try:
                    painted = ray.get(done)
                except ray.exceptions.RayTaskError as error:  # what a painter does not expect costs no worker
                    yield _failed(batch.rows if batch else (), f"worker {place}: {reason_of(error)}", place)
                    self._idle.add(place)
                except ray.exceptions.RayError as error:
                    yield self._lost(dispatch, place, batch, error)
                else:
                    self._lost_starts = 0
                    self._idle.add(place)
                    yield painted or []
                self._feed(dispatch)
        finally:
            for actor in self._actors.values():
                ray.kill(actor)

    def _start(self, place: int) -> None:
        self._actors[place] = self._class.remote(*self._given, place)
        self._busy[self._actors[place].ready.remote()] = place, None

    def _feed(self, dispatch: Dispatch) -> None:
        for place in sorted(self._idle):
            batch = dispatch.next(place)
            if batch is not None:
                self._idle.remove(place)
                self._busy[self._actors[place].paint.remote(batch.rows)] = place, batch
        if dispatch.empty and not any(batch for _, batch in self._busy.values()):
            self._busy.clear()  # nothing is left: whoever still starts need not be waited for

    def _lost(self, dispatch: Dispatch, place: int, batch: Batch | None, error: Exception) -> list[Painted]:
        """Put another in the place of an actor that died; return the rows that have had their tries."""
        if batch is None:
            self._lost_starts += 1
            if self._lost_starts >= _MOST_LOST_STARTS:
                raise SweepError(f"no worker gets a pipeline: {reason_of(error)}") from error
        self._ray.kill(self._actors[place])  # it may only be out of reach
        self._start(place)
        rows = [] if batch is None else dispatch.lost(place, batch)
        return _failed(rows, f"it was tried on two workers, and both died: {reason_of(error)}", place)


def _failed(rows: Sequence[Row], reason: str, place: int) -> list[Painted]:
    return [Painted(None, line_of(row, error=reason, worker=place)) for row in rows]
