"""Files and folders that are either whole or not there; the hash of a file, and an error in one line."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError


def canonical_sha256(content: Mapping[str, Any]) -> str:
    """sha256 (hex) over JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: Exception) -> str:
    """What an error says, without line breaks; its class where it says nothing.

    Of a configuration's errors the first line is left out, which names our internals.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = lines[1:] if isinstance(error, StrictDataclassError) and len(lines) > 1 else lines
    return " ".join(" ".join(said).split()) or type(error).__name__


def _fsync(path: Path) -> None:
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows does not open folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block ends without an error, it replaces `path` at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where `atomic_folder` lets a folder grow, for other processes that write into it."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def atomic_folder(path: str | Path, *, new: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; when the block ends without an error, it becomes `path`.

    A folder that was at `path` is replaced as a whole; with `new` only an empty one, and OSError where something was
    put there in the meantime, which stays.
    """
    path = Path(path).resolve()  # through a link, what it leads to is replaced
    old, temporary = path.with_name(f".{path.name}.old"), temporary_name(path)
    if not new:
        if old.exists() and not path.exists():
            old.rename(path)  # a kill fell between the two renames below
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for inside in temporary.rglob("*"):
            _fsync(inside)
        if new and path.exists():
            path.rmdir()
        elif path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if not new and old.exists() and not path.exists():
            old.rename(path)
        raise
    _fsync(path.parent)
    if not new:
        shutil.rmtree(old, ignore_errors=True)


__all__ = [
    "atomic_file",
    "atomic_folder",
    "canonical_sha256",
    "file_sha256",
    "one_line",
    "temporary_name",
]
