"""Starts the double with the extension in it, paints with it, and reloads it."""

from __future__ import annotations

import importlib
import io
import pickle
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import tiny_ldm
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
BUILTIN, OTHERS = HERE / "builtin" / "Lora", HERE / "others"

# What a start leaves in sys.modules; each start has its own.
_OURS = ("modules", "networks", "lora_runtime", "lora_runtime_webui_extension")

# The checkpoints that every start has: two of the same config, and one of each other.
KINDS = {"a": "sd1", "b": "sd1", "sd2": "sd2", "sdxl": "sdxl", "refiner": "refiner", "sd3": "sd3"}


@contextmanager
def process(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Make this process one in which the double can start; leave it as it was."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in _OURS}
    path, command_line = sys.path[:], sys.argv
    sys.path.insert(0, str(HERE))
    sys.argv = ["launch.py", *arguments]
    try:
        yield
    finally:
        sys.path[:], sys.argv = path, command_line
        for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
            del sys.modules[name]
        sys.modules.update(before)


@cache
def _template(kind: str) -> nn.Module:
    return tiny_ldm.model(kind, hijacked=False)


@cache
def _dumped(kind: str) -> tuple[bytes, list[Any]]:
    """Return a model without its tensors and classes, and these."""
    file, kept = io.BytesIO(), list[Any]()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> int | None:
            if not isinstance(thing, (Tensor, type)):
                return None
            kept.append(thing)
            return len(kept) - 1

    Pickler(file).dump(_template(kind))
    return file.getvalue(), kept


def new_model(kind: str) -> nn.Module:
    """Return a new model: a copy of one, which `copy.deepcopy` takes four times as long for."""
    dumped, kept = _dumped(kind)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, index: int) -> Any:
            thing = kept[index]
            if isinstance(thing, nn.Parameter):
                return nn.Parameter(thing.detach().clone(), requires_grad=False)
            return thing.clone() if isinstance(thing, Tensor) else thing

    made: nn.Module = Unpickler(io.BytesIO(dumped)).load()
    return made


@cache
def plain_weights(name: str, *, half: bool = False) -> dict[str, Tensor]:
    """Return the weights of a checkpoint in its file: of each name other numbers."""
    generator = torch.Generator().manual_seed(sorted(KINDS).index(name))
    found: dict[int, Tensor] = {}  # by the place in memory: SD3 has a text encoder under two names
    weights = {}
    for key, tensor in _template(KINDS[name]).state_dict().items():
        if tensor.data_ptr() not in found:
            random = torch.randn(tensor.shape, generator=generator) * 0.1
            found[tensor.data_ptr()] = random if tensor.is_floating_point() else tensor.clone()
        weights[key] = found[tensor.data_ptr()]
    return {key: tensor.half() for key, tensor in weights.items()} if half else weights


