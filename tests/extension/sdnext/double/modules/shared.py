"""Options and the command line. `sd_model` loads the checkpoint where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

cmd_opts = SimpleNamespace()
_DEFAULTS: dict[str, Any] = {
    "diffusers_offload_mode": "none",
    "extra_networks_default_multiplier": 1.0,
    "lora_add_hashes_to_infotext": False,
    "lora_apply_te": False,
    "lora_force_reload": False,
    "lora_fuse_diffusers": False,
    "lora_fuse_native": True,
    "lora_in_memory_limit": 1,
    "prompt_attention": "native",
    "sd_model_checkpoint": "a",
    "sd_textencoder_cache_size": 4,
}


class Options:
    """The values: those that were set, else the defaults; an unknown one raises AttributeError."""

    def __init__(self) -> None:
        vars(self).update(data={}, data_labels=dict(_DEFAULTS))

    def __getattr__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key]
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        self.data[key] = value


opts = Options()


def __getattr__(name: str) -> Any:
    if name == "sd_model":
        from modules.modeldata import model_data

        return model_data.get_sd_model()
    raise AttributeError(name)
