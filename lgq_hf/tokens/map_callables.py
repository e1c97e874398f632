"""What `datasets.map` calls: pictures to tokens, and back, a batch of rows at a time."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint, find_checkpoint
from lgq_hf.images.sources import SIZES, TOKENS
from lgq_hf.images.stored import read_stored, to_rgb
from lgq_hf.images.views import Preprocessing, cut_views
from lgq_hf.runtime import DTYPES
from lgq_hf.tokens.encoding import Encoder, Encoding
from lgq_hf.tokens.features import grid_of, token_dtype, token_features
from lgq_hf.tokens.manifest import check_tokenizer, read_manifest

Rows = Mapping[str, Any]
_IMPORTED_IN = os.getpid()  # a forked process has another number, a spawned one imports anew


class _LazyCheckpoint:
    """A checkpoint that is found at once and loaded where it is first needed, once in each process.

    A pickle of it, and so the fingerprint that `datasets` gives a map, holds the options and what the checkpoint is by
    its contents: commit and hashes, never tensors.
    """

    def __init__(self, repo_or_path: str | os.PathLike[str] | None, revision: str | None, device: str) -> None:
        self.reference = find_checkpoint(None if repo_or_path is None else os.fspath(repo_or_path), revision)
        self.device = device
        self._forget()

    def _forget(self) -> None:
        self._loaded: tuple[int, str, Checkpoint] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in sorted(vars(self).items()) if name != "_loaded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def load(self, rank: int | None, dtype: torch.dtype = torch.float32) -> Checkpoint:
        """The checkpoint on the device of a process of `map`; `rank` is what `with_rank=True` hands over."""
        if os.getpid() != _IMPORTED_IN:
            # A forked process waits for ever for the threads that its parent had. And its first call of this replaces
            # the parent's pool: threads that load weights would race for that ("Invalid thread pool").
            torch.set_num_threads(1)
        device = self.device
        if device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{(rank or 0) % torch.cuda.device_count()}"
        if device.startswith("cuda") and torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                "this process was forked from one that had used CUDA, which cannot be used here any more: call "
                "multiprocess.set_start_method('spawn') before map(num_proc=...), in a main module that guards its "
                "work by __name__ == '__main__'"
            )
        if self._loaded is None or self._loaded[:2] != (os.getpid(), device):
            self._loaded = os.getpid(), device, self.reference.load(device, dtype)
            self._prepare(self._loaded[2])
        return self._loaded[2]

    def _prepare(self, checkpoint: Checkpoint) -> None:
        """Called when the checkpoint was loaded."""


class EncodeImages(_LazyCheckpoint):
    """Pictures to tokens in `datasets.map`:

        encode = EncodeImages("org/lgq-16k", size=256)
        others = dataset.remove_columns("image").features
        dataset.map(encode, batched=True, remove_columns="image", features=Features({**others, **encode.features()}))

    It may be used with `num_proc`, with `with_rank=True` on several GPUs (then start processes by "spawn"), with
    `streaming=True`, and without `batched`. Its fingerprint depends on the commit of a repository or the weights' hash
    of a folder, and on the options, so that `datasets` finds a former result again.

    Args:
        repo_or_path: checkpoint folder or Hub repository; `None`: the built-in one.
        revision: commit, branch or tag; it is resolved here, once.
        image_column: column with pictures: PIL, encoded bytes, a path, or {"bytes", "path"}.
        size: pictures are resized and cut in the middle to `size` x `size` pixels; `None`: they stay as the image
            processor's own settings leave them, may differ in size, and the columns of `SIZES` say so.
        device: "auto", "cpu", "cuda" (of several, the one for the rank) or one like "cuda:1".
        batch_size: see `Encoding`; the batches of `map` are cut into those.
        dtype: see `Encoding`.
        channels_last: see `Encoding`.
        compile: see `Encoding`.

    Raises:
        ValueError: no such checkpoint, or an option out of range.
    """

    def __init__(
        self,
        repo_or_path: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        image_column: str = "image",
        *,
        size: int | None = None,
        device: str = "auto",
        batch_size: int = 16,
        dtype: str = "float32",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        self.encoding = Encoding(batch_size, dtype, channels_last, compile)
        self.preprocessing = Preprocessing(size)
        self.image_column = image_column
        super().__init__(repo_or_path, revision, device)

    def _forget(self) -> None:
        super()._forget()
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_encoder"}

    def _prepare(self, checkpoint: Checkpoint) -> None:
        self._encoder = Encoder(checkpoint, self.encoding)

    def features(self) -> Any:
        """The `datasets.Features` of the columns that it makes, for `map(features=...)`; see `token_features`."""
        return token_features(self.reference.settings()[0], self.preprocessing.size)

    def __call__(self, rows: Rows, rank: int | None = None) -> dict[str, Any]:
        """Tokens of a batch of rows (lists by column), or of one row.

        Returns:
            `image_tokens`: one array (n,h,w) with a size, else a list of flat arrays, uint16 or uint32; and without a
            size the four columns of `SIZES`. Of one row: the same without the first dimension.

        Raises:
            ValueError: no such column, or a picture that cannot be read; the message says which row of the batch.
        """
        if self.image_column not in rows:
            raise ValueError(f"no column {self.image_column!r}: the rows have {sorted(rows)}; name it by image_column")
        several = rows[self.image_column]
        if not isinstance(several, list | tuple | np.ndarray):
            made = self({self.image_column: [several]}, rank)
            return {name: column[0] for name, column in made.items()}
        checkpoint = self.load(rank, DTYPES[self.encoding.dtype])
        views, sizes = [], []
        for number, stored in enumerate(several):
            try:
                picture = to_rgb(stored) if isinstance(stored, Image.Image) else read_stored(stored)
                cut, size = cut_views(picture, checkpoint.processor, self.preprocessing)
            except ValueError as error:
                raise ValueError(
                    f"row {number} of a batch of {len(several)}: {error}. `lgq tokenize` can pass over such pictures"
                ) from error
            views.append(cut[0])
            sizes.append(size)
        return self._columns(checkpoint, self._tokens(views), sizes)

    def _tokens(self, views: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Token grids; pictures of one size go through the model together."""
        assert self._encoder is not None  # load() made it
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for number, view in enumerate(views):
            by_shape.setdefault(view.shape, []).append(number)
        grids: list[Any] = [None] * len(views)
        step, fill = self.encoding.batch_size, self.preprocessing.size is not None
        for numbers in by_shape.values():
            for start in range(0, len(numbers), step):
                batch = numbers[start : start + step]
                pixels = torch.from_numpy(np.stack([views[number] for number in batch]))
                for number, grid in zip(batch, self._encoder(pixels, fill=fill).cpu().numpy(), strict=True):
                    grids[number] = grid
        return grids

    def _columns(
        self, checkpoint: Checkpoint, grids: list[np.ndarray], sizes: list[tuple[int, int]]
    ) -> dict[str, Any]:
        dtype = token_dtype(checkpoint.config.codebook_size)
        if size := self.preprocessing.size:
            empty = np.empty((0, *grid_of(checkpoint.config, (size, size))), dtype)
            return {TOKENS: np.stack(grids).astype(dtype) if grids else empty}
        shapes = [(*grid.shape[:2], *size) for grid, size in zip(grids, sizes, strict=True)]
        columns = {name: [shape[i] for shape in shapes] for i, name in enumerate(SIZES)}
        return {TOKENS: [grid.reshape(-1).astype(dtype) for grid in grids], **columns}


