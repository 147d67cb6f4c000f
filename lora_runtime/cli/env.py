"""Print versions and devices, for whoever reports a fault."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path

from lora_runtime import __version__
from lora_runtime.cli.console import print_json, printable, table

__all__ = ["add_arguments", "run"]

# What the library runs on or beside, and what people's faults most often come from.
_PACKAGES = (
    *("torch", "safetensors", "lark", "numpy", "diffusers", "transformers", "accelerate", "peft"),
    *("bitsandbytes", "torchao", "optimum-quanto", "sdnq", "gguf", "lycoris-lora", "gradio", "pillow", "matplotlib"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `env`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print them."""
    found = {
        "lora_runtime": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _device(),
        "LORA_RUNTIME_PATH": _without_home(os.environ.get("LORA_RUNTIME_PATH", "")),
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }
    if arguments.json:
        print_json(found)
    else:
        print(table(("", ""), [(name, printable(value)) for name, value in found.items()]))
    return 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> str:
    """Return the accelerator that torch sees, with its memory, else the number of its threads."""
    try:
        import torch
    except ImportError as error:  # a broken install is what such a report may be about
        return f"torch cannot be imported: {error}"
    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        return f"{seen.name}, {seen.total_memory / 1e9:.1f} GB, CUDA or ROCm {torch.version.cuda or torch.version.hip}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"CPU, {torch.get_num_threads()} threads"


def _without_home(path: str) -> str:
    """Return a path that does not tell the user's name."""
    home = str(Path.home())
    return path.replace(home, "~") if home not in ("", os.sep) else path
