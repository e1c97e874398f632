"""How tokens stand in a table: column names and Arrow types.

Shapes: H W pixels of a picture, f downsampling factor, h = ceil(H / f) and w = ceil(W / f), C tokens per position.
"""

from typing import Any

import numpy as np

from lgq_hf.images.sources import SIZES, TOKENS
from lgq_hf.images.stored import import_datasets
from lgq_hf.tokenizer.configuration_lgq import LGQConfig


def token_dtype(codebook_size: int) -> np.dtype:
    """uint16 for up to 65,536 codes, else uint32; `ValueError` where no token column can hold a token."""
    if not 1 <= codebook_size <= 2**32:
        raise ValueError(f"codebook_size: expected 1 to 2**32, what uint32 tokens can tell apart, got {codebook_size}")
    return np.dtype(np.uint16 if codebook_size <= 2**16 else np.uint32)


def grid_of(config: LGQConfig, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a picture's tokens: (h,w), or (h,w,C) where a position has several; `size` is (H,W) in pixels."""
    factor = config.spatial_downsample_factor
    grid = tuple(-(-edge // factor) for edge in size)
    return grid if config.tokens_per_position == 1 else (*grid, config.tokens_per_position)


def token_features(config: LGQConfig, size: int | tuple[int, int] | None = None) -> Any:
    """The `datasets.Features` of token columns, in the narrowest types.

    With a size: `image_tokens` as Array2D (h,w), or Array3D (h,w,C) for per-channel bins, of uint16 (K <= 65,536) or
    uint32, which `set_format("torch")` gives as (h,w) int64. Without: `image_tokens` as a flat list of h*w*C such
    numbers in raster order, and the int32 columns of `SIZES`.

    Args:
        config: of the tokenizer.
        size: H = W, or (H,W), in pixels where all pictures have one size; `None` where they differ.

    Raises:
        ValueError: a size below 1, or more codes than uint32 holds.
        ModuleNotFoundError: without the package datasets, naming the extra.
    """
    datasets = import_datasets()
    dtype = token_dtype(config.codebook_size).name
    if size is None:
        sizes = {name: datasets.Value("int32") for name in SIZES}
        return datasets.Features({TOKENS: datasets.List(datasets.Value(dtype)), **sizes})
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size: expected height and width of at least 1 pixel, got {size}")
    grid = grid_of(config, (height, width))
    array = datasets.Array2D if len(grid) == 2 else datasets.Array3D
    return datasets.Features({TOKENS: array(grid, dtype)})


__all__ = ["grid_of", "token_dtype", "token_features"]
