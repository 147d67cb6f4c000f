"""A node package for the tests alone: what ComfyUI's weights are, how often it loads, and its scarcer modes."""

import asyncio
import hashlib

import comfy.model_base
import comfy.model_management
import torch
from aiohttp import web
from comfy.model_patcher import ModelPatcher
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
_OF_NO_FILE = "text_projection"  # of SD1's CLIP the program leaves it as memory was: other numbers at each start
_counts = {"patched": 0, "made": 0}
_scarce = {"bytes": 0, "one": False}
_seen = {}

_patch = ModelPatcher.patch_weight_to_device
_model_load, _required = comfy.model_management.LoadedModel.model_load, comfy.model_base.BaseModel.memory_required
_apply = comfy.model_base.BaseModel._apply_model
_calls = []


def patch_weight_to_device(self, key, *args, **kwargs):
    _counts["patched"] += key in self.patches
    return _patch(self, key, *args, **kwargs)


def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
    _seen[type(self.model.model).__name__] = self.model.model
    return _model_load(self, _scarce["bytes"] or lowvram_model_memory, force_patch_weights)


def memory_required(self, *args, **kwargs):
    return 1e30 if _scarce["one"] else _required(self, *args, **kwargs)


def apply_model(self, x, *args, **kwargs):
    _calls.append(len(x))
    return _apply(self, x, *args, **kwargs)


ModelPatcher.patch_weight_to_device = patch_weight_to_device
comfy.model_management.LoadedModel.model_load = model_load
comfy.model_base.BaseModel.memory_required = memory_required
comfy.model_base.BaseModel._apply_model = apply_model


def _digest(module):
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if _OF_NO_FILE not in name:
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _hooks(module):
    return sum(len(inner._forward_hooks) for inner in module.modules())


@PromptServer.instance.routes.get("/probe/state")
async def state(_):
    return web.json_response(
        {
            "weights": {name: _digest(model) for name, model in _seen.items()},
            "hooks": sum(map(_hooks, _seen.values())),
            "calls": _calls[-2:],
            **_counts,
        }
    )


@PromptServer.instance.routes.get("/probe/set")
async def set_modes(request):
    _scarce.update(bytes=int(request.query.get("memory", 0)), one=bool(request.query.get("one_condition_a_call")))
    queue = PromptServer.instance.prompt_queue
    queue.set_flag("unload_models", True)  # in the thread that paints, which reads it before the next graph
    while queue.get_flags(reset=False):
        await asyncio.sleep(0.1)
        if queue.get_flags(reset=False):  # it misses what comes between its look and its sleep
            queue.set_flag("unload_models", True)
    return web.json_response({})
