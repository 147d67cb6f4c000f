"""Folders; the driver fills them in."""

script_path = data_path = models_path = ""
