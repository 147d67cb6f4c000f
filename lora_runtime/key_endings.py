"""How the keys of a file end: which algorithm a key belongs to, and which of its tensors that is.

    lora_unet_mid_block_attn1_to_q.lora_down.weight
    └────────── module ──────────┘└─── ending ───┘     algorithm "lora", spelling "kohya", role "down"

This is the one list of them. Adapters are built by it, and what a file is called for people is told by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

__all__ = ["ENDINGS", "KNOWN_ONLY", "OF_FILE", "SHARED", "Located", "ending_of", "locate"]

# What a module has once, whichever algorithms it has.
SHARED = ("alpha", "scale", "reshape_weight")


def _alike(spelling: str, beginning: str, roles: str, end: str = "") -> dict[str, str]:
    """Return endings that are a beginning, the role itself, and an end."""
    return {f"{beginning}{role}{end}": f"{spelling}/{role}" for role in roles.split()}


def _factors(spelling: str, up: str, down: str) -> dict[str, str]:
    return {up: f"{spelling}/up", down: f"{spelling}/down"}


# Algorithm → ending → "spelling/role": tensors belong together when they are spelled alike.
ENDINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lora": {
            **_factors("kohya", ".lora_up.weight", ".lora_down.weight"),
            ".lora_mid.weight": "kohya/mid",
            ".lora_up.bias": "kohya/bias",
            **_alike("kohya", ".", "bias_indices bias_values bias_size"),
            **_factors("kohya bare", ".lora_up", ".lora_down"),
            **_factors("peft", ".lora_B.weight", ".lora_A.weight"),
            ".lora_B.bias": "peft/bias",
            **_factors("peft bare", ".lora_B", ".lora_A"),
            **_factors("lower case", ".lora_b.weight", ".lora_a.weight"),  # torchtune's
            **_factors("dotted", ".lora.B.weight", ".lora.A.weight"),
            **_factors("diffusers", ".lora.up.weight", ".lora.down.weight"),
            **_factors("layer", ".lora_layer.up.weight", ".lora_layer.down.weight"),
            **_factors("processor", "_lora.up.weight", "_lora.down.weight"),
            **_factors("text encoder", ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
            # XLabs: the number of the stream is a part of the module's name, and a block of one stream has none.
            **_factors("xlabs", "_lora1.up.weight", "_lora1.down.weight"),
            **_factors("xlabs", "_lora2.up.weight", "_lora2.down.weight"),
            **_factors("xlabs", ".qkv_lora.up.weight", ".qkv_lora.down.weight"),
            **_factors("xlabs", ".proj_lora.up.weight", ".proj_lora.down.weight"),
        },
        "lora of an embedding": {
            **_alike("embedding", ".lora_embedding_", "A B"),
            **_alike("embedding.weight", ".lora_embedding_", "A B", ".weight"),
        },
        "lora of MLX": _alike("mlx", ".lora_", "a b"),
        "loha": _alike("hada", ".hada_", "w1_a w1_b w2_a w2_b t1 t2"),
        "lokr": _alike("lokr", ".lokr_", "w1 w1_a w1_b w2 w2_a w2_b t2"),
        "abba": _alike("abba", ".lora_", "up1 down1 up2 down2", ".weight"),
        "ia3": {".on_input": "ia3/on_input"},
        "ia3 of PEFT": {".ia3_l": "ia3_l/factors"},
        "glora": _alike("glora", ".", "a1 a2 b1 b2 bm", ".weight"),
        "glora of PEFT": {
            ending: spelled
            for path in "ABCDE"
            for ending, spelled in _alike(
                "glora of PEFT", ".glora_", f"{path}.Xd {path}.Xu {path}.X {path}.zeros"
            ).items()
        },
        "oft": {
            **_alike("oft", ".oft_", "blocks diag blocks.0 blocks.1 blocks.2 blocks.3"),
            ".rescale": "oft/rescale",
        },
        "oft of PEFT": {".oft_R.weight": "oft_R/upper", ".oft_embedding_R.weight": "oft_embedding_R/embedding"},
        "boft of PEFT": {".boft_R": "boft/blocks", ".boft_s": "boft/outputs"},
        "hra": {".hra_u": "hra/vectors"},
        "hira": _alike("hira", ".hira_", "A B embedding_A embedding_B"),
        "miss": {".miss_block": "miss/block", ".bone_block": "bone/block"},
        "c3a": {".c3a_kernel": "c3a/kernel"},
        "road": {".road_theta": "road/theta", ".road_alpha": "road/alpha_of_each"},
        "delora": _alike("delora", ".delora_", "A B lambda w_norm"),
        "gralora": {
            **_alike("gralora", ".gralora_", "A B"),
            **_alike("gralora", ".gralora_", "A_general B_general", ".weight"),
        },
        "deft": _alike("deft", ".deft_", "P R"),
        "beft": {".beft_bias": "beft/bias"},
        "shira": _alike("shira", ".shira_", "weight indices"),
        "vera": _alike("vera", ".vera_", "lambda_b lambda_d A B"),
        "pvera": _alike("pvera", ".pvera_", "lambda_b lambda_d A B"),
        "randlora": _alike("randlora", ".randlora_", "lambda gamma A B"),
        "vblora": _alike(
            "vblora",
            ".vblora_",
            "logits_A logits_A_topk_indices logits_A_topk_weights "
            "logits_B logits_B_topk_indices logits_B_topk_weights vector_bank",
        ),
        "unilora": _alike("unilora", ".unilora_", "indices_A scales_A indices_B scales_B theta_d"),
        "fourierft": {".fourierft_spectrum": "fourierft/spectrum"},
        "waveft": {".waveft_spectrum": "waveft/spectrum"},
        "full": {".diff": "diff/weight", ".diff_b": "diff/bias", ".diff_m": "modulation/weight"},
        "norm": {".w_norm": "norm/weight", ".b_norm": "norm/bias"},
        "replaced": {
            ".ln_tuning_layers.weight": "replaced/weight",
            ".ln_tuning_layers.bias": "replaced/bias",
            ".base_layer.weight": "base layer/weight",
            ".base_layer.bias": "base layer/bias",
            ".set_weight": "set/weight",
            ".key_norm.scale": "norm/weight",
            ".query_norm.scale": "norm/weight",
        },
        "trainable tokens": {
            ".trainable_tokens_delta": "tokens/rows",
            ".token_adapter.trainable_tokens_delta": "tokens/rows",
        },
        "supertuning": {
            **_alike("supertuning", ".supertuning_", "values indices"),
            ".supertuning_lora_A.weight": "supertuning/A",
            ".supertuning_lora_B.weight": "supertuning/B",
        },
        "adalora": {".lora_E": "adalora/values"},
        "dora": {
            ".dora_scale": "dora/scale",
            ".lora_magnitude_vector": "dora/vector",
            ".lora_magnitude_vector.weight": "dora/vector.weight",
            ".magnitude": "dora/magnitude",
        },
    }
)
# Algorithm → roles of tensors that a file has once for all modules, under a name that is no module's.
OF_FILE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **dict.fromkeys(("vera", "pvera", "randlora"), frozenset({"A", "B"})),
        "vblora": frozenset({"vector_bank"}),
        "unilora": frozenset({"theta_d"}),
    }
)
# Algorithms that are known by name and not supported → their endings.
KNOWN_ONLY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "OFT of PEFT before 0.16": (".oft_r",),
        "OFT of PEFT without its .weight": (".oft_R",),
        # Trainers after OneTrainer's: the same key of two releases means two formulas.
        "scaled, clipped or exponential OFT": (
            *(".oft_R.scaled_oft", ".oft_R.clipped_oft", ".oft_R.cans_exp"),
            *(".dora_multiplier", ".dora_log_multiplier", ".initial_norm"),
        ),
        "AdaLoRA": (".lora_E.weight",),
        # What these two start from is not in the file: singular vectors of the weight, whose signs are a machine's.
        "OSF": (".osf_svd_params.U_low", ".osf_svd_params.S_low", ".osf_svd_params.V_low"),
        "PSOFT": (".psoft_R.weight", ".psoft_R.vector_a", ".psoft_R.vector_b"),
        "FRoD": (".frod_lambda_l", ".frod_lambda_s_values"),
        "PEANuT": (".peanut_A.weight", ".peanut_B.weight"),
        "Lily, whose changes depend on the input": (".lily_A.weight", ".lily_B.weight", ".lily_router.weight"),
        "LoKr with a core on its first factor": (".lokr_t1",),
        "T-LoRA": (".q_layer.weight", ".p_layer.weight", ".lambda_layer"),
        "TinyLoRA": (".tinylora_A", ".tinylora_B", ".tinylora_P"),
    }
)

_KOHYAS = ("lora_down", "lora_up")
# PEFT writes the name of the adapter into the keys of its ModuleDicts: "lora_A.default.weight".
_NAMED = tuple(
    f".{kind}."
    for kind in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", *_KOHYAS)
)
# "to_q_lora.up.weight", and what XLabs calls its two streams: an ending that begins within a name.
_INFIXES = ("_lora", "_lora1", "_lora2")
_DOTS = 3  # of an ending
Owner = TypeVar("Owner")


class Located(NamedTuple):
    """Where the ending of a key begins, the ending as it is listed, and the name that PEFT has put into it, or ""."""

    start: int
    ending: str
    name: str = ""


def ending_of(algorithm: str, spelled_role: str) -> str:
    """Return how a key ends, by the algorithm and what ENDINGS calls the tensor: "kohya/up"."""
    return next(ending for ending, spelled in ENDINGS[algorithm].items() if spelled == spelled_role)


def locate(key: str, owners: Mapping[str, Owner]) -> Located | None:
    """Return the longest ending of a key that is among `owners`, or None where none is."""
    # The quick way, for stems without dots as kohya's trainer writes them. What starts even further left, at "_lora",
    # goes on with ".up.weight", which is no ending by itself.
    start = key.find(".")
    if start >= 0 and key[start:] in owners:
        return Located(start, key[start:])
    for start in reversed([*_starts(key)]):
        ending = key[start:]
        if ending in owners:
            return Located(start, ending)
        if ending.startswith(_NAMED) and (found := _without_name(key, start, owners)) is not None:
            return found
    for kind in _NAMED:  # a name with dots of its own
        start = key.rfind(kind)
        if start >= 0 and (found := _without_name(key, start, owners)) is not None:
            return found
    return None


def _starts(key: str) -> Iterator[int]:
    """Yield where an ending can begin, from the right."""
    start = len(key)
    for _ in range(_DOTS):
        start = key.rfind(".", 0, start)
        if start < 0:
            return
        yield start
        if key.endswith(_INFIXES, 0, start):
            yield key.rindex("_", 0, start)


def _without_name(key: str, start: int, owners: Mapping[str, Owner]) -> Located | None:
    """Return the ending from `start` without the name of an adapter in it, where that is listed."""
    kind, _, rest = key[start + 1 :].partition(".")
    name, dot, last = rest.rpartition(".")
    if dot and name and f".{kind}.{last}" in owners:
        return Located(start, f".{kind}.{last}", name)
    # Without an end, a name with dots could be anything.
    return Located(start, f".{kind}", rest) if rest and not dot and f".{kind}" in owners else None
