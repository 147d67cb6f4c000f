"""The folders of the user's files."""

from __future__ import annotations

from pathlib import Path

folders: dict[str, list[str]] = {"loras": []}  # the double's start puts them here


def get_folder_paths(kind: str) -> list[str]:
    return list(folders[kind])


def get_filename_list(kind: str) -> list[str]:
    """Return the files by their paths within their folders, with the system's own separators."""
    found = {str(path.relative_to(folder)) for folder in folders[kind] for path in Path(folder).rglob("*.*")}
    return sorted(found)


def get_full_path(kind: str, name: str) -> str | None:
    return next((str(Path(folder, name)) for folder in folders[kind] if Path(folder, name).is_file()), None)
