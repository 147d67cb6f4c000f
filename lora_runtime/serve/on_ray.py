"""Replicas on a cluster, by Ray Serve: one front that answers, and painters with a pipeline and a line of their own.

The front is the app of one machine. Whoever would stand in its line is sent to a painter instead: to one that has the
files of the prompt, where there is one and it is not too busy (`serve.multiplexed`, by the set of files), and waits in
the line there, which makes the batches.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.lookup import Loras, catalog_for
from lora_runtime.serve.app import app_of
from lora_runtime.serve.gate import KEY_VARIABLE, App, checked_key
from lora_runtime.serve.limits import Limits, Refused, ServeError
from lora_runtime.serve.line import Line
from lora_runtime.sweep.paint import Painted, Painter
from lora_runtime.sweep.pipes import MakePipe
from lora_runtime.sweep.rows import Row

__all__ = ["deploy", "set_of"]

_KEPT = 32  # sets of files that a painter is known to have
_DIGITS = 16
_NAME = "lora-runtime"
_PAINTERS = "painters"
_BESIDE = 16  # requests that are explained or refused while as many as may wait do


def set_of(rows: Sequence[Row]) -> str:
    """Return a name for the set of files that rows want: the same for the same tags' names, "" for none."""
    names = sorted({tag.name for row in rows for tag in row.tags})
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:_DIGITS] if names else ""


class Afar:
    """In the place of a line: the rows wait and are painted elsewhere."""

    def __init__(self, painters: Any, limits: Limits) -> None:
        self._painters, self._limits = painters, limits
        self._rows = 0
        self._seconds = 5.0  # that a request took lately
        self._closed = False

    async def __aenter__(self) -> Afar:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closed = True

    @property
    def waiting(self) -> int:
        """How many rows are elsewhere."""
        return self._rows

    @property
    def in_hand(self) -> int:
        """None is painted here."""
        return 0

    @property
    def open(self) -> bool:
        """Whether rows are taken in."""
        return not self._closed

    async def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """Return what became of the rows; a painter is told when nobody waits for them any more."""
        if self._rows + len(rows) > self._limits.max_queue:
            seconds = max(1, round(self._seconds))
            said = f"{self._rows} images are asked for, and {self._limits.max_queue} are the most"
            raise Refused(429, f"{said}: try again in {seconds} s", "queue_full", retry_after=seconds)
        self._rows += len(rows)
        began = time.monotonic()
        response = self._painters.options(multiplexed_model_id=set_of(rows)).paint.remote(list(rows))
        try:
            painted: list[Painted] | dict[str, Any] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        finally:
            self._rows -= len(rows)
        if isinstance(painted, dict):
            raise Refused(**painted)
        self._seconds += 0.2 * (time.monotonic() - began - self._seconds)
        return painted


@contextmanager
def deploy(
    make_pipe: MakePipe,
    *,
    loras: Loras = None,
    model: str = "",
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    gpus: float | None = None,
    address: str = "local",
) -> Iterator[str]:
    """Have replicas answer requests within the block; give their address.

    `address` is that of a cluster, "local" one on this machine for as long as this lasts. Each replica has a pipeline
    and one CPU, and `gpus`, left out 1 where the cluster has any. The folders are at the same paths everywhere. The key
    is that of LORA_RUNTIME_API_KEY. ServeError where Ray Serve is not installed or not reached, or others can reach
    `host` and there is no key.
    """
    key, limits, catalog = checked_key(os.environ.get(KEY_VARIABLE), host), limits or Limits(), catalog_for(loras)
    folders = [str(folder.absolute()) for folder in catalog.folders]
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ServeError('replicas need Ray Serve: python -m pip install "ray[serve]>=2.50"') from error
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # of a node that does not start in time Ray says so by a plain one
        raise ServeError(f"Ray cannot be reached at {address}: {error}") from error
    try:
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        serve.start(http_options={"host": host, "port": port})
        # Requests beyond these wait with the front, which still knows nothing of whose line is short.
        painters = serve.deployment(
            _painters(serve),
            name=_PAINTERS,
            num_replicas=replicas,
            max_ongoing_requests=4 * limits.max_batch,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        )
        front = serve.deployment(
            serve.ingress(_front(folders, model, limits, key))(),
            name="front",
            max_ongoing_requests=limits.max_queue + _BESIDE,
            ray_actor_options={"num_cpus": 0},
        )
        serve.run(front.bind(painters.bind(make_pipe, folders, limits)), name=_NAME, route_prefix="/")
        yield f"http://{host}:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def _front(folders: Sequence[str], model: str, limits: Limits, key: str | None) -> Callable[[], App]:
    """Return what makes the app, in the front's own process."""

    def build() -> App:
        from ray import serve

        painters = serve.get_deployment_handle(_PAINTERS, app_name=_NAME)
        return app_of(Afar(painters, limits), LoraCatalog(*folders), model, limits, key)

    return build


def _painters(serve: Any) -> type:
    """Return the class of a replica; Ray is there only now."""

    class Painters:
        def __init__(self, make_pipe: MakePipe, folders: Sequence[str], limits: Limits) -> None:
            import torch

            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            self._line = Line(Painter(make_pipe, LoraCatalog(*folders)), limits)
            self._begun = False

        async def paint(self, rows: list[Row]) -> list[Painted] | dict[str, Any]:
            """Return what became of the rows, or what to say to whoever asked."""
            if not self._begun:  # now there is a loop
                self._begun = True
                await self._line.__aenter__()
            if name := serve.get_multiplexed_model_id():
                await self.have(name)
            try:
                return await self._line.paint(rows)
            except Refused as refused:
                said = {name: getattr(refused, name) for name in ("status", "code", "param", "retry_after")}
                return {**said, "message": str(refused)}

        @serve.multiplexed(max_num_models_per_replica=_KEPT)  # type: ignore[untyped-decorator]
        async def have(self, name: str) -> str:
            """Let Ray know that the files of this set are here; painting reads them."""
            return name

    return Painters
