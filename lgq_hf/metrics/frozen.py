"""What networks that measure have in common: they never learn, and they say which weights they have."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lgq_hf.files import file_sha256 as sha256_of


class FrozenNetwork(nn.Module):
    """A module that stays in evaluation mode; `freeze` ends the constructor of a subclass.

    Attributes:
        name: what to write beside a number made with it.
        weights_sha256: of the files its weights came from, hexadecimal; joined by "+" where there are several.
    """

    name: str
    weights_sha256: str

    def freeze(self) -> None:
        """Parameters without gradients, evaluation mode. Gradients still flow to the inputs."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever `mode` says: a parent's `train()` reaches it too."""
        return super().train(False)

    def _prepare(self, pictures: Tensor, smallest: int) -> Tensor:
        """The pictures in the dtype of the weights, after a look at what can be seen without waiting for a device."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or min(pictures.shape[2:]) < smallest:
            expected = f"pictures: expected (B,3,H,W) with sides of at least {smallest} pixels"
            raise ValueError(f"{expected}, got shape {tuple(pictures.shape)}")
        if not pictures.is_floating_point():
            raise ValueError(f"pictures: expected floats in [0, 1], got {pictures.dtype}; divide 8-bit values by 255")
        return pictures.to(next(self.parameters()).dtype)


def read_weights(
    path: str | Path, option: str, meant: str, names: Iterable[str], ignored: str = ""
) -> dict[str, Tensor]:
    """The tensors called `names` of a state dict, in fp32; no code in the file runs, and nothing is downloaded.

    Args:
        path: a state dict as .safetensors, or by any other name as `torch.save` writes it.
        option: what the caller calls the file, for messages.
        meant: which file is expected, for messages.
        names: of all tensors that have to be there; there must be no others.
        ignored: what names of tensors hold that may be there all the same, and are left out.

    Raises:
        FileNotFoundError: no such file; says which file is meant.
        ValueError: not a state dict of finite floats, or other names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {path}. Expected {meant}; nothing is downloaded: give its path")
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        state = {name: value for name, value in state.items() if not (ignored and ignored in name)}
        finite = all(bool(value.isfinite().all()) for value in state.values())
    except Exception as error:  # what torch.load raises depends on what the file is
        raise ValueError(
            f"{option}: {path} cannot be read as a state dict ({type(error).__name__}); expected {meant}"
        ) from error
    if other := sorted(set(names) ^ state.keys()):
        raise ValueError(
            f"{option}: {path}: tensors missing or not expected: {', '.join(other[:4])}; expected {meant}"
        )
    if not finite:
        raise ValueError(f"{option}: {path} holds NaN or infinities; expected {meant}")
    return {name: value.detach().float() for name, value in state.items()}


def check_pair(a: Tensor, b: Tensor) -> None:
    """Refuses two batches of pictures of different shapes with a ValueError."""
    if a.shape != b.shape:
        raise ValueError(f"expected two batches of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def unit_difference(one: Tensor, other: Tensor) -> Tensor:
    """Squared difference of feature maps (B,C,h,w) that are scaled to length 1 over channels (Zhang et al. 2018).

    Lengths are lengthened by 1e-10, as in the lpips project; a vector of zeros stays one. In at least fp32.
    """
    units = []
    for features in (one, other):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        units.append(features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10))
    return (units[0] - units[1]).square()


__all__ = ["FrozenNetwork", "check_pair", "read_weights", "sha256_of", "unit_difference"]
