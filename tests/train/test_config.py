"""The numbers of a run: what may be, and what kohya's files mean here."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.errors import TrainingError
from lora_runtime.train.config import Config, Subset, read_config
from lora_runtime.train.kohya import translate

# The names that sd-scripts' train_network.py takes, as its own parser lists them (2026-02).
KOHYAS_NAMES = """
adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier blocks_to_swap bucket_no_upscale
bucket_reso_steps cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
conditioning_data_dir cpu_offload_checkpointing dataset_class dataset_repeats ddp_gradient_as_bucket_view
ddp_static_graph ddp_timeout debiased_estimation_loss debug_dataset deepspeed dim_from_weights
disable_mmap_load_safetensors dynamo_backend enable_bucket enable_wildcard face_crop_aug_range flip_aug fp8_base
fp8_base_unet full_bf16 full_fp16 fused_backward_pass gradient_accumulation_steps gradient_checkpointing highvram
huber_c huber_scale huber_schedule huggingface_path_in_repo huggingface_repo_id huggingface_repo_type
huggingface_repo_visibility huggingface_token in_json initial_epoch initial_step ip_noise_gamma
ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate log_config log_prefix
log_tracker_config log_tracker_name log_with logging_dir logit_mean logit_std loss_type lowram lr_decay_steps
lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss max_bucket_reso max_data_loader_n_workers
max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps max_validation_steps mem_eff_attn
min_bucket_reso min_snr_gamma min_timestep mixed_precision mode_scale multires_noise_discount
multires_noise_iterations network_alpha network_args network_dim network_dropout network_module
network_train_text_encoder_only network_train_unet_only network_weights no_half_vae no_metadata noise_offset
noise_offset_random_strength optimizer_args optimizer_schedulefree_wrapper optimizer_type output_dir output_name
perlin_noise persistent_data_loader_workers pretrained_model_name_or_path prior_loss_weight random_crop reg_data_dir
resize_interpolation resolution resume resume_from_huggingface sample_at_first sample_every_n_epochs
sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio save_precision
save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred scale_weight_norms
schedulefree_wrapper_args sdpa secondary_separator seed shuffle_caption skip_cache_check skip_until_initial_step
text_encoder_batch_size text_encoder_lr token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile
train_batch_size train_data_dir training_comment unet_lr use_8bit_adam use_lion_optimizer use_safetensors v2
v_parameterization v_pred_like_loss vae vae_batch_size validate_every_n_epochs validate_every_n_steps
validation_seed validation_split wandb_api_key wandb_run_name weighted_captions weighting_scheme xformers
zero_terminal_snr
"""

# As people keep one: sections are headings, and half of the names are the trainer's own affairs.
USUAL = """
[model]
pretrained_model_name_or_path = "models/base.safetensors"
v_parameterization = true
xformers = true

[folders]
train_data_dir = "pictures"
reg_data_dir = ""
output_dir = "out"
output_name = "robot"
logging_dir = "logs"

[network]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4"]
network_train_unet_only = true

[training]
resolution = "512,768"
enable_bucket = true
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
learning_rate = "1e-4"
lr_scheduler = "cosine"
unet_lr = 0.0002
max_train_epochs = 10
mixed_precision = "fp16"
save_precision = "fp16"
caption_extension = ".txt"
caption_tag_dropout_rate = 0.0
seed = 7
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Give the function that writes a configuration and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "train.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("network_module", "oft", "one of lora, loha, lokr is allowed"),
        ("network_dim", 0, "1 or more is allowed"),
        ("network_dim", 8.5, "a whole number is needed"),
        ("network_dim", True, "a whole number is needed"),
        ("network_alpha", 0.0, "more than 0 is allowed"),
        ("learning_rate", float("nan"), "a finite number is needed"),
        ("learning_rate", -1e-4, "more than 0 is allowed"),
        ("unet_lr", 0.0, "more than 0 is allowed"),
        ("factor", 0, "-1 or a whole number from 1 is allowed"),
        ("resolution", (512, 500), "two multiples of 8 are allowed"),
        ("resolution", (512,), "two whole numbers are needed, the width and the height"),
        ("resolution", 512, "two whole numbers are needed, the width and the height"),
        ("bucket_reso_steps", 12, "a multiple of 8 is allowed"),
        ("caption_dropout_rate", 1.5, "from 0 to 1 is allowed"),
        ("ema_decay", 1.0, "from 0 to less than 1 is allowed"),
        ("mixed_precision", "fp32", "one of no, fp16, bf16 is allowed"),
        ("save_precision", "fp8", "one of float32, float16, bfloat16 is allowed"),
        ("quantize", "int4", "one of no, nf4, int8 is allowed"),
        ("flip_aug", 1, "true or false is needed"),
        ("output_name", "", "it is empty"),
        ("output_name", 5, "a text is needed"),
        ("train_data_dir", "", "a path is needed"),
        ("caption_extension", ("txt",), "endings are allowed that begin with a dot"),
        ("sample_prompts", "a robot", "a list of texts is needed"),
        ("optimizer_args", ("weight_decay",), "a list of pairs is needed, a name and its value"),
        ("seed", -1, "0 or more is allowed"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    with pytest.raises(TrainingError) as raised:
        Config(**{name: value})
    assert str(raised.value) == f"{name} = {value!r} cannot be: {allowed}"


def test_values_take_the_type_of_their_field() -> None:
    config = Config(train_data_dir="pictures", network_alpha=4, resolution=[64, 32], unet_lr=1, bucket_reso_steps=8)
    assert config.train_data_dir == Path("pictures")
    assert type(config.network_alpha) is float and type(config.unet_lr) is float
    assert config.resolution == (64, 32)


def test_a_run_that_would_train_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match="nothing would be trained"):
        Config(train_unet=False)
    assert Config(train_unet=False, token_string="<robot>").token_string == "<robot>"


