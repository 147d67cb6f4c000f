"""A server on this machine, by uvicorn: one process, one pipeline."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from lora_runtime.lookup import Loras, catalog_for
from lora_runtime.serve.app import make_app
from lora_runtime.serve.gate import KEY_VARIABLE, checked_key
from lora_runtime.serve.limits import Limits
from lora_runtime.sweep.paint import Painter
from lora_runtime.sweep.pipes import MakePipe

__all__ = ["serve"]


def serve(
    make_pipe: MakePipe,
    *,
    loras: Loras = None,
    model: str = "",
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Answer requests until a signal ends it: what is being painted is finished then, and who waits is sent away.

    A second signal ends that at its next step. The key is that of LORA_RUNTIME_API_KEY. `port` 0 takes a free one;
    `on_ready` is told the address.

    Raises ServeError where others can reach `host` and there is no key, OSError for an address that cannot be had, and
    what `make_pipe` raises.
    """
    import uvicorn

    key = checked_key(os.environ.get(KEY_VARIABLE), host)
    catalog = catalog_for(loras)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        app, line = make_app(Painter(make_pipe, catalog), catalog, model=model, limits=limits, key=key)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", server_header=False, log_level="info"))
        exits = server.handle_exit

        def handle_exit(sig: int, frame: Any) -> None:
            if server.should_exit:
                line.give_up()
            line.close_soon()
            exits(sig, frame)

        server.handle_exit = handle_exit
        if on_ready is not None:
            name = f"[{host}]" if ":" in host else host
            on_ready(f"http://{name}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])
