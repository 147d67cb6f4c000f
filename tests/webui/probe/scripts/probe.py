"""Installed beside the extension by the tests: shows what the WebUI does not, and breaks what they ask for."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import open_clip
import torch
from fastapi import Body
from modules import script_callbacks, scripts, sd_models, shared

# The tiny OpenCLIP text encoders of the tests' checkpoints are known by these names.
open_clip.add_model_config(Path(__file__).resolve().parent.parent / "open_clip")

# SD3's sizes are constants there.
_spec = importlib.util.spec_from_file_location(
    "probe_small_sd3", Path(__file__).resolve().parent.parent / "small_sd3.py"
)
_small_sd3 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_small_sd3)
_small_sd3.shrink()

calls = []  # what live modules were told at each call of the denoiser: steps, noise level, rows

failures = set()  # where the next generation should raise: "process_batch", "cfg_denoiser"


def parts(model):
    """Yield the parts of a checkpoint whose weights LoRAs change."""
    yield "unet", model.model.diffusion_model
    for name in ("cond_stage_model", "conditioner"):
        if getattr(model, name, None) is not None:
            yield name, getattr(model, name)


def weights(model):
    """Return the weights by name."""
    return {
        f"{part}.{name}": parameter.detach()
        for part, module in parts(model)
        for name, parameter in module.named_parameters()
    }


def digest(tensors):
    """Return a hash of all bits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        data = tensors[name].cpu().contiguous().reshape(-1)
        found.update(name.encode() + str(data.dtype).encode() + data.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def record_calls():
    """Keep what live modules are told from now on; Reload UI brings new ones."""
    stage = sys.modules["lora_runtime.stage"].Stage
    if not hasattr(stage.begin, "kept"):

        def begin(self, call, begin=stage.begin):
            if call.grid is not None:
                calls.append(call)
            begin(self, call)

        begin.kept = True
        stage.begin = begin


def add_routes(_, app):
    """Add what the tests ask for."""

    @app.get("/probe/state")
    def state():
        model = sd_models.model_data.sd_model
        if model is None:
            return {"checkpoint": None}
        return {
            "checkpoint": Path(model.sd_model_checkpoint).stem,
            "digest": digest(weights(model)),
            "hooks": sum(
                "lora_runtime" in type(hook).__module__ + getattr(hook, "__module__", "")
                for module in model.modules()
                for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            ),
            "devices": sorted({str(w.device) for w in weights(model).values()}),
            "dtypes": sorted({str(w.dtype) for w in weights(model).values()}),
            "loaded": [Path(m.sd_model_checkpoint).stem for m in sd_models.model_data.loaded_sd_models],
            "loaded_digests": [digest(weights(m)) for m in sd_models.model_data.loaded_sd_models],
        }

    @app.post("/probe/save")
    def save(path: str = Body(..., embed=True)):
        torch.save({k: v.cpu().clone() for k, v in weights(sd_models.model_data.sd_model).items()}, path)

    @app.post("/probe/write-sd3")
    def write_sd3(path: str = Body(..., embed=True)):
        _small_sd3.write_checkpoint(path)

    @app.post("/probe/forget-calls")
    def forget_calls():
        record_calls()
        calls.clear()

    @app.get("/probe/calls")
    def told():
        return [
            {"step": c.moment.step, "steps": c.moment.steps, "sigma": c.moment.sigma, "rows": c.rows, "grid": c.grid}
            for c in calls
        ]

    @app.post("/probe/fail")
    def fail(where: str = Body(..., embed=True)):
        failures.add(where)

    @app.post("/probe/reload-ui")
    def reload_ui():
        shared.state.server_command = "restart"

    @app.get("/probe/axes")
    def axes():
        grid = next(data.module for data in scripts.scripts_data if hasattr(data.module, "axis_options"))
        return [{"label": axis.label} for axis in grid.axis_options if not getattr(axis, "is_img2img", False)]

    @app.get("/probe/owner")
    def owner():
        from modules import extra_networks, ui_extra_networks

        return {
            "lora": type(extra_networks.extra_network_registry["lora"]).__module__,
            "lyco": type(extra_networks.extra_network_aliases["lyco"]).__module__,
            "pages": [(page.name, type(page).__module__) for page in ui_extra_networks.extra_pages],
            "routes": [route.path for route in app.router.routes if "lora" in getattr(route, "path", "")],
            "wrapped": hasattr(sd_models.reload_model_weights, "__wrapped__"),
        }


class Probe(scripts.Script):
    """Raises where a test wants it to, once."""

    def title(self):
        return "probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        # The API has one prompt for all pictures of a job; scripts, as here, have one for each.
        for name in ("all_prompts", "all_negative_prompts", "all_hr_prompts", "all_hr_negative_prompts"):
            texts = getattr(p, name, None)
            if texts and "|||" in texts[0]:
                setattr(p, name, texts[0].split("|||"))
        if "disable_extra_networks" in failures:
            failures.discard("disable_extra_networks")
            p.disable_extra_networks = True

    def process_batch(self, p, *args, **kwargs):
        if "process_batch" in failures:
            failures.discard("process_batch")
            raise RuntimeError("the probe was asked to fail")


def denoise(params):
    """Fail, or ask for an interruption, in the middle of a picture."""
    if "interrupt" in failures and params.sampling_step >= 1:
        failures.discard("interrupt")
        shared.state.interrupt()
    if "model" in failures:
        failures.discard("model")
        params.x = params.x[:, :1]  # the UNet raises


script_callbacks.on_app_started(add_routes)
script_callbacks.on_cfg_denoiser(denoise)
