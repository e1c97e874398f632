"""What `datasets.map` calls: pictures to tokens, and back, a batch of rows at a time."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint, find_checkpoint
from lgq_hf.images.sources import SIZES, TOKENS
from lgq_hf.images.stored import read_stored, to_rgb
from lgq_hf.images.views import Preprocessing, cut_views
from lgq_hf.runtime import DTYPES
from lgq_hf.tokens.encoding import Encoder
from lgq_hf.tokens.manifest import check_tokenizer, read_manifest
from lgq_hf.tokens.plan import Encoding, grid_of, token_dtype, token_features

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
        self._loaded: tuple[int, str, Any] | None = None  # process and device, and what was loaded there

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def _load(self, rank: int | None) -> Any:
        """What `_open` gives, on the device of a process of `map`; `rank` is what `with_rank=True` hands over."""
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
            self._loaded = os.getpid(), device, self._open(device)
        return self._loaded[2]

    def _open(self, device: str) -> Any:
        return self.reference.load(device)


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
        super().__init__(repo_or_path, revision, device)
        self.encoding = Encoding(batch_size, dtype, channels_last, compile)
        self.preprocessing = Preprocessing(size)
        self.image_column = image_column

    def _open(self, device: str) -> Encoder:
        return Encoder(self.reference.load(device, DTYPES[self.encoding.dtype]), self.encoding)

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
            return {name: column[0] for name, column in self({self.image_column: [several]}, rank).items()}
        encoder: Encoder = self._load(rank)
        by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}  # images of one size go together
        sizes = []
        for number, stored in enumerate(several):
            try:
                image = to_rgb(stored) if isinstance(stored, Image.Image) else read_stored(stored)
                (view,), size = cut_views(image, encoder.checkpoint.processor, self.preprocessing)
            except ValueError as error:
                raise ValueError(
                    f"row {number} of a batch of {len(several)}: {error}. `lgq tokenize` can pass over such pictures"
                ) from error
            by_shape.setdefault(view.shape, []).append((number, view))
            sizes.append(size)
        grids: list[Any] = [None] * len(several)
        dtype, step = token_dtype(encoder.checkpoint.config.codebook_size), self.encoding.batch_size
        for same in by_shape.values():
            for start in range(0, len(same), step):
                numbers, views = zip(*same[start : start + step], strict=True)
                tokens = encoder(torch.from_numpy(np.stack(views)), fill=self.preprocessing.size is not None)
                for number, grid in zip(numbers, tokens.cpu().numpy().astype(dtype), strict=True):
                    grids[number] = grid
        if side := self.preprocessing.size:
            empty = np.empty((0, *grid_of(encoder.checkpoint.config, (side, side))), dtype)
            return {TOKENS: np.stack(grids) if grids else empty}
        shapes = [(*grid.shape[:2], *size) for grid, size in zip(grids, sizes, strict=True)]
        columns = {name: [shape[i] for shape in shapes] for i, name in enumerate(SIZES)}
        return {TOKENS: [grid.reshape(-1) for grid in grids], **columns}


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

    def __call__(self, rows: Rows, rank: int | None = None) -> dict[str, Any]:
        """{"image": RGB pictures} of a batch of rows with `image_tokens`, or without `batched` one picture.

        Raises:
            ValueError: no such column, or tokens that are not of this tokenizer.
        """
        if TOKENS not in rows:
            raise ValueError(f"no column {TOKENS!r}: the rows have {sorted(rows)}")
        checkpoint: Checkpoint = self._load(rank)
        ragged = all(name in rows for name in SIZES)
        per_position = checkpoint.config.tokens_per_position
        alone = 2 if per_position == 1 else 3  # dimensions of a row's tokens
        single = np.ndim(rows[SIZES[0]]) == 0 if ragged else np.ndim(rows[TOKENS]) == alone
        names = (TOKENS, *SIZES) if ragged else (TOKENS,)
        columns = [[rows[name]] if single else rows[name] for name in names]
        images = []
        for tokens, *sizes in zip(*columns, strict=True):
            grid, factor = np.asarray(tokens), checkpoint.config.spatial_downsample_factor
            if ragged:
                grid = grid.reshape(*sizes[:2], *([] if per_position == 1 else [per_position]))
            size = sizes[2:] or self.size or (grid.shape[0] * factor, grid.shape[1] * factor)
            images.append(checkpoint.decode(grid, (int(size[0]), int(size[1]))))
        return {"image": images[0] if single else images}


__all__ = ["DecodeTokens", "EncodeImages"]
