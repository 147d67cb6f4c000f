"""What a LoRA file is, told from its header: algorithm, rank, alpha, target model, trigger words.

Guesses for people to read. What a file does to a model is decided by `adapters` and `dialects`, never by this.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_runtime.families import UNKNOWN, Evidence, made_for, titled
from lora_runtime.header import Hashes, Header, TensorInfo, hashes, read_header
from lora_runtime.key_endings import ENDINGS, KNOWN_ONLY, OF_FILE, locate

__all__ = [
    "Description",
    "Hashes",
    "Header",
    "TensorInfo",
    "algorithms",
    "describe",
    "family",
    "hashes",
    "read_header",
]

_MAX_TRIGGER_WORDS = 10


@dataclass(frozen=True)
class Description:
    """What a file seems to be.

    `algorithms` and `components` count modules and keys by name; `ranks` and `alphas` are the different values, from
    small to large. `family` is "SD1", "SDXL", "Flux", …, or "unknown". `size` is in bytes.
    """

    title: str
    alias: str | None
    family: str
    algorithms: Mapping[str, int]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    trigger_words: tuple[str, ...]
    components: Mapping[str, int]
    size: int
    notes: tuple[str, ...] = ()  # what a user should know about its strength


def describe(header: Header) -> Description:
    """Return what the file of `header` seems to be; never raises, whatever the metadata hold.

    The alphas are tensors of one number each, and the only ones that are read from the file.
    """
    counts, ranks = algorithms(header)
    metadata = header.metadata
    return Description(
        title=metadata.get("modelspec.title") or metadata.get("ss_output_name", ""),
        alias=metadata.get("ss_output_name") or None,
        family=family(header),
        algorithms=counts,
        ranks=ranks,
        alphas=_alphas(header),
        trigger_words=trigger_words(metadata),
        components=_sorted_counts(map(_component, header.tensors)),
        size=header.size,
        notes=_notes(metadata),
    )


# --- algorithm and rank ------------------------------------------------------------------------------------------

# What people call an algorithm where its spellings have names of their own.
_CALLED = {
    "lora of an embedding": "lora",
    "lora of MLX": "lora",
    "ia3 of PEFT": "ia3",
    "glora of PEFT": "glora",
    "oft of PEFT": "oft",
    "boft of PEFT": "boft",
    "T-LoRA": "tlora",
}
# Which dimension of which tensor is the rank.
_RANK_AXES = {
    ("lora", "down"): 0,
    ("lora of MLX", "a"): 1,
    **{(name, role): 0 for name in ("loha", "lokr") for role in ("w1_b", "w2_b")},
    ("glora", "b1"): 1,
    ("delora", "A"): 0,
    ("gralora", "A"): 2,
    ("deft", "P"): 1,
    ("supertuning", "A"): 0,
}
# Ending → algorithm and role.
_OWNERS = {
    **{ending: (name, "") for name, endings in KNOWN_ONLY.items() for ending in endings},
    **{
        ending: (name, spelled.partition("/")[2])
        for name, endings in ENDINGS.items()
        for ending, spelled in endings.items()
    },
}


def _owner(key: str) -> tuple[str, str, str]:
    """Return the module's name in a key, the algorithm and the role of the tensor in it; "" where none is known."""
    found = locate(key, _OWNERS)
    if found is None:
        return key, "", ""
    name, role = _OWNERS[found.ending]
    return ("", "", "") if role in OF_FILE.get(name, ()) else (key[: found.start], name, role)


def algorithms(header: Header) -> tuple[dict[str, int], tuple[int, ...]]:
    """Return the number of modules by algorithm, and the different ranks from small to large."""
    modules: dict[str, set[str]] = {}
    ranks = set()
    for key, info in header.tensors.items():
        module, owner, role = _owner(key)
        if not owner:
            continue
        rank_axis = _RANK_AXES.get((owner, role))
        shape = info.shape
        algorithm = _CALLED.get(owner, owner.partition(",")[0])
        if owner == "lora" and role == "mid":
            algorithm = "locon-mid"
        elif owner == "full" and key.endswith(".diff_m"):
            algorithm = "modulation"
        elif owner == "oft" and len(shape) == 4:
            algorithm = "boft"
        modules.setdefault(module, set()).add(algorithm)
        if rank_axis is not None and len(shape) > rank_axis:
            ranks.add(shape[rank_axis])
            if algorithm == "lora" and any(extent > 1 for extent in shape[2:]):
                modules[module].add("locon")
    return _sorted_counts(name for names in modules.values() for name in _most_special(names)), tuple(sorted(ranks))


def _most_special(names: set[str]) -> set[str]:
    """Return the names without those that another of them includes: a LoCon's tensors are spelled as a LoRA's."""
    if "adalora" in names:
        return names - {"lora"}
    if "boft" in names:  # of which the rescaling is OFT's too
        return names - {"oft"}
    if "locon-mid" in names:
        return names - {"lora", "locon"}
    return names - {"lora"} if "locon" in names else names


def _sorted_counts(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name comes, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


# --- alpha -------------------------------------------------------------------------------------------------------

_SCALARS = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "I64": "<q",
    "I32": "<i",
    "I16": "<h",
    "I8": "<b",
    "U64": "<Q",
    "U32": "<I",
    "U16": "<H",
    "U8": "<B",
}


def _alphas(header: Header) -> tuple[float, ...]:
    """Return the alphas: those in the file's own tensors, else what its metadata say."""
    alphas = [info for key, info in header.tensors.items() if key.rpartition(".")[2] == "alpha"]
    found = set(_scalars(header.path, alphas))
    if not found:
        found.update(_peft_alphas(header.metadata))
    if not found:
        found.update(_numbers(header.metadata.get("ss_network_alpha")))
    return tuple(sorted(found))


