"""Write a small checkpoint with random weights, by Forge Neo's own model classes; run by Forge Neo's Python.

    python make_checkpoint.py FORGE_NEO FILE SEED

The program knows SD1.5 by a few facts (the width of text and channels, convolutions around attention), so a UNet with
one block of each kind a level passes for it. Text encoder and autoencoder have fixed sizes there and are whole.
"""

import json
import os
import sys
from pathlib import Path

neo, file, seed = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3])
sys.argv[1:] = ["--cpu"]  # the program reads its command line when it is imported
sys.path[:0] = [str(neo), str(neo / "modules_forge" / "packages")]
os.chdir(neo)

import torch  # noqa: E402
from backend.nn.unet import IntegratedUNet2DConditionModel  # noqa: E402
from backend.nn.vae import IntegratedAutoencoderKL  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

SD15 = neo / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5"

torch.manual_seed(seed)
unet = IntegratedUNet2DConditionModel(
    in_channels=4,
    model_channels=320,
    out_channels=4,
    num_res_blocks=1,
    channel_mult=(1, 1, 1, 1),
    num_heads=8,
    use_spatial_transformer=True,
    transformer_depth=[1, 1, 1, 0],
    transformer_depth_middle=1,
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 0, 0],
    context_dim=768,
)
# Without texts: only its shape is fixed.
text = CLIPTextModel(CLIPTextConfig(**json.loads((SD15 / "text_encoder" / "config.json").read_text())))
vae = IntegratedAutoencoderKL.from_config(json.loads((SD15 / "vae" / "config.json").read_text()))

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
        elif name.endswith("final_layer_norm.bias"):
            # The program divides by the mean of an encoded text, which a norm without a bias makes 0: now and then NaN.
            tensor = torch.full(tensor.shape, 0.1)
        elif tensor.is_floating_point():
            tensor = torch.zeros(tensor.shape)
        tensors[prefix + name] = tensor.half().contiguous() if tensor.is_floating_point() else tensor
file.parent.mkdir(parents=True, exist_ok=True)
save_file(tensors, file)
print(f"{file.name}: {len(tensors)} tensors")
