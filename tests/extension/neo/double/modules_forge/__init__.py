"""By this package a Forge is told from the WebUI."""
