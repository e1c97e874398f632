"""A small corpus of real photographs, in the layout of training.corpus, and a recipe of a run on it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from benchmarks import photographs
from tests.training import generators
from tests.training.steps import RUN_MODEL


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    rows = []
    for number, name in enumerate((*photographs.NAMED, "coins.png", "moon.png", "brick.png")):
        file = f"images/{Path(name).stem}.png"
        photographs.load(name, 96).save(folder / file)
        rows.append(
            {
                "file": file,
                "split": "validation" if number > 5 else "train",
                "package": "photographs",
                "source_sha256": name,
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Hugging Face datasets is read from the network, or written beside the test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    # the pause after threads that read several shards, at the end of each epoch
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
    datasets.disable_progress_bars()


def _png(name: str, side: int) -> bytes:
    buffer = io.BytesIO()
    photographs.load(name, side).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """Five photographs and three files that cannot be read (b, d, f), by name: what a folder or dataset holds."""
    astronaut, camera, chelsea, coffee, rocket = (_png(name, 48 + 8 * i) for i, name in enumerate(photographs.NAMED))
    broken = {"b.png": astronaut[: len(astronaut) // 2], "d.jpg": b"this is no picture\n", "f.png": b""}
    whole = {"a.png": astronaut, "c.png": camera, "e.png": chelsea, "g.png": coffee, "h.png": rocket}
    return dict(sorted({**whole, **broken}.items()))


@pytest.fixture(scope="session")
def dataset(files: dict[str, bytes]) -> Any:
    """`files` and a row without a picture, as a `datasets.Dataset` with the columns image and label."""
    images = [*({"bytes": content, "path": name} for name, content in files.items()), None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "label": list(range(9))}, features=features)


@pytest.fixture(scope="session")
def folder(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`files` in a folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def shards(dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three parquet files: two of split train with three pictures each, and one of validation."""
    folder = tmp_path_factory.mktemp("shards")
    for number, name in enumerate(("train-00000", "train-00001", "validation-00000")):
        dataset.select(range(3 * number, 3 * number + 3)).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture
def recipe(corpus: Path, tmp_path: Path) -> Path:
    """Six pictures in steps of four, two by two: every checkpoint lies amid an epoch, and the GAN joins half-way."""
    values = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 12,
        "batch_size": 4,
        "image_size": 32,
        "model": RUN_MODEL,
        "data": {"path": str(corpus), "num_workers": 0},
        "discriminator": {
            "weight": 0.5,
            "start": 3,
            "warmup": 3,
            "ramp": 2,
            "base_channels": 8,
            "num_layers": 2,
            "lecam": 0.01,
        },
        "quantizer": {"init_pictures": 8},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3, "ema_decay": 0.9},
        "engine": {"micro_batch_size": 2},
        "validation": {"every": 6, "pictures": 3, "batch_size": 2},
        "report": {"log_every": 2, "checkpoint_every": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `tokenizer` and the tokens it made: 24 rows of `train`, three classes; 6 of `validation`, two.

    Classes are 0 camera, 1 chelsea, 2 coffee in training; in validation 0 chelsea, 1 coffee.
    """
    folder = tmp_path_factory.mktemp("generators") / "tokens"
    tokenizer = generators.save_tokenizer(folder / "tokenizer")
    squares = {name.partition(".")[0]: generators.pieces(name, 12) for name in generators.NAMES[1:4]}
    splits = {
        "train": {name: pictures[:8] for name, pictures in squares.items()},
        "validation": {name: squares[name][9:] for name in ("chelsea", "coffee")},
    }
    for split, classes in splits.items():
        pictures = generators.save_pictures(folder.parent / "pictures" / split, classes)
        generators.tokenize(pictures, folder / split, tokenizer, "--split", split)
    return folder


@pytest.fixture
def generator_recipe(tokens: Path, tmp_path: Path) -> Callable[..., Path]:
    """`generator_recipe("masked", data={...})`: the file of a recipe on `tokens`, with other values in places."""

    def write(kind: str, **sections: Any) -> Path:
        values = generators.values(tokens, kind, output_dir=str(tmp_path / "run"), **sections)
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
