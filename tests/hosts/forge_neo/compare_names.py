"""Print where Forge Neo's own LoRA and the library put each name that Forge knows; run by Forge Neo's Python.

    python compare_names.py FORGE_NEO LORA_RUNTIME

The models are Forge's own classes at a tiny width. For each name in Forge's table: the weight and the rows that it
means there, and what `Targets` finds for it. The last line is JSON: by model, how many names, and those that differ.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

neo, library = (Path(argument).resolve() for argument in sys.argv[1:3])
sys.argv[1:] = ["--cpu"]  # the program reads its command line when it is imported
sys.path[:0] = [str(neo), str(neo / "modules_forge" / "packages"), str(library)]
os.chdir(neo)

from backend.nn.chroma import IntegratedChromaTransformer2DModel  # noqa: E402
from backend.nn.flux import IntegratedFluxTransformer2DModel  # noqa: E402
from backend.nn.lumina import NextDiT  # noqa: E402
from backend.nn.qwen import QwenImageTransformer2DModel  # noqa: E402
from backend.nn.wan import WanModel  # noqa: E402
from backend.patcher.lora import model_lora_keys_clip, model_lora_keys_unet  # noqa: E402
from torch import nn  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

from lora_runtime.pipelines import view  # noqa: E402
from lora_runtime.targets import Targets  # noqa: E402

ROPE = {"axes_dim": [4, 6, 6], "num_heads": 2, "hidden_size": 32, "theta": 10000}
FLUX = {"in_channels": 4, "out_channels": 4, "context_in_dim": 8, "mlp_ratio": 4.0, "patch_size": 2, "qkv_bias": True}
FLUX |= ROPE | {"depth": 2, "depth_single_blocks": 2}
NEXT = {"in_channels": 4, "dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "cap_feat_dim": 8}
NEXT |= {"axes_dims": [4, 6, 6], "multiple_of": 8}

MODELS = {
    "Flux": (
        "black-forest-labs/FLUX.1-dev",
        lambda: IntegratedFluxTransformer2DModel(**FLUX, vec_in_dim=8, guidance_embed=True),
        FLUX,
    ),
    "Chroma": (
        "Chroma",
        lambda: IntegratedChromaTransformer2DModel(
            **FLUX, in_dim=8, out_dim=32, hidden_dim=16, n_layers=2, txt_ids_dims=[], vec_in_dim=8
        ),
        FLUX,
    ),
    "Z-Image": ("Tongyi-MAI/Z-Image-Turbo", lambda: NextDiT(**NEXT, z_image_modulation=True), NEXT),
    "Lumina 2": ("neta-art/Neta-Lumina", lambda: NextDiT(**NEXT), NEXT),
    "Qwen-Image": (
        "Qwen/Qwen-Image",
        lambda: QwenImageTransformer2DModel(
            num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(4, 6, 6)
        ),
        {},
    ),
    "Wan": (
        "Wan-AI/Wan2.1-T2V-14B",
        lambda: WanModel(dim=32, ffn_dim=64, freq_dim=16, text_dim=8, num_heads=2, num_layers=2),
        {},
    ),
}


def theirs(place):
    """Return the weight and its rows, None for all."""
    if isinstance(place, str):
        return place, None
    key, offset, *_ = place
    return key, None if offset is None else tuple(offset[1:])


def ours(targets, name, prefixes):
    """Return the weight and its rows as the library finds them, by Forge's names; None where it finds none."""
    target = targets.find(name)
    if target is None:
        return None
    part = target.part
    each = target.module._parameters[target.parameter].shape[0] // part.count
    cut = None if part.count == 1 else (part.index * each, part.span * each)
    bare = target.path.endswith(f".{target.parameter}")  # a parameter of a block itself
    return f"{prefixes[target.component]}{target.path}" + ("" if bare else f".{target.parameter}"), cut


def compare(table, root, components, prefixes):
    """Return how many of Forge's names have a weight, and those for which the library finds another."""
    targets = Targets(view(SimpleNamespace(components=components)))
    differ, names, there = {}, 0, root.state_dict()
    for name, place in table.items():
        key, cut = theirs(place)
        if not isinstance(name, str) or name.endswith((".bias", ".weight")) or key not in there:
            continue
        names += 1
        mine = ours(targets, name, prefixes)
        if mine != (key, cut):
            differ[name] = [str((key, cut)), str(mine)]
    return {"names": names, "differ": differ}


found = {}
for title, (repo, make, config) in MODELS.items():
    model = make()
    model.config = config
    root = nn.Module()
    root.diffusion_model, root.config = model, SimpleNamespace(huggingface_repo=repo)
    table = model_lora_keys_unet(root, {})
    found[title] = compare(table, root, {"transformer": model}, {"transformer": "diffusion_model."})

clip = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
for title, names in (("SD1's text", ["clip_l"]), ("SDXL's texts", ["clip_l", "clip_g"])):
    root, components, prefixes = nn.Module(), {}, {}
    for number, name in enumerate(names, 1):
        encoder = nn.Module()
        encoder.transformer = CLIPTextModel(clip)
        setattr(root, name, encoder)
        component = "text_encoder" if number == 1 else f"text_encoder_{number}"
        components[component], prefixes[component] = encoder.transformer, f"{name}.transformer."
    table = {name: key for name, key in model_lora_keys_clip(root, {}).items() if not name.startswith("text_encoders.")}
    found[title] = compare(table, root, components, prefixes)
print(json.dumps(found))
