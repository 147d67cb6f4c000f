"""An extension for the tests alone: what Forge Neo's weights are, how often it loads, and its scarcer modes."""

import hashlib

from backend import memory_management
from backend.args import dynamic_args
from backend.modules.k_model import KModel
from backend.patcher.base import ModelPatcher
from modules import script_callbacks, scripts, sd_models
from modules_forge import main_entry

_OF_NO_FILE = "text_projection"  # of SD1's CLIP the program leaves it as memory was: other numbers at each start
_counts = {"loads": 0, "patched": 0}
_scarce = {"bytes": 0, "one": False}

_load, _patch = ModelPatcher.load, ModelPatcher.patch_weight_to_device
_model_load, _required = memory_management.LoadedModel.model_load, KModel.memory_required


def load(self, *args, **kwargs):
    _counts["loads"] += 1
    return _load(self, *args, **kwargs)


def patch_weight_to_device(self, key, *args, **kwargs):
    _counts["patched"] += key in self.patches
    return _patch(self, key, *args, **kwargs)


def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
    return _model_load(self, _scarce["bytes"] or lowvram_model_memory, force_patch_weights)


def memory_required(self, input_shape):
    return 1e30 if _scarce["one"] else _required(self, input_shape)


ModelPatcher.load, ModelPatcher.patch_weight_to_device = load, patch_weight_to_device
memory_management.LoadedModel.model_load, KModel.memory_required = model_load, memory_required


def _digest(module):
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if _OF_NO_FILE not in name:
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()


def _state():
    model = sd_models.model_data.sd_model
    objects = model.forge_objects_original
    return {
        "unet": _digest(objects.unet.model),
        "text": _digest(objects.clip.cond_stage_model),
        "lora": model.current_lora_hash,
        "checkpoint": model.sd_checkpoint_info.filename,
        "backups": len(objects.unet.backup) + len(objects.clip.patcher.backup),
        **_counts,
    }


def _set(on_the_fly: bool = False, memory: int = 0, one_condition_a_call: bool = False):
    dynamic_args.online_lora = on_the_fly
    _scarce.update(bytes=memory, one=one_condition_a_call)
    memory_management.unload_all_models()
    return {}


def _checkpoint(name: str):
    main_entry.checkpoint_change(name, preset=None, save=False)
    return {}


class PromptsApart(scripts.Script):
    """Gives each picture of a batch the prompt between two bars: the API takes one for all."""

    def title(self):
        return "Prompts apart"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        texts = p.all_prompts[0].split("||")
        if len(texts) > 1:
            p.all_prompts = [texts[index % len(texts)].strip() for index in range(len(p.all_prompts))]


def app_started(_, app):
    app.add_api_route("/probe/checkpoint", _checkpoint, methods=["GET"])
    app.add_api_route("/probe/state", _state, methods=["GET"])
    app.add_api_route("/probe/set", _set, methods=["GET"])


script_callbacks.on_app_started(app_started)