class DecodeTokens(_LazyCheckpoint):
    """Tokens to pictures in `datasets.map`:

        tokens.map(DecodeTokens("org/lgq-16k"), batched=True, batch_size=16, features=Features({"image": Image()}),
                   remove_columns=tokens.column_names)

    Args:
        repo_or_path: checkpoint folder or Hub repository; `None`: the built-in one.
        revision: commit, branch or tag.
        tokens: folder of token shards that the rows come from: a tokenizer that did not make them is refused, and
            padding is cut off pictures of its one size.
        size: (H,W) in pixels to cut pictures to, where rows have no columns of `SIZES` and no `tokens` are given.
        device: as in `EncodeImages`.

    Raises:
        ValueError: no such checkpoint, or not the one that made the tokens.
    """

    def __init__(
        self,
        repo_or_path: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        *,
        tokens: str | os.PathLike[str] | None = None,
        size: tuple[int, int] | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(repo_or_path, revision, device)
        self.size = size
        if tokens is not None:
            manifest = read_manifest(os.fspath(tokens))
            check_tokenizer(manifest, self.reference)
            self.size = size or ((manifest.size[0], manifest.size[1]) if manifest.size else None)

    def __call__(self, rows: Rows, rank: int | None = None) -> dict[str, list[Image.Image]]:
        """{"image": RGB pictures} of a batch of rows with `image_tokens`, or without `batched` one picture.

        Raises:
            ValueError: no such column, or tokens that are not of this tokenizer.
        """
        if TOKENS not in rows:
            raise ValueError(f"no column {TOKENS!r}: the rows have {sorted(rows)}")
        checkpoint = self.load(rank)
        ragged = all(name in rows for name in SIZES)
        if ragged and np.ndim(rows[SIZES[0]]) == 0:
            return {"image": self._picture(checkpoint, rows, None)}  # type: ignore[dict-item]  # one row, one picture
        per_position = 1 if checkpoint.config.tokens_per_position == 1 else 2
        if not ragged and np.ndim(rows[TOKENS]) == 1 + per_position:
            return {"image": self._picture(checkpoint, rows, None)}  # type: ignore[dict-item]
        return {"image": [self._picture(checkpoint, rows, number) for number in range(len(rows[TOKENS]))]}

    def _picture(self, checkpoint: Checkpoint, rows: Rows, number: int | None) -> Image.Image:
        """The picture of one row of a batch, or (None) of the only row."""
        row = {name: rows[name] if number is None else rows[name][number] for name in (TOKENS, *SIZES) if name in rows}
        grid = np.asarray(row[TOKENS])
        config = checkpoint.config
        if all(name in row for name in SIZES):
            shape = tuple(int(row[name]) for name in SIZES[:2])
            several = () if config.tokens_per_position == 1 else (config.tokens_per_position,)
            grid, size = grid.reshape(*shape, *several), tuple(int(row[name]) for name in SIZES[2:])
        else:
            factor = config.spatial_downsample_factor
            size = self.size or (grid.shape[0] * factor, grid.shape[1] * factor)
        return checkpoint.decode(grid, (size[0], size[1]))


__all__ = ["DecodeTokens", "EncodeImages"]
