"""A double of ComfyUI's own package, written from its contract, without any of its code: models and patchers."""
