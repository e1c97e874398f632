"""Drawing many pictures from a pipeline: of which classes, with which random numbers, in batches.

Shapes: B pictures of a batch, H W pixels.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgq_hf.generation.pipeline_base import LGQPipeline
from lgq_hf.images.sources import LABEL, FolderSource
from lgq_hf.runtime import Clock

_OPTIONS = ("num_inference_steps", "choice_temperature", "mask_schedule")  # of one kind of pipeline


@dataclass(frozen=True)
class Draw:
    """How pictures are drawn; what is out of range the pipeline refuses.

    Attributes:
        guidance_scale, temperature, top_k, top_p: as in the pipeline's call.
        num_inference_steps: of a masked pipeline; `None`: its default.
        seed: from it and a picture's number its random numbers come, so that batches do not matter.
        batch_size: pictures at once, on all ways.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_inference_steps: int | None = None
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")

    def options(self, pipe: LGQPipeline) -> dict[str, Any]:
        """Arguments of the pipeline's call, its own defaults included; `ValueError` for steps where it has none."""
        parameters = inspect.signature(type(pipe).__call__).parameters
        own = {name: parameters[name].default for name in _OPTIONS if name in parameters}
        if self.num_inference_steps is not None:
            if "num_inference_steps" not in own:
                raise ValueError(
                    f"num_inference_steps={self.num_inference_steps}: a {type(pipe).__name__} has one step for each "
                    "token; leave it out"
                )
            own["num_inference_steps"] = self.num_inference_steps
        given = asdict(self)
        return {**{name: given[name] for name in ("guidance_scale", "temperature", "top_k", "top_p")}, **own}


def class_counts(pipe: LGQPipeline, pictures: FolderSource, num: int) -> tuple[list[tuple[int | None, int]], str]:
    """How many pictures of each class make up `num`, and how that is called in the protocol.

    Shares are those of the folders that the pictures lie in, rounded to the nearest whole numbers that add up (largest
    remainders first); equal where the pictures lie directly in their folder. A folder is the class of its name, or,
    where the pipeline has no names and as many classes as there are folders, of its number in sorted order.

    Returns:
        (class, count) in rising order; the class is `None` for a pipeline without classes.

    Raises:
        ValueError: folders that are no classes of the pipeline.
    """
    if not pipe.num_classes:
        return [(None, num)], "none"
    shares = np.zeros(pipe.num_classes)
    if pictures.labels:
        folders = pictures.features[LABEL].names
        names = {name: number for number, name in pipe.id2label.items()}
        if not names and len(folders) == pipe.num_classes:
            names = {name: number for number, name in enumerate(folders)}
        if unknown := [name for name in folders if name not in names]:
            raise ValueError(
                f"the folder {unknown[0]!r} in {pictures.name} is no class of the pipeline: name folders after "
                "classes, or put all pictures directly into one folder, and all classes are drawn evenly"
            )
        for label, count in zip(*np.unique(pictures.labels, return_counts=True), strict=True):
            shares[names[folders[label]]] = count
    else:
        shares += 1
    exact = num * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    most = np.argsort(counts - exact, kind="stable")  # largest remainders first, of equal ones the lowest class
    counts[most[: num - counts.sum()]] += 1
    found: list[tuple[int | None, int]] = [(number, int(count)) for number, count in enumerate(counts) if count]
    return found, "as the real pictures' folders" if pictures.labels else "even"


def picture_generator(seed: int, number: int) -> torch.Generator:
    """Random numbers of one picture, drawn on the CPU so that they are the same for every device."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def draw_pictures(pipe: Any, classes: Sequence[int | None], draw: Draw, clock: Clock) -> Iterator[tuple[int, Tensor]]:
    """Number of the first and pictures (B,3,H,W) uint8 of each batch, on the pipeline's device; `clock` counts along.

    Args:
        pipe: the generator, an `LGQPipeline`.
        classes: one for each picture, `None` for no class.
        draw: how they are drawn.
        clock: of the pipeline's device.

    Raises:
        ValueError: options or classes that the pipeline refuses.
    """
    options = draw.options(pipe)
    for first in range(0, len(classes), draw.batch_size):
        labels = list(classes[first : first + draw.batch_size])
        generators = [picture_generator(draw.seed, first + i) for i in range(len(labels))]
        with clock.around(len(labels)):
            images = pipe(class_labels=labels, generator=generators, output_type="pt", **options).images
        yield first, to_bytes(images)


def to_bytes(pictures: Tensor) -> Tensor:
    """[0, 1] to uint8, rounded as `LGQImageProcessor.postprocess` rounds; any shape."""
    return (pictures * 255).round().to(torch.uint8)


__all__ = ["Draw", "class_counts", "draw_pictures", "picture_generator", "to_bytes"]
