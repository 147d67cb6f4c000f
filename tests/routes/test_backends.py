"""Adapters on models that real libraries have quantised, against PEFT on a plain model of the same values.

What an adapter changes is measured at the output, so what the library itself loses by quantising is in neither side.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime

INPUTS, OUTPUTS = 64, 96


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.proj(inputs)
        return result


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.proj(inputs)
        return result


def bitsandbytes_4bit(kind: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        bnb = pytest.importorskip("bitsandbytes")
        layer = bnb.nn.Linear4bit(INPUTS, OUTPUTS, compute_dtype=torch.float32, quant_type=kind)
        layer.weight = bnb.nn.Params4bit(model.proj.weight.data, requires_grad=False, quant_type=kind)
        layer.bias, model.proj = model.proj.bias, layer
        return model.to("cpu")

    return make


def bitsandbytes_8bit(model: Any) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(INPUTS, OUTPUTS, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(model.proj.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.bias, model.proj = model.proj.bias, layer
    return model.to("cpu")


def quanto(kind: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        optimum = pytest.importorskip("optimum.quanto")
        optimum.quantize(model, weights=getattr(optimum, kind))
        optimum.freeze(model)
        return model

    return make


def torchao(configure: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        quantization = pytest.importorskip("torchao.quantization")
        model = model.to(torch.bfloat16)
        try:
            quantization.quantize_(model, configure(quantization))
        except ImportError as error:  # int4 needs a library of kernels
            pytest.skip(str(error))
        return model

    return make


def sdnq(kind: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        library = pytest.importorskip("sdnq")
        config = library.SDNQConfig(weights_dtype=kind, quant_conv=True, use_quantized_matmul=False)
        config.minimum_allowed_channel_size = config.minimum_allowed_numel = 1
        quantised, _ = pytest.importorskip("sdnq.quantizer").apply_sdnq_to_module(model, config, torch.float32)
        return quantised

    return make


def gguf_diffusers(kind: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        gguf = pytest.importorskip("gguf")
        utils = pytest.importorskip("diffusers.quantizers.gguf.utils")
        quantised = getattr(gguf.GGMLQuantizationType, kind)
        blocks = torch.from_numpy(gguf.quants.quantize(model.proj.weight.detach().numpy(), quantised))
        layer = utils.GGUFLinear(INPUTS, OUTPUTS, bias=True, compute_dtype=torch.float32)
        layer.weight = utils.GGUFParameter(blocks, quant_type=quantised)
        layer.bias, model.proj = model.proj.bias, layer
        return model

    return make


def gguf_transformers(kind: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        gguf = pytest.importorskip("gguf")
        utils = pytest.importorskip("transformers.integrations.gguf.utils")
        quantised = getattr(gguf.GGMLQuantizationType, kind)
        blocks = torch.from_numpy(gguf.quants.quantize(model.proj.weight.detach().numpy(), quantised))
        layer = utils.GgufLinear(INPUTS, OUTPUTS, int(quantised), bias=True)
        layer.weight = nn.Parameter(blocks, requires_grad=False)
        layer.bias, model.proj = model.proj.bias, layer
        layer.input_permutation = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(3))
        return model

    return make


# Name → how to quantise, in which dtype it computes, and what of a change its own kernels may lose.
BACKENDS: dict[str, tuple[Callable[[Any], Any], torch.dtype, float]] = {
    "bitsandbytes nf4": (bitsandbytes_4bit("nf4"), torch.float32, 1e-4),
    "bitsandbytes fp4": (bitsandbytes_4bit("fp4"), torch.float32, 1e-4),
    "bitsandbytes int8": (bitsandbytes_8bit, torch.float32, 3e-2),
    "quanto int8": (quanto("qint8"), torch.float32, 1e-4),
    "quanto int4": (quanto("qint4"), torch.float32, 1e-4),
    "quanto float8": (quanto("qfloat8"), torch.float32, 1e-4),
    "torchao int8": (torchao(lambda ao: ao.Int8WeightOnlyConfig()), torch.bfloat16, 5e-2),
    "torchao float8": (torchao(lambda ao: ao.Float8WeightOnlyConfig()), torch.bfloat16, 5e-2),
    "torchao intx": (torchao(lambda ao: ao.IntxWeightOnlyConfig()), torch.bfloat16, 5e-2),
    "sdnq int8": (sdnq("int8"), torch.float32, 1e-4),
    "sdnq uint4": (sdnq("uint4"), torch.float32, 1e-4),
    "sdnq float8": (sdnq("float8_e4m3fn"), torch.float32, 1e-4),
    "gguf q8_0 in diffusers": (gguf_diffusers("Q8_0"), torch.float32, 1e-4),
    "gguf q4_0 in diffusers": (gguf_diffusers("Q4_0"), torch.float32, 1e-4),
    "gguf q8_0 in transformers": (gguf_transformers("Q8_0"), torch.float32, 1e-3),
    "gguf q4_0 in transformers": (gguf_transformers("Q4_0"), torch.float32, 1e-3),
}


def adapters(name: str) -> Any:
    """Return a configuration of PEFT's for the layer."""
    import peft

    return {
        "lora": lambda: peft.LoraConfig(r=4, target_modules=["proj"]),
        "dora": lambda: peft.LoraConfig(r=4, target_modules=["proj"], use_dora=True),
        "loha": lambda: peft.LoHaConfig(r=3, target_modules=["proj"]),
        "lokr": lambda: peft.LoKrConfig(r=3, target_modules=["proj"]),
        "oft": lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules=["proj"]),
        "ia3": lambda: peft.IA3Config(target_modules=["proj"], feedforward_modules=[]),
        "hra": lambda: peft.HRAConfig(r=4, target_modules=["proj"]),
    }[name]()


