"""Batches of numbered pictures."""

from collections.abc import Iterator

from PIL import Image
from torch.utils.data import Dataset

from lgq_hf import LGQImageProcessor
from training.crops import Crop
from training.ordered_loader import Key, ordered_batches
from training.pictures import Pictures
from training.samples import MOST_IN_A_ROW, Batch, cut, make_batch, none_readable


def numbered_batches(
    pictures: Pictures,
    crop: Crop,
    processor: LGQImageProcessor,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    start: int,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """The endless batches that `training.loader.training_batches` describes, of numbered pictures."""
    samples = _Samples(pictures, crop, processor, seed)
    return ordered_batches(
        samples,
        len(pictures),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start=start,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


class _Samples(Dataset[Batch]):
    """Makes the batch of a list of keys."""

    def __init__(self, pictures: Pictures, crop: Crop, processor: LGQImageProcessor, seed: int) -> None:
        self.pictures, self.crop, self.processor, self.seed = pictures, crop, processor, seed

    def __getitem__(self, keys: list[Key]) -> Batch:
        broken: list[tuple[str, str]] = []
        samples = [self._readable(epoch, index, broken) for epoch, index in keys]
        return make_batch([crop for _, crop in samples], [name for name, _ in samples], broken, self.processor)

    def _readable(self, epoch: int, index: int, broken: list[tuple[str, str]]) -> tuple[str, Image.Image]:
        tried = []
        for _ in range(min(len(self.pictures), MOST_IN_A_ROW)):
            try:
                picture = self.pictures.read(index)
            except ValueError as error:
                tried.append((self.pictures.name(index), str(error)))
                index = (index + 1) % len(self.pictures)
                continue
            broken.extend(tried)
            return f"{self.pictures.name(index)}@{epoch}", cut(picture, self.crop, self.seed, epoch, index)
        raise none_readable(tried)
