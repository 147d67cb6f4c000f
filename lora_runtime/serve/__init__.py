"""Pictures over HTTP, in the shape of OpenAI's API: what `lora-runtime serve` does, for diffusers' pipelines.

limits      what a request may ask, and how much is taken on
asking      the bytes of a request to rows of a sweep, or why it is refused
line        the rows that wait, and the one painter that they wait for
explaining  what a prompt means, and which files there are
counting    what Prometheus asks for
gate        who may ask at all
app         the routes
run         a server on this machine
on_ray      replicas on a cluster
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_runtime.serve.app import make_app as make_app
    from lora_runtime.serve.limits import Limits as Limits
    from lora_runtime.serve.limits import ServeError as ServeError
    from lora_runtime.serve.run import serve as serve

# On first use: what is asked is read without torch, and the command line starts without a web server.
_HOME = {"Limits": "limits", "ServeError": "limits", "make_app": "app", "serve": "run"}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the file that owns it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
