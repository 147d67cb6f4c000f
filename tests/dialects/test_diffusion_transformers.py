"""Flux, Chroma, Flux 2, AuraFlow and SD3: files in the names of the originals and of diffusers, on models of both.

The models have the rows of the real ones and two columns. What of an original weight is where in diffusers, its
converters of checkpoints say, which know nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layouts
import pytest
import tiny
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from lora_runtime.dialects import fused, normalise, spellings
from lora_runtime.families.aura_flow import AURA_FLOW_NAMES
from lora_runtime.families.chroma import CHROMA_NAMES
from lora_runtime.families.flux import FLUX_NAMES
from lora_runtime.families.flux_2 import FLUX_2_NAMES
from lora_runtime.families.sd3 import SD3_NAMES
from lora_runtime.pipelines import view
from lora_runtime.targets import Targets

WIDTH = 3072  # diffusers' converters have it as a number
COLUMNS = 2


def attention(block: str, qkv: int = 3) -> dict[str, int]:
    return {f"{block}.qkv": qkv * WIDTH, f"{block}.proj": WIDTH}


FLUX_BLOCKS = {
    **attention("double_blocks.0.img_attn"),
    **attention("double_blocks.0.txt_attn"),
    "double_blocks.0.img_mlp.0": 4 * WIDTH,
    "double_blocks.0.img_mlp.2": WIDTH,
    "double_blocks.0.txt_mlp.0": 4 * WIDTH,
    "double_blocks.0.txt_mlp.2": WIDTH,
    "single_blocks.0.linear1": 7 * WIDTH,
    "single_blocks.0.linear2": WIDTH,
    "img_in": WIDTH,
    "txt_in": WIDTH,
    "final_layer.linear": 64,
}
FLUX_NORMS = [
    *(f"double_blocks.0.{side}_attn.norm.{name}_norm" for side in ("img", "txt") for name in ("query", "key")),
    *(f"single_blocks.0.norm.{name}_norm" for name in ("query", "key")),
]
FLUX_2_ROWS = {
    **FLUX_BLOCKS,
    "double_blocks.0.img_mlp.0": 6 * WIDTH,
    "double_blocks.0.txt_mlp.0": 6 * WIDTH,
    "single_blocks.0.linear1": 9 * WIDTH,
    "final_layer.adaLN_modulation.1": 2 * WIDTH,
    "double_stream_modulation_img.lin": 6 * WIDTH,
    "double_stream_modulation_txt.lin": 6 * WIDTH,
    "single_stream_modulation.lin": 3 * WIDTH,
    **{f"{name}_in.{layer}_layer": WIDTH for name in ("time", "guidance") for layer in ("in", "out")},
}
AURA_ROWS = {
    "init_x_linear": WIDTH,
    "cond_seq_linear": WIDTH,
    "t_embedder.mlp.0": WIDTH,
    "t_embedder.mlp.2": WIDTH,
    "modF.1": 2 * WIDTH,
    "final_linear": 16,
    **{f"double_layers.0.{name}.1": 6 * WIDTH for name in ("modX", "modC")},
    **{f"double_layers.0.attn.w{side}{name}": WIDTH for side in "12" for name in "qkvo"},
    **{f"double_layers.0.{mlp}.c_{name}": 8192 for mlp in ("mlpX", "mlpC") for name in ("fc1", "fc2", "proj")},
    "single_layers.0.modCX.1": 6 * WIDTH,
    **{f"single_layers.0.attn.w1{name}": WIDTH for name in "qkvo"},
    **{f"single_layers.0.mlp.c_{name}": 8192 for name in ("fc1", "fc2", "proj")},
}


# The first block has a second attention, the last gives nothing of the text but q, k and v.
SD3_ATTENTIONS = ["joint_blocks.0.x_block.attn", "joint_blocks.0.x_block.attn2", "joint_blocks.1.x_block.attn"]
SD3_ATTENTIONS += [f"joint_blocks.{number}.context_block.attn" for number in (0, 1)]
SD3_ROWS = {
    "x_embedder.proj": 8,
    "context_embedder": 8,
    "final_layer.linear": 4,
    "final_layer.adaLN_modulation.1": 16,
    **{f"{letter}_embedder.mlp.{index}": 8 for letter in "ty" for index in (0, 2)},
    **{f"{name}.qkv": 24 for name in SD3_ATTENTIONS},
    **{f"{name}.proj": 8 for name in SD3_ATTENTIONS[:-1]},
    **{
        f"joint_blocks.{number}.{side}_block.mlp.fc{index}": 8
        for number, side in ((0, "x"), (0, "context"), (1, "x"))
        for index in (1, 2)
    },
    "joint_blocks.0.x_block.adaLN_modulation.1": 72,
    "joint_blocks.0.context_block.adaLN_modulation.1": 48,
    "joint_blocks.1.x_block.adaLN_modulation.1": 48,
    "joint_blocks.1.context_block.adaLN_modulation.1": 16,
}


@dataclass(frozen=True)
class Family:
    """The original's modules with their rows, and diffusers' converter of its checkpoints."""

    rows: Mapping[str, int]
    convert: Callable[..., Any]
    norms: tuple[str, ...] = ()
    biased: Callable[[str], bool] = lambda name: True
    also: tuple[str, ...] = ()  # other parameters that the converter wants

    def state(self) -> dict[str, Tensor]:
        """Return random values for the original."""
        state = {f"{name}.weight": layouts.rand(rows, COLUMNS) for name, rows in self.rows.items()}
        state |= {f"{name}.bias": layouts.rand(rows) for name, rows in self.rows.items() if self.biased(name)}
        state |= {f"{name}.scale": layouts.rand(4) for name in self.norms}
        return state | {name: torch.zeros(1) for name in self.also}

    def converted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of the original in diffusers' layout."""
        found: dict[str, Tensor] = self.convert(dict(state))
        return {name: tensor for name, tensor in found.items() if tensor is not None}


