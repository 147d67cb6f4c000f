"""Writes docs/memory.md: what LoRAs take on models of many sizes, as `lora-runtime plan` says it.

    python tools/memory_table.py            print the page
    python tools/memory_table.py --write    write docs/memory.md

The models are outlines: classes of diffusers and transformers with the sizes of the released configs, on the meta
device. The files are headers: the adapters that people train most, without values. Figures come from the policy and the
forecast that apply itself goes by.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory.md"
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks import model as sizes  # noqa: E402
from lora_runtime.cli.outline import Outline, outline_of  # noqa: E402
from lora_runtime.cli.plan import OFFLOADS, Found, Machine, foresee  # noqa: E402
from lora_runtime.lora import outline  # noqa: E402
from lora_runtime.prompt import parse_prompt  # noqa: E402
from lora_runtime.requests import Request, request_of  # noqa: E402

GB = 10**9
# What a GPU has, and what is free of the host's memory beside it.
MACHINES = ((8, 32), (12, 32), (24, 64), (80, 256))
STORAGES = ("bf16", "fp8", "nf4")
RANK, LOHA_RANK = 32, 8


# ---- models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A pipeline by the sizes in its public configs."""

    name: str
    title: str
    denoiser: str
    make: Callable[[], dict[str, nn.Module]]


def _clip(width: int, layers: int, heads: int, *, projection: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
    )
    made: nn.Module = (CLIPTextModelWithProjection if projection else CLIPTextModel)._from_config(config)
    return made


def _t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    made: nn.Module = T5EncoderModel._from_config(config)
    return made


def _qwen() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    made: nn.Module = Qwen2_5_VLForConditionalGeneration._from_config(config)
    return made


def _autoencoder(channels: int, *, quant: bool = True) -> nn.Module:
    from diffusers import AutoencoderKL

    made: nn.Module = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )
    return made


def _sd15() -> dict[str, nn.Module]:
    from diffusers import UNet2DConditionModel

    return {
        "unet": UNet2DConditionModel(**sizes.SD15),
        "text_encoder": _clip(768, 12, 12),
        "vae": _autoencoder(4),
    }


def _sdxl() -> dict[str, nn.Module]:
    from diffusers import UNet2DConditionModel

    return {
        "unet": UNet2DConditionModel(**sizes.SDXL),
        "text_encoder": _clip(768, 12, 12),
        "text_encoder_2": _clip(1280, 32, 20, projection=True),
        "vae": _autoencoder(4),
    }


def _flux() -> dict[str, nn.Module]:
    from diffusers import FluxTransformer2DModel

    return {
        "transformer": FluxTransformer2DModel(**sizes.FLUX),
        "text_encoder": _clip(768, 12, 12),
        "text_encoder_2": _t5(),
        "vae": _autoencoder(16, quant=False),
    }


def _qwen_image() -> dict[str, nn.Module]:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    return {
        "transformer": QwenImageTransformer2DModel(),  # its defaults are the released sizes
        "text_encoder": _qwen(),
        "vae": AutoencoderKLQwenImage(),
    }


MODELS = (
    Model("SD1.5", "StableDiffusionPipeline", "unet", _sd15),
    Model("SDXL", "StableDiffusionXLPipeline", "unet", _sdxl),
    Model("Flux", "FluxPipeline", "transformer", _flux),
    Model("Qwen-Image", "QwenImagePipeline", "transformer", _qwen_image),
)


def built(model: Model) -> dict[str, nn.Module]:
    """Return the components of a model on the meta device."""
    with torch.device("meta"):
        return model.make()


# ---- files ----------------------------------------------------------------------------------------------------------


