"""Foreign checkpoint files, read so that nothing in them runs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from conversion.pickles import LEGACY, Inert, load
from conversion.plan import CheckpointError
from lgq_hf.files import file_sha256

MAX_BYTES = 16 * 2**30  # of all the tensors that a conversion keeps, in fp32
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_WITHIN = ("checkpoints", "vqvae")  # taming's and SEED-Voken's runs; pipelines of diffusers
_INDICES = (".safetensors.index.json", ".bin.index.json")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _foreign(head: bytes) -> str:
    """What a file is that is no checkpoint, by its first bytes."""
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: download the file itself (git lfs pull, or the site's download link)"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, as sites send that want a login or a confirmation: download the file itself"
    if text.startswith((b"{", b"[")):
        return "it is JSON text; of a checkpoint in several files, name the folder"
    if head.startswith(b"\x80"):
        return "it is a pickle that torch.save did not write; its own code may load it, here nothing does"
    return "it is neither safetensors nor a file of torch.save"


def _read_file(file: Path) -> Any:
    with file.open("rb") as stream:
        head = stream.read(512)
    if head[8:9] == b"{" and len(head) > 9:
        return load_file(file, device="cpu")
    if not head.startswith((b"PK\x03\x04", LEGACY)):
        raise CheckpointError(_foreign(head))
    if file.name.endswith(".safetensors"):  # torch goes by this name
        raise CheckpointError(
            "it is a pickle of torch.save under the name .safetensors; if you expected one, rename it"
        )
    return load(file)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = _read_file(file)
    except CheckpointError as error:
        raise CheckpointError(f"'{file}' was not read: {error}") from None
    except OSError as error:
        raise CheckpointError(f"'{file}' was not read: {error.strerror or error}") from error
    except Exception as error:  # damage comes up as anything, from a KeyError to an AssertionError of torch
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise CheckpointError(f"'{file}' was not read: it is truncated or damaged ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"'{file}' holds a {type(content).__name__}, where a dictionary with names was expected")
    return content


def read_weights(files: list[Path]) -> dict[str, Any]:
    """The content of a checkpoint: tensors by name, or the nested dictionaries that the pickle holds.

    Tensors are views of the files, so unread ones cost nothing (files of torch before 1.6 are read as a whole).
    Objects of a few classes that training scripts leave in checkpoints come as [`Inert`]; any other class is refused.

    Args:
        files: of one checkpoint, from [`weight_files`]; the dictionaries of several are merged.

    Raises:
        CheckpointError: for a file that is damaged, no checkpoint, unsafe, or that repeats a key of another.
    """
    merged: dict[str, Any] = {}
    for file in files:
        content = _content(file)
        if repeated := merged.keys() & content.keys():
            raise CheckpointError(f"'{file}' repeats {len(repeated)} keys of other files, such as '{min(repeated)}'")
        merged.update(content)
    return merged


def _is_variant(name: str, names: set[str]) -> bool:
    """Whether it is a variant, such as NAME.fp16.safetensors, of a file that is there without."""
    stem, _, suffix = name.rpartition(".")
    base, _, variant = stem.rpartition(".")
    return variant in ("fp16", "bf16", "non_ema") and f"{base}.{suffix}" in names


def _plain_name(name: str) -> bool:
    return name not in ("", "..") and PurePosixPath(name).name == name == PureWindowsPath(name).name


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if unsafe := [name for name in names if not _plain_name(name)]:
            raise CheckpointError(f"'{index}' names '{unsafe[0]}', which is no plain file name in its folder")
    except CheckpointError:
        raise
    except Exception as error:  # of the wrong types, as much as of the wrong text
        raise CheckpointError(f"'{index}' has no weight_map from keys to file names ({error!r:.200})") from error
    if not names:
        raise CheckpointError(f"'{index}' names no files")
    return [index.parent / name for name in sorted(names)]


def weight_files(source: Path) -> list[Path]:
    """The files of the checkpoint that `source` is or holds.

    Args:
        source: a file; or a folder with one weight file or with an index of several. Of the same name as safetensors
            and as a pickle, the safetensors are taken.

    Raises:
        CheckpointError: where nothing is there, or several checkpoints, or a part is missing.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CheckpointError(f"'{source}' does not exist")
    found = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    within = [source / name for name in _WITHIN if (source / name).is_dir()]
    if within and not any(path.name.endswith((*_SUFFIXES, *_INDICES)) for path in found):
        return weight_files(within[0])  # a release as it is published: the weights in a folder of their own
    names_here = {path.name for path in found}
    found = [path for path in found if not _is_variant(path.name, names_here)]
    candidates = {path: _shards(path) for path in found if path.name.endswith(_INDICES)}
    shards = {file for files in candidates.values() for file in files}
    candidates |= {path: [path] for path in found if path.suffix in _SUFFIXES and path not in shards}
    names = {path: path.name.removesuffix(".index.json") for path in candidates}
    safe = {name.removesuffix(".safetensors") for name in names.values() if name.endswith(".safetensors")}
    if "model" in safe:
        safe.add("pytorch_model")  # transformers' two names of the same weights
    chosen = [p for p, name in names.items() if name.endswith(".safetensors") or name.rpartition(".")[0] not in safe]
    if len(chosen) != 1:
        listed = ", ".join(path.name for path in chosen[:20]) or f"none of *{', *'.join(_SUFFIXES)}"
        raise CheckpointError(f"expected one checkpoint in '{source}' and found: {listed}; name the file itself")
    files = candidates[chosen[0]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"'{chosen[0]}' names {', '.join(missing)}, not in its folder; download what is missing")
    return files


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous fp32 copies in memory of their own; nothing is copied before everything is known to be in order.

    Args:
        tensors: what the conversion keeps: fp16, bf16, fp32 or fp64, views of anything.

    Raises:
        CheckpointError: for what is no dense float tensor in main memory, for more than `MAX_BYTES`, and for
            values that are NaN or infinite in fp32.
    """
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"'{key}' is a {type(tensor).__name__}, where a tensor was expected")
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(f"'{key}' is {kind}, where a dense floating point tensor in memory was expected")
    size = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    if size > MAX_BYTES:
        raise CheckpointError(f"the weights take {size} bytes in fp32, more than the {MAX_BYTES} that are converted")
    owned, broken = {}, {}
    for key, tensor in tensors.items():
        copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if count := copy.numel() - int(copy.isfinite().sum()):
            broken[key] = count
        owned[key] = copy
    if broken:
        some = ", ".join(f"{key} ({count})" for key, count in list(broken.items())[:5])
        raise CheckpointError(
            f"{sum(broken.values())} values in {len(broken)} tensors are NaN or infinite in fp32: {some}; "
            "take a checkpoint from before the training diverged"
        )
    return owned


def sha256_of(files: list[Path]) -> dict[str, str]:
    """Hexadecimal digests by file name."""
    return {file.name: file_sha256(file) for file in files}


__all__ = ["MAX_BYTES", "Inert", "own_tensors", "read_weights", "sha256_of", "weight_files"]
