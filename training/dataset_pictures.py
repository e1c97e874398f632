"""Pictures of Hugging Face datasets and parquet files. They are decoded here, so that a broken one is a ValueError."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from lgq_hf.images.stored import Stored, read_stored, undecoded


class DatasetPictures:
    """Rows of a `datasets.Dataset`; the class `training.pictures.Pictures` says what it offers.

    Args:
        dataset: one split.
        column: where its pictures are; raises ValueError where there are none.
        label: what messages call the dataset.
        split: what messages call its rows.
    """

    def __init__(self, dataset: Any, column: str, label: str, split: str) -> None:
        self.dataset, self.column, self.split = undecoded(dataset, column, label), column, split

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The split and the row's number."""
        return f"{self.split}[{index}]"

    def read(self, index: int) -> Image.Image:
        """The picture as RGB; raises ValueError with the reason where it cannot be read."""
        return read_stored(self.dataset[index][self.column])


class PictureStream:
    """Undecoded pictures of a `datasets.IterableDataset`, epoch by epoch, in an order drawn from (seed, epoch).

    Args:
        dataset: one split, not shuffled.
        column: where its pictures are; raises ValueError where there are none.
        label: what messages call the dataset.
        shuffle_buffer: pictures among which the next one is drawn.
        seed: of the order.
    """

    def __init__(self, dataset: Any, column: str, label: str, *, shuffle_buffer: int, seed: int) -> None:
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer: expected at least 1 picture, got {shuffle_buffer}")
        self.dataset, self.column, self.label = undecoded(dataset, column, label), column, label
        self.shuffle_buffer, self.seed = shuffle_buffer, seed

    def records(self, epoch: int | None) -> Iterator[Stored]:
        """All pictures once, for `read_stored`: in the order of an epoch, or (None) as they are stored."""
        dataset = self.dataset
        if epoch is not None:  # a copy each time: set_epoch changes all iterators of one object
            dataset = dataset.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
            dataset.set_epoch(epoch)
        for row in dataset:
            yield row[self.column]
