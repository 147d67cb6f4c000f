"""Folders that PEFT has saved: the alphas are in adapter_config.json, and PEFT's own merge says what is right."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lora_runtime
from lora_runtime import load_lora
from lora_runtime.errors import CorruptFileError, LoraFileError
from lora_runtime.lora_cache import LoraCache

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    # It looks for patterns among modules alone, and applies them to parameters all the same.
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning"),
]


def language_model() -> Any:
    """Return a tiny GPT-2, whose linear layers are transformers' Conv1D: weights (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()


class Plain(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)


class Sounds(nn.Module):
    """Two convolutions of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.thin = nn.Conv1d(12, 8, 3), nn.Conv1d(8, 12, 1)


class Words(nn.Module):
    """A table of embeddings as square as its rank of columns, another, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.square, self.table, self.first = nn.Embedding(8, 8), nn.Embedding(20, 8), nn.Linear(8, 8)


class Experts(nn.Module):
    """Three experts as transformers keeps them: two parameters, (experts, out, in), or turned."""

    def __init__(self, turned: bool, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_transposed = turned
        up, down = (3, width, 8), (3, 8, width // 2)
        self.gate_up_proj = nn.Parameter(torch.randn(up).mT.contiguous() if turned else torch.randn(up))
        self.down_proj = nn.Parameter(torch.randn(down).mT.contiguous() if turned else torch.randn(down))


class Mixture(nn.Module):
    """A layer of experts, after a linear layer."""

    def __init__(self, turned: bool = False, width: int = 20) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"experts": Experts(turned, width)})
        self.first = nn.Linear(8, 8)


def mixture_config(*names: str, **options: Any) -> Any:
    return peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["first"], target_parameters=[f"experts.{name}" for name in names], **options
    )


