"""Folders; the driver sets them before any script is loaded."""

script_path = ""
models_path = ""
data_path = ""