GUIDANCE = "distilled_guidance_layer"
FAMILIES = {
    "flux": Family(
        {
            **FLUX_BLOCKS,
            "double_blocks.0.img_mod.lin": 6 * WIDTH,
            "double_blocks.0.txt_mod.lin": 6 * WIDTH,
            "single_blocks.0.modulation.lin": 3 * WIDTH,
            "final_layer.adaLN_modulation.1": 2 * WIDTH,
            **{f"{name}_in.{layer}_layer": WIDTH for name in ("time", "vector", "guidance") for layer in ("in", "out")},
        },
        single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
        tuple(FLUX_NORMS),
    ),
    "chroma": Family(
        {
            **FLUX_BLOCKS,
            f"{GUIDANCE}.in_proj": 16,
            f"{GUIDANCE}.out_proj": WIDTH,
            f"{GUIDANCE}.layers.0.in_layer": 16,
            f"{GUIDANCE}.layers.0.out_layer": 16,
        },
        single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers,
        (*FLUX_NORMS, f"{GUIDANCE}.norms.0"),
    ),
    "flux 2": Family(
        FLUX_2_ROWS,
        single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
        tuple(FLUX_NORMS),
        biased=lambda name: False,
    ),
    "aura flow": Family(
        AURA_ROWS,
        single_file_utils.convert_auraflow_transformer_checkpoint_to_diffusers,
        biased=lambda name: name.startswith(("init_x", "t_embedder")),
        also=("register_tokens", "positional_encoding"),
    ),
    "sd3.5": Family(
        SD3_ROWS,
        single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
        also=("pos_embed", *(f"{attention}.ln_{name}.weight" for attention in SD3_ATTENTIONS for name in "qk")),
    ),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def changes(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a file's tensors for all matrices and biases of a state, by stem, and the state changed in float64."""
    tensors, changed = {}, {name: tensor.double() for name, tensor in state.items()}
    for index, (name, tensor) in enumerate(state.items()):
        stem, _, role = name.rpartition(".")
        if role == "scale" or (role == "weight" and tensor.ndim == 1):  # of a norm
            tensors[f"{stem}.diff"] = layouts.rand(tensor.shape[0], seed=index)
            changed[name] += tensors[f"{stem}.diff"]
        elif role == "weight" and tensor.ndim == 2:
            up, down = layouts.rand(tensor.shape[0], 1, seed=index), layouts.rand(1, tensor.shape[1], seed=index)
            tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
            changed[name] += up.double() @ down.double()
        elif role == "bias":
            tensors[f"{stem}.diff_b"] = layouts.rand(tensor.shape[0], seed=index)
            changed[name] += tensors[f"{stem}.diff_b"]
    return tensors, changed


def named(tensors: Mapping[str, Tensor], prefix: str, separator: str = ".") -> dict[str, Tensor]:
    """Return a file's tensors under a prefix."""
    return {
        prefix + key[: key.index(mark)].replace(".", separator) + key[key.index(mark) :]: tensor
        for key, tensor in tensors.items()
        for mark in (".diff" if ".diff" in key else ".lora_",)
    }


@families
def test_a_file_in_the_original_s_names_fits_both_models(family: Family, tmp_path: Path) -> None:
    original = family.state()
    tensors, changed = changes(original)
    file = layouts.written(named(tensors, "lora_unet_", "_"), tmp_path)
    for state, expected in ((original, changed), (family.converted(original), family.converted(changed))):
        found, (report,) = layouts.patched(layouts.tree(state), [file])
        assert dict(report.unused) == {}
        assert report.used == report.keys == len(tensors)
        layouts.assert_same(found, expected)


@families
def test_a_file_in_diffusers_names_fits_both_models(family: Family, tmp_path: Path) -> None:
    original = family.state()
    theirs = family.converted(original)
    tensors, changed = changes(theirs)
    file = layouts.written(named(tensors, "transformer."), tmp_path)
    found, (report,) = layouts.patched(layouts.tree(theirs), [file])
    assert (dict(report.unused), report.used) == ({}, len(tensors))
    layouts.assert_same(found, changed)
    found, (report,) = layouts.patched(layouts.tree(original), [file])
    assert (dict(report.unused), report.used) == ({}, len(tensors))
    layouts.assert_same(family.converted(found), changed)


@families
def test_names_of_both_layouts_take_the_prefixes_of_all_trainers(family: Family) -> None:
    original = family.state()
    states = (original, family.converted(original))
    stems = {name.rpartition(".")[0] for state in states for name in state if name.endswith((".weight", ".bias"))}
    for state in states:
        model = layouts.tree(state)
        targets = layouts.targets_of(model)
        for stem in stems:
            place = targets.find(stem)
            assert place is not None, targets.reason(stem)
            for prefix in ("diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model."):
                assert targets.find(prefix + stem) == place
            for prefix in ("lora_unet_", "lora_transformer_", "lycoris_"):
                assert targets.find(prefix + stem.replace(".", "_")) == place


DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"
QKV = tuple(f"{DOUBLE}.attn.to_{name}" for name in "qkv")
TEXT_QKV = tuple(f"{DOUBLE}.attn.add_{name}_proj" for name in "qkv")
SINGLE_QKV = tuple(f"{SINGLE}.attn.to_{name}" for name in "qkv")
# A name that some files have, and the modules of diffusers whose rows it means, one below the other.
ALIASES: list[tuple[str, tuple[str, ...]]] = [
    # OneTrainer
    *((f"transformer.double_blocks.0.img_attn.qkv.{index}", (name,)) for index, name in enumerate(QKV)),
    *((f"transformer.double_blocks.0.txt_attn.qkv.{index}", (name,)) for index, name in enumerate(TEXT_QKV)),
    *((f"transformer.single_blocks.0.linear1.{index}", (name,)) for index, name in enumerate(SINGLE_QKV)),
    ("transformer.single_blocks.0.linear1.3", (f"{SINGLE}.proj_mlp",)),
    ("lora_transformer_single_blocks_0_linear1_3", (f"{SINGLE}.proj_mlp",)),
    # XLabs
    ("double_blocks.0.processor.qkv_lora1", QKV),
    ("diffusion_model.double_blocks.0.processor.qkv_lora2", TEXT_QKV),
    ("double_blocks.0.processor.proj_lora1", (f"{DOUBLE}.attn.to_out.0",)),
    ("double_blocks.0.processor.proj_lora2", (f"{DOUBLE}.attn.to_add_out",)),
    ("single_blocks.0.processor.qkv", SINGLE_QKV),
    ("single_blocks.0.processor.qkv_lora", SINGLE_QKV),
    ("single_blocks.0.processor.proj", (f"{SINGLE}.proj_out",)),
    ("single_blocks.0.processor.proj_lora", (f"{SINGLE}.proj_out",)),
]


@pytest.mark.parametrize(("name", "modules"), ALIASES, ids=[name for name, _ in ALIASES])
def test_names_that_only_files_have_fit_both_models_of_flux(
    name: str, modules: tuple[str, ...], tmp_path: Path
) -> None:
    family = FAMILIES["flux"]
    original = family.state()
    theirs = family.converted(original)
    expected = {key: tensor.double() for key, tensor in theirs.items()}
    rows = [theirs[f"{module}.weight"].shape[0] for module in modules]
    up, down = layouts.rand(sum(rows), 1), layouts.rand(1, COLUMNS)
    for module, part in zip(modules, up.double().split(rows), strict=True):
        expected[f"{module}.weight"] += part @ down.double()
    file = layouts.written({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, tmp_path)
    layouts.assert_same(layouts.patched(layouts.tree(theirs), [file])[0], expected)
    found, _ = layouts.patched(layouts.tree(original), [file])
    layouts.assert_same(family.converted(found), expected)


@families
def test_no_name_is_ambiguous(family: Family) -> None:
    original = family.state()
    for state in (original, family.converted(original)):
        paths = tiny.weighted_paths(layouts.tree(state))
        meant: dict[str, set[object]] = {}
        for path, name, part in spellings(paths):
            meant.setdefault(normalise(name), set()).add((path, part))
        for together, name in fused(paths):
            meant.setdefault(normalise(name), set()).add(together)
        assert [name for name, found in meant.items() if len(found) > 1] == []


def test_other_models_have_neither_translations_nor_fusions() -> None:
    paths = ["transformer_blocks.0.attn.to_q", "x_embedder", "single_blocks.0.linear1", "pos_embed.proj", "mid.attn"]
    for dialect in (FLUX_NAMES, CHROMA_NAMES, FLUX_2_NAMES, AURA_FLOW_NAMES, SD3_NAMES):
        assert [*dialect.spellings(paths), *dialect.translations(paths), *dialect.fusions(paths)] == []


# kohya's name for T5 in all pipelines, ComfyUI's, OneTrainer's for that of Flux, and diffusers'.
T5 = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    "stem",
    [
        f"lora_te3_{T5.replace('.', '_')}",
        f"lora_te2_{T5.replace('.', '_')}",
        f"text_encoders.t5xxl.transformer.{T5}",
        f"text_encoder_2.{T5}",
    ],
)
def test_the_t5_of_flux_answers_to_the_names_of_all_trainers(stem: str) -> None:
    from transformers import T5Config, T5EncoderModel

    t5 = T5EncoderModel(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=8, num_layers=1, num_heads=2))
    clip = tiny.text_encoder()
    components = {"transformer": tiny_flux(), "text_encoder": clip, "text_encoder_2": t5}
    targets = Targets(view(SimpleNamespace(components=components)))
    found = targets.find(stem)
    assert found is not None, targets.reason(stem)
    assert found.module is t5.get_submodule(T5)
    first = targets.find("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1")
    assert first is not None
    assert first == targets.find("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    assert first.component == "text_encoder"


def test_files_whose_prefix_was_cut_off_twice_fit_flux_2() -> None:
    family = FAMILIES["flux 2"]
    model = layouts.tree(family.converted(family.state()))
    targets = layouts.targets_of(model)
    for inner in ("attn.to_q", "ff.linear_in"):
        found = targets.find(f"diffusion_model.sformer_blocks.0.{inner}")
        assert found is not None
        assert found == targets.find(f"transformer.transformer_blocks.0.{inner}")


# ---- diffusers' own loaders -----------------------------------------------------------------------------------------


def without(tensors: Mapping[str, Tensor], *parts: str) -> dict[str, Tensor]:
    """Return a file's tensors without what has one of these in its key."""
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in parts)}


