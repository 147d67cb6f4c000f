"""Weights whose own data is not what the forward pass reads: scaled, cast, computed, shared or kept elsewhere."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import lora_runtime
from lora_runtime.routes import Facts, route_of

INPUTS, OUTPUTS = 64, 96
UP = torch.randn(OUTPUTS, 4, generator=torch.Generator().manual_seed(1)) * 0.1
DOWN = torch.randn(4, INPUTS, generator=torch.Generator().manual_seed(2)) * 0.1
LENGTH = torch.rand(OUTPUTS, generator=torch.Generator().manual_seed(3)) + 0.5
X = torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(4))

FILES = {
    "lora": {"proj.lora_A.weight": DOWN, "proj.lora_B.weight": UP},
    "dora": {"proj.lora_A.weight": DOWN, "proj.lora_B.weight": UP, "proj.lora_magnitude_vector": LENGTH},
    "full": {"proj.diff": UP @ DOWN},
}


def changed(weight: Tensor, kind: str) -> Tensor:
    """Return W₀ with the change of a file at strength 1, by the formula in float64."""
    total = weight.double() + UP.double() @ DOWN.double()
    if kind == "dora":
        return total * (LENGTH.double() / total.norm(dim=1)).unsqueeze(1)
    return total


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.proj = layer

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.proj(inputs)
        return result


class Scaled(nn.Linear):
    """A layer of float8 with a scale beside it, as checkpoints of several makers have them."""

    def __init__(self, name: str, scale: Tensor) -> None:
        super().__init__(INPUTS, OUTPUTS)
        torch.manual_seed(0)
        codes = (torch.randn(OUTPUTS, INPUTS) * 100).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer(name, scale)
        self.label = name

    def values(self) -> Tensor:
        scale = getattr(self, self.label).float()
        for dim, size in enumerate(self.weight.shape):
            if scale.ndim == 2 and scale.shape[dim] not in (1, size):
                scale = scale.repeat_interleave(-(-size // scale.shape[dim]), dim).narrow(dim, 0, size)
        if scale.ndim == 1 and scale.numel() > 1:
            scale = scale[:, None]
        return self.weight.float() * scale

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.values().to(inputs.dtype), self.bias.to(inputs.dtype))


SCALES = {
    "one for all": torch.tensor(0.002),
    "one for all in a list": torch.tensor([0.002]),
    "by row": torch.rand(OUTPUTS) * 0.002,
    "by row, in a column": torch.rand(OUTPUTS, 1) * 0.002,
    "by block": torch.rand(3, 2) * 0.002,
    "by block that does not divide": torch.rand(5, 3) * 0.002,
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("label", ["weight_scale", "weight_scale_inv", "scale_weight"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_beside_a_weight_is_honoured(scale: str, label: str, kind: str, tmp_path: Path) -> None:
    save_file(FILES[kind], tmp_path / "x.safetensors")
    model = Net(Scaled(label, SCALES[scale]))
    codes, own = model.proj.weight.clone(), model(X)
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
        expected = functional.linear(X.double(), changed(model.proj.values(), kind), model.proj.bias.double())
        torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)
        assert applied.report.loras[0].beside == {"stored as float8_e4m3fn": 1}
    assert torch.equal(model.proj.weight.view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(model(X), own)


def test_a_scale_beside_a_weight_of_16_bits_counts_too(tmp_path: Path) -> None:
    class Half(Scaled):
        def __init__(self) -> None:
            super().__init__("weight_scale", torch.tensor(0.002))
            self.weight = nn.Parameter(self.weight.to(torch.bfloat16), requires_grad=False)

    save_file(FILES["dora"], tmp_path / "x.safetensors")
    model = Net(Half())
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
        expected = functional.linear(X.double(), changed(model.proj.values(), "dora"), model.proj.bias.double())
        torch.testing.assert_close(model(X).double(), expected, rtol=1e-2, atol=1e-2)  # its dtype has 8 bits
        assert applied.report.loras[0].beside == {"scaled by a number beside it": 1}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("block", [None, (32, 32)])
def test_an_fp8_layer_of_transformers(
    block: tuple[int, int] | None, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("transformers.integrations.finegrained_fp8")
    torch.manual_seed(0)
    layer = library.FP8Linear(INPUTS, OUTPUTS, block_size=block, has_bias=True)
    layer.weight.data = (torch.randn(OUTPUTS, INPUTS) * 100).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.data = torch.rand(layer.weight_scale_inv.shape) * 0.002
    layer.bias.data.zero_()
    scale = layer.weight_scale_inv.data
    whole = scale if block is None else scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
    values = layer.weight.float() * whole
    # Its kernels need a graphics card; what they compute is this product.
    monkeypatch.setattr(
        library, "fp8_linear", lambda inputs, weight, scale, size, bias, *more: functional.linear(inputs, values, bias)
    )
    save_file(FILES[kind], tmp_path / "x.safetensors")
    model = Net(layer)
    with torch.no_grad(), lora_runtime.apply(model, "<lora:x>", loras=tmp_path):
        expected = functional.linear(X.double(), changed(values, kind))
        torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FILES)
def test_layerwise_casting_of_diffusers(kind: str, tmp_path: Path) -> None:
    from diffusers.hooks import apply_layerwise_casting

    torch.manual_seed(0)
    model = Net(nn.Linear(INPUTS, OUTPUTS)).requires_grad_(False)
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=())
    save_file(FILES[kind], tmp_path / "x.safetensors")
    values, bias, own = model.proj.weight.float(), model.proj.bias.float(), model(X)
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path):
        expected = functional.linear(X.double(), changed(values, kind), bias.double())
        torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(X), own)


def orthogonal(layer: nn.Linear) -> nn.Module:
    return torch.nn.utils.parametrizations.orthogonal(layer)


def normed(layer: nn.Linear) -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(layer)


def normed_as_before(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants the parametrization
        return torch.nn.utils.weight_norm(layer)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("compute", [orthogonal, normed, normed_as_before])
def test_a_weight_that_is_computed_at_each_call(
    compute: Callable[[nn.Linear], nn.Module], kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Net(compute(nn.Linear(INPUTS, OUTPUTS)))
    save_file(FILES[kind], tmp_path / "x.safetensors")
    with torch.no_grad():
        own = model(X)
        values: Tensor = model.proj.weight.detach().clone()
        with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
            expected = functional.linear(X.double(), changed(values, kind), model.proj.bias.double())
            torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)
            assert applied.report.loras[0].live == 1
        assert torch.equal(model(X), own)


class Codes(nn.Module):
    """A linear layer that is none of torch's, with its codes under another name, as those of GPTQ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_features, self.out_features = INPUTS, OUTPUTS
        self.register_buffer("qweight", torch.randint(-100, 100, (INPUTS, OUTPUTS), dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(OUTPUTS))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ (self.qweight.float() * 0.002) + self.bias


@pytest.mark.parametrize("kind", FILES)
def test_codes_that_nobody_here_knows_are_read_by_what_the_layer_puts_out(kind: str, tmp_path: Path) -> None:
    save_file(FILES[kind], tmp_path / "x.safetensors")
    model = Net(Codes())
    with torch.no_grad(), lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
        values = model.proj.qweight.double().t() * 0.002
        expected = functional.linear(X.double(), changed(values, kind), model.proj.bias.double())
        torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)
        assert applied.report.loras[0].beside == {"stored as the codes of a Codes": 1}


