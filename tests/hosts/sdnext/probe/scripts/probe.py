"""An extension for the tests alone: what SD.Next's weights are, its offloading, and a prompt for each picture."""

import hashlib

from modules import extra_networks, modeldata, script_callbacks, scripts_manager, sd_models, shared


def _digest(module):
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()


def _state():
    model = modeldata.model_data.sd_model
    return {
        "unet": _digest(model.unet) if all(not tensor.is_meta for tensor in model.unet.parameters()) else "away",
        "text": _digest(model.text_encoder) if not next(model.text_encoder.parameters()).is_meta else "away",
        "pipeline": type(model).__name__,
        "layers": sorted({type(module).__name__ for module in model.unet.modules()}),
        "hooks": sorted(
            {type(module._hf_hook).__name__ for module in model.unet.modules() if hasattr(module, "_hf_hook")}
        ),
        "owner": type(extra_networks.extra_network_registry["lora"]).__module__,
    }


def _offload(mode: str):
    """Offload in another way: take the model out of the one before, as loading it again would."""
    model = modeldata.model_data.sd_model
    model.reset_device_map() if getattr(model, "hf_device_map", None) else None
    sd_models.disable_offload(model)
    if hasattr(model, "remove_all_hooks"):
        model.remove_all_hooks()
    shared.opts.data["diffusers_offload_mode"] = mode
    sd_models.set_diffuser_offload(model, op="model")
    return _state()


def _give_tags_back(ours: bool):
    """Let the program's own LoRA have the tag for a while."""
    from modules.lora import lora_common

    if ours:
        extra_networks.extra_network_registry["lora"] = _give_tags_back.owner
    else:
        _give_tags_back.owner = extra_networks.extra_network_registry["lora"]
        extra_networks.extra_network_registry["lora"] = lora_common.extra_network_lora
    return {}


def _checkpoint(name: str):
    shared.opts.data["sd_model_checkpoint"] = name
    sd_models.reload_model_weights(force=True)
    return _state()


class PromptsApart(scripts_manager.Script):
    """Gives each picture of a batch the prompt between two bars: the API takes one for all."""

    def title(self):
        return "Prompts apart"

    def show(self, is_img2img):
        return scripts_manager.AlwaysVisible

    def process(self, p, *args, **kwargs):
        texts = p.all_prompts[0].split("||")
        if len(texts) > 1:
            p.all_prompts = [texts[index % len(texts)].strip() for index in range(len(p.all_prompts))]


def app_started(_, app):
    app.add_api_route("/probe/state", _state, methods=["GET"])
    app.add_api_route("/probe/offload", _offload, methods=["GET"])
    app.add_api_route("/probe/tags", _give_tags_back, methods=["GET"])
    app.add_api_route("/probe/checkpoint", _checkpoint, methods=["GET"])


script_callbacks.on_app_started(app_started)
