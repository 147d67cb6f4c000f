"""Paint pictures with any diffusers pipeline and the LoRAs that the prompts name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import (
    CommandError,
    checked_out,
    device_arguments,
    lora_places_argument,
    model_config_argument,
    needs_extra,
    one_line,
    reading_arguments,
    say_by_oneself,
    whole,
)

if TYPE_CHECKING:
    from lora_runtime.prompt import Diagnostic
    from lora_runtime.runtime import Applied

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `run`; what is left out is left to the pipeline."""
    parser.add_argument(
        "--model", metavar="DIR|FILE", required=True, help="a folder as diffusers saves it, or one checkpoint file"
    )
    model_config_argument(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        help='for example "a red circle <lora:watercolor:0.7>"; given several times, they are painted in one batch',
    )
    parser.add_argument(
        "--out",
        metavar="PNG",
        required=True,
        help="where to write the picture; of several, a.png is a-1.png, a-2.png …",
    )
    parser.add_argument("--negative-prompt")
    parser.add_argument(
        "--negative-tags",
        choices=("words", "apply"),
        default="words",
        help="apply: tags of the negative prompt act on its side of the guidance (default: words, which warns of them)",
    )
    lora_places_argument(parser)
    parser.add_argument("--strict", action="store_true", help="fail where a tag cannot be used, before painting")
    reading_arguments(parser)
    parser.add_argument("--steps", metavar="N", type=whole)
    parser.add_argument("--seed", metavar="N", type=int, help="of the first picture; each has the next")
    parser.add_argument("--guidance-scale", metavar="X", type=float)
    parser.add_argument("--width", metavar="PIXELS", type=whole)
    parser.add_argument("--height", metavar="PIXELS", type=whole)
    device_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Paint and save the picture; print the report and the path. Problems with single tags go to stderr."""
    out = checked_out(arguments.out, (".png", ".jpg", ".jpeg", ".webp"))
    say_by_oneself()
    with needs_extra():
        import diffusers  # noqa: F401
        import PIL  # noqa: F401
        import torch
        import transformers  # noqa: F401

    from lora_runtime.lookup import catalog_for
    from lora_runtime.pipelines.saved import device_and_dtype, load_saved
    from lora_runtime.runtime import apply

    catalog = catalog_for(arguments.loras)
    device, dtype = device_and_dtype(torch, arguments.device, arguments.dtype)
    pipe = load_saved(arguments.model, dtype, arguments.model_config)
    with _failing(f"cannot use the device {device}"):
        pipe.to(device)
    prompts, negative = arguments.prompt, arguments.negative_prompt
    if negative is not None:
        negative = [negative] * len(prompts)
    seeds = None if arguments.seed is None else range(arguments.seed, arguments.seed + len(prompts))
    with apply(
        pipe,
        prompts,
        negative_prompt=negative,
        loras=catalog,
        strict=arguments.strict,
        negative_tags=arguments.negative_tags,
        seeds=seeds,
        dialect=arguments.dialect,
        scope=arguments.scope,
    ) as applied:
        for diagnostic in applied.diagnostics:
            print(_shown(diagnostic, applied), file=sys.stderr)
        print(applied.report, flush=True)
        with _failing("cannot paint"):
            images = pipe(applied.prompt, **_wishes(arguments, applied.negative_prompt, seeds, torch)).images
            paths = [out] if len(images) == 1 else [out.with_stem(f"{out.stem}-{n + 1}") for n in range(len(images))]
            for image, path in zip(images, paths, strict=True):
                image.save(path)
    print(*paths, sep="\n")
    return 0


def _shown(diagnostic: Diagnostic, applied: Applied[list[str]]) -> str:
    """Return a diagnostic with its place in the prompt; without, where it is about the whole or the negative prompt."""
    for prompt in applied.prompts:
        if diagnostic in prompt.diagnostics or any(tag.span == diagnostic.span for tag in prompt.tags):
            return diagnostic.format(prompt.source)
    hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
    return f"{diagnostic.severity}: {diagnostic.message}{hint}"


def _wishes(
    arguments: argparse.Namespace, negative: str | list[str] | None, seeds: Sequence[int] | None, torch: Any
) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that the user gave."""
    given = {
        "negative_prompt": negative,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "width": arguments.width,
        "height": arguments.height,
        # On the CPU, so that a seed gives the same picture on every device.
        "generator": None if seeds is None else [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    }
    return {name: value for name, value in given.items() if value is not None}


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