def _scalars(path: Path, infos: Iterable[TensorInfo]) -> Iterable[float]:
    """Yield the numbers in tensors of one element; those that cannot be read now are left out."""
    try:
        with path.open("rb") as file:
            for info in sorted(infos, key=lambda info: info.begin):
                file.seek(info.begin)
                # One number has at most 8 bytes; a larger tensor is no alpha.
                yield from _decode(info.dtype, file.read(min(info.end - info.begin, 9)))
    except OSError:
        return


def _decode(dtype: str, raw: bytes) -> Iterable[float]:
    """Yield the number in `raw`, little-endian, where it is one finite number."""
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        dtype, raw = "F32", b"\0\0" + raw
    layout = _SCALARS.get(dtype, "")
    if layout and struct.calcsize(layout) == len(raw):
        yield from _numbers(struct.unpack(layout, raw)[0])


def _peft_alphas(metadata: Mapping[str, str]) -> Iterable[float]:
    """Yield lora_alpha of each component from diffusers' LoraConfig ("unet.lora_alpha" in lora_adapter_metadata)."""
    for key, value in _table(metadata.get("lora_adapter_metadata")).items():
        if key.rpartition(".")[2] == "lora_alpha":
            yield from _numbers(value)


def _numbers(value: object) -> Iterable[float]:
    """Yield `value` as a float where it is a finite number, else nothing ("None" is common in metadata)."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return
    if number - number == 0:
        yield number


def _table(text: str | None) -> dict[str, Any]:
    """Return the JSON object in a metadata value, empty where there is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# --- target model ------------------------------------------------------------------------------------------------

# Pieces of keys that only a file for a transformer has; the old trainers that wrote `ss_v2` knew UNets alone.
_TRANSFORMERS = ("double.blocks", "single.blocks", "joint.blocks", "single.transformer.blocks")


def family(header: Header) -> str:
    """Return the target model as far as the metadata, and else the keys and shapes, tell it; or "unknown"."""
    metadata = header.metadata
    for key in ("ss_base_model_version", "modelspec.architecture"):
        named = titled(metadata.get(key, ""))
        if named != UNKNOWN:
            return named
    if metadata.get("ss_v2") == "True":
        return "SD2"
    evidence = _evidence(header.tensors)
    guess = made_for(evidence)
    if guess == UNKNOWN and not any(piece in evidence.text for piece in _TRANSFORMERS):
        # Trainers older than SDXL wrote this and no base model; the newer ones name it.
        return "SD1" if metadata.get("ss_v2") == "False" else UNKNOWN
    return guess


def _evidence(tensors: Mapping[str, TensorInfo]) -> Evidence:
    names = {key: key.replace("_", ".") for key in tensors}
    widths = {names[key]: width for key, info in tensors.items() if (width := _input_width(key, info))}
    return Evidence("\n".join(names.values()), widths)


def _input_width(key: str, info: TensorInfo) -> int:
    """Return the number of inputs of a key's module where its shape, (rank, in) or (out, in), shows it, else 0."""
    _, owner, role = _owner(key)
    told = (owner, role) == ("full", "weight") or (owner in ("lora", "loha") and (owner, role) in _RANK_AXES)
    return info.shape[1] if told and len(info.shape) >= 2 else 0


# --- components and words ----------------------------------------------------------------------------------------

_COMPONENTS = (
    (("lora_te2_", "text_encoder_2.", "oft_te2_"), "text_encoder_2"),
    (("lora_te3_", "text_encoder_3."), "text_encoder_3"),
    (("lora_te_", "lora_te1_", "text_encoder.", "oft_te_", "oft_te1_"), "text_encoder"),
    (("diffusion_model.input_blocks", "diffusion_model.middle_block", "diffusion_model.output_blocks"), "unet"),
    (("lora_unet_", "unet.", "oft_unet_", "lora_prior_unet_"), "unet"),
    (("transformer.", "lora_transformer_", "diffusion_model."), "transformer"),
)


def _component(key: str) -> str:
    """Return the part of a pipeline that a key's prefix names, or "other"."""
    key = key.removeprefix("base_model.model.")
    return next((name for prefixes, name in _COMPONENTS if key.startswith(prefixes)), "other")


def _notes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return a note where the file is weaker than its training was.

    kohya's split_qkv trains the parts of a fused layer apart, at alpha/dim each, and writes them as one product whose
    rank is the sum, with that alpha: by alpha/rank, which every loader takes, that is a third or a fourth.
    """
    if str(_table(metadata.get("ss_network_args")).get("split_qkv")).lower() != "true":
        return ()
    return ("trained with split_qkv: q, k and v are applied at 1/3 and linear1 at 1/4 of the training's strength",)


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the trigger phrase, cut at its commas, then the captions' most frequent tags."""
    words = [word.strip() for word in metadata.get("modelspec.trigger_phrase", "").split(",")]
    tags: Counter[str] = Counter()
    for counts in _table(metadata.get("ss_tag_frequency")).values():
        if isinstance(counts, dict):
            # Not a float: one nan or infinity would upset the order of all.
            tags.update({tag.strip(): count for tag, count in counts.items() if type(count) is int})
    words += [tag for tag, _ in tags.most_common(_MAX_TRIGGER_WORDS)]
    return tuple(dict.fromkeys(filter(None, words)))[:_MAX_TRIGGER_WORDS]
