import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables, tokenize_table
from benchmarks.run_tokenize import _Process, measure_parts
from benchmarks.tokenize_parts import SETTINGS, Parts, make_job, make_pictures, storage

RESULT: dict[str, Any] = {
    "commit": "0123456789abcdef",
    "versions": {"lgq_hf": "0", "torch": "2"},
    "hardware": {"cpu": "a CPU", "threads": 2, "gpu": None},
    "seed": 7,
    "load_average": 0.1,
    "protocol": {"pictures": "8 JPEGs", "model": "a model", "setting": {"size": 64, "encoding": {"dtype": "float32"}}},
    "parts": {
        "encoder": 10.0,
        "lookup_share": 0.02,
        "decoding_share": 0.05,
        "writing_share": 0.001,
        "workers": {
            "0": {"jpeg_decoder": 200.0, "whole": 8.0, "against_slower": 0.8},
            "2": {"jpeg_decoder": 300.0, "whole": 9.5, "against_slower": 0.95},
        },
    },
    "processes": {"one_pictures_per_s": 5.0, "two_pictures_per_s": 8.5, "ratio": 1.7},
    "memory": {"pictures": [8, 32], "peak_mib": [500.0, 510.0]},
    "storage": [
        {
            "codes": 4096,
            "bound": 1.5,
            "parquet_bytes_a_token": 1.526,
            "arrow_bytes_a_token": 2.27,
            "row_ms": 0.2,
        }
    ],
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("tokenize")
    setting = replace(SETTINGS["quick"], pictures=8)
    make_pictures(folder / "pictures", setting.pictures, 0)
    return Parts(make_job(folder / "pictures", folder / "tokens", None, setting), "cpu")


def test_parts_of_the_work(parts: Parts) -> None:
    setting = replace(SETTINGS["quick"], pictures=8, rounds=1)
    row = measure_parts(parts, setting)
    assert set(row["workers"]) == {"0", "1"}
    assert row["encoder"] > 0 and 0 < row["lookup_share"] < 1 and 0 < row["decoding_share"] < 1
    for one in row["workers"].values():
        assert one["whole"] > 0 and one["jpeg_decoder"] > 0
        slower = max(row["rounds_s"]["encode"][0], row["rounds_s"]["read_0"][0])
    assert row["workers"]["0"]["against_slower"] == pytest.approx(slower / row["rounds_s"]["whole_0"][0])


def test_wrong_tokens_are_refused(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.whole(0)
    assert parts.gate() is None
    cut = parts.encoder.table.clone()
    monkeypatch.setattr(parts.encoder, "table", cut.flip(1))  # negatives of the pictures
    row = measure_parts(parts, replace(SETTINGS["quick"], pictures=8))
    assert list(row) == ["refused"]
    assert row["refused"].startswith("workers=0: ") and row["refused"].endswith(" differ")


def test_storage_is_near_the_bound(tmp_path: Path) -> None:
    row = storage(tmp_path, 256, 16384, 0)
    assert row["equal"] and row["torch"] == "int64 (16, 16)"
    assert row["bound"] == 1.75 < row["parquet_bytes_a_token"] < 1.95
    assert 2.2 < row["arrow_bytes_a_token"] < 2.3


@pytest.mark.slow
def test_a_process_of_its_own(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 16, 0)
    process = _Process(tmp_path / "pictures", tmp_path / "tokens", "quick", 1, 2, 0)
    for _ in range(2):
        process.begin()
        answer = process.answer()
        assert answer["seconds"] > 0 and answer["peak_mib"] > 100
    process.close()
    assert [path.name for path in (tmp_path / "tokens" / "1" / "data").iterdir()] == ["train-00001-of-00002.parquet"]


def test_the_table_says_what_was_missed(tmp_path: Path) -> None:
    (tmp_path / "tokenize_cpu.json").write_text(json.dumps(RESULT))
    text = tables.render(f"a\n{tokenize_table.BEGIN}\nold\n{tokenize_table.END}\nb", tmp_path)
    assert text.startswith("a\n<!-- rendered: tokenize -->\n8 JPEGs; a model, float32, size 64.")
    assert "| 2 | 10 | 300 | 9.5 | 95 % |" in text
    assert "| end to end, of the slower of the two, 0 processes ahead: at least 0.9 | 0.80 | **missed** |" in text
    assert "| end to end, of the slower of the two, 2 processes ahead: at least 0.9 | 0.95 | met |" in text
    assert "at least 1.8 | 1.70 (5 and 8.5 pictures a second) | **missed** |" in text
    assert "growth below 64 MiB | 500 and 510 MiB | met |" in text
    assert "| 4096 | 1.50 | 1.53 | 2.27 | 0.2 |" in text
    assert "Not measured on a GPU yet" in text and text.endswith("<!-- end -->\nb")
    refused = {**RESULT, "parts": {"refused": "workers=0: 3 tokens of a differ"}}
    assert "Refused, and not timed: workers=0: 3 tokens of a differ." in tokenize_table.tokenize_table(refused)
    with pytest.raises(ValueError, match="expected one '<!-- rendered: tokenize -->' and an '<!-- end -->' behind it"):
        tables.render(tokenize_table.BEGIN, tmp_path)


def test_the_rendered_page_is_the_results() -> None:
    text = tables.TOKENIZING.read_text()
    assert tables.TOKENIZING in tables.rendered_files()
    assert tables.render(text) == text
