"""A small corpus of real photographs, in the layout of training.corpus."""

import json
from pathlib import Path

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
