"""The rows of one shard, collected from chunks: pictures wait by size until a batch of them is full."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgq_hf.images.loading import Chunk
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS
from lgq_hf.tokens.encoding import Encoder
from lgq_hf.tokens.plan import Plan

_WAITING_BYTES = 2**29  # of pictures of all sizes that wait for others of their size
_PIXELS_IN_BATCH = 2**18  # times batch_size: pictures of mixed sizes fill a batch by their pixels too


class ShardRows:
    """Encodes the pictures of one shard, and keeps the rows in their order.

    What goes through the model together depends on the plan and the pictures alone, never on workers or timing.

    Args:
        plan: of the set.
        encoder: of its tokenizer.
        views: name of the crop and whether it is mirrored, for each row of a picture.
        stop: at a picture that cannot be read.
    """

    def __init__(self, plan: Plan, encoder: Encoder, views: list[tuple[str, bool]], stop: bool) -> None:
        self.plan, self.encoder, self.views, self.stop = plan, encoder, views, stop
        self.size = plan["size"] and tuple(plan["size"])
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self.pictures = 0
        self._waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}  # by shape: numbers of rows, and pixels
        self._bytes = 0
        self._done: list[tuple[list[int], Tensor]] = []

    def add(self, chunk: Chunk) -> None:
        """Takes the pictures of a chunk of this shard.

        Raises:
            ValueError: a picture that cannot be read, if it is to stop; one of another size than the plan's.
        """
        pixels = chunk.pixels.to(self.encoder.device, non_blocking=True)
        start = 0
        for picture in chunk.pictures:
            self.pictures += 1
            if picture.error:
                self._fail(picture.columns[ID], picture.error)
                continue
            if self.size and picture.size != self.size:
                raise ValueError(
                    f"{picture.columns[ID]} has {picture.size[0]} x {picture.size[1]} pixels (height x width), the "
                    f"first picture {self.size[0]} x {self.size[1]}: resize and crop all to one size (--size, "
                    "Preprocessing's size), or allow several (--mixed-sizes)"
                )
            count = int(np.prod(picture.shape))
            views = pixels[start : start + count].view(picture.shape)
            start += count
            for (crop, flipped), view in zip(self.views, views, strict=True):
                row = {**picture.columns, CROP: crop, FLIP: flipped}
                if not self.size:
                    row |= dict(zip(SIZES[2:], picture.size, strict=True))
                self._wait(len(self.rows), view if self.size else view.clone())  # a view keeps its whole chunk
                self.rows.append(row)

    def _fail(self, name: str, reason: str) -> None:
        if self.stop:
            raise ValueError(f"{name}: {reason} (to record such pictures and go on: --on-error skip, on_error='skip')")
        self.failures.append({ID: name, "reason": reason})

    def _wait(self, number: int, view: Tensor) -> None:
        shape = tuple(view.shape)
        several = self._waiting.setdefault(shape, [])
        several.append((number, view))
        self._bytes += view.numel()
        if len(several) == self._most(shape):
            self._encode(shape)
        while self._bytes > _WAITING_BYTES:
            self._encode(max(self._waiting, key=lambda shape: len(self._waiting[shape]) * np.prod(shape)))

    def _most(self, shape: tuple[int, ...]) -> int:
        batch_size = self.encoder.encoding.batch_size
        if self.size:
            return batch_size
        return int(min(batch_size, max(1, batch_size * _PIXELS_IN_BATCH // (shape[1] * shape[2]))))

    def _encode(self, shape: tuple[int, ...]) -> None:
        several = self._waiting.pop(shape)
        pixels = torch.stack([view for _, view in several])
        self._bytes -= pixels.numel()
        tokens = self.encoder(pixels, fill=bool(self.size)).to(getattr(torch, self.plan["dtype"]))
        self._done.append(([number for number, _ in several], tokens))

    def columns(self) -> dict[str, Any]:
        """All rows by column, as `write_shard` takes them; what still waits is encoded first."""
        for shape in list(self._waiting):
            self._encode(shape)
        grids: list[Any] = [None] * len(self.rows)
        for numbers, tokens in self._done:
            for number, grid in zip(numbers, tokens.cpu().numpy(), strict=True):
                grids[number] = grid
        names = [name for name in self.plan["features"] if name not in (TOKENS, *SIZES[:2])]
        made: dict[str, Any] = {name: [row[name] for row in self.rows] for name in names}
        if self.size:
            made[TOKENS] = np.stack(grids) if grids else np.empty((0, *self.plan["grid"]), self.plan["dtype"])
        else:
            made |= dict(zip(SIZES[:2], zip(*(grid.shape[:2] for grid in grids), strict=True), strict=False))
            made |= {name: [] for name in SIZES[:2] if name not in made}
            made[TOKENS] = [grid.reshape(-1) for grid in grids]
        return made


__all__ = ["ShardRows"]
