"""LoRA files with a few modules each, and what they do to a checkpoint: read from the formats, computed in float64.

`PLACES` was written by hand: where in a checkpoint's own names the module lies that a trainer calls by that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# In the file's name of a module: (the weight's name in the checkpoint, which third of its rows, None for all of it)
Place = tuple[str, int | None]

_UNET = "model.diffusion_model."
_CLIP = "cond_stage_model.transformer.text_model.encoder.layers.0."
_OPEN_CLIP = "cond_stage_model.model.transformer.resblocks.1."
_FIRST = "conditioner.embedders.0.transformer.text_model.encoder.layers.1."
_SECOND = "conditioner.embedders.1.model.transformer.resblocks.0."
_BLOCK = f"{_UNET}joint_blocks.0."

_OLD_UNET: dict[str, Place] = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
        f"{_UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        None,
    ),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": (
        f"{_UNET}middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        None,
    ),
    "lora_unet_mid_block_attentions_0_proj_in": (f"{_UNET}middle_block.1.proj_in.weight", None),
    "lora_unet_up_blocks_1_resnets_0_conv1": (f"{_UNET}output_blocks.3.0.in_layers.2.weight", None),
    "lora_unet_down_blocks_0_downsamplers_0_conv": (f"{_UNET}input_blocks.3.0.op.weight", None),
}
PLACES: dict[str, dict[str, Place]] = {
    "sd1": {
        **_OLD_UNET,
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (f"{_CLIP}self_attn.q_proj.weight", None),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (f"{_CLIP}mlp.fc1.weight", None),
    },
    "sd2": {
        **_OLD_UNET,
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (f"{_OPEN_CLIP}attn.in_proj_weight", 0),
        "lora_te_text_model_encoder_layers_1_self_attn_k_proj": (f"{_OPEN_CLIP}attn.in_proj_weight", 1),
        "lora_te_text_model_encoder_layers_1_self_attn_v_proj": (f"{_OPEN_CLIP}attn.in_proj_weight", 2),
        "lora_te_text_model_encoder_layers_1_self_attn_out_proj": (f"{_OPEN_CLIP}attn.out_proj.weight", None),
        "lora_te_text_model_encoder_layers_1_mlp_fc2": (f"{_OPEN_CLIP}mlp.c_proj.weight", None),
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k": (
            f"{_UNET}input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight",
            None,
        ),
        "lora_unet_middle_block_1_proj_in": (f"{_UNET}middle_block.1.proj_in.weight", None),
        "lora_unet_output_blocks_2_2_conv": (f"{_UNET}output_blocks.2.2.conv.weight", None),
        "lora_te1_text_model_encoder_layers_1_self_attn_v_proj": (f"{_FIRST}self_attn.v_proj.weight", None),
        "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": (f"{_SECOND}attn.in_proj_weight", 1),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": (f"{_SECOND}mlp.c_fc.weight", None),
    },
    "sd3": {
        "lora_unet_joint_blocks_0_context_block_attn_qkv": (f"{_BLOCK}context_block.attn.qkv.weight", None),
        "lora_unet_joint_blocks_0_x_block_mlp_fc1": (f"{_BLOCK}x_block.mlp.fc1.weight", None),
        "transformer.transformer_blocks.0.attn.to_q": (f"{_BLOCK}x_block.attn.qkv.weight", 0),
        "transformer.transformer_blocks.0.attn.to_v": (f"{_BLOCK}x_block.attn.qkv.weight", 2),
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
            None,
        ),
    },
}
RANK, ALPHA = 2, 1.0


@dataclass(frozen=True)
class File:
    """A LoRA: its path, the kind of model that it is for, and its factors (up, down) by the file's names."""

    path: Path
    kind: str
    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def places(self) -> set[str]:
        """The names of the weights that it changes, as the checkpoint has them."""
        return {PLACES[self.kind][name][0] for name in self.factors}


def plain(name: str = "a", *, half: bool = False) -> dict[str, Tensor]:
    """Return the weights of a checkpoint of the double, as its file has them."""
    from double.webui import plain_weights  # not before the double is on the path: it imports `modules`

    return plain_weights(name, half=half)


def write(
    path: Path,
    plain: Mapping[str, Tensor],
    kind: str = "sd1",
    *,
    seed: int = 0,
    only: str = "",
    metadata: Mapping[str, str] | None = None,
    more: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> File:
    """Write a LoRA with random factors for the modules with `only` in their names.

    `plain` has the checkpoint's weights, of which the shapes are taken. The factors returned are those in the file.
    """
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    tensors: dict[str, Tensor] = dict(more or {})
    for name, (key, third) in PLACES[kind].items():
        if only not in name:
            continue
        shape = plain[key].shape
        rows = shape[0] if third is None else shape[0] // 3
        up = torch.randn(rows, RANK, *(1 for _ in shape[2:]), generator=generator).to(dtype)
        down = torch.randn(RANK, *shape[1:], generator=generator).to(dtype)
        factors[name] = up, down
        if name.startswith("lora_"):
            tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        else:  # as diffusers saves it: no alpha
            tensors |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata or {}))
    return File(path, kind, factors)


def patched(
    plain: Mapping[str, Tensor], files: Sequence[tuple[File, float] | tuple[File, float, float]], *, dyn: int = RANK
) -> dict[str, Tensor]:
    """Return W + Σ strength · α/rank · up @ down in float64, for the weights that change.

    Each file comes with its strength, or with that for the text encoder and that for the denoiser.
    """
    found: dict[str, Tensor] = {}
    for file, te, *unet in files:
        for name, (up, down) in file.factors.items():
            key, third = PLACES[file.kind][name]
            total = found.setdefault(key, plain[key].double())
            strength = te if "_te" in name else (unet or [te])[0]
            scale = strength * (ALPHA / RANK if name.startswith("lora_") else 1.0)
            delta = scale * (up.double()[:, :dyn].flatten(1) @ down.double()[:dyn].flatten(1))
            rows = slice(None) if third is None else slice(third * len(up), (third + 1) * len(up))
            total = total.clone()
            total[rows] += delta.reshape(total[rows].shape)
            found[key] = total
    return found


def differences(
    weights: Mapping[str, Tensor], plain: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    """Return the names of the weights that are not as expected: to one rounding where patched, else bit for bit."""
    wrong = []
    for name, tensor in weights.items():
        if name in expected:
            exact = expected[name]
            allowed = 2 * torch.finfo(tensor.dtype).eps * exact.abs().clamp(min=1e-2)
            right = bool(((tensor.double() - exact).abs() <= allowed + 1e-6).all())
        else:
            right = torch.equal(tensor, plain[name])
        if not right:
            wrong.append(name)
    return wrong