def flux_in_kohya_s_names(family: Family) -> dict[str, Tensor]:
    """Return a file of what diffusers' loader takes, with alphas."""
    tensors, _ = changes(family.state())
    tensors = without(tensors, ".diff")
    stems = {key.partition(".lora_")[0] for key in tensors} - {"final_layer.linear", "final_layer.adaLN_modulation.1"}
    file = named(tensors, "lora_unet_", "_")  # the alphas of the last layer are left out, since it drops them
    return file | {f"lora_unet_{stem.replace('.', '_')}.alpha": torch.tensor(0.5) for stem in stems}


def of_control(family: Family) -> dict[str, Tensor]:
    """Return a control LoRA of Black Forest Labs: all modules, each with its bias."""
    tensors, _ = changes(family.state())
    return {
        key.replace(".lora_up", ".lora_B").replace(".lora_down", ".lora_A").replace(".diff_b", ".lora_B.bias"): tensor
        for key, tensor in tensors.items()
        if not key.endswith(".diff")
    }


@pytest.mark.parametrize("kind", ["kohya", "xlabs", "control"])
def test_diffusers_loader_makes_the_same_changes_to_flux(kind: str, tmp_path: Path) -> None:
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

    family = FAMILIES["flux"]
    state = family.converted(family.state())
    if kind == "kohya":
        file = judged = flux_in_kohya_s_names(family)
    elif kind == "xlabs":
        file, judged = {}, {}
        for name, modules in ALIASES:
            if "processor" in name and not name.startswith("diffusion_model.") and not name.endswith(("qkv", "proj")):
                up, down = (
                    layouts.rand(sum(len(state[f"{module}.weight"]) for module in modules), 1),
                    layouts.rand(1, 2),
                )
                file |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
                judged |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    else:
        last = "final_layer.adaLN_modulation.1.lora_"
        file = without(of_control(family), f"{last}A", f"{last}B")
        # It wants the scales of norms, here those that the model has, and as many blocks as the real one has.
        judged = file | {key: tensor for key, tensor in family.state().items() if key.endswith(".scale")}
        # Of the last modulation it swaps the halves of the input side's factor too, so it gets zeros there.
        judged |= {f"{last}A.weight": torch.zeros(2, COLUMNS), f"{last}B.weight": torch.zeros(2 * WIDTH, 2)}
        for blocks, count in (("double_blocks", 19), ("single_blocks", 38)):
            first = {key: tensor for key, tensor in judged.items() if key.startswith(blocks)}
            for number in range(count):
                judged |= {key.replace(".0.", f".{number}.", 1): tensor for key, tensor in first.items()}
    theirs = FluxLoraLoaderMixin.lora_state_dict(dict(judged))
    found, (report,) = layouts.patched(layouts.tree(state), [layouts.written(file, tmp_path)])
    assert (report.used, dict(report.unused)) == (len(file), {})
    expected = {name: tensor.double() for name, tensor in state.items()}
    for key, up in theirs.items():
        path = key.removeprefix("transformer.")
        if path.replace(".lora_B", "") not in expected:  # the factor on the input side, or another block
            continue
        if key.endswith(".lora_B.weight"):
            down = theirs[key.replace(".lora_B.", ".lora_A.")]
            expected[path.replace(".lora_B", "")] += up.double() @ down.double()
        elif key.endswith(".lora_B.bias"):
            expected[path.replace(".lora_B", "")] += up.double()
    layouts.assert_same(found, expected)