def test_steps_larger_than_the_resolution_are_refused_where_there_are_buckets() -> None:
    with pytest.raises(TrainingError, match="bucket_reso_steps = 64 cannot be: it is more than a side of resolution"):
        Config(resolution=(48, 48))
    assert Config(resolution=(48, 48), enable_bucket=False).resolution == (48, 48)


def test_the_file_that_is_written_has_the_outputs_name() -> None:
    assert Config(output_dir="out", output_name="v1.5 robot").out == Path("out/v1.5 robot.safetensors")


# --- files -------------------------------------------------------------------------------------------------------


def test_a_usual_file_of_kohyas_is_read_by_its_meaning(write: Any) -> None:
    config, notes = read_config(write(USUAL))
    assert config == Config(
        pretrained_model_name_or_path="models/base.safetensors",
        train_data_dir=Path("pictures"),
        output_dir=Path("out"),
        output_name="robot",
        network_module="lora",
        network_dim=32,
        network_alpha=16.0,
        conv_dim=8,
        conv_alpha=4.0,
        train_text_encoder=False,
        resolution=(512, 768),
        optimizer_type="bitsandbytes.optim.AdamW8bit",
        optimizer_args=(("weight_decay", 0.1), ("betas", (0.9, 0.99))),
        learning_rate=1e-4,
        unet_lr=2e-4,
        lr_scheduler="cosine",
        max_train_epochs=10,
        mixed_precision="fp16",
        save_precision="float16",
        caption_extension=(".txt",),
        seed=7,
    )
    assert notes == [
        "v_parameterization = true: not read; what the model is, is read from its own files",
        "xformers = true: not read; torch's own attention is used",
        'logging_dir = "logs": not read; nothing is sent anywhere',
    ]


def test_what_is_written_empty_is_not_given(write: Any) -> None:
    config, notes = read_config(write('reg_data_dir = ""\ntrain_data_dir = "a"\nmax_train_epochs = ""\nunet_lr = ""'))
    assert config == Config(train_data_dir=Path("a")) and notes == []


def test_each_name_of_kohyas_is_known(write: Any) -> None:
    for name in KOHYAS_NAMES.split():
        try:
            _, notes = read_config(write(f"{name} = 1"))
        except TrainingError as error:  # known, and 1 is no value of it
            assert name.replace("extention", "extension") in str(error)
        else:
            assert not [note for note in notes if "not known" in note]


def test_a_name_that_is_not_known_is_said_with_the_nearest(write: Any) -> None:
    config, notes = read_config(write('netwrok_dim = 64\nmood = "good"'))
    assert config == Config()
    assert notes == [
        "netwrok_dim = 64: not known, and not read; did you mean network_dim?",
        'mood = "good": not known, and not read',
    ]


def test_what_kohya_would_do_where_its_file_is_silent_is_done_and_said(write: Any) -> None:
    config, notes = read_config(write('network_module = "networks.lora"'))
    assert (config.network_dim, config.network_alpha, config.lr_scheduler) == (4, 1.0, "constant")
    assert config.train_text_encoder and not config.enable_bucket
    assert notes == [
        "network_module = networks.lora: kohya's defaults for what is not said: network_dim = 4, network_alpha = 1.0, "
        'train_text_encoder = true, enable_bucket = false, lr_scheduler = "constant"'
    ]
    assert read_config(write('network_module = "lora"')) == (Config(), [])


def test_convolutions_without_an_alpha_have_kohyas(write: Any) -> None:
    config, notes = read_config(write('network_module = "networks.lora"\nnetwork_args = ["conv_dim=8"]'))
    assert (config.conv_dim, config.conv_alpha) == (8, 1.0) and "conv_alpha = 1.0" in notes[0]


