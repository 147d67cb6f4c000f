"""Pipelines with a UNet: the whole of it, text encoders included, in the tiny sizes of tests/tiny.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import tiny
import torch

from matrix.images import WIDTH, photo
from matrix.paint import Paint, Record, StandIn, seeded

EMPTY: Any = dict.fromkeys(("text_encoder", "tokenizer"))
SAFE: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def ddim() -> Any:
    return diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)


def unet(**config: Any) -> Any:
    return seeded(
        diffusers.UNet2DConditionModel,
        **(
            {
                "sample_size": 16,
                "block_out_channels": (8, 8),
                "layers_per_block": 1,
                "norm_num_groups": 2,
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 2,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            }
            | config
        ),
    )


def sd(
    kind: str = "StableDiffusionPipeline", scheduler: Any = ddim, safe: Any = SAFE, more: Any = None, **config: Any
) -> Any:
    parts = {"vae": tiny.autoencoder(), "unet": unet(**config), "scheduler": scheduler(), **EMPTY}
    return getattr(diffusers, kind)(**parts, **safe, **(more or {}))


def sdxl(kind: str = "StableDiffusionXLPipeline", **config: Any) -> Any:
    width = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 8,
        "use_linear_projection": True,
    }
    second: Any = dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    parts = {"vae": tiny.autoencoder(), "unet": unet(**width, **config), "scheduler": ddim(), **EMPTY, **second}
    return getattr(diffusers, kind)(**parts, add_watermarker=False)


def paint(pipe: Any, p: Paint, negative: bool = True, **more: Any) -> Any:
    wished: dict[str, Any] = {"prompt_embeds": p.text(WIDTH), "guidance_scale": 3.0, "height": 32, "width": 32}
    if negative:
        wished["negative_prompt_embeds"] = p.text(WIDTH, "negative")
    wished |= {"num_inference_steps": p.steps, "generator": p.generators, "output_type": "latent"} | more
    return pipe(**{key: value for key, value in wished.items() if value is not None}).images


def pooled(p: Paint) -> dict[str, Any]:
    return {"pooled_prompt_embeds": p.pooled(8), "negative_pooled_prompt_embeds": p.pooled(8, "negative")}


def cascade_prior() -> Any:
    net = seeded(
        diffusers.StableCascadeUNet,
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16,),
        num_attention_heads=(2,),
        down_num_layers_per_block=(1,),
        up_num_layers_per_block=(1,),
        down_blocks_repeat_mappers=(1,),
        up_blocks_repeat_mappers=(1,),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),),
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=8,
        clip_image_in_channels=8,
        dropout=(0.0,),
        self_attn=True,
        switch_level=(False,),
    )
    scheduler = diffusers.DDPMWuerstchenScheduler()
    return diffusers.StableCascadePriorPipeline(
        tokenizer=None,
        text_encoder=StandIn(),
        prior=net,
        scheduler=scheduler,
        feature_extractor=None,
        image_encoder=None,
    )


def paint_cascade(pipe: Any, p: Paint) -> Any:
    return pipe(
        prompt_embeds=p.text(WIDTH),
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        prompt_embeds_pooled=p.pooled(8)[:, None],
        negative_prompt_embeds_pooled=p.pooled(8, "negative")[:, None],
        height=512,
        width=512,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
    ).image_embeddings


ATTN1 = r".*transformer_blocks\.\d+\.attn1\.to_[qkv]"
GRID = (1, 16, 16)
UNET: Any = {"grid": GRID, "denoisers": ("unet",)}
UNETS = (
    Record("SD 1", sd, paint, ATTN1, **UNET),
    Record("SD 2", partial(sd, use_linear_projection=True), paint, ATTN1, **UNET),
    Record("SDXL", sdxl, lambda pipe, p: paint(pipe, p, **pooled(p)), ATTN1, **UNET),
    Record(
        "SD 1 image to image",
        partial(sd, "StableDiffusionImg2ImgPipeline"),
        lambda pipe, p: paint(pipe, p, image=photo(32, 32), strength=1.0, height=None, width=None),
        ATTN1,
        **UNET,
    ),
    Record(
        "SD 1 inpainting",
        partial(sd, "StableDiffusionInpaintPipeline", in_channels=9),
        lambda pipe, p: paint(pipe, p, image=photo(32, 32), mask_image=torch.ones(1, 1, 32, 32), strength=1.0),
        ATTN1,
        **UNET,
    ),
    Record(
        "SD 1 PAG",
        partial(sd, "StableDiffusionPAGPipeline", more={"pag_applied_layers": ["mid"]}),
        lambda pipe, p: paint(pipe, p, pag_scale=2.0),
        ATTN1,
        **UNET,
    ),
    Record(
        "SD 1 PAG without guidance",
        partial(sd, "StableDiffusionPAGPipeline", more={"pag_applied_layers": ["mid"]}),
        lambda pipe, p: paint(pipe, p, False, pag_scale=2.0, guidance_scale=1.0),
        ATTN1,
        negative=False,
        **UNET,
    ),
    Record(
        "InstructPix2Pix",
        partial(sd, "StableDiffusionInstructPix2PixPipeline", in_channels=8),
        lambda pipe, p: paint(pipe, p, image=photo(32, 32), height=None, width=None),
        ATTN1,
        **UNET,
    ),
    Record(
        "Latent consistency",
        partial(sd, "LatentConsistencyModelPipeline", diffusers.LCMScheduler, time_cond_proj_dim=8),
        lambda pipe, p: paint(pipe, p, False),
        ATTN1,
        negative=False,
        **UNET,
    ),
    Record(
        "Cascade's prior",
        cascade_prior,
        paint_cascade,
        r".*attention\.to_[qkv]|.*attention\.to_out\.0",
        denoisers=("prior",),
    ),
)