def saved(model: nn.Module, config: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Give the model an adapter with random factors, save it, and return the weights as PEFT merges them."""
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * (1.0 if "magnitude" not in name else 0.1) * 0.3
    wrapped.save_pretrained(str(folder))
    return dict(wrapped.merge_and_unload().state_dict())


CONFIGS: dict[str, tuple[Any, Any]] = {
    "alpha": (language_model, peft.LoraConfig(r=4, lora_alpha=12, target_modules=["c_attn"], fan_in_fan_out=True)),
    "patterns": (
        language_model,
        peft.LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules=["c_attn", "c_fc"],
            fan_in_fan_out=True,
            rank_pattern={"c_fc": 2},
            alpha_pattern={"h.1.mlp.c_fc": 3},
        ),
    ),
    "rank-stabilised": (Plain, peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["first"])),
    "DoRA": (Plain, peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["first", "second"])),
    "embeddings": (
        Words,
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=["square", "table", "first"], alpha_pattern={"table": 3}),
    ),
    "DoRA of embeddings": (
        Words,
        peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["square", "table", "first"]),
    ),
    "tokens with rows of their own": (
        Words,
        peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=["first"], trainable_token_indices={"table": [1, 17], "square": [3]}
        ),
    ),
    "tokens alone": (Words, peft.TrainableTokensConfig(target_modules=["table"], token_indices=[1, 17])),
    "experts": (Mixture, mixture_config("down_proj", "gate_up_proj", alpha_pattern={"experts.down_proj": 3})),
    "one parameter of experts": (Mixture, mixture_config("down_proj", use_rslora=True)),
    "turned experts": (lambda: Mixture(True), mixture_config("gate_up_proj", "down_proj")),
    "turned experts as square as those of GPT-OSS": (lambda: Mixture(True, 16), mixture_config("down_proj")),
    "biases trained beside the factors": (
        Plain,
        peft.LoraConfig(r=4, lora_alpha=6, bias="lora_only", target_modules=["first", "second"]),
    ),
    "noise while training": (
        Plain,
        peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="orthogonal", target_modules=["first"]),
    ),
    "biases of factors": (Plain, peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True, target_modules=["first"])),
    "LoHa": (Plain, peft.LoHaConfig(r=4, alpha=6, target_modules=["first"])),
    "LoKr": (Plain, peft.LoKrConfig(r=4, alpha=6, target_modules=["first"])),
    "LoKr of convolutions in time": (Sounds, peft.LoKrConfig(r=2, alpha=5, target_modules=["wide", "thin"])),
    "LoKr of convolutions in time, a factor in factors": (
        Sounds,
        peft.LoKrConfig(r=1, alpha=5, target_modules=["wide", "thin"]),
    ),
    "LoKr of whole factors": (
        Plain,
        peft.LoKrConfig(r=64, alpha=6, target_modules=["first"], rank_pattern={"first": 32}),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_are_those_that_peft_merges(name: str, tmp_path: Path) -> None:
    make, config = CONFIGS[name]
    expected = saved(make(), config, tmp_path / "style")
    model = make()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    applied = lora_runtime.apply(model, "tell me <lora:style:1>", loras=tmp_path)
    assert not applied.diagnostics
    assert applied.report.loras[0].used == applied.report.loras[0].keys
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
    applied.restore()
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, before[key])


def test_factors_of_an_embedding_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    keys = {"x.lora_embedding_A": torch.ones(2, 9), "x.lora_embedding_B": torch.ones(8, 3)}
    save_file(keys, tmp_path / "style.safetensors")
    with pytest.raises(CorruptFileError, match="the factors do not fit together"):
        load_lora(tmp_path / "style.safetensors")


def test_a_generation_pipeline_is_patched_like_its_model(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["c_attn"], fan_in_fan_out=True)
    expected = saved(language_model(), config, tmp_path / "style")
    pipeline = SimpleNamespace(model=language_model(), tokenizer=object())
    with lora_runtime.apply(pipeline, "tell me <lora:style>", loras=tmp_path):
        weight = pipeline.model.transformer.h[0].attn.c_attn.weight
        torch.testing.assert_close(weight, expected["transformer.h.0.attn.c_attn.weight"], rtol=1e-5, atol=1e-6)


def folder(path: Path, config: object) -> Path:
    """Write a folder like PEFT's by hand."""
    path.mkdir()
    stem = "base_model.model.first"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)},
        path / "adapter_model.safetensors",
    )
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "adapter_config.json").write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_factors_for_a_changed_base_are_refused_by_name(start: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "style", {"peft_type": "LORA", "lora_alpha": 4, "init_lora_weights": start})
    with pytest.raises(LoraFileError, match=f"changing the model's weights .{start}.*path_initial_model") as caught:
        load_lora(path)
    assert not isinstance(caught.value, CorruptFileError)


def test_factors_that_were_converted_for_the_original_weights_are_read(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=6, init_lora_weights="pissa", target_modules=["first", "second"])
    wrapped = peft.get_peft_model(Plain(), config)
    # As PEFT asks for: the factors before the training, on the original weights, are what the conversion takes away.
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(str(tmp_path / "start"))
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.3
    wrapped.save_pretrained(str(tmp_path / "style"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    expected = wrapped.merge_and_unload().state_dict()
    model = Plain()
    with lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path):
        for key, weight in model.state_dict().items():
            torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=2e-6)


def test_experts_of_another_model_do_not_fit(tmp_path: Path) -> None:
    saved(Mixture(), mixture_config("down_proj"), tmp_path / "style")
    (adapter,) = load_lora(tmp_path / "style").adapters["base_model.model.mlp.experts.down_proj"]
    assert adapter.misfit(torch.Size((3, 8, 10))) is None
    assert adapter.misfit(torch.Size((8, 10))) is None  # one expert of rank 6
    for shape in [(4, 8, 10), (3, 10, 8), (8,), (0, 8, 10)]:
        reason = f"made for experts of (8, 10) with 6 ranks together, the weight is {shape}"
        assert adapter.misfit(torch.Size(shape)) == reason
    weight = torch.randn(8, 10)
    factors = load_file(tmp_path / "style" / "adapter_model.safetensors")
    up, down = (factors[f"base_model.model.mlp.experts.lora_{side}.weight"] for side in "BA")
    torch.testing.assert_close(adapter.delta(weight), (up @ down), rtol=1e-5, atol=1e-5)  # alpha 6, rank 6


