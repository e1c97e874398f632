import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor
from training.data import CropDataset, StepSampler, corpus_files


@pytest.fixture
def files(corpus: Path) -> list[Path]:
    return corpus_files(corpus, "train")


def test_crops_depend_on_seed_epoch_and_picture_alone(files: list[Path]) -> None:
    processor = LGQImageProcessor()
    first, again = (CropDataset(files, processor, 32, 2.0, seed=1) for _ in range(2))
    keys = list(itertools.product(range(3), range(len(files))))
    crops = {key: first[key]["pixel_values"] for key in keys}
    for key in reversed(keys):
        assert torch.equal(again[key]["pixel_values"], crops[key])
        assert crops[key].shape == (3, 32, 32) and crops[key].abs().max() <= 1
    assert not torch.equal(crops[0, 0], crops[1, 0])
    other_seed = CropDataset(files, processor, 32, 2.0, seed=2)
    assert not torch.equal(other_seed[0, 0]["pixel_values"], crops[0, 0])


def test_crops_are_cut_from_the_picture_and_flipped_half_of_the_time(tmp_path: Path) -> None:
    """Horizontal position is in red and vertical in green, so a crop tells where it was cut."""
    picture = Image.new("RGB", (200, 100))
    picture.putdata([(x, y, 0) for y in range(100) for x in range(200)])
    picture.save(tmp_path / "ramp.png")
    dataset = CropDataset([tmp_path / "ramp.png"], LGQImageProcessor(), 64, max_scale=1.0)
    flipped, lefts = 0, set()
    for epoch in range(100):
        pixels = (dataset[epoch, 0]["pixel_values"] * 127.5 + 127.5).round().int()
        red, green = pixels[0], pixels[1]
        step = int(red[0, 1] - red[0, 0])
        assert step in (-1, 1)
        flipped += step == -1
        lefts.add(int(red.min()))
        assert (red.max() - red.min(), green.max() - green.min()) == (63, 63)
        assert (green[1] - green[0] == 1).all()
    assert 30 <= flipped <= 70
    assert min(lefts) < 20 and max(lefts) > 115


def test_a_picture_smaller_than_the_crop_is_enlarged_whole(tmp_path: Path) -> None:
    Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / "small.png")
    pixels = CropDataset([tmp_path / "small.png"], LGQImageProcessor(), 32)[0, 0]["pixel_values"]
    assert pixels.shape == (3, 32, 32) and (pixels[0] == 1).all() and (pixels[1:] == -1).all()


def test_sampler_visits_every_picture_once_an_epoch_and_resumes_anywhere() -> None:
    pairs = list(itertools.islice(StepSampler(7, seed=3), 21))
    for epoch in range(3):
        assert sorted(pairs[7 * epoch : 7 * epoch + 7]) == [(epoch, index) for index in range(7)]
    assert [index for _, index in pairs[:7]] != [index for _, index in pairs[7:14]]
    for start in (0, 1, 6, 7, 12):
        assert list(itertools.islice(StepSampler(7, seed=3, start=start), 8)) == pairs[start : start + 8]


def test_corpus_errors(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest\.jsonl in .*: build a corpus with"):
        corpus_files(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split 'tests' of .* is empty; it has \['train', 'validation'\]"):
        corpus_files(corpus, "tests")
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    assert corpus_files(corpus, "validation") == [corpus / r["file"] for r in rows if r["split"] == "validation"]
