import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from PIL import Image

from lgq_hf import LGQConfig
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.tokens import DecodeTokens, EncodeImages, token_features
from lgq_hf.tokens.engine import tokenize


@pytest.fixture(scope="module")
def rows(pictures: Path) -> datasets.Dataset:
    files = [str(file) for file in sorted(pictures.rglob("*.jpg"))]
    table = datasets.Dataset.from_dict({"image": files, "number": list(range(len(files)))})
    return table.cast_column("image", datasets.Image())


@pytest.fixture(scope="module")
def features(model_folder: Path) -> dict[str, Any]:
    made = token_features(LGQConfig.from_pretrained(model_folder), 64)
    return {"features": datasets.Features({"number": datasets.Value("int64"), **made}), "remove_columns": ["image"]}


@pytest.fixture
def expected(job: Any) -> np.ndarray:
    """The tokens that the engine writes."""
    made = job(batch_size=16)
    tokenize(made)
    return np.array(datasets.load_dataset(made.output, split="train")["image_tokens"])


def test_all_ways_of_map_give_the_engines_tokens(
    rows: datasets.Dataset, features: dict[str, Any], model_folder: Path, expected: np.ndarray
) -> None:
    encode = EncodeImages(model_folder, size=64)
    ways = {
        "batched": rows.map(encode, batched=True, batch_size=4, **features),
        "one by one": rows.map(encode, **features),
        "with_rank": rows.map(encode, batched=True, with_rank=True, **features),
        "streaming": list(rows.to_iterable_dataset().map(encode, batched=True, batch_size=5, **features)),
        "undecoded": rows.cast_column("image", datasets.Image(decode=False)).map(encode, batched=True, **features),
    }
    for name, made in ways.items():
        assert np.array_equal(np.array([row["image_tokens"] for row in made]), expected), name
    assert ways["batched"].features["image_tokens"] == datasets.Array2D((8, 8), "uint16")


_SEVERAL_PROCESSES = """
import sys
import numpy as np, torch, datasets
from lgq_hf.tokens import EncodeImages, token_features
from lgq_hf import LGQConfig

if __name__ == "__main__":
    folder, model, start = sys.argv[1:]
    rows = datasets.load_dataset("imagefolder", data_dir=folder, split="train")
    encode = EncodeImages(model, size=64)
    options = dict(batched=True, batch_size=3, remove_columns=rows.column_names,
                   features=token_features(LGQConfig.from_pretrained(model), 64), load_from_cache_file=False)
    torch.set_num_threads(2)
    one = rows.map(encode, **options)  # leaves the model and torch's threads in this process
    torch.randn(512, 512) @ torch.randn(512, 512)
    if start == "spawn":
        import multiprocess
        multiprocess.set_start_method("spawn")
    two = rows.map(encode, num_proc=2, with_rank=True, **options)
    assert np.array_equal(np.array(one["image_tokens"]), np.array(two["image_tokens"]))
    print("equal", len(two))
"""


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes_do_not_wait_for_ever(
    pictures: Path, model_folder: Path, tmp_path: Path, start: str
) -> None:
    """Where torch has used its threads, a forked process that uses them too would hang."""
    script = tmp_path / "several.py"
    script.write_text(_SEVERAL_PROCESSES)
    command = [sys.executable, str(script), str(pictures), str(model_folder), start]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert run.stdout.split() == ["equal", "11"], run.stderr


