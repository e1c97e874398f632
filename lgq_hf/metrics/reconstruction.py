"""How close a reconstruction is to the picture it was made from.

Shapes: B pictures, H W height and width of a batch, h w those of one picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lgq_hf.metrics.extras import import_extra

_WINDOW, _SIGMA = 11, 1.5  # pixels


def psnr(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> Tensor:
    """Peak signal-to-noise ratio of each pair of pictures: 10 log10(1 / MSE), MSE = mean (a - b)^2.

    The mean is over all pixels and channels of a pair, the peak is 1 (Huynh-Thu and Ghanbari 2008, "Scope of validity
    of PSNR in image/video quality assessment"). Averaging over pairs comes last: the mean of PSNRs is not the PSNR of
    the mean error.

    Args:
        a: pictures (B,3,H,W), or a list of B pictures (3,h,w) whose sizes may differ; floating point in [0, 1].
        b: pictures to compare with, of the same number and sizes, on the same device.

    Returns:
        (B,) float64 in dB, at least 0, on the device of the pictures; infinite where the two are equal.

    Raises:
        TypeError: something that is neither a tensor nor a list of tensors.
        ValueError: other shapes or dtypes, numbers or sizes that differ, or values outside [0, 1].
    """
    errors = [(one.double() - other.double()).square().mean() for one, other in _pairs(a, b)]
    return -10 * torch.log10(torch.stack(errors))


def ssim(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> Tensor:
    """Structural similarity of each pair of pictures (Wang et al. 2004, "Image quality assessment", equation 13).

    (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2)), with means m, variances s^2 and
    covariances s_ab under a Gaussian window of 11 x 11 pixels and sigma 1.5; C1 = 0.01^2 and C2 = 0.03^2, for values
    in [0, 1] (K1 = 0.01, K2 = 0.03, L = 1); no sample correction. The map is averaged over the positions where the
    window lies inside the picture (the outermost 5 pixels are no centres; "valid" filtering, as in the authors' code
    and scikit-image), and over R, G and B. Computed in float64 by pytorch-msssim.

    Args:
        a: pictures (B,3,H,W), or a list of B pictures (3,h,w) whose sizes may differ; floating point in [0, 1]; sides
            of at least 11 pixels.
        b: pictures to compare with, of the same number and sizes, on the same device.

    Returns:
        (B,) float64 in [-1, 1], without unit, on the device of the pictures; 1 where the two are equal.

    Raises:
        ModuleNotFoundError: pytorch-msssim is not installed.
        TypeError: something that is neither a tensor nor a list of tensors.
        ValueError: other shapes or dtypes, numbers or sizes that differ, values outside [0, 1], or smaller pictures.
    """
    package = import_extra("pytorch_msssim", "ssim")
    pairs = _pairs(a, b)
    for i, (picture, _) in enumerate(pairs):
        if min(picture.shape[1:]) < _WINDOW:
            raise ValueError(f"pair {i}: expected sides of at least {_WINDOW} pixels, got {_size(picture)}")
    offset = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-offset.square() / (2 * _SIGMA**2))  # the package's own is rounded to fp32
    window = (window / window.sum()).expand(3, 1, 1, _WINDOW)
    values = [
        package.ssim(
            one[None].double(), other[None].double(), data_range=1, size_average=False, win=window, K=(0.01, 0.03)
        )
        for one, other in pairs
    ]
    return torch.cat(values)


def _pairs(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    pictures_a, pictures_b = _pictures(a, "a"), _pictures(b, "b")
    if len(pictures_a) != len(pictures_b):
        raise ValueError(f"expected equally many pictures, got {len(pictures_a)} and {len(pictures_b)}")
    if not pictures_a:
        raise ValueError("expected at least one pair of pictures, got none")
    pairs = list(zip(pictures_a, pictures_b, strict=True))
    for i, (one, other) in enumerate(pairs):
        if one.shape != other.shape:
            raise ValueError(f"pair {i}: expected two pictures of one size, got {_size(one)} and {_size(other)}")
    return pairs


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


__all__ = ["psnr", "ssim"]
