"""How the page is served: to this machine alone unless told otherwise."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.models import Models
from lora_runtime.studio.settings import MAX_BATCH, MOST_AT_ONCE

__all__ = ["Options", "Studio"]

HERE = "127.0.0.1"
_MOST_UPLOADED = "50mb"
_THREADS_BESIDE = 16  # whoever waits for pictures has a thread, and none of the others' buttons may wait for these


@dataclass(frozen=True)
class Options:
    """Where the page is served and what it may use; StudioError for what does not go together.

    `auth` is "user:password". `out` is a folder that keeps a copy of each picture. `keep_files`: no LoRA file gets
    another name or place from the page. At most `max_batch` pictures are painted in one call.
    """

    models: Sequence[str] = ()
    loras: Sequence[str] = ()
    host: str = HERE
    port: int | None = None  # the first that is free, from 7860
    auth: str | None = None
    share: bool = False
    out: str | None = None
    keep_files: bool = False
    max_batch: int = MAX_BATCH
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise StudioError(f"--max-batch is {self.max_batch}: give a whole number from 1")
        if self.auth is not None and not all(self.auth.partition(":")):
            raise StudioError("--auth is no USER:PASSWORD: give both, with a colon between them")
        if self.share and self.auth is None:
            raise StudioError("--share puts the page into the public Internet: give --auth USER:PASSWORD too")

    @property
    def login(self) -> tuple[str, str] | None:
        """The name and the password, None where anybody may come."""
        if self.auth is None:
            return None
        user, _, password = self.auth.partition(":")
        return user, password

    @property
    def changes_files(self) -> bool:
        """Whether LoRA files may get another name or place: not where anybody in a network may come without a login."""
        return not self.keep_files and (self.auth is not None or _is_this_machine(self.host))


class Studio:
    """A page that is served until it is closed."""

    def __init__(self, options: Options) -> None:
        """Look up models and LoRAs, and make the page; nothing is loaded, and nothing served."""
        from lora_runtime.demo.scene_pipeline import LORAS
        from lora_runtime.studio.page import build
        from lora_runtime.studio.wiring import wire
        from lora_runtime.studio.workshop import Workshop

        self._options = options
        models = Models(options.models, device=options.device, dtype=options.dtype)
        own = options.loras or (LoraCatalog.default_folders() if options.models else ())
        loras = LoraCatalog(*(own or [str(LORAS)]))
        self.shop = Workshop(models, loras, options.out, own, max_batch=options.max_batch)
        self.page = build(models.all)
        wire(self.page, self.shop)

    def serve(self) -> str:
        """Begin to serve; return the address."""
        from lora_runtime.panel import CatalogLibrary, PromptFacts, Questions
        from lora_runtime.studio.card_routes import add_cards
        from lora_runtime.studio.fitting import Fitting
        from lora_runtime.studio.gallery import Gallery
        from lora_runtime.studio.page import head, styles, theme
        from lora_runtime.studio.panel_routes import add_panel
        from lora_runtime.studio.thumbnails import picture_of
        from lora_runtime.workbench.conflicts import Conflicts

        options, shop = self._options, self.shop
        blocks: Any = self.page.blocks
        blocks.queue(default_concurrency_limit=8, max_size=64)
        app, local, shared = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            auth=options.login,
            share=options.share,
            theme=theme(),
            css=styles(),
            head=head(),
            ssr_mode=False,
            quiet=True,
            show_error=True,
            footer_links=["api"],
            max_file_size=_MOST_UPLOADED,
            max_threads=MOST_AT_ONCE + _THREADS_BESIDE,
            prevent_thread_lock=True,
            enable_monitoring=False,
        )
        library = CatalogLibrary(shop.loras, picture=picture_of)
        add_panel(
            app,
            Questions(
                lambda: library,
                lambda: PromptFacts(shop.presets, blocks=shop.models.blocks),
                lambda: shop.own_folders,
                Conflicts(shop.loras, lambda: shop.presets),
            ),
        )
        # The embedded LoRAs are the program's: only folders that somebody has given are changed.
        allowed = options.changes_files and bool(shop.own_folders)
        add_cards(app, Gallery(shop.loras, shop.marks, Fitting(shop.models), lambda: allowed))
        return str(shared or local)

    def warm(self) -> None:
        """Load the first model, so that the first picture need not wait for it."""
        models = self.shop.models
        with models.using(next(iter(models.all))):
            pass

    def close(self) -> None:
        """Serve no more, and remove the pictures that are kept nowhere else."""
        self.page.blocks.close(verbose=False)
        self.shop.close()


def _is_this_machine(host: str) -> bool:
    """Return whether only this machine reaches what is served at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