EXPERTS = "base_model.model.mlp.experts"


@pytest.mark.parametrize(
    ("names", "stem", "tensors", "reason"),
    [
        (["experts.a", "experts.b"], EXPERTS, {}, "only the model tells which factors are for which"),
        (["experts.down_proj"], f"{EXPERTS}.base_layer", {}, "one of more than the 1 parameters of this module"),
        (["experts.down_proj"], EXPERTS, {"lora_A.weight": torch.ones(3, 8)}, "the factors do not fit together"),
        (["experts.down_proj"], EXPERTS, {"lora_A.weight": None}, "up without down"),
    ],
)
def test_factors_of_experts_that_cannot_be_placed_are_named(
    names: list[str], stem: str, tensors: dict[str, torch.Tensor | None], reason: str, tmp_path: Path
) -> None:
    path = folder(tmp_path / "style", {"peft_type": "LORA", "lora_alpha": 4, "target_parameters": names})
    given = {"lora_A.weight": torch.ones(4, 8), "lora_B.weight": torch.ones(8, 4)} | tensors
    weights = path / "adapter_model.safetensors"
    save_file({f"{stem}.{role}": tensor for role, tensor in given.items() if tensor is not None}, weights)
    with pytest.raises(LoraFileError, match=reason):
        load_lora(path)


