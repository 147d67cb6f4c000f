"""Write a small checkpoint with random weights, by ComfyUI's own model classes; run by ComfyUI's Python.

    python make_checkpoint.py COMFYUI FILE SEED

The program knows SD1.5 by a few facts (the width of text and channels, convolutions around attention), so a UNet with
one block of each kind a level passes for it. Text encoder and autoencoder have fixed sizes there and are whole.
"""

import os
import sys
from pathlib import Path

program, file, seed = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3])
sys.argv[1:] = ["--cpu"]  # the program reads its command line when it is imported
sys.path[:0] = [str(program)]
os.chdir(program)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"vocab_size": 49408, "max_position_embeddings": 77}

torch.manual_seed(seed)
unet = UNetModel(
    image_size=32,
    in_channels=4,
    model_channels=320,
    out_channels=4,
    num_res_blocks=[1, 1, 1, 1],
    channel_mult=(1, 1, 1, 1),
    num_heads=8,
    use_spatial_transformer=True,
    transformer_depth=[1, 1, 1, 0],
    transformer_depth_middle=1,
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 0, 0],
    context_dim=768,
    operations=comfy.ops.disable_weight_init,
)
text = CLIPTextModel(CLIPTextConfig(**CLIP_L))
vae = AutoencoderKL(embed_dim=4, ddconfig=VAE)

tensors = {}
for prefix, module in (
    ("model.diffusion_model.", unet),
    ("cond_stage_model.transformer.", text),
    ("first_stage_model.", vae),
):
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor = torch.randn(tensor.shape) * (tensor[0].numel() ** -0.5)
        elif name.endswith("weight"):
            tensor = torch.ones(tensor.shape)
        elif tensor.is_floating_point():
            tensor = torch.zeros(tensor.shape)
        tensors[prefix + name] = tensor.half().contiguous() if tensor.is_floating_point() else tensor
file.parent.mkdir(parents=True, exist_ok=True)
save_file(tensors, file)
print(f"{file.name}: {len(tensors)} tensors")