def install_copy(folder: Path) -> Path:
    """Put the extension into a folder, as somebody installs it; return the folder."""
    for part in ("extension", "lora_runtime", "scripts", "javascript"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png")
        shutil.copytree(REPOSITORY / part, folder / part, ignore=ignored)
    return folder


class WebUI:
    """The program, from the start of its process. Use it inside `process()`."""

    def __init__(
        self,
        data: Path,
        *,
        extensions: Sequence[Path] = (BUILTIN, REPOSITORY, OTHERS),
        options: Mapping[str, Any] | None = None,
        checkpoint: str = "a",
        lora_dir: bool = True,
        medvram: bool = False,
        half: bool = False,
        login: tuple[str, str] | None = None,
        api: bool = False,
        api_auth: str = "",
        page: bool = False,
    ) -> None:
        """Start with these extensions, loaded in this order; `lora_dir`: whether the command line knows --lora-dir.

        `login` is that of --gradio-auth, `api` and `api_auth` ("name:password") are the options of these names. With
        `page` the app has the page for a real browser, too.
        """
        self.loras = data / "models" / "Lora"
        self.loras.mkdir(parents=True, exist_ok=True)
        self.half, self.login, self.api, self.page = half, login, api, page
        self.batch_size = 1  # of pictures that are painted from the page
        self.extensions = list(extensions)
        paths, shared, sd_models = self.module("paths"), self.module("shared"), self.module("sd_models")
        paths.script_path, paths.data_path, paths.models_path = str(data), str(data), str(data / "models")
        shared.cmd_opts = SimpleNamespace(medvram=medvram, no_half=not half, api_auth=api_auth)
        if lora_dir:
            shared.cmd_opts.lora_dir = str(self.loras)
            shared.cmd_opts.lyco_dir_backcompat = str(data / "models" / "LyCORIS")
        shared.opts.data.update(sd_model_checkpoint=f"{checkpoint}.safetensors", **(options or {}))
        sd_models.make_model = new_model
        for name, kind in KINDS.items():
            self.add_checkpoint(name, kind, plain_weights(name, half=half))
        self._start()

    @staticmethod
    def module(name: str) -> ModuleType:
        """Return one of the program's modules."""
        return importlib.import_module(f"modules.{name}")

    @property
    def options(self) -> Any:
        return self.module("shared").opts

    @property
    def model(self) -> Any:
        """The model that is used, None if none is loaded."""
        return self.module("sd_models").model_data.sd_model

    @property
    def embeddings(self) -> Any:
        return self.module("sd_hijack").model_hijack.embedding_db

    @property
    def errors(self) -> list[tuple[str, BaseException | None]]:
        """What failed without stopping the program."""
        return list(self.module("errors").reported)

    def add_checkpoint(self, name: str, kind: str, weights: Mapping[str, Tensor], fault: str = "") -> None:
        """Put a file into the folder of checkpoints."""
        sd_models = self.module("sd_models")
        sd_models.checkpoints[name] = sd_models.Checkpoint(name, kind, dict(weights), fault)

    # --- its life ---

    def _start(self) -> None:
        from fastapi import FastAPI

        callbacks, pages = self.module("script_callbacks"), self.module("ui_extra_networks")
        self.module("scripts").load_scripts(self.extensions)
        pages.initialize()
        self.module("extra_networks").initialize()
        callbacks.before_ui_callback()
        if self.page:
            self.app = self._page_app()
        else:
            self.app = FastAPI() if self.login is None else self._gradio_app(self.login)
        if self.api:
            self.module("api").Api(self.app)
        pages.add_pages_to_demo(self.app)
        callbacks.app_started_callback(None, self.app)

    @staticmethod
    def _gradio_app(login: tuple[str, str]) -> Any:
        """Return gradio's app with its login."""
        import gradio as gr
        from gradio.routes import App

        with gr.Blocks() as demo:
            gr.Markdown("the program")
        demo.auth, demo.auth_message = [login], None
        return App.create_app(demo)

    ui: Any = None  # the components of the cards in `page`

    def _page_app(self) -> Any:
        """Return gradio's app with the program's page, which may fetch the files of the program and its extensions."""
        from gradio.routes import App

        from double.page import whole_page

        demo = whole_page(self)
        demo.allowed_paths = [str(HERE), *map(str, self.extensions)]
        return App.create_app(demo)

    def reload_ui(self) -> None:
        """Do what the button Reload UI does: scripts are loaded anew, the model stays."""
        self.module("script_callbacks").script_unloaded_callback()
        self._start()

    def build_ui(self) -> Any:
        """Make the components of the pages; return what was made."""
        import gradio as gr

        with gr.Blocks():
            return self.module("ui_extra_networks").create_ui("txt2img")

    def open_page(self, tabname: str = "txt2img") -> tuple[Any, Any]:
        """Return a browser with the page of one tab in it, and the components."""
        import gradio as gr

        from double.browser import Browser

        with gr.Blocks() as demo:
            ui = self.module("ui_extra_networks").create_ui(tabname)
        return Browser(demo), ui

    def configuration(self) -> bytes:
        """Return what the browser gets first: all components, the settings' too, as the program sends them."""
        import gradio as gr
        import orjson

        with gr.Blocks() as demo:
            self.module("ui_extra_networks").create_ui("txt2img")
            for option in self.module("shared").options_templates.values():
                if option.component is not None:
                    given = option.component_args
                    option.component(label=option.label, **((given() if callable(given) else given) or {}))
        return orjson.dumps(demo.get_config_file(), option=orjson.OPT_NON_STR_KEYS, default=str)

    def client(self, **how: Any) -> Any:
        """Return a client of the HTTP API."""
        from fastapi.testclient import TestClient

        return TestClient(self.app, **how)

    # --- its work ---

    def generate(self, prompt: Any, **job: Any) -> Any:
        """Paint; return what came of it, with every pass."""
        processing, state = self.module("processing"), self.module("shared").state
        p = self.job = processing.StableDiffusionProcessing(prompt=prompt, **job)
        state.job = "txt2img"
        try:
            return processing.process_images(p)
        finally:
            state.job = ""

    def choose_checkpoint(self, name: str) -> None:
        """Choose another checkpoint in the UI."""
        opts, sd_models = self.options, self.module("sd_models")
        before = opts.sd_model_checkpoint
        opts.sd_model_checkpoint = f"{name}.safetensors"
        try:
            sd_models.reload_model_weights()
        except Exception:
            opts.sd_model_checkpoint = before
            raise

    def paste(self, prompt: str, **fields: str) -> dict[str, str]:
        """Return the fields of a pasted infotext, as all callbacks have left them; "_" stands for a space."""
        found = {"Prompt": prompt, **{name.replace("_", " "): text for name, text in fields.items()}}
        self.module("script_callbacks").infotext_pasted_callback("", found)
        return found

    def replay(self, done: Any) -> Any:
        """Paint again what a picture's parameters say: its settings go into the job as far as they differ."""
        written = {name: str(value) for name, value in done.extra_generation_params.items() if name != "LoRA notices"}
        fields = self.paste(done.p.all_prompts[0], Steps="4", Negative_prompt=done.p.all_negative_prompts[0], **written)
        labels = self.options.data_labels
        overrides = {
            key: fields[option.infotext]
            for key, option in labels.items()
            if option.infotext in fields and fields[option.infotext] != getattr(self.options, key)
        }
        return self.generate(fields["Prompt"], negative_prompt=fields["Negative prompt"], override_settings=overrides)

    def owner(self, tag: str) -> Any:
        """Return who owns a tag."""
        networks = self.module("extra_networks")
        return networks.extra_network_registry.get(tag) or networks.extra_network_aliases.get(tag)

    # --- its weights ---

    def weights(self, model: Any = None) -> dict[str, Tensor]:
        """Return the weights that a model has now, by the names in its checkpoint."""
        found = self.module("sd_hijack").weights_of(model or self.model)
        return {name: parameter.detach() for name, parameter in found.items()}

    def changed(self, weights: Mapping[str, Tensor] | None = None, checkpoint: str = "") -> list[str]:
        """Return the names of the weights (by default the model's own) that are not, bit for bit, those of the file."""
        name = checkpoint or self.model.sd_checkpoint_info.name
        plain = self.module("sd_models").checkpoints[name].weights
        now = self.weights() if weights is None else weights
        return [key for key, tensor in now.items() if not _same_bits(tensor, plain[key])]

    def not_whole(self) -> list[str]:
        """Return the names of the weights of all loaded models that are not those of their files."""
        found = []
        models = self.module("sd_models").model_data.loaded_sd_models
        for model in dict.fromkeys([*models, *([self.model] if self.model is not None else [])]):
            name = model.sd_checkpoint_info.name
            found += [f"{name}: {key}" for key in self.changed(self.weights(model), name)]
        return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
