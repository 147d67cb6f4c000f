"""kohya's names and values, as tables: what stands for what here, and what asks for nothing."""

from __future__ import annotations

__all__ = ["LYCORIS", "MODULES", "OFF", "OPTIMIZERS", "PRECISIONS", "RENAMED", "SECRET", "SILENT", "UNUSED"]

# What a run of kohya's does where its file is silent and Config's own default is another.
SILENT: dict[str, object] = {
    "network_dim": 4,
    "network_alpha": 1.0,
    "train_text_encoder": True,
    "enable_bucket": False,
    "lr_scheduler": "constant",
}
MODULES = {
    "networks.lora": "lora",
    "networks.lora_flux": "lora",
    "networks.lora_sd3": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}
# LyCORIS' algorithm of "lycoris.kohya".
LYCORIS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
# By kohya's name in lower case.
OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "pagedadamw": "bitsandbytes.optim.PagedAdamW",
    "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "pagedadamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "lion": "lion_pytorch.Lion",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
    "prodigy": "prodigyopt.Prodigy",
    "adafactor": "transformers.optimization.Adafactor",
    "dadaptadam": "dadaptation.DAdaptAdam",
    "dadaptlion": "dadaptation.DAdaptLion",
}
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}
# kohya's name → the name here, where the values are the same.
RENAMED = {
    "batch_size": "train_batch_size",
    "caption_extention": "caption_extension",
    "rs_lora": "use_rslora",
    "dora_wd": "use_dora",
}
_UNUSED_BECAUSE = {
    "what the model is, is read from its own files": """
        v2 v_parameterization clip_skip max_token_length zero_terminal_snr no_half_vae
    """,
    "torch's own attention is used": "xformers sdpa mem_eff_attn",
    "pictures and texts are read and kept in another way here": """
        cache_latents vae_batch_size max_data_loader_n_workers persistent_data_loader_workers lowram highvram cache_info
        cache_text_encoder_outputs cache_text_encoder_outputs_to_disk skip_cache_check tokenizer_cache_dir
        text_encoder_batch_size disable_mmap_load_safetensors use_safetensors
    """,
    "--resume goes on with a run": """
        save_state save_state_on_train_end resume save_last_n_steps save_last_n_epochs save_n_epoch_ratio initial_epoch
        initial_step skip_until_initial_step save_last_n_epochs_state save_last_n_steps_state
    """,
    "sample_every_n_steps is read": "sample_every_n_epochs sample_sampler sample_at_first",
    "accelerate's own configuration says how processes work together": """
        ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph deepspeed zero_stage offload_optimizer_device
        offload_optimizer_nvme_path offload_param_device offload_param_nvme_path zero3_init_flag zero3_save_16bit_model
        fp16_master_weights_and_gradients
    """,
    "nothing is sent anywhere": """
        logging_dir log_with log_prefix log_tracker_name log_tracker_config log_config wandb_run_name wandb_api_key
        huggingface_repo_id huggingface_path_in_repo huggingface_repo_type huggingface_repo_visibility huggingface_token
        resume_from_huggingface save_state_to_huggingface async_upload
    """,
    "not done here": """
        vae color_aug random_crop face_crop_aug_range masked_loss alpha_mask resize_interpolation dataset_repeats
        in_json caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_step token_warmup_min
        caption_prefix caption_suffix keep_tokens_separator secondary_separator enable_wildcard caption_separator
        weighted_captions network_dropout rank_dropout module_dropout scale_weight_norms network_weights
        dim_from_weights base_weights base_weights_multiplier block_lr_zero_threshold down_lr_weight mid_lr_weight
        up_lr_weight block_dims block_alphas conv_block_dims conv_block_alphas preset loraplus_lr_ratio split_qkv
        train_t5xxl use_tucker use_scalar multires_noise_iterations multires_noise_discount adaptive_noise_scale
        noise_offset_random_strength perlin_noise ip_noise_gamma ip_noise_gamma_random_strength
        debiased_estimation_loss min_timestep max_timestep loss_type huber_schedule huber_c huber_scale
        scale_v_pred_loss_like_noise_pred v_pred_like_loss weighting_scheme logit_mean logit_std mode_scale
        lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_args lr_scheduler_type lr_decay_steps
        lr_scheduler_min_lr_ratio lr_scheduler_timescale optimizer_schedulefree_wrapper schedulefree_wrapper_args
        fused_backward_pass full_fp16 full_bf16 fp8_base fp8_base_unet torch_compile dynamo_backend blocks_to_swap
        cpu_offload_checkpointing validation_split validation_seed validate_every_n_steps validate_every_n_epochs
        max_validation_steps dataset_class debug_dataset conditioning_data_dir save_model_as training_comment
        no_metadata config_file output_config
    """,
}
# kohya's names that are not read, and why not.
UNUSED = {name: reason for reason, names in _UNUSED_BECAUSE.items() for name in names.split()}
# Values that turn such a name off: not worth a line.
OFF: tuple[object, ...] = (False, 0, "", "no", "none", "None", [], None)
# What must not be shown.
SECRET = ("wandb_api_key", "huggingface_token")
