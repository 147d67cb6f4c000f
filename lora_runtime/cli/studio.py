"""Serve a page that paints: prompts, LoRAs, comparisons."""

from __future__ import annotations

import argparse
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from lora_runtime.cli.console import device_arguments, needs_extra, printable, say_by_oneself, whole
from lora_runtime.studio.settings import MAX_BATCH

if TYPE_CHECKING:
    from lora_runtime.studio.server import Studio

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `studio`."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        action="append",
        help="a pipeline as diffusers saves it, a .safetensors file, or a folder of these; may be given several times "
        "(default: the embedded pipeline)",
    )
    parser.add_argument(
        "--loras",
        metavar="DIR",
        action="append",
        help="may be given several times (default: the embedded ones; with --model LORA_RUNTIME_PATH, else models/Lora "
        "and loras)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="who may come: 0.0.0.0 is the whole network (default: %(default)s)"
    )
    parser.add_argument("--port", metavar="N", type=whole, help="default: the first that is free, from 7860")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask everyone for these")
    parser.add_argument(
        "--share", action="store_true", help="an address in the public Internet, by gradio; needs --auth"
    )
    parser.add_argument("--out", metavar="DIR", help="keep a copy of each picture there")
    parser.add_argument(
        "--keep-files", action="store_true", help="rename, move and throw away no LoRA file from the page"
    )
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=whole,
        default=MAX_BATCH,
        help="pictures in one call of the model, of whoever waits; with 1 each has the bits of being painted alone "
        "(default: %(default)s)",
    )
    device_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until it is interrupted; print its address."""
    from lora_runtime.studio.server import Options, Studio

    options = Options(
        models=arguments.model or (),
        loras=arguments.loras or (),
        host=arguments.host,
        port=arguments.port,
        auth=arguments.auth,
        share=arguments.share,
        out=arguments.out,
        keep_files=arguments.keep_files,
        max_batch=arguments.max_batch,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    say_by_oneself()
    with needs_extra("studio"):
        import gradio  # noqa: F401

        studio = Studio(options)
    try:
        print(f"{printable(studio.serve())}  (Ctrl+C ends it)", flush=True)
        threading.Thread(target=_warm, args=[studio], daemon=True).start()
        threading.Event().wait()
    finally:
        studio.close()
    return 0


def _warm(studio: Studio) -> None:
    with suppress(Exception):  # whoever paints is told
        studio.warm()
