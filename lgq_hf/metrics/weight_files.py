"""Files with weights that the caller gives: read without running code in them, and checked before they are used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_weights(
    path: str | Path,
    option: str,
    meant: str,
    shapes: dict[str, tuple[int, ...]],
    ignored: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """The tensors named in `shapes` from a state dict, fp32; strict both ways.

    Args:
        path: a state dict as .safetensors, or by any other name as `torch.save` writes it.
        option: what the caller calls the file, for messages.
        meant: which file is expected, for messages.
        shapes: name and shape of each tensor that has to be there; there must be no others.
        ignored: of which names tensors may be there all the same, and are left out.

    Raises:
        FileNotFoundError: no such file; says which file is meant.
        ValueError: not a state dict, other names or shapes, no floats, or NaN or infinities.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {path}. Expected {meant}; nothing is downloaded: give its path")
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what torch.load raises depends on what the file is
        raise ValueError(
            f"{option}: {path} cannot be read as a state dict ({type(error).__name__}); expected {meant}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{option}: {path}: expected a state dict of tensors, got {type(state).__name__}: {meant}")
    if ignored is not None:
        state = {name: value for name, value in state.items() if not ignored(name)}
    missing, extra = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or extra:
        problem = f"missing: {_few(missing)}; not expected: {_few(extra)}"
        raise ValueError(f"{option}: {path} has other tensors ({problem}); expected {meant}")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{option}: {path}: {name}: expected shape {shape}, got {tuple(state[name].shape)}")
        if not state[name].is_floating_point() or not bool(state[name].isfinite().all()):
            raise ValueError(f"{option}: {path}: {name}: expected finite floats, got {_kind(state[name])}")
    return {name: state[name].detach().float() for name in shapes}


def _kind(tensor: Tensor) -> str:
    return "NaN or infinities" if tensor.is_floating_point() else str(tensor.dtype)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


__all__ = ["read_weights"]
