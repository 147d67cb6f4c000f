"""SD3 as small as a test needs it: its sizes are constants in the WebUI, whose classes load only within itself."""

import functools
import json
from pathlib import Path

import torch
from modules.models.sd3 import sd3_cond, sd3_impls
from modules.models.sd3.mmdit import MMDiT
from modules.models.sd3.other_impls import SDClipModel, SDXLClipG
from safetensors.torch import save_file

CLIP_L = {"hidden_act": "quick_gelu", "hidden_size": 64, "intermediate_size": 128}
CLIP_L |= {"num_attention_heads": 4, "num_hidden_layers": 4}
CLIP_G = {**CLIP_L, "hidden_act": "gelu", "hidden_size": 80, "textual_inversion_key": "clip_g"}
DEPTH = 2


def shrink():
    """Make the program's own classes and sizes small; only once."""
    if not isinstance(sd3_impls.VAEEncoder, functools.partial):
        sd3_impls.VAEEncoder = functools.partial(sd3_impls.VAEEncoder, ch=32)
        sd3_impls.VAEDecoder = functools.partial(sd3_impls.VAEDecoder, ch=32)
    sd3_cond.CLIPL_CONFIG.update(CLIP_L)
    sd3_cond.CLIPG_CONFIG.update(CLIP_G)


def write_tokenizer(path):
    """Write a tokenizer that knows no words: SD3 asks for T5's even where T5 is switched off."""
    from tokenizers import Tokenizer, models, processors

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {**special, "tokenizer_class": "T5TokenizerFast", "extra_ids": 0}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (path / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


@torch.no_grad()
def write_checkpoint(path, seed=5):
    """Write a checkpoint with random weights; the WebUI knows it by its keys."""
    write_tokenizer(Path("google/t5-v1_1-xxl"))
    sizes = {"input_size": None, "pos_embed_max_size": 16, "num_patches": 256, "patch_size": 2, "in_channels": 16}
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * DEPTH}}
    parts = {
        "model.diffusion_model.": MMDiT(
            **sizes,
            depth=DEPTH,
            adm_in_channels=CLIP_L["hidden_size"] + CLIP_G["hidden_size"],
            context_embedder_config=context,
            pos_embed_scaling_factor=None,
        ),
        "first_stage_model.": sd3_impls.SDVAE(),
        "text_encoders.clip_l.": SDClipModel(
            layer="hidden", layer_idx=-2, dtype=torch.float32, textmodel_json_config=CLIP_L
        ),
        "text_encoders.clip_g.": SDXLClipG(CLIP_G, dtype=torch.float32),
    }
    torch.manual_seed(seed)
    tensors = {}
    for prefix, module in parts.items():
        for key, tensor in module.state_dict().items():
            # These classes leave their memory as they find it.
            random = torch.randn(tensor.shape) * (0.05 if tensor.ndim > 1 else 0.1)
            is_scale = key.endswith(".weight") and tensor.ndim == 1
            tensors[prefix + key] = (1 + random if is_scale else random) if tensor.is_floating_point() else tensor
    save_file(tensors, path)
