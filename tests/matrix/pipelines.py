from __future__ import annotations

from typing import Any

import torch

from matrix.paint import Record, seeded

WIDTH = 16


def _d():
    import diffusers

    return diffusers


def flow(**config: Any) -> Any:
    return _d().FlowMatchEulerDiscreteScheduler(**config)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- SD3 ---
def sd3():
    d = _d()
    net = seeded(
        d.SD3Transformer2DModel,
        sample_size=16,
        patch_size=2,
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
    return quiet(
        d.StableDiffusion3Pipeline(
            transformer=net,
            scheduler=flow(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def sd3_call(pipe, p):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        pooled_prompt_embeds=p.pooled(8),
        negative_pooled_prompt_embeds=p.pooled(8, "negative"),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
        output_type="latent",
    ).images


def auraflow():
    d = _d()
    net = seeded(
        d.AuraFlowTransformer2DModel,
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return quiet(d.AuraFlowPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=net, scheduler=flow()))


def auraflow_call(pipe, p):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        prompt_attention_mask=p.mask(),
        negative_prompt_attention_mask=p.mask(),
        height=64,
        width=64,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
        output_type="latent",
    ).images


def flux_net(**config):
    return seeded(
        _d().FluxTransformer2DModel,
        **(
            {
                "in_channels": 16,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": WIDTH,
                "pooled_projection_dim": 8,
                "axes_dims_rope": (4, 6, 6),
            }
            | config
        ),
    )


EMPTY_FLUX = dict(text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)


def flux(kind="FluxPipeline", vae=None, **config):
    return quiet(getattr(_d(), kind)(scheduler=flow(), vae=vae, transformer=flux_net(**config), **EMPTY_FLUX))


def flux_call(pipe, p, **more):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        pooled_prompt_embeds=p.pooled(8),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        generator=p.generators,
        output_type="latent",
        **more,
    ).images


def flux_true(p):
    return dict(
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        negative_pooled_prompt_embeds=p.pooled(8, "negative"),
        true_cfg_scale=3.0,
    )


def vae(channels=4, **config):
    d = _d()
    return seeded(
        d.AutoencoderKL,
        **(
            {
                "block_out_channels": (8,) * 4,
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "latent_channels": channels,
                "layers_per_block": 1,
                "norm_num_groups": 2,
                "sample_size": 32,
                "shift_factor": 0.1,
                "scaling_factor": 0.5,
            }
            | config
        ),
    )


def picture(height=64, width=96):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))


def kontext_call(pipe, p):
    return flux_call(pipe, p, image=picture(), max_area=64 * 96, _auto_resize=False, **flux_true(p))


def fill_call(pipe, p):
    return flux_call(pipe, p, image=picture(), mask_image=torch.ones(1, 1, 64, 96))


def control_call(pipe, p):
    return flux_call(pipe, p, control_image=picture())


def flux2(kind="Flux2Pipeline", **more):
    d = _d()
    net = seeded(
        d.Flux2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    v = seeded(
        d.AutoencoderKLFlux2,
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
    )
    return quiet(
        getattr(d, kind)(
            scheduler=flow(use_dynamic_shifting=True), vae=v, text_encoder=None, tokenizer=None, transformer=net, **more
        )
    )


def flux2_call(pipe, p, **more):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        generator=p.generators,
        output_type="latent",
        **more,
    ).images


def klein_call(pipe, p):
    return flux2_call(pipe, p, negative_prompt_embeds=p.text(WIDTH, "negative"), guidance_scale=3.0)


def chroma():
    d = _d()
    net = seeded(
        d.ChromaTransformer2DModel,
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
    return quiet(d.ChromaPipeline(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=net))


def chroma_call(pipe, p):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        prompt_attention_mask=p.mask(),
        negative_prompt_attention_mask=p.mask(),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
        output_type="latent",
    ).images


def cogvideox():
    d = _d()
    net = seeded(
        d.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=7,
    )
    return quiet(
        d.CogVideoXPipeline(
            tokenizer=None, text_encoder=None, vae=None, transformer=net, scheduler=d.CogVideoXDDIMScheduler()
        )
    )


def video_call(pipe, p, height=64, width=96, num_frames=9, **more):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
        output_type="latent",
        **more,
    ).frames


def masks(p):
    return dict(prompt_attention_mask=p.mask(), negative_prompt_attention_mask=p.mask())


def cogview4():
    d = _d()
    net = seeded(
        d.CogView4Transformer2DModel,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
    )
    return quiet(
        d.CogView4Pipeline(
            tokenizer=None, text_encoder=None, vae=None, transformer=net, scheduler=flow(use_dynamic_shifting=True)
        )
    )


def image_call(pipe, p, **more):
    return pipe(
        prompt_embeds=p.text(WIDTH),
        negative_prompt_embeds=p.text(WIDTH, "negative"),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        generator=p.generators,
        output_type="latent",
        **({"guidance_scale": 3.0} | more),
    ).images


def mochi():
    d = _d()
    net = seeded(
        d.MochiTransformer3DModel,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        max_sequence_length=7,
    )
    return quiet(d.MochiPipeline(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=net))


