"""Models with the modules of LDM, SGM and the WebUI, by their names and shapes; they cannot paint.

None of those projects is imported. Widths are those of `tiny.py`, so that files for its pipelines fit; with `size` the
widths of the published models, for the meta device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tiny
import torch
from torch import Tensor, nn


class Tree(nn.Module):
    """Named children in a row."""

    def __init__(self, **children: nn.Module | None) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


# Named as the real ones, since views show the name.
class LatentDiffusion(Tree): ...


class DiffusionEngine(Tree): ...


class SD3Inferencer(Tree): ...


@dataclass(frozen=True)
class Layout:
    """What shapes an original UNet."""

    channels: Sequence[int]  # of each level
    depths: Sequence[int]  # transformer blocks of each level; 0: without attention
    middle: int  # transformer blocks in the middle
    text: int  # the width of the text
    linear: bool  # whether the projections around transformers are linear layers
    vector: int = 0  # of the inputs beside text and time
    groups: int = 2
    inputs: int = 4


TINY = {
    "sd1": Layout((4, 8, 12, 12), (1, 1, 1, 0), 1, tiny.WIDTH["sd1"], False),
    "sd2": Layout((4, 8, 12, 12), (1, 1, 1, 0), 1, tiny.WIDTH["sd2"], True),
    "sdxl": Layout((4, 8, 12), (0, 2, 3), 3, tiny.WIDTH["sdxl"], True, 6 * 4 + tiny.SECOND_WIDTH),
    "refiner": Layout((4, 8, 12, 12), (0, 2, 2, 0), 2, tiny.SECOND_WIDTH, True, 24),
}
REAL = {
    "sd1": Layout((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, False, groups=32),
    "sd2": Layout((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, True, groups=32),
    "sdxl": Layout((320, 640, 1280), (0, 2, 10), 10, 2048, True, 2816, 32),
    "refiner": Layout((384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, True, 2560, 32),
}


def resnet(inputs: int, outputs: int, layout: Layout) -> nn.Module:
    time = 4 * layout.channels[0]
    return Tree(
        in_layers=nn.Sequential(
            nn.GroupNorm(layout.groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        ),
        emb_layers=nn.Sequential(nn.SiLU(), nn.Linear(time, outputs)),
        out_layers=nn.Sequential(
            nn.GroupNorm(layout.groups, outputs), nn.SiLU(), nn.Dropout(), nn.Conv2d(outputs, outputs, 3, padding=1)
        ),
        skip_connection=nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1),
    )


def attention(width: int, text: int) -> nn.Module:
    return Tree(
        to_q=nn.Linear(width, width, bias=False),
        to_k=nn.Linear(text, width, bias=False),
        to_v=nn.Linear(text, width, bias=False),
        to_out=nn.Sequential(nn.Linear(width, width), nn.Dropout()),
    )


def transformer(width: int, depth: int, layout: Layout) -> nn.Module:
    def projection() -> nn.Module:
        return nn.Linear(width, width) if layout.linear else nn.Conv2d(width, width, 1)

    blocks = [
        Tree(
            attn1=attention(width, width),
            ff=Tree(
                net=nn.Sequential(Tree(proj=nn.Linear(width, 8 * width)), nn.Dropout(), nn.Linear(4 * width, width))
            ),
            attn2=attention(width, layout.text),
            norm1=nn.LayerNorm(width),
            norm2=nn.LayerNorm(width),
            norm3=nn.LayerNorm(width),
        )
        for _ in range(depth)
    ]
    return Tree(
        norm=nn.GroupNorm(layout.groups, width),
        proj_in=projection(),
        transformer_blocks=nn.ModuleList(blocks),
        proj_out=projection(),
    )


def unet(layout: Layout, seed: int = 0) -> nn.Module:
    """Return a UNetModel: two layers a level, a sampler between levels."""
    torch.manual_seed(seed)
    first = layout.channels[0]
    time = 4 * first

    def layer(inputs: int, level: int) -> list[nn.Module]:
        width, depth = layout.channels[level], layout.depths[level]
        return [resnet(inputs, width, layout), *([transformer(width, depth, layout)] if depth else [])]

    down: list[nn.Module] = [nn.Sequential(nn.Conv2d(layout.inputs, first, 3, padding=1))]
    width, skipped = first, [first]
    for level, channels in enumerate(layout.channels):
        for _ in range(2):
            down.append(nn.Sequential(*layer(width, level)))
            width = channels
            skipped.append(width)
        if level < len(layout.channels) - 1:
            down.append(nn.Sequential(Tree(op=nn.Conv2d(width, width, 3, stride=2, padding=1))))
            skipped.append(width)
    middle = [resnet(width, width, layout), transformer(width, layout.middle, layout), resnet(width, width, layout)]
    up: list[nn.Module] = []
    for level in reversed(range(len(layout.channels))):
        for index in range(3):
            parts = layer(width + skipped.pop(), level)
            width = layout.channels[level]
            if index == 2 and level:
                parts.append(Tree(conv=nn.Conv2d(width, width, 3, padding=1)))
            up.append(nn.Sequential(*parts))
    model = type("UNetModel", (Tree,), {})(
        time_embed=nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time)),
        input_blocks=nn.ModuleList(down),
        middle_block=nn.Sequential(*middle),
        output_blocks=nn.ModuleList(up),
        out=nn.Sequential(nn.GroupNorm(layout.groups, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1)),
    )
    if layout.vector:
        inner = nn.Sequential(nn.Linear(layout.vector, time), nn.SiLU(), nn.Linear(time, time))
        model.label_emb = nn.Sequential(inner)
    return _random(model)


def open_clip(width: int, layers: int = 2, seed: int = 1) -> nn.Module:
    """Return the text side of OpenCLIP."""
    torch.manual_seed(seed)
    blocks = [
        Tree(
            ln_1=nn.LayerNorm(width),
            attn=nn.MultiheadAttention(width, 2),
            ls_1=nn.Identity(),
            ln_2=nn.LayerNorm(width),
            mlp=nn.Sequential(
                OrderedDict(c_fc=nn.Linear(width, 2 * width), gelu=nn.GELU(), c_proj=nn.Linear(2 * width, width))
            ),
            ls_2=nn.Identity(),
        )
        for _ in range(layers)
    ]
    model = Tree(
        transformer=Tree(resblocks=nn.ModuleList(blocks)),
        token_embedding=nn.Embedding(64, width),
        ln_final=nn.LayerNorm(width),
    )
    model.positional_embedding = nn.Parameter(torch.randn(tiny.TOKENS, width))
    model.text_projection = nn.Parameter(torch.randn(width, width))
    model.logit_scale = nn.Parameter(torch.ones(()))
    return _random(model)


def mmdit(width: int = 8, depth: int = 2, text: int = 12, seed: int = 2, *, dual: int = 0) -> nn.Module:
    """Return an MMDiT; the first `dual` blocks have a second attention and norms of q and k, as in SD3.5."""
    torch.manual_seed(seed)

    def self_attention(last: bool) -> nn.Module:
        made = Tree(qkv=nn.Linear(width, 3 * width))
        if not last:
            made.proj = nn.Linear(width, width)
        if dual:
            made.ln_q, made.ln_k = nn.RMSNorm(width // 2), nn.RMSNorm(width // 2)
        return made

    def block(last: bool, second: bool = False) -> nn.Module:
        made = Tree(norm1=nn.LayerNorm(width, elementwise_affine=False), attn=self_attention(last))
        modulations = 2 if last else 6
        if second:
            made.attn2, modulations = self_attention(False), 9
        if not last:
            made.mlp = Tree(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        made.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, modulations * width))
        return made

    def two_layers(inputs: int) -> nn.Module:
        return Tree(mlp=nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width)))

    blocks = [
        Tree(context_block=block(index == depth - 1), x_block=block(False, index < dual)) for index in range(depth)
    ]
    model = type("MMDiT", (Tree,), {})(
        x_embedder=Tree(proj=nn.Conv2d(16, width, 2, stride=2)),
        t_embedder=two_layers(10),
        y_embedder=two_layers(14),
        context_embedder=nn.Linear(text, width),
        joint_blocks=nn.ModuleList(blocks),
        final_layer=Tree(
            norm_final=nn.LayerNorm(width, elementwise_affine=False),
            linear=nn.Linear(width, 64),
            adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
        ),
    )
    model.register_buffer("pos_embed", torch.randn(1, 9, width))
    return _random(model)


def t5(width: int = 6, seed: int = 4) -> Any:
    """Return a T5EncoderModel."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=16, d_model=width, d_kv=3, d_ff=8, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval().requires_grad_(False)


