"""Single layers: Δ(W₀) against the libraries that write the files, and calls with adapters beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import lora_runtime
from benchmarks.judges import JUDGES, judged, quiet
from benchmarks.records import Options, Record, record_of
from benchmarks.timing import Times, seconds, timed

__all__ = ["beside", "deltas"]

# SDXL's layers: (out, in) or (out, in, kernel), and a small one for a quick run.
LAYERS = {"attention": (1280, 1280), "cross": (1280, 2048), "ff": (10240, 1280), "conv": (640, 640, 3)}
SMALL_LAYERS = {"attention": (128, 128)}


def deltas(options: Options) -> Iterator[Record]:
    """Yield the time of our Δ(W₀), and of the library's own merge, for each judge and layer."""
    for layer, (out, columns, *kernel) in (SMALL_LAYERS if options.quick else LAYERS).items():
        for judge in JUDGES:
            if kernel and not judge.convolutions:
                continue
            torch.manual_seed(0)
            made = (
                torch.nn.Conv2d(columns, out, kernel[0], bias=False)
                if kernel
                else torch.nn.Linear(columns, out, bias=False)
            )
            with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
                found = judged(judge, made, Path(folder))
                if found is None:
                    continue
                times: Times[str] = Times(replace(options.limits, seconds=options.seconds / 50))
                for counts in times.rounds():
                    found.reset()
                    for who, run in times.shuffled((("ours", found.delta), (judge.library, found.merged))):
                        taken = seconds(run)
                        if counts:
                            times.add(who, taken)
            for who, timing in times.timings().items():
                yield record_of(f"delta {judge.name} {layer}", "-", who, timing)


def beside(options: Options) -> Iterator[Record]:
    """Yield the time of a call of linear layers with a LoRA beside each: ours, PEFT's unmerged, and none.

    `linear`: plain layers in bfloat16, at a strength that varies; `nf4`: layers of bitsandbytes, where that is.
    """
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    size, tokens = (64, 8) if options.quick else (1280, 512)
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator) * 0.1 for shape in ((size, 16), (16, size)))
    inputs = torch.randn(tokens, size, generator=generator).to(options.device, torch.bfloat16)

    def model(quantised: bool) -> Any:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(4))).bfloat16()
        if quantised:
            bnb = import_module("bitsandbytes").nn
            for number, plain in enumerate(list(layers)):
                assert isinstance(plain, torch.nn.Linear)
                layer = bnb.Linear4bit(size, size, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
                layer.weight = bnb.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
                layers[number] = layer
        return layers.to(options.device).eval().requires_grad_(False)

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        keys = {f"{n}.lora_{side}.weight": t.clone() for n in range(4) for side, t in (("A", down), ("B", up))}
        save_file(keys, Path(folder) / "x.safetensors")
        for case, quantised in (("linear", False), ("nf4", True)):
            try:
                bare, ours, peft = model(quantised), model(quantised), model(quantised)
            except ImportError:
                continue
            lora_runtime.apply(ours, "<lora:x:0.7@0,0.9@1>", loras=folder, strict=True)
            config = LoraConfig(r=16, lora_alpha=16, target_modules=list("0123"))
            unmerged = get_peft_model(peft, config, autocast_adapter_dtype=False)
            ways = {who: partial(m, inputs) for who, m in (("bare", bare), ("ours", ours), ("unmerged", unmerged))}
            for who, timing in timed(ways, options.limits).items():
                yield record_of(case, "bfloat16", who, timing)
