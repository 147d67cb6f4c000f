"""The embedded pipeline: a tiny Stable Diffusion that really paints, and LoRAs trained on it."""