def test_the_fingerprint_is_the_checkpoints_and_the_options(
    rows: datasets.Dataset, features: dict[str, Any], model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    first, second = (EncodeImages(model_folder, size=64) for _ in range(2))
    before = Hasher.hash(first)
    first(rows[:2])
    assert before == Hasher.hash(first) == Hasher.hash(second) == Hasher.hash(pickle.loads(pickle.dumps(first)))
    assert len(pickle.dumps(first)) < 2000  # no tensors
    others = [EncodeImages(other_model_folder, size=64), EncodeImages(model_folder, size=72)]
    others += [EncodeImages(model_folder, size=64, dtype="bfloat16"), EncodeImages(model_folder, image_column="x")]
    assert len({before, *map(Hasher.hash, others)}) == 5

    place = tmp_path / "model"
    shutil.copytree(model_folder, place)
    encode = EncodeImages(place, size=64)
    shutil.copy(other_model_folder / "model.safetensors", place)
    assert Hasher.hash(EncodeImages(place, size=64)) != Hasher.hash(encode)
    with pytest.raises(ValueError, match="was changed after this job began: its fingerprint is"):
        encode(rows[:2])

    disk = rows.map(lambda row: row)  # datasets finds results again only for what is in files
    disk.save_to_disk(tmp_path / "rows")
    disk = datasets.load_from_disk(tmp_path / "rows")
    made = [disk.map(encode, batched=True, **features)._fingerprint for encode in (first, second)]
    assert made[0] == made[1]


def test_sizes_that_differ(rows: datasets.Dataset, model_folder: Path, pictures: Path) -> None:
    config = LGQConfig.from_pretrained(model_folder)
    options = {"batched": True, "remove_columns": rows.column_names, "features": token_features(config)}
    made = rows.map(EncodeImages(model_folder), **options)
    assert made.features["image_tokens"] == datasets.List(datasets.Value("uint16"))
    checkpoint = load_checkpoint(str(model_folder), "cpu")
    decoded = made.map(
        DecodeTokens(model_folder),
        batched=True,
        remove_columns=made.column_names,
        features=datasets.Features({"image": datasets.Image()}),
    )
    for row, back, original in zip(made, decoded, rows, strict=True):
        picture = original["image"]
        assert (row["original_width"], row["original_height"]) == picture.size == back["image"].size
        assert row["height"] * row["width"] == len(row["image_tokens"])
        grid = np.array(row["image_tokens"]).reshape(row["height"], row["width"])
        again = checkpoint.decode(grid, (row["original_height"], row["original_width"]))
        assert np.array_equal(np.asarray(again), np.asarray(back["image"]))
    single = DecodeTokens(model_folder)(made[0])["image"]
    assert np.array_equal(np.asarray(single), np.asarray(decoded[0]["image"]))


def test_shards_are_decoded_by_their_tokenizer_only(
    job: Any, model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    made = job(size=60)  # padded to 64
    tokenize(made)
    rows = datasets.load_dataset(made.output, split="train")
    decode = DecodeTokens(model_folder, tokens=made.output)
    several = decode(rows[:3])["image"]
    assert [picture.size for picture in several] == [(60, 60)] * 3
    assert np.array_equal(np.asarray(decode(rows[2])["image"]), np.asarray(several[2]))
    assert DecodeTokens(model_folder)(rows[0])["image"].size == (64, 64)  # type: ignore[attr-defined]
    checkpoint = load_checkpoint(str(model_folder), "cpu")
    assert np.array_equal(
        np.asarray(several[1]), np.asarray(checkpoint.decode(np.array(rows[1]["image_tokens"]), (60, 60)))
    )
    with pytest.raises(ValueError, match="these tokens were made by 'org/tiny'"):
        DecodeTokens(other_model_folder, tokens=made.output)


def test_bad_rows(model_folder: Path, astronaut: Image.Image) -> None:
    encode, decode = EncodeImages(model_folder, size=64), DecodeTokens(model_folder)
    assert encode({"image": []})["image_tokens"].shape == (0, 8, 8)
    for call, rows, message in (
        (encode, {"picture": []}, "'image'.*'picture'"),
        (encode, {"image": [astronaut, b"nothing"]}, "row 1 of a batch of 2: not an image"),
        (decode, {"image": []}, "'image_tokens'.*'image'"),
        (decode, {"image_tokens": [np.full((8, 8), 64)]}, r"\[0, 64\)|outside|codebook"),
    ):
        with pytest.raises(ValueError, match=message):
            call(rows)
    with pytest.raises(ValueError, match="revision='main'"):
        EncodeImages(model_folder, "main")
    with pytest.raises(ValueError, match="/nowhere"):
        EncodeImages("/nowhere")


def test_a_fork_of_a_process_that_used_cuda(
    model_folder: Path, astronaut: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match=r"forked from one that had used CUDA.*set_start_method\('spawn'\)"):
        EncodeImages(model_folder, size=64)({"image": [astronaut]}, 1)
