"""The numbers of a training run, by the names that kohya's trainer has for them.

Names and meanings are those of sd-scripts, so that its `train.toml` files can be read; defaults are the usual ones.
What has another meaning here than there is not called the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Config"]


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the pictures. Sizes are in pixels, (width, height) where there are two."""

    # Where things are.
    pretrained_model_name_or_path: str = ""  # a folder of diffusers', or a single file
    train_data_dir: Path = Path("training")
    reg_data_dir: Path | None = None  # pictures of the class, which the LoRA shall leave as they are
    output_dir: Path = Path("outputs")
    output_name: str = "lora"

    # What is trained.
    network_module: str = "lora"  # lora, loha, lokr
    network_dim: int = 16
    network_alpha: float = 8.0
    conv_dim: int = 0  # 0: convolutions larger than 1 × 1 are left as they are
    conv_alpha: float = 0.0  # 0: as conv_dim
    use_rslora: bool = False  # Δ = alpha / √rank · U·D
    use_dora: bool = False
    factor: int = -1  # LoKr's; -1: as near to square as can be
    train_unet: bool = True  # the denoiser, whatever it is
    train_text_encoder: bool = False
    token_string: str = ""  # a new word, learnt beside the LoRA (Textual Inversion); "": none
    init_word: str = ""  # what the new word means at first
    num_vectors_per_token: int = 1
    quantize: str = "no"  # the weights below the LoRA: no, nf4, int8 (QLoRA)
    prior_loss_weight: float = 1.0  # of a picture of reg_data_dir, beside 1 of the others

    # How the pictures are shown.
    resolution: tuple[int, int] = (512, 512)
    enable_bucket: bool = True
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    flip_aug: bool = False
    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout_rate: float = 0.0
    caption_extension: tuple[str, ...] = (".txt", ".caption")
    cache_latents_to_disk: bool = False  # in memory otherwise

    # How long, and how fast.
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1600
    max_train_epochs: int = 0  # 0: max_train_steps says how long
    learning_rate: float = 1e-4
    unet_lr: float | None = None  # None: learning_rate
    text_encoder_lr: float | None = None
    embedding_lr: float | None = None
    optimizer_type: str = "AdamW"  # of torch.optim, or by its dotted name
    optimizer_args: tuple[tuple[str, object], ...] = ()
    lr_scheduler: str = "cosine"  # constant, cosine, linear, …: diffusers.optimization's
    lr_warmup_steps: int = 0
    max_grad_norm: float = 1.0  # 0: gradients are not cut
    min_snr_gamma: float = 0.0  # 0: all steps of the noise count alike
    noise_offset: float = 0.0
    ema_decay: float = 0.0  # 0: the last weights are written; else their running mean
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"  # no, fp16, bf16
    save_precision: str = "float16"
    seed: int = 42

    # What is seen of it on the way.
    save_every_n_steps: int = 0
    save_every_n_epochs: int = 0
    sample_every_n_steps: int = 0
    sample_prompts: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """The file that is written."""
        return self.output_dir / f"{self.output_name}.safetensors"
