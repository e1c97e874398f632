"""Training pictures: crops fixed by (seed, epoch, picture), in an order fixed by (seed, epoch)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lgq_hf import LGQImageProcessor


def corpus_files(corpus: str | Path, split: str) -> list[Path]:
    """Pictures of one split of a corpus that `training.corpus` built, in the manifest's order.

    Raises:
        FileNotFoundError: without a manifest.
        ValueError: for a split without pictures.
    """
    corpus = Path(corpus)
    manifest = corpus / "manifest.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"no manifest.jsonl in {corpus}: build a corpus with `python -m training.corpus`")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    files = [corpus / row["file"] for row in rows if row["split"] == split]
    if not files:
        raise ValueError(f"split '{split}' of {corpus} is empty; it has {sorted({row['split'] for row in rows})}")
    return files


class CropDataset(Dataset):
    """Square crops of pictures, as `pixel_values` (3, crop, crop) in the processor's normalised space.

    An item is asked for by (epoch, index): crop position, scale and flip are drawn from (seed, epoch, index), so that
    workers, resuming and the number of processes do not change them.
    """

    def __init__(
        self, files: list[Path], processor: LGQImageProcessor, crop: int, max_scale: float = 1.0, seed: int = 0
    ) -> None:
        self.files, self.processor, self.crop, self.max_scale, self.seed = files, processor, crop, max_scale, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        with Image.open(self.files[index]) as picture:
            crop = self._crop(picture.convert("RGB"), rng)
        return {"pixel_values": self.processor(crop, return_tensors="pt")["pixel_values"][0]}

    def _crop(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A square of `crop` to `max_scale * crop` pixels, at most the shorter side, scaled to `crop`."""
        short = min(picture.size)
        largest = min(short, int(self.crop * self.max_scale))
        side = short if short <= self.crop else int(rng.integers(self.crop, largest + 1))
        left = int(rng.integers(0, picture.width - side + 1))
        top = int(rng.integers(0, picture.height - side + 1))
        box = (left, top, left + side, top + side)
        picture = (
            picture.crop(box) if side == self.crop else picture.resize((self.crop, self.crop), box=box, resample=3)
        )
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


class StepSampler(Sampler[tuple[int, int]]):
    """Endless (epoch, index) pairs: each epoch one permutation drawn from (seed, epoch); starts at pair `start`."""

    def __init__(self, size: int, seed: int, start: int = 0) -> None:
        self.size, self.seed, self.start = size, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, offset = divmod(self.start, self.size)
        while True:
            order: Any = np.random.default_rng([self.seed, epoch]).permutation(self.size)[offset:]
            yield from ((epoch, int(index)) for index in order)
            epoch, offset = epoch + 1, 0
