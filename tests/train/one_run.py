"""A run in a process of its own: `python -m train.one_run FOLDER JSON` prints the number and the loss of each step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from train.runs import config, pipeline

from lora_runtime.train import Step, train


def main(folder: str, told: str) -> None:
    def on_step(step: Step) -> None:
        print(json.dumps([step.number, step.loss]), flush=True)

    over: dict[str, Any] = json.loads(told)
    pipe = pipeline(over.pop("kind", "small"))
    train(pipe, config(Path(folder), **over), on_step, resume=over.get("save_every_n_steps", 0) > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
