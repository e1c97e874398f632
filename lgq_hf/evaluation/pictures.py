"""Which pictures are seen, by which process, and which of them go through the model together.

A chunk is a run of pictures whose views fill one batch; it is what processes take turns at. So what goes through the
model together does not depend on the number of processes.

Shapes: V views of a picture, n views of a batch, H W pixels (padded).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgq_hf.evaluation.settings import Settings
from lgq_hf.files import canonical_sha256
from lgq_hf.images.loading import Chunk, Key, chunks
from lgq_hf.images.sources import ID, ImageSource
from lgq_hf.images.views import Grid
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor

_PIXELS_IN_BATCH = 2**18  # times batch_size: without a size, pictures fill a batch by their pixels too


class Chosen:
    """Some pictures of a source, in its order; itself a `ImageSource`.

    Args:
        source: all pictures.
        indices: which of them.
    """

    def __init__(self, source: ImageSource, indices: list[int]) -> None:
        self.source, self.indices = source, indices
        self.kind, self.name, self.features = source.kind, source.name, source.features

    def __len__(self) -> int:
        return len(self.indices)

    def id(self, index: int) -> str:
        """That of the picture in the source."""
        return self.source.id(self.indices[index])

    def read(self, index: int) -> Image.Image:
        """The picture as RGB; raises ValueError with the reason where it cannot be read."""
        return self.source.read(self.indices[index])

    def columns(self, index: int) -> dict[str, Any]:
        """Those of the picture in the source."""
        return self.source.columns(self.indices[index])

    def digest(self) -> str:
        """sha256 (hex) over that of the source and the choice."""
        return canonical_sha256({"source": self.source.digest(), "indices": self.indices})


def chosen(source: ImageSource, settings: Settings) -> ImageSource:
    """The source itself, or as many of its pictures as the settings say.

    Raises:
        ValueError: fewer pictures than that, or fewer than 2.
    """
    limit = settings.limit
    if len(source) < (limit or 2):
        raise ValueError(f"expected at least {limit or 2} pictures, got {len(source)} in {source.name}")
    if limit is None or limit == len(source):
        return source
    drawn = np.random.default_rng(settings.seed).choice(len(source), limit, replace=False)
    return Chosen(source, sorted(drawn.tolist()))


@dataclass(frozen=True)
class Batch:
    """Views of one size.

    Attributes:
        numbers: of the views; view v of picture i has the number i V + v.
        pixels: (n,3,H,W) uint8, padded as the image processor pads.
        size: height and width of a view before that.
    """

    numbers: list[int]
    pixels: Tensor
    size: Grid


@dataclass(frozen=True)
class Share:
    """One chunk of the pictures: its batches, how many pictures it has, and those of them that cannot be used."""

    pictures: int
    batches: list[Batch]
    failures: list[dict[str, str]]


def shares(
    source: ImageSource,
    processor: LGQImageProcessor,
    settings: Settings,
    keys: list[Key],
    *,
    smallest: int,
    pin_memory: bool,
) -> Iterator[Share]:
    """Chunks one after another.

    Args:
        source: pictures.
        processor: of the tokenizer.
        settings: how pictures are cut and batched.
        keys: of these chunks, some of `keys_of`.
        smallest: the shortest side in pixels that can be measured.
        pin_memory: where pixels go to a GPU.

    Raises:
        ValueError: a picture that cannot be read or is too small, if the settings say to stop there.
    """
    for chunk in chunks(
        source,
        processor,
        settings.preprocessing,
        keys,
        num_workers=settings.num_workers,
        pin_memory=pin_memory,
    ):
        yield _share(chunk, source.name, settings, smallest)


def keys_of(pictures: int, settings: Settings) -> list[Key]:
    """Number, first picture and end of each chunk."""
    per_chunk = _per_chunk(settings)
    starts = range(0, pictures, per_chunk)
    return [(number, start, min(start + per_chunk, pictures)) for number, start in enumerate(starts)]


def _per_chunk(settings: Settings) -> int:
    return max(1, settings.batch_size // len(settings.preprocessing.views()))


def _share(chunk: Chunk, name: str, settings: Settings, smallest: int) -> Share:
    """What a chunk, whose `file` is its number, holds."""
    views, place = len(settings.preprocessing.views()), 0
    waiting: dict[tuple[Grid, tuple[int, ...]], list[tuple[int, Tensor]]] = {}
    failures = []
    for index, picture in enumerate(chunk.pictures, chunk.file * _per_chunk(settings)):
        length = int(np.prod(picture.shape)) if picture.shape else 0
        pixels, place = chunk.pixels[place : place + length], place + length
        error = picture.error
        if not error and min(picture.size) < smallest:
            height, width = picture.size
            error = f"{height} x {width} pixels (height x width), expected sides of at least {smallest} to measure it"
        if error:
            if settings.on_error == "stop":
                raise ValueError(
                    f"{picture.columns[ID]} in {name}: {error}; take it out to go on, or pass over such pictures and "
                    "list them: --on-error skip, on_error='skip'"
                )
            failures.append({ID: picture.columns[ID], "reason": error})
            continue
        group = waiting.setdefault((picture.size, picture.shape[1:]), [])
        group += enumerate(pixels.view(picture.shape), index * views)
    batches = []
    for (size, shape), group in waiting.items():
        most = _most(settings, shape)
        for start in range(0, len(group), most):
            part = group[start : start + most]
            batches.append(Batch([number for number, _ in part], torch.stack([view for _, view in part]), size))
    return Share(len(chunk.pictures), batches, failures)


def _most(settings: Settings, shape: tuple[int, ...]) -> int:
    """How many views (3,H,W) make a batch."""
    if settings.preprocessing.size is not None:
        return settings.batch_size
    return min(settings.batch_size, max(1, settings.batch_size * _PIXELS_IN_BATCH // (shape[1] * shape[2])))


__all__ = ["Batch", "Chosen", "Share", "chosen", "keys_of", "shares"]
