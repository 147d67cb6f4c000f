"""Write tiny checkpoints with random weights, by the WebUI's own model classes; run by the WebUI's Python.

    python make_checkpoints.py WEBUI FOLDER

FOLDER becomes a data folder for the WebUI: models/Stable-diffusion/*.safetensors with a .yaml beside each, and
openai/clip-vit-large-patch14, which the WebUI looks for in its working directory before it asks a hub.
"""

import json
import os
import sys
from pathlib import Path

webui, folder = map(Path, sys.argv[1:3])
sys.argv[1:] = []
sys.path.insert(0, str(webui))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

TOKENS = 77


def write_tokenizer(path, hidden):
    """Write a CLIP tokenizer that knows bytes only, and a text encoder's configuration."""
    path.mkdir(parents=True, exist_ok=True)
    # Bytes as printable characters, as GPT-2's tokenizer has them.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = special["eos_token"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), special["bos_token"], special["eos_token"]]
    end = len(vocabulary) - 1
    text = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": TOKENS,
        "projection_dim": hidden,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    files = {
        "vocab.json": {token: index for index, token in enumerate(vocabulary)},
        "tokenizer_config.json": {**special, "model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer"},
        "special_tokens_map.json": special,
        "config.json": {"model_type": "clip", "text_config": text, "vision_config": vision, "projection_dim": hidden},
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


os.chdir(folder)
CLIP = "openai/clip-vit-large-patch14"
write_tokenizer(Path(CLIP), 64)

import open_clip  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import yaml  # noqa: E402
from modules import paths  # noqa: E402, F401  puts the model repositories on sys.path
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

open_clip.add_model_config(Path(__file__).resolve().parent / "probe" / "open_clip")
_create = open_clip.create_model_and_transforms
open_clip.create_model_and_transforms = lambda *args, pretrained=None, **kwargs: _create(*args, **kwargs)
transformers.CLIPTextModel.from_pretrained = classmethod(
    lambda cls, name, **kwargs: cls(transformers.CLIPConfig.from_pretrained(name).text_config)
)


def small_vae(params):
    """Make the picture decoder small."""
    params["first_stage_config"]["params"]["ddconfig"].update(ch=32)


def sd1(name="v1-inference.yaml"):
    """Return SD1's configuration, small."""
    config = yaml.safe_load((webui / "configs" / name).read_text())
    params = config["model"]["params"]
    params["unet_config"]["params"].update(model_channels=32, num_heads=4, context_dim=64)
    small_vae(params)
    return config


def sd2():
    """Return SD2's configuration, small; its text encoder is OpenCLIP's."""
    path = webui / "repositories/stable-diffusion-stability-ai/configs/stable-diffusion/v2-inference.yaml"
    config = yaml.safe_load(path.read_text())
    params = config["model"]["params"]
    params["unet_config"]["params"].update(model_channels=32, num_head_channels=8, context_dim=96)
    params["unet_config"]["params"]["use_checkpoint"] = False
    params["cond_stage_config"]["params"]["arch"] = "tiny-H"
    small_vae(params)
    return config


def sdxl():
    """Return SDXL's configuration, small, with both of its text encoders."""
    path = webui / "repositories/generative-models/configs/inference/sd_xl_base.yaml"
    config = yaml.safe_load(path.read_text())
    params = config["model"]["params"]
    unet = params["network_config"]["params"]
    unet.update(model_channels=32, context_dim=64 + 80, adm_in_channels=80 + 6 * 256, num_head_channels=16)
    unet.update(transformer_depth=[1, 1, 2], use_checkpoint=False)
    first, second, *_ = params["conditioner_config"]["params"]["emb_models"]
    first["params"]["layer_idx"] = 3
    second["params"]["arch"] = "tiny-G"
    small_vae(params)
    return config


def write(name, config, seed):
    """Write one checkpoint and its configuration."""
    from ldm.util import instantiate_from_config

    torch.manual_seed(seed)
    model = instantiate_from_config(OmegaConf.create(config)["model"])
    tensors = {}
    for key, tensor in model.state_dict().items():
        tensors[key] = tensor.contiguous().clone()
        # The original starts some layers at zero, behind which no change would be seen; and the WebUI divides by the
        # mean of the last norm's output, which is zero without a bias.
        if tensor.is_floating_point() and key.endswith((".weight", ".bias")) and not tensor.any():
            tensors[key] = torch.randn_like(tensor) * 0.02 + 0.01
    path = folder / "models" / "Stable-diffusion" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


if __name__ == "__main__":
    write("sd1-a", sd1(), 0)
    write("sd1-b", sd1(), 1)
    write("sd1-inpainting", sd1("v1-inpainting-inference.yaml"), 2)
    write("sd2", sd2(), 3)
    write("sdxl", sdxl(), 4)
