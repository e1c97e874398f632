"""Token files: what `lgq encode` writes and `lgq decode` reads.

A `.safetensors` or `.npz` file with, for picture i of n,
  image_tokens.{i:06d}  (h,w), or (h,w,C) with per-channel bins; uint16 if K <= 65536, else uint32
  original_sizes        (n,2) int64, height and width of each picture before padding
and these entries, as the metadata of a safetensors file and as a JSON string `metadata` in an npz file:
  format "lgq-tokens", format_version "1", names (a JSON list), model, fingerprint, codebook_size, downsample_factor.
"""

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lgq_hf.files import atomic_file

FORMAT, VERSION = "lgq-tokens", "1"
SUFFIXES = (".safetensors", ".npz")
MOST_PICTURES = 400_000  # safetensors does not open a header of more than 100 MB


@dataclass
class TokenFile:
    """The contents of a token file.

    Attributes:
        tokens: one grid (h,w) or (h,w,C) per picture, uint16 or uint32, in [0, codebook_size).
        original_sizes: (n,2) int64, height and width of each picture before padding.
        names: unique names of the pictures, relative, with '/' between folders.
        model: path or repository of the model, as it was given.
        fingerprint: 64 hex digits that tell the model's weights.
        codebook_size: K.
        downsample_factor: pixels per token along each side.
    """

    tokens: list[np.ndarray]
    original_sizes: np.ndarray
    names: list[str]
    model: str
    fingerprint: str
    codebook_size: int
    downsample_factor: int


def write_tokens(path: Path, file: TokenFile) -> None:
    """Writes a token file, whole or not at all, by its suffix: .npz, or .safetensors."""
    tensors = {_key(i): np.ascontiguousarray(tokens) for i, tokens in enumerate(file.tokens)}
    tensors["original_sizes"] = np.ascontiguousarray(file.original_sizes, dtype=np.int64)
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "names": json.dumps(file.names),
        "model": file.model,
        "fingerprint": file.fingerprint,
        "codebook_size": str(file.codebook_size),
        "downsample_factor": str(file.downsample_factor),
    }
    with atomic_file(path) as temporary:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {**tensors, "metadata": np.array(json.dumps(metadata))}
            np.savez(temporary, **arrays)
        else:
            save_file(tensors, temporary, metadata=metadata)


def read_tokens(path: Path) -> TokenFile:
    """Reads and checks a token file.

    Raises:
        ValueError: no token file, one of another version, or one whose parts are missing or contradict each other.
        OSError: it cannot be opened.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a token file ends in {' or '.join(SUFFIXES)}")
    try:
        metadata, tensors = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a token file, or a damaged one: {error}") from error
    if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, VERSION):
        found = f"{metadata.get('format')}, version {metadata.get('format_version')}"
        raise ValueError(f"{path} is not a token file: expected {FORMAT}, version {VERSION}, got {found}")
    try:
        names = json.loads(metadata["names"])
        file = TokenFile(
            tokens=[tensors.pop(_key(i)) for i in range(len(names))],
            original_sizes=tensors.pop("original_sizes"),
            names=names,
            model=metadata["model"],
            fingerprint=metadata["fingerprint"],
            codebook_size=int(metadata["codebook_size"]),
            downsample_factor=int(metadata["downsample_factor"]),
        )
        if tensors:
            raise ValueError(f"{min(tensors)} belongs to none of its {len(names)} images")
        _check(file)
    except KeyError as error:
        raise ValueError(f"{path} is damaged: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return file


def _key(index: int) -> str:
    return f"image_tokens.{index:06d}"


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with path.open("rb"):
        pass  # for an OSError that says why; safetensors' own does not
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            return metadata, {}  # somebody's weights: not worth reading
        return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict


def _read_npz(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("one array, expected several")
    with loaded as file:
        metadata = json.loads(str(file["metadata"]))
        if not isinstance(metadata, dict):
            raise ValueError(f"its metadata should be an object, got {metadata!r}")
        return metadata, {key: file[key] for key in file if key != "metadata"}


def _check(file: TokenFile) -> None:
    """Refuses parts that contradict each other, and names that would lead out of a folder (`ValueError`)."""
    sizes = file.original_sizes
    if sizes.dtype != np.int64 or sizes.shape != (len(file.names), 2):
        raise ValueError(f"original_sizes should be int64 ({len(file.names)}, 2), got {sizes.dtype} {sizes.shape}")
    if not isinstance(file.names, list) or len(set(file.names)) != len(file.names):
        raise ValueError("names should be a list, and all different")
    for name, tokens, (height, width) in zip(file.names, file.tokens, sizes.tolist(), strict=True):
        if not is_relative(name):
            raise ValueError(f"{name!r} is no relative name with '/' between folders")
        if tokens.dtype not in (np.uint16, np.uint32) or tokens.ndim not in (2, 3) or not tokens.size:
            raise ValueError(
                f"the tokens of {name!r} should be uint16 or uint32 (h,w), got {tokens.dtype} {tokens.shape}"
            )
        if tokens.max() >= file.codebook_size:
            raise ValueError(f"{name!r} has token {tokens.max()}, the codebook ends at {file.codebook_size - 1}")
        grid = [side * file.downsample_factor for side in tokens.shape[:2]]
        if not (1 <= height <= grid[0] and 1 <= width <= grid[1]):
            raise ValueError(f"the tokens of {name!r} give {grid[0]} x {grid[1]} pixels, not {height} x {width}")


def is_relative(name: str) -> bool:
    """Whether a name with '/' between folders stays below the folder that it is put in."""
    if "\0" in name or (os.sep == "\\" and ("\\" in name or ":" in name)):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


__all__ = ["MOST_PICTURES", "SUFFIXES", "TokenFile", "is_relative", "read_tokens", "write_tokens"]
