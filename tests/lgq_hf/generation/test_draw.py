"""Which classes are drawn, and that pictures depend on their number and the seed alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lgq_hf.generation.draw import Draw, class_counts, draw_pictures, picture_generator, to_bytes
from lgq_hf.images.sources import open_source
from lgq_hf.runtime import Clock
from tests.lgq_hf.generation.pipelines import small_pipeline

KINDS = ("masked", "autoregressive")
NAMES = {0: "cat", 1: "dog", 2: "owl"}


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Any]:
    """`source(cat=3, dog=1)`: as many pictures in folders of these names; `source(3)`: without folders."""

    def make(direct: int = 0, **folders: int) -> Any:
        for name, count in {"": direct, **folders}.items():
            (tmp_path / "real" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("RGB", (5, 5)).save(tmp_path / "real" / name / f"{number}.png")
        return open_source(str(tmp_path / "real"), kind="folder")

    return make


@pytest.mark.parametrize(
    ("folders", "num", "expected"),
    [
        ({"cat": 2, "dog": 1, "owl": 1}, 8, [(0, 4), (1, 2), (2, 2)]),
        ({"cat": 2, "dog": 1, "owl": 1}, 5, [(0, 3), (1, 1), (2, 1)]),  # 2.5, 1.25, 1.25
        ({"cat": 1, "dog": 1, "owl": 1}, 4, [(0, 2), (1, 1), (2, 1)]),  # the lowest of equal remainders
        ({"owl": 4}, 7, [(2, 7)]),
        ({"dog": 3, "owl": 9}, 4, [(1, 1), (2, 3)]),
    ],
)
def test_classes_have_the_shares_of_their_folders(
    source: Callable[..., Any], folders: dict[str, int], num: int, expected: list[tuple[int, int]]
) -> None:
    pipe = small_pipeline("masked", id2label=NAMES)
    assert class_counts(pipe, source(**folders), num) == (expected, "as the real pictures' folders")


def test_without_folders_classes_are_even(source: Callable[..., Any]) -> None:
    pictures = source(3)
    assert class_counts(small_pipeline("masked"), pictures, 7) == ([(0, 3), (1, 2), (2, 2)], "even")
    assert class_counts(small_pipeline("masked", num_classes=0), pictures, 7) == ([(None, 7)], "none")


def test_folders_are_numbered_where_classes_have_no_names(source: Callable[..., Any]) -> None:
    pictures = source(zebra=1, ape=2, bee=1)
    assert class_counts(small_pipeline("masked"), pictures, 4)[0] == [(0, 2), (1, 1), (2, 1)]
    for pipe in (small_pipeline("masked", num_classes=4), small_pipeline("masked", id2label=NAMES)):
        with pytest.raises(ValueError, match="'ape'"):
            class_counts(pipe, pictures, 4)


def drawn(kind: str, classes: list[int | None], **options: Any) -> Tensor:
    pipe = small_pipeline(kind)
    batches = list(draw_pictures(pipe, classes, Draw(**options), Clock(torch.device("cpu"))))
    assert [first for first, _ in batches] == list(range(0, len(classes), options["batch_size"]))
    return torch.cat([pictures for _, pictures in batches])


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_depends_on_its_number_and_the_seed(kind: str) -> None:
    classes: list[int | None] = [0, 1, 1, 2, 0]
    pictures = drawn(kind, classes, batch_size=2, guidance_scale=2.0, seed=7)
    assert pictures.shape == (5, 3, 32, 32) and pictures.dtype == torch.uint8
    again = drawn(kind, classes, batch_size=5, guidance_scale=2.0, seed=7)
    assert (again.int() - pictures.int()).abs().max() <= 1
    assert not torch.equal(drawn(kind, classes, batch_size=5, guidance_scale=2.0, seed=8), pictures)
    assert len({tuple(picture.flatten().tolist()) for picture in pictures}) == 5

    pipe = small_pipeline(kind)
    alone = pipe(class_labels=[1], generator=[picture_generator(7, 2)], guidance_scale=2.0).images[0]
    difference = pictures[2].permute(1, 2, 0).numpy().astype(int) - np.asarray(alone)
    assert np.abs(difference).max() <= 1  # convolutions round differently in another batch


def test_seeds_and_numbers_do_not_meet() -> None:
    first = {picture_generator(seed, number).initial_seed() for seed in range(20) for number in range(20)}
    assert len(first) == 400


def test_states_the_defaults_of_the_pipeline() -> None:
    common = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": None, "top_p": None}
    masked = {"num_inference_steps": 12, "choice_temperature": 4.5, "mask_schedule": "cosine"}
    assert Draw().options(small_pipeline("autoregressive")) == common
    assert Draw().options(small_pipeline("masked")) == common | masked
    changed = Draw(num_inference_steps=3, top_k=5).options(small_pipeline("masked"))
    assert changed == {**common, **masked, "num_inference_steps": 3, "top_k": 5}


def test_bytes_are_rounded_half_to_even() -> None:
    assert to_bytes(torch.tensor([0, 0.5 / 255, 1.5 / 255, 1])).tolist() == [0, 0, 2, 255]


def test_what_is_refused() -> None:
    for options in ({"batch_size": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Draw(**options)
    with pytest.raises(ValueError, match="num_inference_steps=5: a LGQAutoregressivePipeline"):
        Draw(num_inference_steps=5).options(small_pipeline("autoregressive"))
