"""Answer requests for pictures over HTTP, each with the LoRAs that its prompt names."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import CommandError, device_arguments, needs_extra, printable, say_by_oneself, whole

if TYPE_CHECKING:
    from lora_runtime.serve import Limits

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `serve`."""
    parser.add_argument(
        "--model", metavar="[NAME=]DIR|FILE", required=True, help="a folder as diffusers saves it, or a checkpoint file"
    )
    parser.add_argument(
        "--loras",
        metavar="DIR",
        action="append",
        help="may be given several times (default: LORA_RUNTIME_PATH, else models/Lora and loras)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="others are let in only with a key, LORA_RUNTIME_API_KEY (default: 127.0.0.1)",
    )
    parser.add_argument("--port", metavar="N", type=_port, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=whole,
        default=4,
        help="images in one call of the pipeline (default: 4; 1: bit-equal to each alone)",
    )
    parser.add_argument(
        "--max-wait-ms", metavar="N", type=_from_0, default=20, help="for others to join a batch (default: 20)"
    )
    parser.add_argument("--max-queue", metavar="N", type=whole, default=64, help="images that may wait (default: 64)")
    parser.add_argument("--timeout", metavar="S", type=whole, default=300, help="of a request (default: 300 seconds)")
    parser.add_argument("--max-n", metavar="N", type=whole, default=4, help="images of one request (default: 4)")
    parser.add_argument("--max-steps", metavar="N", type=whole, default=100, help="default: 100")
    parser.add_argument(
        "--max-pixels", metavar="N", type=whole, default=1536 * 1536, help="of an image (default: 1536 × 1536)"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", nargs="?", const="local", help="replicas on a cluster (default: on this machine)"
    )
    parser.add_argument("--replicas", metavar="N", type=whole, default=1, help="with --ray: pipelines at once")
    parser.add_argument("--gpus", metavar="X", type=float, help="of each replica (default: 1 where there is any)")
    device_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    say_by_oneself()
    with needs_extra("serve"):
        import diffusers
        import PIL  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import transformers
        import uvicorn  # noqa: F401

    for logs in (diffusers.utils.logging, transformers.utils.logging):
        logs.disable_progress_bar()
        logs.set_verbosity_error()  # what they warn of has parts of prompts in it
    from lora_runtime.serve import Limits, serve
    from lora_runtime.sweep import loaders

    given = {each.name: getattr(arguments, each.name) for each in fields(Limits) if hasattr(arguments, each.name)}
    models = loaders([arguments.model], arguments.device, arguments.dtype)
    (name,) = models
    if arguments.ray is not None:
        return _on_ray(arguments, models, name, Limits(**given))
    try:
        serve(
            models,
            loras=arguments.loras,
            model=name,
            limits=Limits(**given),
            host=arguments.host,
            port=arguments.port,
            on_ready=lambda address: print(printable(f"{name} on {address}"), flush=True),
        )
    except OSError as error:
        if error.filename is not None:
            raise
        raise CommandError(f"cannot listen on {arguments.host}, port {arguments.port}: {error.strerror}") from error
    return 0


def _on_ray(arguments: argparse.Namespace, models: Any, name: str, limits: Limits) -> int:
    from lora_runtime.serve.on_ray import deploy

    with deploy(
        models,
        loras=arguments.loras,
        model=name,
        limits=limits,
        host=arguments.host,
        port=arguments.port,
        replicas=arguments.replicas,
        gpus=arguments.gpus,
        address=arguments.ray,
    ) as address:
        print(printable(f"{name} on {address}"), flush=True)
        while True:
            time.sleep(1)  # until ^C


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _from_0(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)
