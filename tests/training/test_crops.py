"""Crops of a ramp, which tell where they were cut: horizontal position is in red and vertical in green."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import photographs
from lgq_hf import LGQImageProcessor
from training.crops import center_crop, resized_crop, scaled_crop


def ramp(width: int = 200, height: int = 100) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def crops_of(picture: Image.Image, crop: Callable[..., Image.Image], count: int = 100) -> list[np.ndarray]:
    return [np.asarray(crop(picture, np.random.default_rng([0, i]))).astype(int) for i in range(count)]


@pytest.mark.parametrize("crop", [scaled_crop, resized_crop, center_crop])
def test_every_crop_is_a_square_fixed_by_its_generator(crop: Callable[..., Image.Image]) -> None:
    for picture in (photographs.load("chelsea.png", 100), Image.new("RGB", (7, 300)), Image.new("RGB", (1, 1))):
        for seed in range(20):
            one, again = (crop(picture, np.random.default_rng(seed), size=24) for _ in range(2))
            assert one.size == (24, 24) and one.mode == "RGB"
            assert one.tobytes() == again.tobytes()


@pytest.mark.parametrize("crop", [scaled_crop, resized_crop, center_crop])
def test_the_flip_is_drawn_last_as_often_as_asked(crop: Callable[..., Image.Image]) -> None:
    never, always, often = (crops_of(ramp(), partial(crop, size=16, flip=flip)) for flip in (0.0, 1.0, 0.75))
    for one, other in zip(never, always, strict=True):
        assert (one == other[:, ::-1]).all()
    flipped = sum((one == other).all() for one, other in zip(often, always, strict=True))
    assert 60 <= flipped <= 90


def test_scaled_crops_are_at_most_max_scale_and_the_shorter_side() -> None:
    for max_scale, largest in ((1.5, 48), (9.0, 100)):
        crops = crops_of(ramp(), partial(scaled_crop, size=32, max_scale=max_scale, flip=0.0), 300)
        sides = [(pixels[0, -1, 0] - pixels[0, 0, 0]) * 32 / 31 for pixels in crops]
        assert 31 <= min(sides) < 35 and largest - 6 < max(sides) <= largest + 2


def test_scaled_crop_draws_as_it_always_did() -> None:
    """A published checkpoint was trained on these draws: side, left, top, flip."""
    picture = photographs.load("coffee.png", 96).crop((0, 0, 96, 80))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        side = int(rng.integers(32, 65))
        left, top = int(rng.integers(0, 96 - side + 1)), int(rng.integers(0, 80 - side + 1))
        expected = picture.crop((left, top, left + side, top + side)) if side == 32 else None
        expected = expected or picture.resize((32, 32), box=(left, top, left + side, top + side), resample=3)
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else expected
        got = scaled_crop(picture, np.random.default_rng(seed), size=32, max_scale=2.0)
        assert got.tobytes() == expected.tobytes()


def boxes(picture: Image.Image, **options: Any) -> np.ndarray:
    """(width, height) of the boxes that are cut out of a ramp, from its slopes; (N,2)."""
    crops = crops_of(picture, partial(resized_crop, size=32, flip=0.0, **options), 400)
    spans = [(p[8:24, 24, 0] - p[8:24, 8, 0], p[24, 8:24, 1] - p[8, 8:24, 1]) for p in crops]
    return np.array([(across.mean() * 2, down.mean() * 2) for across, down in spans])


def test_resized_crops_have_the_area_and_aspect_that_were_asked_for() -> None:
    sizes = boxes(ramp(240, 240), area=(0.2, 0.6), aspect=(0.5, 2.0))
    area, aspect = sizes.prod(axis=1) / 240**2, np.log(sizes[:, 0] / sizes[:, 1])
    assert 0.18 < area.min() < 0.23 and 0.57 < area.max() < 0.63
    assert abs(area.mean() - 0.4) < 0.02
    assert abs(aspect.min() + np.log(2)) < 0.1 and abs(aspect.max() - np.log(2)) < 0.1
    assert abs(aspect.mean()) < 0.06


@pytest.mark.parametrize(("size", "middle"), [((240, 30), (40, 30)), ((30, 240), (30, 40))])
def test_a_resized_crop_that_fits_nowhere_is_the_middle(size: tuple[int, int], middle: tuple[int, int]) -> None:
    options: dict[str, Any] = {"area": (0.9, 1.0), "aspect": (3 / 4, 4 / 3), "flip": 0.0}
    got = resized_crop(ramp(*size), np.random.default_rng(0), size=32, **options)
    left, top = (size[0] - middle[0]) // 2, (size[1] - middle[1]) // 2
    box = (left, top, left + middle[0], top + middle[1])
    assert got.tobytes() == ramp(*size).resize((32, 32), box=box, resample=3).tobytes()


@pytest.mark.parametrize("size", [(100, 60), (33, 200)])
def test_center_crops_are_the_processors(size: tuple[int, int]) -> None:
    picture = photographs.load("coffee.png", 200).crop((0, 0, *size))
    options: dict[str, Any] = {"do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True}
    processor = LGQImageProcessor(**options, crop_size={"height": 32, "width": 32}, do_normalize=False)
    expected = np.round(processor(picture, return_tensors="np")["pixel_values"][0] * 255).transpose(1, 2, 0)
    got = np.asarray(center_crop(picture, np.random.default_rng(0), size=32, flip=0.0)).astype(int)
    assert np.abs(got - expected).max() <= 1


def test_a_long_strip_needs_no_memory() -> None:
    strip = Image.new("RGB", (40_000, 1), (1, 2, 3))  # whole, with its shorter side at 256, 8 GB
    assert (np.asarray(center_crop(strip, np.random.default_rng(0), size=256)) == (1, 2, 3)).all()