def test_lycoris_trains_convolutions_with_the_rank_of_the_rest(write: Any) -> None:
    text = 'network_module = "lycoris.kohya"\nnetwork_dim = 16\nnetwork_alpha = 8\n'
    config, _ = read_config(write(text + 'network_args = ["algo=lokr", "factor=4"]'))
    assert (config.network_module, config.factor, config.conv_dim, config.conv_alpha) == ("lokr", 4, 16, 8.0)


def test_numbers_said_beside_a_file_bring_no_defaults_along() -> None:
    kinds = {"network_module": "str", "lr_warmup_steps": "int"}
    values, notes = translate({"network_module": "networks.lora"}, kinds, whole=False)
    assert values == {"network_module": "lora"} and notes == []


@pytest.mark.parametrize(
    "text",
    ['network_module = "networks.oft"', 'network_module = "lycoris.kohya"\nnetwork_args = ["algo=ia3"]'],
)
def test_another_kind_of_adapter_is_refused_and_not_replaced(write: Any, text: str) -> None:
    with pytest.raises(TrainingError, match=r"networks\.oft|algo=ia3"):
        read_config(write(text))


@pytest.mark.parametrize(
    ("text", "optimizer"),
    [
        ('optimizer_type = "Prodigy"', "prodigyopt.Prodigy"),
        ('optimizer_type = "adamw"', "AdamW"),
        ('optimizer_type = "my.own.Optimizer"', "my.own.Optimizer"),
        ("use_8bit_adam = true", "bitsandbytes.optim.AdamW8bit"),
        ("use_8bit_adam = false", "AdamW"),
        ("use_lion_optimizer = true", "lion_pytorch.Lion"),
    ],
)
def test_optimisers_by_kohyas_names_are_found_by_their_dotted_names(write: Any, text: str, optimizer: str) -> None:
    assert read_config(write(text))[0].optimizer_type == optimizer


@pytest.mark.parametrize(
    ("text", "resolution"),
    [("768", (768, 768)), ('"768"', (768, 768)), ('"512, 768"', (512, 768)), ("[512, 768]", (512, 768))],
)
def test_a_resolution_is_a_side_or_width_and_height(write: Any, text: str, resolution: tuple[int, int]) -> None:
    assert read_config(write(f"resolution = {text}"))[0].resolution == resolution


@pytest.mark.parametrize("text", ['"large"', "[1, 2, 3]", "[]"])
def test_another_resolution_is_refused(write: Any, text: str) -> None:
    with pytest.raises(TrainingError, match=r"train\.toml: resolution = .* cannot be"):
        read_config(write(f"resolution = {text}"))


@pytest.mark.parametrize(
    ("text", "unet", "text_encoder"),
    [
        ("network_train_unet_only = true", True, False),
        ("network_train_text_encoder_only = true", False, True),
        ("text_encoder_lr = 5e-5\ntrain_text_encoder = true", True, True),
        ("text_encoder_lr = 0", True, False),
        ("unet_lr = 0\ntrain_text_encoder = true", False, True),
        ("text_encoder_lr = []", True, False),
    ],
)
def test_what_is_trained_follows_from_kohyas_flags_and_rates(
    write: Any, text: str, unet: bool, text_encoder: bool
) -> None:
    config, _ = read_config(write(text))
    assert (config.train_unet, config.train_text_encoder) == (unet, text_encoder)


def test_text_encoders_have_one_rate_and_a_second_is_said(write: Any) -> None:
    config, notes = read_config(write("text_encoder_lr = [5e-5, 1e-5]\ntrain_text_encoder = true"))
    assert config.text_encoder_lr == 5e-5
    assert notes == ["text_encoder_lr = [5e-05, 1e-05]: 5e-05 for all text encoders; they have one rate here"]


def test_a_warm_up_may_be_a_part_of_the_steps(write: Any) -> None:
    assert read_config(write("lr_warmup_steps = 0.1\nmax_train_steps = 500"))[0].lr_warmup_steps == 50
    assert read_config(write("lr_warmup_steps = 20"))[0].lr_warmup_steps == 20
    config, notes = read_config(write("lr_warmup_steps = 0.1\nmax_train_epochs = 5"))
    assert config.lr_warmup_steps == 0 and len(notes) == 1


def test_numbers_may_be_texts_and_texts_stay_texts(write: Any) -> None:
    config, _ = read_config(write('max_train_steps = "1200"\nlearning_rate = "3e-4"\noutput_name = "123"'))
    assert (config.max_train_steps, config.learning_rate, config.output_name) == (1200, 3e-4, "123")


