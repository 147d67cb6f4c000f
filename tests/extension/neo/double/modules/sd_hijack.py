"""Forge Neo has no such module."""

raise ImportError("No module named 'modules.sd_hijack'")