def model(kind: str, *, hijacked: bool = True, inputs: int = 4) -> nn.Module:
    """Return a whole model ("sd1", "sd2", "sdxl", "refiner", "sd3"), by default as the WebUI has it while it runs."""
    if kind == "sd3":
        return _sd3()
    layout = replace(TINY[kind], inputs=inputs)
    inside = Tree(diffusion_model=unet(layout))
    if kind in ("sd1", "sd2"):
        stage = _clip(layout.text) if kind == "sd1" else _open_clip(layout.text)
        return LatentDiffusion(model=inside, cond_stage_model=_hijack(stage) if hijacked else stage)
    second = tiny.SECOND_WIDTH
    found = [_open_clip(second)] if kind == "refiner" else [_clip(layout.text - second), _open_clip(second)]
    embedders = [_hijack(embedder) if hijacked else embedder for embedder in found]
    conditioner = Tree(embedders=nn.ModuleList([*embedders, Tree(), Tree()]))
    made = DiffusionEngine(model=inside, conditioner=conditioner)
    if hijacked:
        conditioner.wrapped = nn.Module()
        made.cond_stage_model = embedders[0] if kind == "refiner" else conditioner
    return made


def _clip(width: int) -> nn.Module:
    return Tree(transformer=tiny.text_encoder(width))


