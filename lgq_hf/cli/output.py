"""Checks of an output path before the work, so that no work is lost at its end, and what is written there."""

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from lgq_hf.files import atomic_file


def check_output_folder(path: Path) -> None:
    """Refuses a folder that cannot be made or written to (`ValueError`); makes nothing."""
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{path}: cannot be a folder, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: permission denied to write in {existing}")


def check_output_file(path: Path, *suffixes: str) -> None:
    """Refuses a file that could not be written, or has none of these suffixes (`ValueError`); makes nothing."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")
    check_output_folder(path.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file as a whole; `ValueError` for numbers that are not finite."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_png(path: Path, image: Image.Image) -> None:
    """Writes a file as a whole."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")


__all__ = ["check_output_file", "check_output_folder", "write_json", "write_png"]
