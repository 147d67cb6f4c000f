"""The module by which other extensions know that the built-in is there."""

loaded_networks = []
calls = []  # what reached the built-in's own network


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