class Stream:
    def synchronize(self) -> None:
        return


def stream(module: nn.Module, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offload groups with a stream; the calls that need an accelerator are stubs, all else is diffusers' own."""
    from diffusers.hooks import group_offloading as offloading

    class Backend:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def stream(self, used: Any) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

        def current_stream(self) -> Stream:
            return Stream()

    monkeypatch.setattr(offloading, "TorchDeviceBackend", Backend)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *args: self.clone())
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self, *args: True)
    cpu = torch.device("cpu")
    config = offloading.GroupOffloadingConfig(
        onload_device=cpu,
        offload_device=cpu,
        offload_type=offloading.GroupOffloadingType(level),
        num_blocks_per_group=1,
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=False,
        stream=Stream(),
    )
    offloading._apply_group_offloading(module, config)


class Blocks(nn.Parameter):
    """Codes of a byte each that have the shape of what they stand for, as Forge's for GGUF have."""

    def __new__(cls, codes: Tensor) -> Blocks:
        made: Blocks = super().__new__(cls, codes, requires_grad=False)  # type: ignore[type-var, unused-ignore]
        return made

    @property
    def shape(self) -> torch.Size:  # type: ignore[override, unused-ignore]
        return torch.Size((OUTPUTS, INPUTS))


@pytest.mark.parametrize("kind", FILES)
def test_a_linear_layer_may_say_its_sizes_by_the_shape_of_its_codes_alone(kind: str, tmp_path: Path) -> None:
    class Linear(nn.Module):
        """No torch.nn.Linear, and without its attributes."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight = Blocks(torch.randint(0, 255, (OUTPUTS * INPUTS,), dtype=torch.uint8))
            self.bias = None

        def values(self) -> Tensor:
            return self.weight.data.view(OUTPUTS, INPUTS).float() / 255 - 0.5

        def forward(self, inputs: Tensor) -> Tensor:
            return functional.linear(inputs, self.values().to(inputs.dtype))

    save_file(FILES[kind], tmp_path / "x.safetensors")
    model = Net(Linear())
    own = model(X)
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
        expected = functional.linear(X.double(), changed(model.proj.values(), kind))
        torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)
        assert applied.report.loras[0].beside == {"stored as Blocks": 1}
    assert torch.equal(model(X), own)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("how", ["stream", "disk", "sequential"])
@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_a_weight_that_an_offloader_keeps_between_two_calls(
    how: str, level: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([Net(nn.Linear(INPUTS, OUTPUTS))])

        def forward(self, inputs: Tensor) -> Tensor:
            result: Tensor = self.blocks[0](inputs)
            return result

    model = Deep()
    weight, bias = model.blocks[0].proj.weight.detach().clone(), model.blocks[0].proj.bias.detach().clone()
    if how == "stream":
        stream(model, level, monkeypatch)
    elif how == "disk":
        from diffusers.hooks import apply_group_offloading

        cpu, place = torch.device("cpu"), str(tmp_path / "offloaded")
        apply_group_offloading(model, cpu, cpu, level, num_blocks_per_group=1, offload_to_disk_path=place)
    else:
        from accelerate import cpu_offload

        cpu_offload(model, execution_device=torch.device("cpu"))
    (tmp_path / "loras").mkdir()
    save_file({f"blocks.0.{key}": value for key, value in FILES[kind].items()}, tmp_path / "loras" / "x.safetensors")
    with torch.no_grad():
        own = model(X)
        torch.testing.assert_close(own, functional.linear(X, weight, bias))
        for _ in range(2):
            with lora_runtime.apply(model, "<lora:x>", loras=tmp_path / "loras") as applied:
                expected = functional.linear(X.double(), changed(weight, kind), bias.double())
                for _ in range(2):
                    torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-5)
                assert applied.report.loras[0].live == 1
            assert torch.equal(model(X), own)


class OffsetNorm(nn.Module):
    """A norm whose factor is 1 + weight, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, inputs.shape[-1:]) * (1 + self.weight)


