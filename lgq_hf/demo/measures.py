"""What the page says in numbers: how near a reconstruction is, and what its tokens cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from PIL import Image

from lgq_hf.metrics.reconstruction import psnr, ssim


@dataclass(frozen=True)
class Measures:
    """Numbers about one picture and its tokens.

    Attributes:
        size: width and height of the picture, pixels.
        psnr: dB, on 8-bit pixels; infinite where nothing differs.
        ssim: in [-1, 1]; `None` where it cannot be had.
        no_ssim: why it cannot, else empty.
        grid: (h,w), or (h,w,C) where a position has C tokens.
        codebook_size: K.
    """

    size: tuple[int, int]
    psnr: float
    ssim: float | None
    no_ssim: str
    grid: tuple[int, ...]
    codebook_size: int

    @property
    def tokens(self) -> int:
        """How many there are, those of the padding included."""
        return math.prod(self.grid)

    @property
    def bits(self) -> float:
        """Of all tokens: each costs log2 K."""
        return self.tokens * math.log2(self.codebook_size)

    @property
    def bits_per_pixel(self) -> float:
        """Over the picture's own pixels, without padding."""
        return self.bits / math.prod(self.size)

    @property
    def compression(self) -> float:
        """How many bits of raw RGB (24 a pixel) one bit of the tokens stands for."""
        return 24 / self.bits_per_pixel


def measure(original: Image.Image, picture: Image.Image, grid: tuple[int, ...], codebook_size: int) -> Measures:
    """Compares two RGB pictures of one size.

    Args:
        original: what was tokenized.
        picture: what its tokens decode to.
        grid: shape of the tokens.
        codebook_size: K.

    Raises:
        ValueError: the pictures differ in size.
    """
    a, b = ([_unit_range(one)] for one in (original, picture))
    similarity, reason = None, ""
    decibels = float(psnr(a, b)[0])
    try:
        similarity = float(ssim(a, b)[0])
    except ModuleNotFoundError:
        reason = "needs lgq_hf[metrics]"
    except ValueError:  # the sizes are equal, or psnr had raised: they are too small for its window
        reason = "needs sides of 11 pixels"
    return Measures(original.size, decibels, similarity, reason, grid, codebook_size)


def facts(measures: Measures) -> list[tuple[str, str, str]]:
    """(key, label, value) of each number, as text."""
    cost = f"{measures.tokens:,} x log2({measures.codebook_size:,})"
    grid = " x ".join(map(str, measures.grid))
    return [
        ("psnr", "PSNR", "no difference" if math.isinf(measures.psnr) else f"{measures.psnr:.2f} dB"),
        ("ssim", "SSIM", measures.no_ssim if measures.ssim is None else f"{measures.ssim:.3f}"),
        ("size", "Picture", f"{measures.size[0]} x {measures.size[1]} px"),
        ("grid", "Token grid", grid),
        ("bits", "Bits", f"{measures.bits:,.0f} = {cost}"),
        ("bits_per_pixel", "Bits per pixel", f"{measures.bits_per_pixel:.3f}"),
        ("compression", "Against raw RGB", f"{measures.compression:,.1f} : 1"),
    ]


def table(named: Sequence[tuple[str, Measures]]) -> str:
    """An HTML table with a line for each (name, numbers); names are escaped. Cells have `data-number`.

    Raises:
        ValueError: there is none.
    """
    if not named:
        raise ValueError("expected the numbers of at least one picture, got none")
    labels = "".join(f"<th>{label}</th>" for _, label, _ in facts(named[0][1]))
    body = ""
    for name, measures in named:
        cells = "".join(f'<td data-number="{key}">{text}</td>' for key, _, text in facts(measures))
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f'<table class="lgq-numbers"><tr><th></th>{labels}</tr>{body}</table>'


def _unit_range(picture: Image.Image) -> torch.Tensor:
    """An 8-bit picture as (3,h,w) in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255


__all__ = ["Measures", "facts", "measure", "table"]
