"""Pipelines of pictures by diffusion transformers: tiny, with random weights, called with embeddings of text."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import diffusers
import torch

from matrix.paint import Paint, Record, seeded

WIDTH = 16  # of the text
NO_CLIP: Any = dict.fromkeys(("text_encoder", "tokenizer"))
NO_CLIPS: Any = NO_CLIP | dict.fromkeys(("text_encoder_2", "tokenizer_2"))
SIZE: Any = {"height": 64, "width": 96}
GRID = (1, 4, 6)  # of tokens: 8 pixels a latent, two latents a token
ATTENTION_AND_FEED_FORWARD = r".*transformer_blocks\.\d+\.(attn1?\.to_[qkv]|ff\.net\.2)"


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def wishes(p: Paint, guidance: str = "guidance_scale", negative: bool = True, **more: Any) -> dict[str, Any]:
    """Return what nearly all of these pipelines are called with."""
    text = {"prompt_embeds": p.text(WIDTH)}
    if negative:
        text |= {"negative_prompt_embeds": p.text(WIDTH, "negative")}
    if guidance:
        text |= {guidance: 3.0}
    return SIZE | text | {"num_inference_steps": p.steps, "generator": p.generators, "output_type": "latent"} | more


def masks(p: Paint, dtype: torch.dtype = torch.bool, name: str = "prompt_attention_mask") -> dict[str, Any]:
    return {name: p.mask(dtype=dtype), f"negative_{name}": p.mask(dtype=dtype)}


def pooled(p: Paint, negative: bool = True) -> dict[str, Any]:
    found = {"pooled_prompt_embeds": p.pooled(8)}
    return found | {"negative_pooled_prompt_embeds": p.pooled(8, "negative")} if negative else found


def photo(height: int = 64, width: int = 96) -> torch.Tensor:
    """Return a picture to be edited."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))