def changed_layers(root: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of attention and feed-forward, without those that norms have."""
    # Flux's single blocks have a feed-forward of two layers by themselves.
    own = re.compile(r"\.attn\w*\.|\.ff(_context)?\.|_mlp\.net\.|single_transformer_blocks\.\d+\.proj_")
    return {path: module for path, module in root.named_modules() if isinstance(module, nn.Linear) and own.search(path)}


def lora(layers: dict[str, nn.Linear], prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the names and shapes of a LoRA of rank `RANK`."""
    for path, layer in layers.items():
        yield f"{prefix}.{path}.lora_A.weight", (RANK, layer.in_features)
        yield f"{prefix}.{path}.lora_B.weight", (layer.out_features, RANK)


def loha(layers: dict[str, nn.Linear], prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the names and shapes of a LoHa of rank `LOHA_RANK`."""
    for path, layer in layers.items():
        for side in ("w1", "w2"):
            yield f"{prefix}.{path}.hada_{side}_a", (layer.out_features, LOHA_RANK)
            yield f"{prefix}.{path}.hada_{side}_b", (LOHA_RANK, layer.in_features)


KINDS = {f"LoRA of rank {RANK}": lora, f"LoHa of rank {LOHA_RANK}": loha}


def write_header(path: Path, tensors: Iterator[tuple[str, tuple[int, int]]]) -> None:
    """Write a safetensors file in fp16 whose values are a hole: it has its size, and takes no place."""
    table: dict[str, Any] = {}
    end = 0
    for name, shape in tensors:
        start, end = end, end + 2 * shape[0] * shape[1]
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


def request_for(path: Path) -> Request:
    """Return what a tag of a file asks for."""
    (tag,) = parse_prompt(f"<lora:{path.stem}:0.8>").tags
    return request_of(tag, replace(outline(path), hashed=partial(str, path.stem), nbytes=path.stat().st_size))


# ---- the page -------------------------------------------------------------------------------------------------------

_HEAD = """\
# Memory

Made by `python tools/memory_table.py --write`; a test holds it to the code. `lora-runtime plan` prints the same for
your own pipeline, prompt and card, from configs and headers alone:

    lora-runtime plan --model DIR --prompt "a boat <lora:ink:0.7>" --device-memory 24GB --host-memory 32GB

## What takes memory, and where

W₀ is a weight as the model has it, W′ with LoRAs in it. A LoRA that is the same throughout a picture is *merged*: W′ is
summed once, steps cost nothing more, and somewhere W₀ has to wait for the restore. `originals="auto"`, which is what
`apply` does unless told otherwise, goes down these steps until there is room:

1. **device**: W′ lies beside W₀ on the device. Restoring takes microseconds a weight. It needs as much again as the
   weights that LoRAs change, and auto wants as much once more to stay free, for what the model computes.
2. **host**: W₀ is copied to host memory, and W′ is written in its place. The device holds nothing more. A change of
   strength sends W₀ up again.
3. **beside**: no weight is copied. Factors lie on the device and act beside the layers at each step: y += s·U(D·x).
   Steps take a little longer, and pictures differ from merged ones by roundings.

Where the weights lie in host memory (on a CPU, or under model offload between two calls), steps 1 and 3 are all there
are: a copy in the same memory saves nothing. Where a weight cannot be merged into, adapters act beside its layer
whatever the memory: stored in 8 bits or less (fp8, nf4), or kept elsewhere between two calls (group offload with a
stream). The memory that is free is what the device itself says; what is held for the same weights already counts as
free, so that the step does not change from picture to picture. Running out all the same goes down a step.
"""
_FORCE = """
## To force another

    apply(pipe, prompt, originals="host")         one of "auto", "device", "host", "inplace", "beside"
    apply(pipe, prompt, device_memory="2GB")      at most so much for copies on the device
    apply(pipe, prompt, host_memory="8GB")        and so much in host memory

*inplace* is for CUDA graphs and whoever else holds addresses: W₀ is copied on the device, and W′ written in its place.
What is forced and does not fit raises: nothing else is done in silence. `lora_runtime.restore(pipe)` frees all of it.

Factors of merged LoRAs go up in one copy for each file and weight, and stay on the device where they take at most a
quarter of what copies leave free there (and, with the rest, at most `device_memory`): a change of strength then sends
none of them. They are given up first where memory runs out.

The report of an apply says which step was taken, with its bytes and the reason.

LoRA files that were read stay in host memory beside all that, so that a change of strength reads nothing from disk:
those used last, up to 1 GiB, and whatever the last apply used. `lora_runtime.limit_cache("4GB")` sets another limit,
`limit_cache(0)` keeps only what is in use, and `lora_runtime.clear_cache()` forgets them all.
"""
_TABLES = """
## Tables

A {lora} and a {loha}, each on the linear layers of attention and feed-forward of the denoiser, files in
fp16, nothing else applied. *fp8*: the denoiser under `enable_layerwise_casting`; *nf4*: the denoiser and text encoders
of more than a billion parameters by bitsandbytes. Cards of 8, 12, 24 and 80 GB, with 32, 32, 64 and 256 GB of host
memory free. All of a card is taken for free that the weights leave: a CUDA context takes half a GB of it.

*device* and *host*: bytes kept beside the model. *factors*: bytes of the files that stay on the device besides, for the
next change of strength. *peak*: the most on the device while applying. *first* and *switch*: bytes copied between host
and device at the first apply, and at a change of strength. Under offload the copies of the model itself are not
counted. *does not fit*: the model by itself, on the card or under offload in host memory.
"""


def page() -> str:
    """Return docs/memory.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _HEAD.rstrip("\n")
    yield _FORCE.rstrip("\n")
    first, second = KINDS
    yield _TABLES.format(lora=first, loha=second).rstrip("\n")
    for model in MODELS:
        yield ""
        yield from section(model)


def section(model: Model) -> Iterator[str]:
    """Yield the lines of one model."""
    components = built(model)
    counts = ", ".join(f"{name} {_billions(root)}" for name, root in components.items())
    layers = changed_layers(components[model.denoiser])
    share = sum(layer.weight.numel() for layer in layers.values())
    yield f"### {model.name}"
    yield ""
    yield f"{counts}; {len(layers)} layers change, of {share / 1e9:.2f} billion weights."
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for kind, shapes in KINDS.items():
            files[kind] = Path(folder) / f"{kind.split()[0].lower()}.safetensors"
            write_header(files[kind], shapes(layers, model.denoiser))
        requests = {kind: request_for(path) for kind, path in files.items()}
        found: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in KINDS}
        for storage in STORAGES:
            made = outline_of(model.title, built(model), storage)
            for kind, rows in _rows(made, requests, storage).items():
                found[kind] += rows
    for kind, rows in found.items():
        yield ""
        yield f"{kind}, a file of {_bytes(requests[kind].lora.nbytes)}:"
        yield ""
        yield from _table(("stored", "offload", "GB", "model", *_TITLES), rows)


_TITLES = ("layers", "originals", "device", "factors", "peak", "host", "first", "switch")


def _rows(made: Outline, requests: dict[str, Request], storage: str) -> dict[str, list[tuple[str, ...]]]:
    """Return by kind of file a row for each outcome, with the cards and the ways to offload that have it."""
    found: dict[str, dict[tuple[str, ...], dict[str, list[str]]]] = {kind: {} for kind in requests}
    for offload in OFFLOADS:  # "group" last: it stays on the model
        for device, host in MACHINES:
            machine = Machine(device * GB, host * GB, offload)
            for kind, request in requests.items():
                outcome = _outcome(foresee(made, [request], machine), machine)
                found[kind].setdefault(outcome, {}).setdefault(offload, []).append(str(device))
    size = _bytes(sum(made.sizes.values()))
    rows: dict[str, list[tuple[str, ...]]] = {}
    for kind, outcomes in found.items():
        joined: dict[tuple[tuple[str, ...], str], list[str]] = {}
        for outcome, places in outcomes.items():
            for offload, cards in places.items():
                joined.setdefault((outcome, ", ".join(cards)), []).append(offload)
        rows[kind] = [
            (storage, ", ".join(offloads), cards, size, *outcome) for (outcome, cards), offloads in joined.items()
        ]
    return rows


def _outcome(found: Found, machine: Machine) -> tuple[str, ...]:
    if found.notes:  # what does not fit by itself
        return "does not fit", *("–" for _ in _TITLES[1:])
    (one,) = (component for component in found.components if component.weights)
    layers = [f"{one.merged} merged"] if one.merged else []
    layers += [f"{one.acting} beside"] if one.acting else []
    where = {"device": "in host memory" if machine.offload != "none" else "device", "beside": "–"}.get(
        one.step, one.step
    )
    on_device = one.device_kept, one.factor_bytes, one.device_peak
    kept = (*on_device, one.host_kept, one.first_copies, one.switch_copies)
    return ", ".join(layers), where, *map(_bytes, kept)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _bytes(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB // 10 else f"{size / 1e6:.0f} MB" if size else "0"


def _billions(root: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in root.parameters()) / 1e9:.2f} B"


if __name__ == "__main__":
    text = page()
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