def ltx():
    d = _d()
    net = seeded(
        d.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return quiet(d.LTXPipeline(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=net))


def sana():
    d = _d()
    net = seeded(
        d.SanaTransformer2DModel,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=32,
    )
    return quiet(d.SanaPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=net, scheduler=flow()))


def hunyuan():
    d = _d()
    net = seeded(
        d.HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    return quiet(
        d.HunyuanVideoPipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=net,
            vae=None,
            scheduler=flow(),
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def lumina():
    d = _d()
    net = seeded(
        d.Lumina2Transformer2DModel,
        sample_size=16,
        patch_size=2,
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
    return quiet(d.Lumina2Pipeline(transformer=net, scheduler=flow(), vae=None, text_encoder=None, tokenizer=None))


def wan_net(kind="WanTransformer3DModel", **config):
    return seeded(
        getattr(_d(), kind),
        **(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": WIDTH,
                "freq_dim": 16,
                "ffn_dim": 32,
                "num_layers": 1,
                "rope_max_seq_len": 32,
            }
            | config
        ),
    )


def wan(two=False, **more):
    d = _d()
    experts = dict(transformer_2=wan_net(), boundary_ratio=0.6) if two else {}
    return quiet(
        d.WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=d.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=wan_net(),
            **experts,
        )
    )


def wan_vae():
    return seeded(
        _d().AutoencoderKLWan,
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def wan_i2v():
    d = _d()
    return quiet(
        d.WanImageToVideoPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=wan_vae(),
            image_encoder=None,
            image_processor=None,
            scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=wan_net(in_channels=12),
            transformer_2=wan_net(in_channels=12),
            boundary_ratio=0.6,
        )
    )


def vace():
    d = _d()
    return quiet(
        d.WanVACEPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=wan_vae(),
            scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=wan_net("WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=72),
        )
    )


def skyreels():
    d = _d()
    return quiet(
        d.SkyReelsV2Pipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=wan_net("SkyReelsV2Transformer3DModel"),
        )
    )


def skyreels_df():
    d = _d()
    return quiet(
        d.SkyReelsV2DiffusionForcingPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=wan_net("SkyReelsV2Transformer3DModel", inject_sample_info=True),
        )
    )


def hidream():
    d = _d()
    net = seeded(
        d.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=(0, 0),
        force_inference_output=True,
    )
    return quiet(
        d.HiDreamImagePipeline(
            scheduler=flow(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
            text_encoder_4=None,
            tokenizer_4=None,
            transformer=net,
        )
    )


def hidream_call(pipe, p):
    return pipe(
        prompt_embeds_t5=p.text(WIDTH),
        negative_prompt_embeds_t5=p.text(WIDTH, "negative"),
        prompt_embeds_llama3=p.text(WIDTH, seed=3)[None],
        negative_prompt_embeds_llama3=p.text(WIDTH, "negative", seed=3)[None],
        pooled_prompt_embeds=p.pooled(8),
        negative_pooled_prompt_embeds=p.pooled(8, "negative"),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
        output_type="latent",
    ).images


def qwen_net(**config):
    return seeded(
        _d().QwenImageTransformer2DModel,
        **(
            {
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 4,
                "num_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": WIDTH,
                "axes_dims_rope": (4, 6, 6),
            }
            | config
        ),
    )


def qwen_vae():
    return seeded(
        _d().AutoencoderKLQwenImage,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def qwen(kind="QwenImagePipeline", **more):
    return quiet(
        getattr(_d(), kind)(
            scheduler=flow(use_dynamic_shifting=True),
            vae=more.pop("vae", None),
            text_encoder=None,
            tokenizer=None,
            transformer=qwen_net(),
            **more,
        )
    )


def qwen_call(pipe, p, **more):
    return image_call(
        pipe,
        p,
        guidance_scale=None,
        true_cfg_scale=3.0,
        prompt_embeds_mask=p.mask(dtype=torch.int64),
        negative_prompt_embeds_mask=p.mask(dtype=torch.int64),
        **more,
    )


def zimage():
    d = _d()
    net = seeded(
        d.ZImageTransformer2DModel,
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
    return quiet(d.ZImagePipeline(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None, transformer=net))


def zimage_call(pipe, p):
    return pipe(
        prompt_embeds=list(p.text(WIDTH)),
        negative_prompt_embeds=list(p.text(WIDTH, "negative")),
        height=64,
        width=96,
        num_inference_steps=p.steps,
        guidance_scale=3.0,
        generator=p.generators,
        output_type="latent",
    ).images


RECORDS = (
    Record(
        "Flux",
        flux,
        lambda pipe, p: flux_call(pipe, p, **flux_true(p)),
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.net\.2)",
        (1, 4, 6),
    ),
    Record("Z-Image", zimage, zimage_call, r"noise_refiner\.\d+\.attention\.to_[qkv]", (1, 4, 6)),
    Record(
        "Wan 2.2",
        lambda: wan(True),
        video_call,
        r"blocks\.\d+\.(attn1\.to_[qkv]|ffn\.net\.2)",
        (3, 4, 6),
        denoisers=("transformer", "transformer_2"),
    ),
)
