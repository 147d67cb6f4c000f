"""Starts the double of ComfyUI: its modules are in `double/`, the checkpoint's those of the double of the WebUI."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from double.webui import new_model, plain_weights
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent.parent
_OURS = ("comfy", "folder_paths", "nodes", "lora_runtime_comfyui_extension")
LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"

Row = tuple[str, int]


@contextmanager
def comfy_process() -> Iterator[None]:
    """Make this process one in which the double can start; leave it as it was."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in _OURS}
    path = sys.path[:]
    sys.path.insert(0, str(HERE / "double"))
    try:
        for name in ("comfy", "comfy.model_patcher", "folder_paths", "nodes"):
            importlib.import_module(name)
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
            del sys.modules[name]
        sys.modules.update(before)


def load_folder(folder: Path = REPOSITORY) -> ModuleType:
    """Load a folder of custom_nodes as the program does: under its path as a name."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


class BaseModel(nn.Module):
    """Around the denoiser. What it gives back for a row is what the weight of a layer is in effect there."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.diffusion_model = denoiser
        layer = denoiser.get_submodule(LAYER.removeprefix("model.diffusion_model.").removesuffix(".weight"))

        def forward(x: Tensor, t: Tensor, transformer_options: Any = None) -> Tensor:
            unit = torch.eye(layer.in_features, dtype=layer.weight.dtype)
            rows: Tensor = layer(unit.expand(len(x), -1, -1)).mT
            return rows

        denoiser.forward = forward

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = {},
    ) -> Tensor:
        extension = importlib.import_module("comfy.patcher_extension")

        def inner(x: Tensor, t: Tensor, concat: Any, context: Any, control: Any, options: Any) -> Tensor:
            found: Tensor = self.diffusion_model(x, t, transformer_options=options)
            return found

        executor = extension.wrapped(inner, self, extension.WrappersMP.APPLY_MODEL, transformer_options)
        made: Tensor = executor.execute(x, t, c_concat, c_crossattn, control, transformer_options)
        return made


class SDTokenizer:
    """Reads texts for one text encoder: letters, and vectors where it finds "embedding:" and a name that it knows."""

    embedding_key, embedding_size = "clip_l", 12

    def __init__(self) -> None:
        self.files: dict[str, Tensor] = {}  # the user's own embeddings

    def _try_get_embedding(self, embedding_name: str) -> tuple[Tensor | None, str]:
        first, *rest = embedding_name.split()
        found = self.files.get(first)
        if found is None and (stripped := first.strip(",")) != first:
            return self.files.get(stripped), f"{first[len(stripped) :]} {' '.join(rest)}"
        return found, " ".join(rest)

    def tokenize(self, text: str) -> list[Any]:
        plain, *marked = text.split("embedding:")
        tokens: list[Any] = [*plain]
        for after in marked:
            found, behind = self._try_get_embedding(after)
            tokens += [] if found is None else [*found.reshape(-1, found.shape[-1])]
            tokens += behind
        return tokens


class Tokenizer:
    """Reads texts for all text encoders."""

    def __init__(self) -> None:
        self.clip_l = SDTokenizer()

    def tokenize(self, text: str) -> dict[str, list[Any]]:
        return {"l": self.clip_l.tokenize(text)}


class CLIP:
    """The text encoders and their patcher; clones share the tokenizer."""

    def __init__(self, stage: Any, patcher: Any, tokenizer: Any = None) -> None:
        self.cond_stage_model, self.patcher = stage, patcher
        self.tokenizer = Tokenizer() if tokenizer is None else tokenizer

    def clone(self) -> CLIP:
        return CLIP(self.cond_stage_model, self.patcher.clone(), self.tokenizer)


class Comfy:
    """The program, from the start of its process. Use it inside `comfy_process()`."""

    def __init__(self, data: Path, *, dynamic: bool = False) -> None:
        self.loras = data / "models" / "loras"
        self.loras.mkdir(parents=True)
        importlib.import_module("folder_paths").folders["loras"] = [str(self.loras), str(data / "not-there")]
        self.memory = importlib.import_module("comfy.model_management").memory
        patcher = importlib.import_module("comfy.model_patcher")
        self.kind = patcher.ModelPatcherDynamic if dynamic else patcher.ModelPatcher
        self.linear = patcher.Linear
        self.nodes = load_folder().NODE_CLASS_MAPPINGS
        self.model, self.clip = self.checkpoint()

    def checkpoint(self, *, half: bool = False) -> tuple[Any, Any]:
        """Load a checkpoint: MODEL and CLIP."""
        whole: Any = new_model("sd1")
        whole.load_state_dict(plain_weights("a"))
        if half:
            whole.half()
        for module in whole.modules():
            if type(module) is nn.Linear:
                module.__class__ = self.linear
        stage = nn.Module()
        stage.clip_l = whole.cond_stage_model
        if not hasattr(stage.clip_l.transformer, "text_model"):
            inner, stage.clip_l.transformer = stage.clip_l.transformer, nn.Module()
            stage.clip_l.transformer.text_model = inner
        return self.kind(BaseModel(whole.model.diffusion_model)), CLIP(stage, self.kind(stage))

    @staticmethod
    def plain() -> Mapping[str, Tensor]:
        """Return the weights in the checkpoint's file, by the names that it has for text encoders.

        The program has its own classes for these, with the names that transformers had before its version 5.
        """
        return {
            re.sub(r"^(cond_stage_model\.transformer\.)(?!text_model)", r"\1text_model.", name): w
            for name, w in plain_weights("a").items()
        }

    def tags(self, text: str, model: Any = None, clip: Any = None, **options: Any) -> tuple[Any, Any, str, str]:
        """Run LoRA tags: MODEL, CLIP, the text without tags and the report."""
        node = self.nodes["LoraRuntimeTags"]()
        found: tuple[Any, Any, str, str] = node.apply(
            model=self.model if model is None else model, clip=self.clip if clip is None else clip, text=text, **options
        )
        return found

    def sample(
        self,
        model: Any,
        *,
        steps: int = 3,
        images: int = 1,
        counts: Mapping[str, int] | None = None,
        levels: Callable[[Tensor], Sequence[float]] = lambda sigmas: sigmas[:-1].tolist(),
    ) -> list[dict[Row, Tensor]]:
        """Return the weight that `LAYER` has in effect, (images, out, in), of each condition in each call."""
        samplers = importlib.import_module("comfy.samplers")
        sigmas = torch.linspace(1.0, 0.0, steps + 1) * 14.6
        guider = samplers.Guider(model, dict(counts or {"positive": 1, "negative": 1}))
        found: list[dict[Row, Tensor]] = guider.sample(sigmas, images, levels)
        return found

    def loaded(self, model: Any, clip: Any) -> dict[str, Tensor]:
        """Load both; return copies of their weights by the names of the checkpoint."""
        management = importlib.import_module("comfy.model_management")
        with torch.inference_mode():
            management.load_model(model)
            management.load_model(clip.patcher)
        found = {f"model.{name}": tensor for name, tensor in model.model.state_dict().items()}
        for name, tensor in clip.cond_stage_model.state_dict().items():
            found[name.replace("clip_l.", "cond_stage_model.", 1)] = tensor
        return {name: tensor.detach().clone() for name, tensor in found.items()}
