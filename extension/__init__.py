"""The WebUI extension: `<lora:…>` in a prompt, by lora_runtime instead of the built-in Lora extension.

The WebUI's process is shared with other extensions, whose modules have names such as `network` or `extension`; so this
package is loaded under a private name (scripts/lora_runtime_webui.py) and imports itself only relatively. What touches
the WebUI is in hosts/; the rest knows nothing of it.
"""

from __future__ import annotations

from typing import Any


def start() -> type[Any] | None:
    """Register everything with the program that runs here; return the Script class that it looks for, if it does.

    Raises before anything was registered where this host cannot be served: the built-in extension then stays.
    """
    import lark  # noqa: F401 - the library imports it at the first prompt: too late to leave the tags to others

    from .hosts import host_of_this_process

    return host_of_this_process().start()