def drawing() -> Any:
    from PIL import Image

    return Image.fromarray((photo()[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy())


def vae(kind: str = "AutoencoderKL", **config: Any) -> Any:
    return seeded(
        getattr(diffusers, kind),
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
        **config,
    )


def causal_vae(kind: str, **config: Any) -> Any:
    return seeded(
        getattr(diffusers, kind),
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        **config,
    )


def sd3() -> Any:
    net = seeded(
        diffusers.SD3Transformer2DModel,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
    )
    third: Any = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    return diffusers.StableDiffusion3Pipeline(transformer=net, scheduler=flow(), vae=None, **NO_CLIPS, **third)


def auraflow() -> Any:
    net = seeded(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(vae=None, transformer=net, scheduler=flow(), **NO_CLIP)


def flux(kind: str = "FluxPipeline", pictures: bool = False, **config: Any) -> Any:
    net = seeded(
        diffusers.FluxTransformer2DModel,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
        **({"in_channels": 16} | config),
    )
    coder = vae(shift_factor=0.1, scaling_factor=0.5) if pictures else None
    return getattr(diffusers, kind)(scheduler=flow(), vae=coder, transformer=net, **NO_CLIPS)


def paint_flux(pipe: Any, p: Paint, true: bool = True, **more: Any) -> Any:
    guidance = "true_cfg_scale" if true else ""
    return pipe(**wishes(p, guidance, true), **pooled(p, true), **more).images


def flux2(kind: str) -> Any:
    net = seeded(
        diffusers.Flux2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    scheduler, coder = flow(use_dynamic_shifting=True), vae("AutoencoderKLFlux2")
    return getattr(diffusers, kind)(scheduler=scheduler, vae=coder, transformer=net, **NO_CLIP)


def chroma() -> Any:
    net = seeded(
        diffusers.ChromaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(scheduler=flow(), vae=None, transformer=net, **NO_CLIP)


def cogview4() -> Any:
    net = seeded(
        diffusers.CogView4Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
    )
    return diffusers.CogView4Pipeline(vae=None, transformer=net, scheduler=flow(use_dynamic_shifting=True), **NO_CLIP)


def sana() -> Any:
    net = seeded(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
    )
    return diffusers.SanaPipeline(vae=None, transformer=net, scheduler=flow(), **NO_CLIP)


def lumina() -> Any:
    net = seeded(
        diffusers.Lumina2Transformer2DModel,
        sample_size=16,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=4,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 64, 64),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(transformer=net, scheduler=flow(), vae=None, **NO_CLIP)


def hidream() -> Any:
    net = seeded(
        diffusers.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=(0, 0),
        force_inference_output=True,
    )
    more: Any = dict.fromkeys(f"{part}_{number}" for part in ("text_encoder", "tokenizer") for number in (3, 4))
    pipe = diffusers.HiDreamImagePipeline(scheduler=flow(), vae=None, transformer=net, **NO_CLIPS, **more)
    pipe.default_sample_size = 10  # it paints pictures of this area, whatever is asked for
    return pipe


def paint_hidream(pipe: Any, p: Paint) -> Any:
    text: dict[str, Any] = {}
    for side, prefix in (("positive", ""), ("negative", "negative_")):
        text[f"{prefix}prompt_embeds_t5"] = p.text(WIDTH, side)  # type: ignore[arg-type]
        text[f"{prefix}prompt_embeds_llama3"] = p.text(WIDTH, side, seed=3)[None]  # type: ignore[arg-type]
    kept = {key: value for key, value in wishes(p).items() if not key.endswith("prompt_embeds")}
    return pipe(**kept, **text, **pooled(p)).images


def qwen(kind: str, pictures: bool = False) -> Any:
    net = seeded(
        diffusers.QwenImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    more: Any = (
        {"processor": None, "vae": causal_vae("AutoencoderKLQwenImage", base_dim=8)} if pictures else {"vae": None}
    )
    scheduler = flow(use_dynamic_shifting=True)
    return getattr(diffusers, kind)(scheduler=scheduler, transformer=net, **NO_CLIP, **more)


def edit_qwen(pipe: Any, p: Paint, image: Any) -> Any:
    """Edit a picture in its own size, where the pipeline would make it one of a million pixels."""
    module = import_module(type(pipe).__module__)
    more = (None,) if "Plus" not in type(pipe).__name__ else ()
    with patch.object(module, "calculate_dimensions", lambda area, ratio: (96, 64, *more)):
        return paint_qwen(pipe, p, image=image)


def paint_qwen(pipe: Any, p: Paint, **more: Any) -> Any:
    return pipe(**wishes(p, "true_cfg_scale"), **masks(p, torch.int64, "prompt_embeds_mask"), **more).images


def zimage() -> Any:
    net = seeded(
        diffusers.ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 64, 64],
    )
    return diffusers.ZImagePipeline(scheduler=flow(), vae=None, transformer=net, **NO_CLIP)


def paint_zimage(pipe: Any, p: Paint) -> Any:
    wished = wishes(p)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        wished[name] = list(wished[name])
    return pipe(**wished).images


def krea2() -> Any:
    net = seeded(
        diffusers.Krea2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=1,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = flow(use_dynamic_shifting=True)
    return diffusers.Krea2Pipeline(
        scheduler=scheduler, vae=None, transformer=net, text_encoder_select_layers=(0, 1), **NO_CLIP
    )


def paint_krea2(pipe: Any, p: Paint) -> Any:
    wished = wishes(p) | masks(p, name="prompt_embeds_mask")
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        wished[name] = torch.stack([wished[name]] * 2, dim=2)  # one for each layer of the encoder
    return pipe(**wished).images


def kandinsky5() -> Any:
    net = seeded(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
    )
    return diffusers.Kandinsky5T2IPipeline(transformer=net, vae=None, scheduler=flow(), **NO_CLIPS)


def paint_kandinsky5(pipe: Any, p: Paint, **more: Any) -> Any:
    wished = wishes(p, **more)
    lengths = torch.arange(p.images + 1, dtype=torch.int32) * 7
    for prefix, side in (("", "positive"), ("negative_", "negative")):
        wished[f"{prefix}prompt_embeds_qwen"] = wished.pop(f"{prefix}prompt_embeds")
        wished[f"{prefix}prompt_embeds_clip"] = p.pooled(8, side)  # type: ignore[arg-type]
        wished[f"{prefix}prompt_cu_seqlens"] = lengths
    return pipe(**wished)


def ernie() -> Any:
    net = seeded(
        diffusers.ErnieImageTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    return diffusers.ErnieImagePipeline(transformer=net, vae=vae("AutoencoderKLFlux2"), scheduler=flow(), **NO_CLIP)


def paint_ernie(pipe: Any, p: Paint) -> Any:
    wished = wishes(p, use_pe=False)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        wished[name] = list(wished[name])
    return pipe(**wished).images


def prx() -> Any:
    net = seeded(
        diffusers.PRXTransformer2DModel,
        in_channels=4,
        context_in_dim=WIDTH,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[8, 8],
    )
    return diffusers.PRXPipeline(transformer=net, scheduler=flow(), vae=None, **NO_CLIP)


def paint_prx(pipe: Any, p: Paint) -> Any:
    return pipe(**wishes(p, negative_prompt=None), use_resolution_binning=False).images


PAIRS = r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.net\.2)"  # of joint attention: the picture's half
IMAGES = (
    Record("SD3", sd3, lambda pipe, p: pipe(**wishes(p), **pooled(p)).images, PAIRS, GRID),
    Record(
        "AuraFlow",
        auraflow,
        lambda pipe, p: pipe(**wishes(p, width=64), **masks(p)).images,
        r"joint_transformer_blocks\.\d+\.attn\.to_[qkv]",
        (1, 4, 4),
    ),
    Record("Flux", flux, paint_flux, PAIRS, GRID),
    Record(
        "Flux Kontext",
        partial(flux, "FluxKontextPipeline", pictures=True),
        lambda pipe, p: paint_flux(pipe, p, image=photo(), max_area=64 * 96, _auto_resize=False),
        PAIRS,
        GRID,
    ),
    Record(
        "Flux Fill",
        partial(flux, "FluxFillPipeline", pictures=True, in_channels=288, out_channels=16),
        lambda pipe, p: paint_flux(pipe, p, False, image=photo(), mask_image=torch.ones(1, 1, 64, 96)),
        PAIRS,
        GRID,
        negative=False,
    ),
    Record(
        "Flux Control",
        partial(flux, "FluxControlPipeline", pictures=True, in_channels=32, out_channels=16),
        lambda pipe, p: paint_flux(pipe, p, False, control_image=photo()),
        PAIRS,
        GRID,
        negative=False,
    ),
    Record(
        "Flux 2",
        partial(flux2, "Flux2Pipeline"),
        lambda pipe, p: pipe(**wishes(p, negative=False)).images,
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.linear_out)",
        GRID,
        negative=False,
    ),
    Record(
        "Flux 2 Klein",
        partial(flux2, "Flux2KleinPipeline"),
        lambda pipe, p: pipe(**wishes(p)).images,
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.linear_out)",
        GRID,
    ),
    Record("Chroma", chroma, lambda pipe, p: pipe(**wishes(p), **masks(p)).images, PAIRS, GRID),
    Record(
        "CogView4",
        cogview4,
        lambda pipe, p: pipe(**wishes(p)).images,
        r"transformer_blocks\.\d+\.(attn1\.to_out\.0|ff\.net\.2)",
    ),
    Record(
        "Sana",
        sana,
        lambda pipe, p: (
            pipe(
                **wishes(p, height=128, width=256, negative_prompt=None), **masks(p), use_resolution_binning=False
            ).images
        ),
        r"transformer_blocks\.\d+\.attn1\.to_[qkv]",
        (1, 4, 8),
    ),
    Record(
        "Lumina 2",
        lumina,
        lambda pipe, p: pipe(**wishes(p), **masks(p)).images,
        r"noise_refiner\.\d+\.(attn\.to_[qkv]|feed_forward\.linear_2)",
        GRID,
    ),
    Record("HiDream", hidream, paint_hidream, r"double_stream_blocks\.\d+\.block\.attn1\.to_[qkv]", GRID),
    Record(
        "Qwen-Image",
        partial(qwen, "QwenImagePipeline"),
        paint_qwen,
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|img_mlp\.net\.2)",
        GRID,
    ),
    Record(
        "Qwen-Image-Edit",
        partial(qwen, "QwenImageEditPipeline", pictures=True),
        lambda pipe, p: edit_qwen(pipe, p, drawing()),
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|img_mlp\.net\.2)",
        GRID,
    ),
    Record(
        "Qwen-Image-Edit Plus",
        partial(qwen, "QwenImageEditPlusPipeline", pictures=True),
        lambda pipe, p: edit_qwen(pipe, p, [drawing()]),
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|img_mlp\.net\.2)",
        GRID,
        batch=False,
    ),
    Record("Z-Image", zimage, paint_zimage, r"noise_refiner\.\d+\.(attention\.to_[qkv]|feed_forward\.w2)", GRID),
    Record("Krea 2", krea2, paint_krea2, r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.down)"),
    Record(
        "Kandinsky 5",
        kandinsky5,
        lambda pipe, p: paint_kandinsky5(pipe, p).image,
        r"visual_transformer_blocks\.\d+\.self_attention\.to_.*",
        (1, 48, 80),
    ),
    Record("ERNIE-Image", ernie, paint_ernie, r"layers\.\d+\.self_attention\.to_[qkv]"),
    Record("PRX", prx, paint_prx, r"blocks\.\d+\.attention\.(img_qkv_proj|to_out\.0)", batch=False),
)