@pytest.mark.parametrize("pattern", ["second.weight", "weight", "second", "unmatched"])
def test_a_weight_that_is_named_as_a_parameter_is_that_of_its_module(pattern: str, tmp_path: Path) -> None:
    # A pattern means it by the parameter's whole name: "second" alone does not.
    options = {"target_modules": [], "target_parameters": ["second.weight"], "alpha_pattern": {pattern: 3}}
    config = peft.LoraConfig(r=2, lora_alpha=6, **options)
    expected = saved(Plain(), config, tmp_path / "style")
    model = Plain()
    with lora_runtime.apply(model, "<lora:style:1>", loras=tmp_path):
        torch.testing.assert_close(model.second.weight.data, expected["second.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (None, r"only the adapter_config\.json"),
        ({"other": [1]}, r"only the adapter_config\.json"),
        ([1, 2, 3], "3 tokens, each once, do not have these rows: rows .2, 4."),
        ([1, 1], "2 tokens, each once, do not have these rows"),
        ([1, -1], "no list of numbers"),
        ({"x": 5}, "no list of numbers"),
    ],
)
def test_rows_for_no_known_tokens_are_named(tokens: Any, reason: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "style", {"peft_type": "LORA", "trainable_token_indices": tokens})
    rows = {"x.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}
    save_file(rows, path / "adapter_model.safetensors")
    with pytest.raises(CorruptFileError, match=reason):
        load_lora(path)


def test_rows_fit_a_table_that_has_them(tmp_path: Path) -> None:
    path = folder(tmp_path / "style", {"peft_type": "LORA", "trainable_token_indices": [2, 5]})
    save_file({"x.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}, path / "adapter_model.safetensors")
    (adapter,) = load_lora(path).adapters["x"]
    assert adapter.misfit(torch.Size((6, 4))) is None
    for shape in [(5, 4), (6, 5), (6,)]:
        reason = f"made for at least 6 rows of 4, the weight is {shape}"
        assert adapter.misfit(torch.Size(shape)) == reason


def test_a_renamed_file_keeps_the_configuration_beside_it(tmp_path: Path) -> None:
    """The alpha is nowhere else. Beside a second file it would be a guess whose it is."""
    path = folder(tmp_path / "style", {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    (path / "adapter_model.safetensors").unlink()
    factors = {
        "base_model.model.x.lora_A.weight": torch.ones(2, 4),
        "base_model.model.x.lora_B.weight": torch.ones(4, 2),
    }
    save_file(factors, path / "mine.safetensors")
    cache = LoraCache()
    (adapter,) = cache.load(path / "mine.safetensors").adapters["base_model.model.x"]
    assert (adapter.alpha, adapter.scale) == (4, 2)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    (adapter,) = cache.load(path / "mine.safetensors").adapters["base_model.model.x"]
    assert adapter.alpha == 8
    save_file(factors, path / "other.safetensors")
    (adapter,) = load_lora(path / "mine.safetensors").adapters["base_model.model.x"]
    assert adapter.alpha is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    *[
        ({"peft_type": kind}, "changes no weight")
        for kind in (
            *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
            *("ADAPTION_PROMPT", "SHADOW"),
        )
    ],
    *[({"peft_type": kind}, "anew for each input") for kind in ("XLORA", "POLY", "LILY")],
    ({"peft_type": "TINYLORA"}, "TinyLoRA's file does not say"),
    ({"peft_type": "LORA", "use_qalora": True}, "QALoRA adds up groups of inputs"),
    ({"peft_type": "LORA", "alora_invocation_tokens": [5, 6]}, "an activated LoRA"),
    ({"peft_type": "LORA", "arrow_config": {"top_k": 3}}, "Arrow mixes several adapters"),
    ({"peft_type": "LORA", "kasa_config": {"beta": 0.1}}, "KaSA began by cutting"),
    ({"peft_type": "LORA", "use_bdlora": {"nblocks": 2}}, "BD-LoRA's factors"),
    ({"peft_type": "LORA", "layer_replication": [[0, 4], [2, 5]]}, "its model repeats layers"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_what_is_no_change_of_weights_is_refused_by_name(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "style", config)
    with pytest.raises(LoraFileError, match=reason) as caught:
        load_lora(path)
    assert not isinstance(caught.value, CorruptFileError)
    assert str(caught.value).startswith(f"{path / 'adapter_model.safetensors'}: ")


def test_what_peft_says_by_default_is_refused_by_nobody(tmp_path: Path) -> None:
    # A version of PEFT with a new setting, or a setting that is off, is no reason.
    settings = {**peft.LoraConfig(lora_alpha=4).to_dict(), "peft_type": "LORA", "some_day": True}
    settings = {name: list(value) if isinstance(value, set) else value for name, value in settings.items()}
    assert load_lora(folder(tmp_path / "style", settings)).adapters


def test_metadata_that_speak_of_a_changed_base_are_refused_too(tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.init_lora_weights": "pissa_niter_4"})}
    keys = {"unet.x.lora_A.weight": torch.ones(2, 8), "unet.x.lora_B.weight": torch.ones(8, 2)}
    save_file(keys, tmp_path / "style.safetensors", metadata)
    with pytest.raises(LoraFileError, match="its unet: its training began by changing the model's weights"):
        load_lora(tmp_path / "style.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        {"peft_type": "LORA", "lora_alpha": "much"},
        {"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"(a+)+$": 2}},
        {"peft_type": "LORA", "target_parameters": "experts.down_proj"},
        {"peft_type": "LORA", "target_parameters": ["x"] * 1001},
        {"peft_type": "LOHA", "alpha": 1},
        {"peft_type": "LOHA", "alpha": 1, "r": 0},
    ],
)
def test_a_config_that_cannot_be_read_is_an_error_and_no_guess(config: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"adapter_config\.json beside it cannot be read"):
        load_lora(folder(tmp_path / "style", config))


def test_a_config_that_is_much_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="larger than 1048576 bytes"):
        load_lora(folder(tmp_path / "style", '{"x": "' + "x" * (1 << 20) + '"}'))


def test_another_alpha_beside_the_same_file_is_another_change(tmp_path: Path) -> None:
    path = folder(tmp_path / "style", {"peft_type": "LORA", "lora_alpha": 4}) / "adapter_model.safetensors"
    cache = LoraCache()
    first = cache.load(path)
    (path.parent / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 16}))
    second = cache.load(path)
    assert (first.name, second.name) == ("style", "style")
    assert first.sha256 != second.sha256
    assert [lora.adapters["base_model.model.first"][0].scale for lora in (first, second)] == [2.0, 8.0]