def trained(model: nn.Module, config: Any, folder: Path) -> Any:
    """Return a model of PEFT's with values as after training, and save its adapter."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        made = get_peft_model(model, config).eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in (p for p in made.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data = (parameter.data + noise).to(parameter.dtype)
        made.save_pretrained(str(folder))
    return made


def values_of(layer: Any) -> Tensor:
    """Return the weight of a quantised linear layer, (out, in), as its own outputs tell it."""
    dtype = torch.bfloat16 if layer.bias.dtype == torch.bfloat16 else torch.float32
    with torch.no_grad():
        # Several rows, since transformers' GGUF has no kernel for few on a processor.
        zero = layer(torch.zeros(16, INPUTS, dtype=dtype))[:1].double()
        found: Tensor = (layer(torch.eye(INPUTS, dtype=dtype)).double() - zero).t()
    return found


def stored_bytes(tensor: Any) -> list[Tensor]:
    """Return copies of the plain tensors that a parameter is stored as."""
    if hasattr(tensor, "as_tensor"):  # diffusers' GGUF
        tensor = tensor.as_tensor()
    if type(tensor.data) is Tensor:
        return [tensor.data.detach().clone().reshape(-1).view(torch.uint8)]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in stored_bytes(getattr(tensor, name).detach().contiguous())]


@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "lokr", "oft", "ia3", "hra", "full difference"])
# For four bits quanto builds a kernel in C++ first, for a minute and more.
@pytest.mark.parametrize(
    "backend", [pytest.param(each, marks=[pytest.mark.slow] * (each == "quanto int4")) for each in BACKENDS]
)
def test_an_adapter_on_a_quantised_layer_changes_what_it_changes_on_the_same_values(
    backend: str, algorithm: str, tmp_path: Path
) -> None:
    quantise, dtype, tolerance = BACKENDS[backend]
    model = quantise(Net())
    plain = Net()
    plain.proj.weight.data, plain.proj.bias.data = values_of(model.proj).float(), model.proj.bias.detach().float()
    inputs = torch.randn(2, 7, INPUTS, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        before = plain(inputs.float())
        if algorithm == "full difference":
            difference = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1)) * 0.02
            save_file({"proj.diff": difference}, tmp_path / "x.safetensors")
            wanted = inputs.float() @ difference.t()
        else:
            wanted = trained(copy.deepcopy(plain), adapters(algorithm), tmp_path / "x")(inputs.float()) - before
        own, bytes_before = model(inputs), stored_bytes(model.proj.weight)
        with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
            found = model(inputs).float() - own.float()
            line = applied.report.loras[0]
            # IA³ scales the bias too, which is plain.
            assert (line.used, line.merged, line.live) == (line.keys, int(algorithm == "ia3"), 1), str(applied.report)
            assert sum(line.beside.values()) == 1
        assert float((found - wanted).norm() / wanted.norm()) < tolerance
        assert torch.equal(model(inputs), own)
    for stored, kept in zip(stored_bytes(model.proj.weight), bytes_before, strict=True):
        assert torch.equal(stored, kept)


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_codes_that_bitsandbytes_packs_anew_for_inference_are_read_too(algorithm: str, tmp_path: Path) -> None:
    model = BACKENDS["bitsandbytes nf4"][0](Net()).eval()
    inputs = torch.randn(2, 7, INPUTS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        own = model(inputs)
        plain = Net()
        plain.proj.weight.data, plain.proj.bias.data = values_of(model.proj).float(), model.proj.bias.detach().float()
        wanted = trained(copy.deepcopy(plain), adapters(algorithm), tmp_path / "x")(inputs) - plain(inputs)
        with lora_runtime.apply(model, "<lora:x>", loras=tmp_path):
            found = model(inputs) - own
    assert float((found - wanted).norm() / wanted.norm()) < 3e-2  # the library computes in bfloat16 then


@pytest.mark.parametrize("backend", ["quanto int8", "quanto float8", "sdnq int8", "sdnq uint4"])
@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "full difference"])
def test_an_adapter_on_a_quantised_convolution_changes_what_it_changes_on_the_same_values(
    backend: str, algorithm: str, tmp_path: Path
) -> None:
    quantise, _, tolerance = BACKENDS[backend]
    model = quantise(Pixels())
    inputs = torch.randn(2, 32, 5, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # One pixel of one channel at a time, in the middle of a 3×3 picture: the outputs are the kernel, turned round.
        one = torch.zeros(32, 32, 3, 3)
        one[range(32), range(32), 1, 1] = 1.0
        kernel = (model(one) - model(torch.zeros(1, 32, 3, 3))).flip(2, 3).transpose(0, 1)
        plain = Pixels()
        plain.proj.weight.data, plain.proj.bias.data = kernel.contiguous(), model.proj.bias.detach()
        own, before, bytes_before = model(inputs), plain(inputs), stored_bytes(model.proj.weight)
        torch.testing.assert_close(before, own, rtol=1e-4, atol=1e-4)
        if algorithm == "full difference":
            difference = torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.02
            save_file({"proj.diff": difference}, tmp_path / "x.safetensors")
            wanted = torch.nn.functional.conv2d(inputs, difference, padding=1)
        else:
            wanted = trained(copy.deepcopy(plain), adapters(algorithm), tmp_path / "x")(inputs) - before
        with lora_runtime.apply(model, "<lora:x>", loras=tmp_path) as applied:
            found = model(inputs) - own
            line = applied.report.loras[0]
            assert (line.used, line.merged, line.live) == (line.keys, 0, 1), str(applied.report)
        assert float((found - wanted).norm() / wanted.norm()) < tolerance
        assert torch.equal(model(inputs), own)
    for stored, kept in zip(stored_bytes(model.proj.weight), bytes_before, strict=True):
        assert torch.equal(stored, kept)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_a_tag_on_a_language_model_of_4_bits_gives_the_logits_of_peft(
    kind: str, algorithm: str, tmp_path: Path
) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    def model() -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        made = LlamaForCausalLM(config)
        for module in list(made.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and name != "lm_head":
                    layer = bnb.nn.Linear4bit(
                        child.in_features,
                        child.out_features,
                        bias=False,
                        compute_dtype=torch.float32,
                        quant_type=kind,
                    )
                    layer.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type=kind)
                    setattr(module, name, layer)
        return made.to("cpu")

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, target_modules=names, use_dora=algorithm == "dora")
    # In training, since for inference on some processors the library packs its codes anew, in bfloat16, and PEFT cannot
    # read those for DoRA.
    words, base = torch.arange(12)[None], model().train()
    with torch.no_grad():
        wanted = trained(model(), config, tmp_path / "x").train()(words).logits
        plain = base(words).logits
        with lora_runtime.apply(base, "<lora:x>", loras=tmp_path) as applied:
            found = base(words).logits
            line = applied.report.loras[0]
            assert (line.used, line.merged, line.live) == (line.keys, 0, 14)
        assert float((found - wanted).norm() / (wanted - plain).norm()) < 1e-3
        assert torch.equal(base(words).logits, plain)