def test_sample_prompts_come_from_a_text_file(write: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# mine\na robot --n bad --w 512\n\na red robot\n", encoding="utf-8")
    config, notes = read_config(write(f"sample_prompts = '{tmp_path / 'prompts.txt'}'"))
    assert config.sample_prompts == ("a robot --n bad --w 512", "a red robot") and notes == []
    config, notes = read_config(write('sample_prompts = "nowhere.txt"'))
    assert config.sample_prompts == () and "not read; no prompts are in it" in notes[0]
    config, notes = read_config(write('sample_prompts = "prompts.json"'))
    assert config.sample_prompts == () and "not read; a list or a text file with one in each line is" in notes[0]
    assert read_config(write('sample_prompts = "a boat"')) == (Config(sample_prompts=("a boat",)), [])
    with pytest.raises(TrainingError, match="sample_prompts = 5 cannot be"):
        read_config(write("sample_prompts = 5"))
    assert read_config(write('sample_prompts = ["a boat"]')) == (Config(sample_prompts=("a boat",)), [])


def test_a_secret_is_not_shown(write: Any) -> None:
    _, notes = read_config(write('wandb_api_key = "hunter2"'))
    assert notes == ["wandb_api_key = …: not read; nothing is sent anywhere"]


def test_folders_of_a_dataset_config_are_read(write: Any) -> None:
    text = """
    [general]
    shuffle_caption = true
    keep_tokens = 1
    [[datasets]]
    resolution = 512
    batch_size = 4
      [[datasets.subsets]]
      image_dir = 'hoge'
      class_tokens = 'hoge girl'
      num_repeats = 10
      keep_tokens = 2
      [[datasets.subsets]]
      image_dir = 'reg'
      is_reg = true
    """
    config, notes = read_config(write(text))
    assert config.subsets == (Subset(Path("hoge"), 10, "hoge girl"), Subset(Path("reg"), 1, "", True))
    assert (config.train_batch_size, config.resolution, config.shuffle_caption) == (4, (512, 512), True)
    assert config.keep_tokens == 1
    assert notes == ["keep_tokens = 2: not read; keep_tokens = 1 was said before, and counts for all"]
    config, notes = read_config(write(text), train_data_dir="elsewhere")
    assert config.subsets == () and config.train_data_dir == Path("elsewhere")
    assert "the folders of [[datasets]] are not read" in notes[-1]


VALUES = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["0.5", "a=b", "algo=[1]", "networks.lora"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(table=st.dictionaries(st.sampled_from([*KOHYAS_NAMES.split(), "datasets", "no such name"]), VALUES, max_size=6))
def test_any_table_is_read_or_refused_in_one_line(table: dict[str, Any]) -> None:
    try:
        values, notes = translate(table, {field.name: str(field.type) for field in fields(Config)})
        values.pop("subsets", None)
        Config(**values)
    except TrainingError as error:
        assert str(error)
    else:
        assert all(isinstance(note, str) for note in notes)


@pytest.mark.parametrize("subset", ["image_dir = 5", 'image_dir = "a"\nnum_repeats = "many"', 'image_dir = ""'])
def test_a_subset_with_a_value_that_cannot_be_is_refused(write: Any, subset: str) -> None:
    with pytest.raises(TrainingError, match=r"train\.toml: (image_dir|num_repeats) = .* cannot be"):
        read_config(write(f"[[datasets]]\n[[datasets.subsets]]\n{subset}"))


def test_a_subset_without_a_folder_is_refused(write: Any) -> None:
    with pytest.raises(TrainingError, match="has no image_dir"):
        read_config(write("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2"))
    with pytest.raises(TrainingError, match=r"datasets is no list of tables"):
        read_config(write("datasets = [1]"))


def test_what_is_given_beside_the_file_counts(write: Any) -> None:
    config, _ = read_config(write("network_dim = 4\nseed = 1"), network_dim=64, output_name="other")
    assert (config.network_dim, config.seed, config.output_name) == (64, 1, "other")
    with pytest.raises(TrainingError, match="colour: Config has no such field"):
        read_config(write(""), colour="red")


def test_a_file_that_is_no_toml_or_not_there_is_one_clear_line(write: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.toml: no TOML file"):
        read_config(write("network_dim: 16"))
    with pytest.raises(TrainingError, match=r"none\.toml: the configuration cannot be read \(No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'output_name = "r\xf6bot"')
    with pytest.raises(TrainingError, match=r"latin\.toml: no TOML file"):
        read_config(tmp_path / "latin.toml")


def test_an_editors_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfseed = 5")
    assert read_config(tmp_path / "a.toml")[0].seed == 5


def test_an_error_in_a_file_names_the_file(write: Any) -> None:
    with pytest.raises(TrainingError, match=r"train\.toml: network_dim = 0 cannot be: 1 or more is allowed"):
        read_config(write("network_dim = 0"))
