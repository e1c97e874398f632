"""How close a reconstruction is to the picture it was made from.

Shapes: B pictures, H W height and width of a batch, h w those of one picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def psnr(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> Tensor:
    """Peak signal-to-noise ratio of each pair of pictures: 10 log10(1 / MSE), over all pixels and channels.

    Args:
        a: pictures (B,3,H,W), or a list of B pictures (3,h,w) whose sizes may differ; floating point in [0, 1].
        b: pictures to compare with, of the same number and sizes, on the same device.

    Returns:
        (B,) float64 in dB, on the device of the pictures; infinite where the two are equal.

    Raises:
        TypeError: something that is neither a tensor nor a list of tensors.
        ValueError: other shapes or dtypes, numbers or sizes that differ, or values outside [0, 1].
    """
    pictures_a, pictures_b = _pictures(a, "a"), _pictures(b, "b")
    if len(pictures_a) != len(pictures_b):
        raise ValueError(f"expected equally many pictures, got {len(pictures_a)} and {len(pictures_b)}")
    if not pictures_a:
        raise ValueError("expected at least one pair of pictures, got none")
    errors = []
    for i, (one, other) in enumerate(zip(pictures_a, pictures_b, strict=True)):
        if one.shape != other.shape:
            raise ValueError(f"pair {i}: expected two pictures of one size, got {_size(one)} and {_size(other)}")
        errors.append((one.double() - other.double()).square().mean())
    return -10 * torch.log10(torch.stack(errors))


def _size(picture: Tensor) -> str:
    return f"{picture.shape[1]} x {picture.shape[2]} (height x width)"


def _pictures(pictures: Tensor | Sequence[Tensor], name: str) -> list[Tensor]:
    """Refuses what is not a batch or a list of pictures in [0, 1]; returns a list of (3,h,w)."""
    if isinstance(pictures, Tensor) and pictures.ndim != 4:
        raise ValueError(f"{name}: expected a batch (B,3,H,W), got a tensor of shape {tuple(pictures.shape)}")
    if not isinstance(pictures, Tensor | list | tuple):
        raise TypeError(f"{name}: expected a tensor (B,3,H,W) or a list of (3,h,w), got {type(pictures).__name__}")
    for picture in pictures:
        if not isinstance(picture, Tensor):
            raise TypeError(f"{name}: expected a list of tensors (3,h,w), got one of {type(picture).__name__}")
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
            raise ValueError(f"{name}: expected pictures with 3 channels (3,h,w), got shape {tuple(picture.shape)}")
        if not picture.is_floating_point():
            raise ValueError(f"{name}: expected floats in [0, 1], got {picture.dtype}; divide 8-bit values by 255")
        low, high = (float(value) for value in picture.aminmax())
        if not (low >= 0 and high <= 1):  # also where they are NaN
            raise ValueError(f"{name}: expected values in [0, 1], got {low:.4g} to {high:.4g}")
    return list(pictures)


__all__ = ["psnr"]
