"""Which files of a folder belong to a checkpoint: its kind, its code, what goes to the Hub and what does not."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

TOKENIZER, PIPELINE = "tokenizer", "pipeline"
_INDEX = "model_index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
_KINDS = {".safetensors", ".json", ".md", ".yaml", ".yml", ".csv"}
_LEGAL = re.compile(r"(LICEN[SC]E|NOTICE|COPYING)([-_][\w.+-]+)?(\.txt)?", re.IGNORECASE)
_STATE = re.compile(r"checkpoint-\d+/.*|(.*/)?optimizer[^/]*")


def kind_of(folder: Path) -> str:
    """ "tokenizer" or "pipeline"; `ValueError` where the folder is neither."""
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}: expected that of a tokenizer or pipeline")
    if (folder / _INDEX).is_file():
        return PIPELINE
    if (folder / "config.json").is_file():
        return TOKENIZER
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    inside = folder / "final"
    hint = f"this is the folder of a run: give {str(inside)!r}" if inside.is_dir() else "give the folder that has one"
    raise ValueError(
        f"no checkpoint in {str(folder)!r}: expected config.json (of a tokenizer) or {_INDEX} (of a pipeline), found "
        f"{there}; {hint}"
    )


def code_of(folder: Path) -> set[str]:
    """Paths of the code that configurations name, and of what it imports; `ValueError` where some is missing."""
    found = set()
    for path in [*folder.rglob("config.json"), *folder.rglob("preprocessor_config.json")]:
        for module in _modules(path):
            try:
                needed = [
                    path.parent / f"{module}.py",
                    *map(Path, get_relative_import_files(path.parent / f"{module}.py")),
                ]
            except FileNotFoundError as error:
                raise ValueError(
                    f"code is missing beside {path.relative_to(folder)}: it names {module}.py, and there is no "
                    f"{error.filename}. Write the folder anew by save_pretrained, which copies the code"
                ) from error
            found |= {one.relative_to(folder).as_posix() for one in needed}
    return found


def _modules(config: Path) -> set[str]:
    """Modules that `auto_map` names; those of other repositories ("org/name--module.Class") are not of this folder."""
    names: set[str] = set()
    for value in (read_json(config).get("auto_map") or {}).values():
        for one in value if isinstance(value, list) else [value]:
            if one and "--" not in one:
                names.add(one.rpartition(".")[0])
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; `ValueError` where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r}: expected an object, got {type(content).__name__}")
    return content


def sort_out(folder: Path, kind: str, code: set[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes of what goes, and reasons of what does not, by path.

    Raises:
        ValueError: a part of the checkpoint is a link to a folder, or to a file elsewhere.
    """
    parts = {"."}
    if kind == PIPELINE:  # folders of components, which the index lists as (package, class)
        parts |= {name for name, value in read_json(folder / _INDEX).items() if isinstance(value, list)}
    files, left_out = {}, {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(folder).as_posix()
        reason = _reason(path, PurePosixPath(name), parts, code)
        elsewhere = reason is None and not path.resolve().is_relative_to(folder.resolve())
        if elsewhere or (path.is_dir() and name in parts):
            raise ValueError(
                f"{str(path)!r} is a link to {str(path.resolve())!r}: expected files that lie in the folder, so that "
                f"nothing else is published. `cp -rL {folder} NEW` makes a folder without links: look at it, and give "
                "that"
            )
        if reason:
            left_out[name] = reason
        else:
            files[name] = path.stat().st_size
    return files, left_out


def _reason(path: Path, name: PurePosixPath, parts: set[str], code: set[str]) -> str | None:
    """Why a file does not go; `None` if it does."""
    if any(part.startswith(".") or part == "__pycache__" for part in name.parts):
        return "hidden, or a cache"
    if path.is_dir():
        return "a link to a folder"
    suffix = name.suffix.lower()
    if suffix in _PICKLES:
        return "a pickle, which can run code when it is loaded"
    if _STATE.fullmatch(str(name)):
        return "state of training"
    if suffix == ".py" and str(name) not in code:
        return "code that no config.json names"
    if suffix not in _KINDS | _PICTURES | {".py"} and not _LEGAL.fullmatch(name.name):
        return "of no kind that a checkpoint has"
    if str(name.parent) not in parts and suffix not in _PICTURES:
        return "in a folder that is no part of the checkpoint"
    return None if path.is_file() else "a link to nothing"


__all__ = ["PIPELINE", "TOKENIZER", "code_of", "kind_of", "read_json", "sort_out"]
