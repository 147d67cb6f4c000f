"""Paint one picture with any diffusers pipeline and the LoRAs that the prompt names."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import CommandError, needs_extra, one_line

if TYPE_CHECKING:
    from lora_runtime.prompt import Diagnostic

__all__ = ["add_arguments", "run"]

_DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `run`; what is left out is left to the pipeline."""
    parser.add_argument("--model", metavar="DIR", required=True, help="a pipeline as diffusers saves it")
    parser.add_argument("--prompt", required=True, help='for example "a red circle <lora:watercolor:0.7>"')
    parser.add_argument("--out", metavar="PNG", required=True, help="where to write the picture")
    parser.add_argument("--negative-prompt")
    parser.add_argument(
        "--loras",
        metavar="DIR",
        action="append",
        help="may be given several times (default: LORA_RUNTIME_PATH, else models/Lora and loras)",
    )
    parser.add_argument("--strict", action="store_true", help="fail where a tag cannot be used, before painting")
    parser.add_argument("--steps", metavar="N", type=_positive)
    parser.add_argument("--seed", metavar="N", type=int)
    parser.add_argument("--guidance-scale", metavar="X", type=float)
    parser.add_argument("--width", metavar="PIXELS", type=_positive)
    parser.add_argument("--height", metavar="PIXELS", type=_positive)
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the first that is there)")
    parser.add_argument("--dtype", choices=_DTYPES, help="default: float16 on a GPU, else float32")


def run(arguments: argparse.Namespace) -> int:
    """Paint and save the picture; print the report and the path. Problems with single tags go to stderr."""
    out = _checked_out(arguments.out)
    if not Path(arguments.model).is_dir():
        raise CommandError(f"the model folder {arguments.model} does not exist")
    # The diagnostics are printed here. Without any handler Python would print the log too, which says the same.
    logger = logging.getLogger("lora_runtime")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    with needs_extra():
        import diffusers
        import PIL  # noqa: F401
        import torch
        import transformers  # noqa: F401

    from lora_runtime.catalog import LoraCatalog
    from lora_runtime.runtime import apply

    catalog = LoraCatalog(*arguments.loras) if arguments.loras else LoraCatalog.default()
    device = arguments.device or _best_device(torch)
    dtype = arguments.dtype or ("float32" if device == "cpu" else "float16")
    with _failing(f"cannot load the model in {arguments.model}"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            arguments.model, local_files_only=True, **_dtype_argument(diffusers.__version__, getattr(torch, dtype))
        )
    with _failing(f"cannot use the device {device}"):
        pipe.to(device)
    prompt, negative = arguments.prompt, arguments.negative_prompt
    with apply(pipe, prompt, negative_prompt=negative, loras=catalog, strict=arguments.strict) as applied:
        for diagnostic in applied.diagnostics:
            print(_shown(diagnostic, prompt), file=sys.stderr)
        print(applied.report, flush=True)
        with _failing("cannot paint"):
            image = pipe(applied.prompt, **_wishes(arguments, torch)).images[0]
            image.save(out)
    print(out)
    return 0


def _shown(diagnostic: Diagnostic, prompt: str) -> str:
    """Return a diagnostic with its place in the prompt; without, where it is about the whole."""
    if diagnostic.span != (0, 0):
        return diagnostic.format(prompt)
    hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
    return f"{diagnostic.severity}: {diagnostic.message}{hint}"


def _dtype_argument(version: str, dtype: Any) -> dict[str, Any]:
    """Return the dtype under the name that this version of diffusers has for it: 0.42 warns of the old one."""
    major, minor = map(int, version.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 42) else "torch_dtype": dtype}


def _wishes(arguments: argparse.Namespace, torch: Any) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that the user gave."""
    given = {
        "negative_prompt": arguments.negative_prompt,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "width": arguments.width,
        "height": arguments.height,
        # On the CPU, so that a seed gives the same picture on every device.
        "generator": None if arguments.seed is None else torch.Generator("cpu").manual_seed(arguments.seed),
    }
    return {name: value for name, value in given.items() if value is not None}


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_out(name: str) -> Path:
    """Return the path of the picture, checked before the minutes that it takes to paint it."""
    out = Path(name)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise CommandError(f"--out {name}: give a name that ends in .png, .jpg or .webp")
    if out.is_dir():
        raise CommandError(f"--out {name}: this is a folder")
    if not out.parent.is_dir():
        raise CommandError(f"--out {name}: the folder {out.parent} does not exist")
    return out


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn what diffusers and torch raise for a bad model, device, size or too little memory into one line."""
    try:
        yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        AssertionError,
    ) as error:
        raise CommandError(f"{what}: {one_line(error)}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
