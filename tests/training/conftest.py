"""A small corpus of real photographs, in the layout of training.corpus."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks import photographs


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
