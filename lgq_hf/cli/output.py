"""Checks of an output path before the work, so that no work is lost at its end."""

import os
from pathlib import Path


def check_output_folder(path: Path) -> None:
    """Refuses a folder that cannot be made or written to (`ValueError`); makes nothing."""
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{path}: cannot be a folder, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: permission denied to write in {existing}")


def check_output_file(path: Path) -> None:
    """Refuses a file that could not be written (`ValueError`); makes nothing."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")
    check_output_folder(path.parent)


__all__ = ["check_output_file", "check_output_folder"]
