"""What a file is that is no LoRA: told from its first bytes, or from its keys, with what to do next.

Each answer completes a sentence that begins with the file: "it is …". Nothing here decides what is read: these are
names for what the format or the adapters have already refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable

__all__ = ["AGAIN", "HEAD", "UNFINISHED", "content_of", "is_pickle", "kind_of"]

HEAD = 512  # bytes of a file that are enough to tell
AGAIN = "Download it again, or save it again with the program that wrote it."

# What programs call a file while they download it.
UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp", ".!qb")

_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# The first member of what torch.save writes is one of these.
_OF_TORCH = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
_LOGIN = "the download probably asks for a login, or for an access token"
_UNPACK = "unpack it, and put the .safetensors file that is in it in its place"
_CONVERTED = "look for the same LoRA as .safetensors"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a git-lfs pointer, not the file: run `git lfs pull`"),
    (b"# xet version", "it is a xet pointer, not the file: run `git lfs pull` with git-xet installed, or download it"),
    (b"GGUF", f"it is a GGUF file, which is not read: {_CONVERTED}"),
    (b"ggml", f"it is a GGML file, which is not read: {_CONVERTED}"),
    (b"\x00\x05\x16\x07", "it is what macOS keeps beside a file (AppleDouble), not the file: delete it"),
    (b"\x89HDF\r\n", f"it is an HDF5 file (Keras), which is not read: {_CONVERTED}"),
    (b"\x93NUMPY", f"it is a NumPy array, which is not read: {_CONVERTED}"),
    (b"7z\xbc\xaf", f"it is a 7z archive: {_UNPACK}"),
    (b"Rar!", f"it is a RAR archive: {_UNPACK}"),
    (b"\x1f\x8b", f"it is a gzip archive: {_UNPACK}"),
    (b"\xfd7zXZ", f"it is an xz archive: {_UNPACK}"),
    (b"(\xb5/\xfd", f"it is a zstd archive: {_UNPACK}"),
    (b"\x89PNG", f"it is a picture (PNG). {AGAIN}"),
    (b"\xff\xd8\xff", f"it is a picture (JPEG). {AGAIN}"),
    (b"RIFF", f"it is a picture or a sound (RIFF). {AGAIN}"),
    (b"GIF8", f"it is a picture (GIF). {AGAIN}"),
    (b"%PDF", f"it is a PDF. {AGAIN}"),
)


def is_pickle(head: bytes) -> bool:
    """Return whether a file that begins with `head` is what torch.save or pickle writes.

    A zip is taken for one unless its first member is clearly none of torch's: a pickle must never pass for an archive.
    """
    return head.startswith(_PICKLES) or (head.startswith(_ZIP) and _zipped(head) is None)


def content_of(head: bytes) -> str | None:
    """Return what a file is that begins with `head`, or None where nothing is known of it."""
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head.startswith(_ZIP):
        return f'it is a zip archive, which begins with "{_zipped(head)}": {_UNPACK}'
    if head and not head.strip(b"\0"):
        return f"its first {len(head):,} bytes are zeros: the download was not finished. {AGAIN}"
    text = _text(head)
    if text.lower().startswith(("<!doctype", "<html", "<head", "<body")):
        return f"it is a web page, not the file: {_LOGIN}"
    if text.startswith("<"):
        return f"it is XML, not the file ({_quoted(text)}): {_LOGIN}"
    if text.startswith(("{", "[")):
        return f"it is a message in JSON, not the file ({_quoted(text)}): {_LOGIN}"
    # A safetensors file can begin with letters only if its header had 10¹⁸ bytes.
    return f"it is text, not the file ({_quoted(text)}). {AGAIN}" if len(text) >= 8 else None


def _zipped(head: bytes) -> str | None:
    """Return the name of the first member of a zip, None where it may be torch's or cannot be read."""
    if len(head) < 30:
        return None
    (length,) = struct.unpack_from("<H", head, 26)
    raw = head[30 : 30 + length]
    if len(raw) < length or not raw:
        return None
    name = raw.decode("utf-8", "replace")
    return None if name.endswith(_OF_TORCH) or not name.isprintable() else name