def _open_clip(width: int) -> nn.Module:
    return Tree(model=open_clip(width))


def _sd3() -> nn.Module:
    first = tiny.text_encoder(tiny.WIDTH["sdxl"] - tiny.SECOND_WIDTH, projection=True)
    second = tiny.text_encoder(tiny.SECOND_WIDTH, projection=True, seed=3)
    clip_l, clip_g, t5xxl = Tree(transformer=first), Tree(transformer=second), Tree(transformer=t5())
    both = Tree(clip_l=clip_l, clip_g=clip_g)
    encoders = Tree(clip_g=clip_g, clip_l=clip_l, t5xxl=t5xxl, model_lg=both, model_t5=Tree(t5xxl=t5xxl))
    return SD3Inferencer(model=Tree(diffusion_model=mmdit()), text_encoders=encoders)


def _hijack(embedder: nn.Module) -> nn.Module:
    """Wrap a text encoder and its table of tokens as the WebUI does."""
    holder: Any = embedder.model if hasattr(embedder, "model") else _embeddings(embedder.transformer)
    holder.token_embedding = Tree(wrapped=holder.token_embedding)
    return Tree(wrapped=embedder)


def _embeddings(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder).embeddings


@torch.no_grad()
def _random(made: nn.Module) -> nn.Module:
    """Give every parameter values of its own, so that each can be told from all others."""
    for parameter in made.parameters():
        if parameter.device.type != "meta":
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return made.eval().requires_grad_(False)


def state(made: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights by the names of the checkpoint, that is, without the WebUI's wrappers."""
    return {prefix + name.replace(".wrapped", ""): tensor.clone() for name, tensor in made.state_dict().items()}


def stems(tensors: Iterable[str]) -> list[str]:
    """Return the stems of a kohya file's keys."""
    return list(dict.fromkeys(key.split(".")[0] for key in tensors))
