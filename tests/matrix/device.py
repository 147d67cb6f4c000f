"""Where the pictures are painted: the host, unless `python -m matrix --device` has named another.

The processes that measure are told by the environment, as what they import makes models at once.
"""

from __future__ import annotations

import os

import torch

NAME = "LORA_RUNTIME_MATRIX_DEVICE"


def _device() -> torch.device:
    name = os.environ.get(NAME, "cpu")
    if name == "pretend":
        from device import pretend

        pretend.start()
        return torch.device("pretend:0")
    # Both sides of a comparison compute in float32: a product in TF32 is off by more than a cell allows.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(name)


DEVICE = _device()