def _text(head: bytes) -> str:
    """Return the beginning of a text file, "" for anything else; a letter that is cut in two at the end is left out."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return ""
        text = head[: error.start].decode("utf-8-sig")
    return text.lstrip() if all(char.isprintable() or char in "\r\n\t" for char in text) else ""


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"


# ---- keys -----------------------------------------------------------------------------------------------------------

_EMBEDDING = (
    "a textual inversion (an embedding), not a LoRA: load it as an embedding (in diffusers load_textual_inversion; "
    "in the WebUI it belongs into the folder embeddings) and write its name as a word of the prompt"
)
_CONTROLNET = "a ControlNet, not a LoRA: load it as a ControlNet"
_IP_ADAPTER = "an IP-Adapter, not a LoRA: load it as an IP-Adapter, together with its image encoder"
_VAE = "a VAE, not a LoRA: load it as the VAE of the model"
_CHECKPOINT = "a whole model (a checkpoint), not a LoRA: load it as the model"
_DENOISER = "a model's own weights (a denoiser), not a LoRA: load it as the model"
_TEXT_ENCODER = "a text encoder, not a LoRA: load it as a text encoder"

# What it is, and beginnings of keys: of each tuple, one key must begin with one of them. The more special come first.
_KINDS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    (
        "a Control-LoRA, which holds the factors of a ControlNet and changes no model: load it as a ControlNet",
        (("lora_controlnet",),),
    ),
    ("a ControlNet-LLLite, not a LoRA: load it with a program that has ControlNet-LLLite", (("lllite_",),)),
    (_IP_ADAPTER, (("ip_adapter.", "ip_adapter_"),)),
    (_IP_ADAPTER, (("image_proj.", "image_proj_model."),)),
    ("a PhotoMaker, not a LoRA: load it with a pipeline that has PhotoMaker", (("id_encoder.",),)),
    (_CONTROLNET, (("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_blocks."),)),
    (_CONTROLNET, (("zero_convs.", "input_hint_block.", "control_net.", "nested.control"),)),
    ("a T2I-Adapter, not a LoRA: load it as a T2I-Adapter", (("adapter.body.", "adapter.conv_in.", "body.0."),)),
    (
        _CHECKPOINT,
        (
            ("model.diffusion_model.", "diffusion_model."),
            ("first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "text_encoders.", "model_ema."),
        ),
    ),
    (_DENOISER, (("model.diffusion_model.",),)),
    (_DENOISER, (("input_blocks.", "double_blocks.", "down_blocks.", "transformer_blocks."),)),
    (_DENOISER, (("single_blocks.", "joint_blocks.", "blocks.0."),)),
    (_VAE, (("first_stage_model.",),)),
    (_VAE, (("encoder.",), ("decoder.",), ("encoder.conv_in.", "encoder.conv1.", "encoder.down", "decoder.up"))),
    (_VAE, (("encoder.",), ("decoder.conv_out.", "decoder.conv_in.", "quant_conv.", "post_quant_conv."))),
    (_TEXT_ENCODER, (("text_model.encoder.", "text_model.embeddings.", "cond_stage_model.", "conditioner."),)),
    (_TEXT_ENCODER, (("encoder.block.0.", "shared.weight", "transformer.resblocks.0."),)),
    ("an image encoder (CLIP vision), not a LoRA: load it as an image encoder", (("vision_model.",),)),
    ("an upscaler, not a LoRA: load it as an upscaler", (("conv_first.", "model.1.sub."),)),
)
_EMBEDDING_KEYS = re.compile(r"emb_params|string_to_param\.\*|clip_[lg]|t5xxl|llava|<[^<>]+>")
_FACTORS = re.compile(r"lora_(?!controlnet)|\.(?:hada_|lokr_|oft_|diff(?:_b)?$)")


def kind_of(keys: Collection[str]) -> str | None:
    """Return what a file with these keys is, of which none belongs to an adapter, with what to do next; or None."""
    if keys and all(map(_EMBEDDING_KEYS.fullmatch, keys)):
        return _EMBEDDING
    if any(map(_FACTORS.search, keys)):
        return None
    return next((what for what, marks in _KINDS if all(_some(keys, mark) for mark in marks)), None)


def _some(keys: Iterable[str], beginnings: tuple[str, ...]) -> bool:
    return any(key.startswith(beginnings) for key in keys)