class Once(nn.Module):
    """One of each kind of layer that is run once more for what a change adds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.other = nn.Embedding(12, 6), nn.Embedding(12, 6)
        self.layer, self.offset, self.group = nn.LayerNorm(6), OffsetNorm(6), nn.GroupNorm(2, 6)
        self.batch, self.turned = nn.BatchNorm1d(6), nn.ConvTranspose1d(6, 6, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.batch.running_mean.normal_()
        self.batch.running_var.uniform_(0.5, 2)
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.offset(self.layer(self.table(tokens) + self.other(tokens))).transpose(1, 2)
        result: Tensor = self.turned(self.batch(self.group(values)))
        return result


def change_of_once(seed: int = 5) -> tuple[dict[str, Tensor], nn.Module]:
    """Return a file for all layers of Once, and the model with its changes, in float64."""
    numbers = torch.Generator().manual_seed(seed)
    file: dict[str, Tensor] = {}
    merged = Once().double()
    for name, parameter in merged.named_parameters():
        if name == "other.weight":
            down, up = torch.randn(2, 12, generator=numbers), torch.randn(6, 2, generator=numbers)
            file |= {"other.lora_embedding_A": down, "other.lora_embedding_B": up}
            parameter.data += (up.double() @ down.double()).t()
        else:
            change = torch.randn(parameter.shape, generator=numbers)
            file[name.replace(".weight", ".diff").replace(".bias", ".diff_b")] = change
            parameter.data += change
    return file, merged


@pytest.mark.parametrize("how", ["stream", "disk", "sequential", "sequential with buffers", "sequential from disk"])
def test_layers_that_are_run_once_more_find_nothing_of_an_offloader(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that a hook runs after a call their parameters and buffers are meta, or memory that nobody wrote."""
    model, cpu, place, tokens = Once(), torch.device("cpu"), str(tmp_path / "offloaded"), torch.arange(8).view(2, 4)
    if how.startswith("sequential"):
        accelerate = pytest.importorskip("accelerate")
        if how == "sequential from disk":
            accelerate.disk_offload(model, place, cpu)
        else:
            accelerate.cpu_offload(model, cpu, offload_buffers=how == "sequential with buffers")
    elif how == "stream":
        stream(model, "leaf_level", monkeypatch)
    else:
        from diffusers.hooks import apply_group_offloading

        unwritten = partial(torch.full_like, fill_value=77)
        monkeypatch.setattr(torch, "empty_like", unwritten)
        apply_group_offloading(model, cpu, cpu, "leaf_level", offload_to_disk_path=place)
    (tmp_path / "loras").mkdir()
    file, merged = change_of_once()
    save_file(file, tmp_path / "loras" / "x.safetensors")
    own = model(tokens)
    torch.testing.assert_close(own, Once()(tokens))
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path / "loras") as applied:
        for _ in range(2):
            torch.testing.assert_close(model(tokens).double(), merged(tokens), rtol=1e-4, atol=1e-4)
        assert applied.report.loras[0].live == 11  # all of its parameters
    assert torch.equal(model(tokens), own)


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d(6, 6, 3), nn.Embedding(12, 6)])
def test_originals_of_a_parametrization_are_not_written(layer: nn.Module, tmp_path: Path) -> None:
    weight_norm = pytest.importorskip("torch.nn.utils.parametrizations").weight_norm
    model = Net(weight_norm(layer)).requires_grad_(False)
    state = {name: value.clone().mul_(1.3) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    inputs = torch.arange(12).view(2, 6) if isinstance(layer, nn.Embedding) else torch.ones(2, 6, 5)
    save_file({"proj.diff": torch.ones(model.proj.weight.shape)}, tmp_path / "x.safetensors")
    own = model(inputs)
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
        assert torch.equal(model(inputs), own)
        assert "cannot be another for one call" in str(applied.report)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_an_older_weight_norm_of_a_transposed_convolution_is_computed_with_the_change(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(6, 6, 3)
    merged = nn.ConvTranspose1d(6, 6, 3).double()
    change = torch.randn(layer.weight.shape)
    merged.load_state_dict({"weight": layer.weight.double() + change, "bias": layer.bias.double()})
    model = Net(nn.utils.weight_norm(layer)).requires_grad_(False)
    save_file({"proj.diff": change}, tmp_path / "x.safetensors")
    inputs = torch.randn(2, 6, 5)
    with lora_runtime.apply(model, "<lora:x>", loras=tmp_path):
        torch.testing.assert_close(model(inputs).double(), merged(inputs.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_proj"])
def test_a_tied_language_model_gives_the_logits_of_peft(target: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def model() -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval()

    words = torch.arange(10)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of tied layers
        trained = get_peft_model(model(), LoraConfig(r=4, lora_alpha=8, target_modules=[target])).eval()
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2
        wanted = trained(words).logits
        trained.save_pretrained(tmp_path / "x", save_embedding_layers=False)
        base = model()
        assert base.lm_head.weight is base.model.embed_tokens.weight
        plain = base(words).logits
        with lora_runtime.apply(base, "<lora:x>", loras=tmp_path):
            torch.testing.assert_close(base(words).logits, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(base(words).logits, plain)


@pytest.mark.parametrize("tag", ["<lora:x>", "<lora:x:0.5@0,1@1>"])
def test_embeddings_that_share_a_table_are_changed_together(tag: str, tmp_path: Path) -> None:
    class Tables(nn.Module):  # as T5 has them: nobody calls `shared`
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.shared, self.embed_tokens = nn.Embedding(10, INPUTS), nn.Embedding(10, INPUTS)
            self.lm_head = nn.Linear(INPUTS, 10, bias=False)
            self.embed_tokens.weight = self.lm_head.weight = self.shared.weight

        def forward(self, words: Tensor) -> Tensor:
            result: Tensor = self.lm_head(torch.relu(self.embed_tokens(words)))
            return result

    up, down = UP[:INPUTS], DOWN[:, :10]
    save_file({"shared.lora_embedding_A": down.contiguous(), "shared.lora_embedding_B": up}, tmp_path / "x.safetensors")
    model, words = Tables(), torch.arange(10)[None]
    table, own = model.shared.weight.detach().double(), model(words)
    with lora_runtime.apply(model, tag, loras=tmp_path) as applied:
        strength = 1.0 if tag == "<lora:x>" else 0.5  # nobody counts steps here: it is the first
        changed_table = table + strength * (up.double() @ down.double()).t()
        wanted = torch.relu(changed_table[None]) @ table.t()
        torch.testing.assert_close(model(words).double(), wanted, rtol=1e-4, atol=1e-5)
        assert (applied.report.loras[0].live, applied.report.live) == (1, 2)
    assert torch.equal(model(words), own)


def test_a_strength_of_a_magnitude_on_a_turned_weight_may_vary(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    def model() -> Any:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).eval()

    words, config = torch.arange(10)[None], LoraConfig(r=4, target_modules=["c_attn", "c_proj"], use_dora=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        trained = get_peft_model(model(), config).eval()
        for parameter in (p for p in trained.parameters() if p.requires_grad):
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2
        trained.save_pretrained(tmp_path / "x")
        base, wanted = model(), trained(words).logits
        with lora_runtime.apply(base, "<lora:x:1@0,0@1>", loras=tmp_path) as applied:
            torch.testing.assert_close(base(words).logits, wanted, rtol=1e-4, atol=1e-4)
            assert (applied.report.live, applied.report.loras[0].dense_bytes) == (3, 0)


def test_what_neither_merges_nor_acts_beside_is_refused_with_the_reason(tmp_path: Path) -> None:
    attention = nn.MultiheadAttention(8, 2, bias=False)
    attention.in_proj_weight = nn.Parameter(attention.in_proj_weight.to(torch.float8_e4m3fn), requires_grad=False)
    save_file({"proj.diff": torch.ones(24, 8), "proj.out_proj.diff": torch.ones(8, 8)}, tmp_path / "x.safetensors")
    applied = lora_runtime.apply(Net(attention), "<lora:x>", loras=tmp_path)
    (line,) = applied.report.loras
    assert line.merged == 1
    assert line.unused == {
        "proj.diff": "for a weight that is stored as float8_e4m3fn, beside which it would have to act; "
        "the weights of a MultiheadAttention are used without calling it: load it in 16 bits instead"
    }
    assert 'LoRA "x": 1 of its 2 keys change nothing: 1 for a weight that is stored' in applied.diagnostics[0].message


def test_a_plain_layer_is_merged() -> None:
    layer = nn.Linear(2, 2)
    assert route_of(layer, "weight", Facts([layer])).kind == "merged"
    assert route_of(layer.half(), "bias", Facts([layer])).kind == "merged"
