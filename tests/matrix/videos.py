"""Pipelines of films: tiny, with random weights, called with embeddings of text."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from matrix.images import NO_CLIP, NO_CLIPS, WIDTH, causal_vae, flow, masks, paint_kandinsky5, photo, pooled, wishes
from matrix.paint import Paint, Record, StandIn, seeded

GRID = (3, 4, 6)  # nine frames are three of latents
FILM: Any = {"num_frames": 9}


def multistep() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def cogvideox() -> Any:
    net = seeded(
        diffusers.CogVideoXTransformer3DModel,
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
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return diffusers.CogVideoXPipeline(vae=None, transformer=net, scheduler=scheduler, **NO_CLIP)


def mochi() -> Any:
    net = seeded(
        diffusers.MochiTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        max_sequence_length=7,
    )
    return diffusers.MochiPipeline(scheduler=flow(), vae=None, transformer=net, **NO_CLIP)


def ltx() -> Any:
    net = seeded(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return diffusers.LTXPipeline(scheduler=flow(), vae=None, transformer=net, **NO_CLIP)


class PassedOn(StandIn):
    """Stands in for LTX-2's connectors, which make the text of the film and that of its sound out of one."""

    def forward(self, text: Tensor, mask: Tensor, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return text, text, mask


class Coder(StandIn):
    """Stands in for LTX-2's autoencoders: what the pipeline asks of them to give latents."""

    spatial_compression_ratio, temporal_compression_ratio, mel_compression_ratio = 32, 8, 4
    latents_mean, latents_std = torch.zeros(8), torch.ones(8)
    config = SimpleNamespace(scaling_factor=1.0, sample_rate=16000, mel_hop_length=160, mel_bins=64, latent_channels=8)


class SoundCoder(Coder):
    temporal_compression_ratio = 4
    latents_mean, latents_std = torch.zeros(128), torch.ones(128)


def ltx2() -> Any:
    net = seeded(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=128,
        audio_out_channels=128,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    )
    parts: Any = {"vae": Coder(), "audio_vae": SoundCoder(), "vocoder": None}
    return diffusers.LTX2Pipeline(scheduler=flow(), transformer=net, connectors=PassedOn(), **NO_CLIP, **parts)


def hunyuan() -> Any:
    net = seeded(
        diffusers.HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    return diffusers.HunyuanVideoPipeline(transformer=net, vae=None, scheduler=flow(), **NO_CLIPS)


def wan_model(kind: str = "WanTransformer3DModel", **config: Any) -> Any:
    return seeded(
        getattr(diffusers, kind),
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
        **({"in_channels": 4} | config),
    )


def wan(kind: str = "WanPipeline", experts: int = 1, inputs: int = 4, pictures: bool = False, **more: Any) -> Any:
    parts = {"vae": causal_vae("AutoencoderKLWan", base_dim=3) if pictures else None}
    if experts == 2:
        more |= {"transformer_2": wan_model(in_channels=inputs), "boundary_ratio": 0.6}
    net = wan_model(in_channels=inputs)
    return getattr(diffusers, kind)(scheduler=multistep(), transformer=net, **NO_CLIP, **parts, **more)


def vace() -> Any:
    net = wan_model("WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=72)
    coder = causal_vae("AutoencoderKLWan", base_dim=3)
    return diffusers.WanVACEPipeline(vae=coder, scheduler=multistep(), transformer=net, **NO_CLIP)


def skyreels() -> Any:
    net = wan_model("SkyReelsV2Transformer3DModel")
    return diffusers.SkyReelsV2Pipeline(vae=None, scheduler=multistep(), transformer=net, **NO_CLIP)


def skyreels_forcing() -> Any:
    net = wan_model("SkyReelsV2Transformer3DModel", inject_sample_info=True)
    return diffusers.SkyReelsV2DiffusionForcingPipeline(vae=None, scheduler=multistep(), transformer=net, **NO_CLIP)


def kandinsky5_film() -> Any:
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
    return diffusers.Kandinsky5T2VPipeline(transformer=net, vae=None, scheduler=flow(), **NO_CLIPS)


def sana_video() -> Any:
    net = seeded(
        diffusers.SanaVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        rope_max_seq_len=32,
    )
    return diffusers.SanaVideoPipeline(vae=None, transformer=net, scheduler=flow(), **NO_CLIP)


def cosmos() -> Any:
    net = seeded(
        diffusers.CosmosTransformer3DModel,
        in_channels=5,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        patch_size=(1, 2, 2),
        extra_pos_embed_type=None,
        concat_padding_mask=False,
    )
    coder = causal_vae("AutoencoderKLWan", base_dim=3)
    return diffusers.Cosmos2_5_PredictBasePipeline(
        vae=coder, scheduler=multistep(), transformer=net, safety_checker=Unchecked(), **NO_CLIP
    )


class Unchecked(StandIn):
    """Stands in for Cosmos's guardrail."""

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, film: Any) -> Any:
        return film


def animatediff() -> Any:
    import tiny

    torch.manual_seed(0)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    unet = seeded(
        diffusers.UNet2DConditionModel,
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return diffusers.AnimateDiffPipeline(
        vae=tiny.autoencoder(),
        unet=diffusers.UNetMotionModel.from_unet2d(unet, adapter),
        motion_adapter=adapter,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        **NO_CLIP,
    )


def film(pipe: Any, p: Paint, **more: Any) -> Any:
    return pipe(**(wishes(p) | FILM | more)).frames


SELF = r"transformer_blocks\.\d+\.(attn1\.to_[qkv]|ff\.net\.2)"
WAN = r"blocks\.\d+\.(attn1\.to_[qkv]|ffn\.net\.2)"
VIDEOS = (
    Record("CogVideoX", cogvideox, film, r"transformer_blocks\.\d+\.(attn1\.to_[qkv]|ff\.net\.2)"),
    Record(
        "Mochi",
        mochi,
        lambda pipe, p: film(pipe, p, num_frames=13, **masks(p)),
        r"transformer_blocks\.\d+\.(attn1\.to_[qkv]|ff\.net\.2)",
        GRID,
    ),
    Record("LTX", ltx, lambda pipe, p: film(pipe, p, height=128, width=192, num_frames=17, **masks(p)), SELF, GRID),
    Record("LTX-2", ltx2, lambda pipe, p: film(pipe, p, height=128, width=192, num_frames=17, **masks(p)), SELF, GRID),
    Record(
        "HunyuanVideo",
        hunyuan,
        lambda pipe, p: film(pipe, p, true_cfg_scale=2.0, **pooled(p), **masks(p)),
        r"transformer_blocks\.\d+\.(attn\.to_[qkv]|ff\.net\.2)",
        GRID,
    ),
    Record("Wan 2.1", wan, film, WAN, GRID),
    Record("Wan 2.2", partial(wan, experts=2), film, WAN, GRID, denoisers=("transformer", "transformer_2")),
    Record(
        "Wan 2.2 from a picture",
        partial(wan, "WanImageToVideoPipeline", 2, 12, True, image_encoder=None, image_processor=None),
        lambda pipe, p: film(pipe, p, image=photo()),
        WAN,
        GRID,
        denoisers=("transformer", "transformer_2"),
    ),
    Record("Wan VACE", vace, lambda pipe, p: film(pipe, p, generator=p.generators[0]), WAN, GRID, batch=False),
    Record("SkyReels 2", skyreels, film, WAN, GRID),
    Record(
        "SkyReels 2 forcing",
        skyreels_forcing,
        lambda pipe, p: film(pipe, p, prompt=None, base_num_frames=9, overlap_history=None),
        WAN,
        GRID,
        batch=False,
    ),
    Record(
        "Kandinsky 5 films",
        kandinsky5_film,
        lambda pipe, p: paint_kandinsky5(pipe, p, num_frames=9).frames,
        r"visual_transformer_blocks\.\d+\.self_attention\.to_.*",
        GRID,
    ),
    Record(
        "Sana Video",
        sana_video,
        lambda pipe, p: (
            pipe(**wishes(p), **masks(p), negative_prompt=None, frames=9, use_resolution_binning=False).frames
        ),
        r"transformer_blocks\.\d+\.attn1\.to_[qkv]",
        GRID,
    ),
    Record("Cosmos 2.5", cosmos, film, r"transformer_blocks\.\d+\.attn1\.to_[qkv]", GRID),
    Record(
        "AnimateDiff",
        animatediff,
        lambda pipe, p: film(pipe, p, height=32, width=32, num_frames=2),
        r".*(?<!motion_modules\.\d)\.transformer_blocks\.\d+\.attn1\.to_[qkv]",
        denoisers=("unet",),
    ),
)
