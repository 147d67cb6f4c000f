"""Train a LoRA on a folder of pictures."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.cli.console import CommandError, human_size, model_config_argument, needs_extra, one_line, printable

if TYPE_CHECKING:
    from lora_runtime.train import Config, Step

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `train`."""
    parser.add_argument("--model", metavar="DIR|FILE", help="a folder as diffusers saves it, or one .safetensors file")
    model_config_argument(parser)
    parser.add_argument("--data", metavar="DIR", help="the folder with the folders of pictures, 20_robot/ and so on")
    parser.add_argument("--out", metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--config", metavar="TOML", help="more numbers, in kohya's names")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="one of them, may be given several times"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last state of a broken run")
    parser.add_argument("--force", action="store_true", help="replace a file that is there, forget a broken run")


def run(arguments: argparse.Namespace) -> int:
    """Train and print what was made; raises TrainingError and LoraFileError."""
    over = _named(arguments)
    with needs_extra("train"):
        import accelerate
        import diffusers
        import peft  # noqa: F401
        import PIL  # noqa: F401
        import transformers
        from tqdm import tqdm

    from lora_runtime.train import load_pipeline, train
    from lora_runtime.train.state import state_path

    config, notes = _config(arguments, over)
    main = accelerate.PartialState().is_main_process
    for logs in (diffusers.utils.logging, transformers.utils.logging):
        logs.disable_progress_bar()
    for note in notes if main else ():
        print(printable(note), file=sys.stderr)
    pipe = load_pipeline(config)
    with tqdm(unit="step", file=sys.stderr, disable=not main, dynamic_ncols=True) as bar, _until_interrupted() as asked:

        def on_step(step: Step) -> bool:
            bar.total = step.steps
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bar.update(step.number - bar.n)
            return asked.is_set()

        def on_note(line: str) -> None:
            tqdm.write(printable(line), file=sys.stderr)

        try:
            trained = train(pipe, config, on_step, on_note=on_note, resume=arguments.resume, force=arguments.force)
        except KeyboardInterrupt:
            bar.close()
            if main and state_path(config.out).exists():
                print(printable(f"{state_path(config.out)} is kept: --resume goes on from it"), file=sys.stderr)
            raise
    if main:
        size = human_size(trained.path.stat().st_size)
        print(printable(f"{trained.path}: {size}, {trained.steps} steps, loss {_last(trained.losses):.4f}"))
        print(printable(f"  use it: <lora:{config.output_name}:1>, with the file in a folder that --loras names"))
    return 0


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Give what is set at the first ^C, so that the step can end and the state be written; the second stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone hears of it
        yield asked
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _named(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments say of a configuration, by its names."""
    over: dict[str, Any] = {}
    if arguments.model is not None:
        over["pretrained_model_name_or_path"] = arguments.model
    if arguments.model_config is not None:
        over["model_config"] = arguments.model_config
    if arguments.data is not None:
        over["train_data_dir"] = arguments.data
    if arguments.out is not None:
        out = Path(arguments.out)
        if out.suffix.lower() != ".safetensors":
            raise CommandError(f"--out {out}: give a name that ends in .safetensors")
        over |= {"output_dir": str(out.parent), "output_name": out.stem}
    return over


def _config(arguments: argparse.Namespace, over: dict[str, Any]) -> tuple[Config, list[str]]:
    """Return the numbers of the file, of `--set` and of the other arguments, and what there is to say of them."""
    from dataclasses import fields

    from lora_runtime.train import Config, read_config
    from lora_runtime.train.kohya import translate

    said = dict(_setting(text) for text in arguments.set)
    values, notes = translate(said, {field.name: str(field.type) for field in fields(Config)}, whole=False)
    over = {**values, **over}
    if arguments.config is None:
        return Config(**over), notes
    config, more = read_config(arguments.config, **over)
    return config, [*more, *notes]


def _setting(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE, which is a line of TOML, or a text without its quotes."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise CommandError(f"--set {text}: write NAME=VALUE, such as network_dim=16")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if not value or value[0] in "[{\"'":
            raise CommandError(f"--set {text}: {one_line(error)}") from error
        return name, value


def _last(losses: tuple[float, ...]) -> float:
    """Return the mean loss of the last tenth of the steps."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