def tiny_flux() -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=6,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def tiny_flux_2() -> Any:
    from diffusers import Flux2Transformer2DModel

    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        timestep_guidance_channels=4,
        axes_dims_rope=(2, 2, 2, 2),
    )


@torch.no_grad()
def output_of(model: Any) -> Tensor:
    """Return what a Flux makes of some latents and some text."""
    axes = len(model.config.axes_dims_rope)
    inputs = {
        "hidden_states": layouts.rand(1, 6, 4, size=1.0),
        "encoder_hidden_states": layouts.rand(1, 5, 6, size=1.0),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.arange(6.0)[:, None].repeat(1, axes),
        "txt_ids": torch.zeros(5, axes),
        "guidance": torch.tensor([1.0]),
    }
    if hasattr(model, "time_text_embed"):
        inputs["pooled_projections"] = layouts.rand(1, 6, size=1.0)
    output: Tensor = model(**inputs, return_dict=False)[0]
    return output


@pytest.mark.parametrize("kind", ["flux", "flux 2"])
def test_a_patched_model_computes_what_diffusers_computes_with_the_file(kind: str, tmp_path: Path) -> None:
    from diffusers.loaders import lora_pipeline

    import lora_runtime

    make, mixin = {
        "flux": (tiny_flux, lora_pipeline.FluxLoraLoaderMixin),
        "flux 2": (tiny_flux_2, lora_pipeline.Flux2LoraLoaderMixin),
    }[kind]
    model = make().eval()
    width = 16
    # Its loader has the rows of Flux's `linear1` as a number, and forgets to swap the halves in Flux 2's last layer.
    left_out = "linear1" if kind == "flux" else "adaLN_modulation"
    tensors: dict[str, Tensor] = {}
    family = FAMILIES[kind]
    for index, (name, rows) in enumerate(family.rows.items()):
        if left_out in name:
            continue
        rows = rows * width // WIDTH if rows % WIDTH == 0 else 4
        columns = {"img_in": 4, "txt_in": 6, "vector_in.in_layer": 6}.get(name, width)
        if name in ("time_in.in_layer", "guidance_in.in_layer"):
            columns = 256 if kind == "flux" else 4
        if name.endswith("mlp.2"):
            columns = (4 if kind == "flux" else 3) * width
        if name.endswith("linear2"):
            columns = (5 if kind == "flux" else 4) * width
        for block in ("0", "1") if "blocks" in name else ("",):
            stem = f"diffusion_model.{name.replace('.0.', f'.{block}.', 1) if block else name}"
            up, down = layouts.rand(rows, 2, seed=index), layouts.rand(2, columns, seed=index)
            ends = ("up", "down") if kind == "flux" else ("B", "A")  # by which its loader tells the two
            tensors |= {f"{stem}.lora_{end}.weight": factor for end, factor in zip(ends, (up, down), strict=True)}
    layouts.written(tensors, tmp_path).path.rename(tmp_path / "style.safetensors")
    before = output_of(model)
    with lora_runtime.apply(model, "<lora:style:0.7>", loras=tmp_path) as applied:
        (report,) = applied.report.loras
        assert (report.used, dict(report.unused)) == (len(tensors), {})
        ours = output_of(model)
    assert torch.equal(output_of(model), before)
    # Its loader leaves the prefix out for what is outside of Flux's blocks, and then does not find them.
    judged = {key.removeprefix("transformer."): t for key, t in mixin.lora_state_dict(dict(tensors)).items()}
    model.load_lora_adapter(judged, prefix=None, adapter_name="a")
    model.set_adapters(["a"], [0.7])
    theirs = output_of(model)
    assert (theirs - before).abs().max() > 0.1 * before.abs().max()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
