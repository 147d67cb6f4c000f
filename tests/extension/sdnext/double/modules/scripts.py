"""For extensions that import the other WebUI's name."""

from modules.scripts_manager import AlwaysVisible, Script, scripts_data

__all__ = ["AlwaysVisible", "Script", "scripts_data"]
