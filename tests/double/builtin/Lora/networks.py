"""The module by which other extensions know that the built-in is there."""

from pathlib import Path
from types import SimpleNamespace

from modules import shared

loaded_networks = []
available_networks = {}  # by name: what other extensions read
calls = []  # what reached the built-in's own network


def list_available_networks():
    """Look at the folder again."""
    calls.append(("list_available_networks", []))
    available_networks.clear()
    for path in sorted(Path(shared.cmd_opts.lora_dir).rglob("*.safetensors")):
        available_networks[path.stem] = SimpleNamespace(name=path.stem, filename=str(path))


def load_networks(names, *strengths):
    """Take these LoRAs as those that layers are patched with when they run."""
    loaded_networks[:] = names


def network_restore_weights_from_backup(layer):
    """Write a layer's copy of its weight over the weight."""
    if getattr(layer, "network_weights_backup", None) is not None:
        layer.weight.data.copy_(layer.network_weights_backup)


def network_reset_cached_weight(layer):
    """Forget a layer's copy."""
    layer.network_current_names = ()
    layer.network_weights_backup = layer.network_bias_backup = None
