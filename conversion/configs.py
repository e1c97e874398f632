"""Configurations that came along with a checkpoint: found, read, and never run."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.plan import CheckpointError

_PREFERRED = ("model.yaml", "config.yaml")


def find_configs(weights: Path, given: Path | None, kind: str) -> dict[str, Mapping[str, Any]]:
    """The configuration of a kind, `"yaml"` or `"json"`, by that kind; empty where there is none.

    Args:
        weights: the checkpoint's file (the first, where there are several).
        kind: what the format reads; files of other kinds are left alone.
        given: the file that was named, or `None` to look beside the weights: for a YAML there and, where they lie in a
            folder `checkpoints`, in its neighbour `configs`; for config.json.

    Raises:
        CheckpointError: for a file that is not there or cannot be read, and for several YAMLs of which none has the
            usual name.
    """
    if given is not None:
        if not given.is_file():
            raise CheckpointError(f"--config {given}: no such file")
        if ("json" if given.suffix == ".json" else "yaml") != kind:
            raise CheckpointError(f"--config {given}: the format of this checkpoint reads {kind.upper()}")
        return {kind: _read(given, kind)}
    if kind == "yaml":
        folders = [weights.parent]
        if weights.parent.name == "checkpoints":
            folders.append(weights.parent.parent / "configs")
        path = _yaml(weights, folders)
        return {} if path is None else {"yaml": _read(path, "yaml")}
    path = weights.parent / "config.json"
    if not path.is_file():
        return {}
    config = _read(path, "json")
    known = {"_class_name", "model_type", "architectures"} & set(config)  # of diffusers, open-muse or transformers
    return {"json": config} if known else {}


def _yaml(weights: Path, folders: list[Path]) -> Path | None:
    paths = sorted(path for folder in folders for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))
    paths = [path for path in paths if not path.name.startswith(".")]
    named = [path for path in paths if path.name in (f"{weights.stem}.yaml", *_PREFERRED)]
    project = [path for path in paths if path.name.endswith("-project.yaml")]  # as taming's trainer names it
    for candidates in (named, project, paths):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            break
    if paths:
        raise CheckpointError(
            f"several YAML files beside {weights.name}: {', '.join(path.name for path in paths)}. Say which belongs "
            "to it (--config FILE), or that none does (--no-config)"
        )
    return None


def _read(path: Path, kind: str) -> Mapping[str, Any]:
    try:
        text = path.read_text()
        content = json.loads(text) if kind == "json" else _safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as {kind.upper()}: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"expected {path} to hold names and values, got {type(content).__name__}")
    return content


def _safe_load(text: str) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        raise CheckpointError(
            "reading a YAML configuration needs pyyaml: pip install '.[convert]' in a checkout of lgq_hf"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


__all__ = ["find_configs"]
