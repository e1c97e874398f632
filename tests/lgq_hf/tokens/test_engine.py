import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from lgq_hf.checkpoint.loading import find_checkpoint, load_checkpoint
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing, cut_views
from lgq_hf.runtime import own_device, world
from lgq_hf.tokens import EncodeImages
from lgq_hf.tokens.encoding import Encoder
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.manifest import verify
from lgq_hf.tokens.shards import Folder, read_footer

Digests = Callable[[str | Path], dict[str, str]]
MakeJob = Callable[..., Job]


def test_rows_stand_in_order_and_hold_the_models_tokens(job: MakeJob, pictures: Path, model_folder: Path) -> None:
    made = job()
    manifest = tokenize(made)
    assert manifest is not None and manifest == verify(made.output)
    assert manifest == json.loads(Path(made.output, "manifest.json").read_text())
    names = [f"data/train-{number:05d}-of-00004.parquet" for number in range(4)]
    assert [shard["file"] for shard in manifest["shards"]] == names
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 3, 2]
    rows = datasets.load_dataset(made.output, split="train")
    files = sorted(pictures.rglob("*.jpg"))
    assert rows["id"] == [f"{file.parent.name}/{file.name}" for file in files]
    assert rows.features["label"].names == ["cats", "people"]
    assert [rows.features["label"].int2str(label) for label in rows["label"]] == [file.parent.name for file in files]
    assert (set(rows["crop"]), set(rows["flip"])) == ({"center"}, {False})
    checkpoint = load_checkpoint(str(model_folder), "cpu")
    for row, file in zip(rows.with_format("torch"), files, strict=True):
        pixels, _ = checkpoint.pixels(Image.open(file), 64)
        with torch.inference_mode():
            expected = checkpoint.model.encode(pixels.expand(4, -1, -1, -1)).image_tokens[0]
        assert torch.equal(row["image_tokens"], expected)
    assert len(np.unique(rows["image_tokens"])) > 5


def test_the_manifest_tells_what_was_done(job: MakeJob, pictures: Path, model_folder: Path) -> None:
    manifest, reference = tokenize(job()), find_checkpoint(str(model_folder))
    assert manifest is not None
    made_by, source = manifest.tokenizer, manifest.source
    assert (made_by.name, made_by.revision, made_by.codebook_size) == ("org/tiny", None, 64)
    assert (made_by.weights_sha256, made_by.codebook_sha256) == (reference.weights, reference.codebook)
    assert (made_by.config_sha256, manifest.preprocessing.processor_sha256) == (reference.config, reference.processor)
    assert (manifest.size, manifest.grid, manifest.dtype, manifest.encoding.batch_size) == (
        [64, 64],
        [8, 8],
        "uint16",
        4,
    )
    assert (source.kind, source.name, source.split, source.pictures) == ("folder", str(pictures), "train", 11)
    assert manifest.counts == {"pictures": 11, "rows": 11, "failures": 0}
    assert manifest.devices == ["cpu"] and manifest.versions[0]["torch"] == torch.__version__


def test_any_number_of_processes_writes_the_same_bytes(job: MakeJob, tmp_path: Path, digests: Digests) -> None:
    one = tokenize(job(tmp_path / "one"))
    for count in (2, 6):
        output = tmp_path / str(count)
        made = [tokenize(job(output), num_shards=count, shard_index=index) for index in range(count)]
        assert made[-1] == one
        assert made[: min(count, 4) - 1] == [None] * (min(count, 4) - 1)  # of six, two have nothing to do
        assert digests(output) == digests(tmp_path / "one")
    tokenize(job(tmp_path / "workers"), num_workers=2)
    assert digests(tmp_path / "workers") == digests(tmp_path / "one")


def test_a_second_run_makes_only_what_is_missing(job: MakeJob, digests: Digests) -> None:
    made = job()
    tokenize(made)
    before, files = digests(made.output), sorted(Path(made.output, "data").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    counted: list[int] = []
    tokenize(made, started=counted.append)
    assert counted == [0]
    files[1].write_bytes(files[1].read_bytes()[:-100])  # cut short, and so not there
    files[2].unlink()
    Path(made.output, "data", ".17-0123abcd.tmp.parquet").write_bytes(b"what a kill left")
    tokenize(made, started=counted.append)
    assert counted == [0, 6]
    assert digests(made.output) == before
    after = [file.stat().st_mtime_ns for file in files]
    assert [old == new for old, new in zip(times, after, strict=True)] == [True, False, False, True]


def test_kill_9_at_any_moment(job: MakeJob, tmp_path: Path, digests: Digests) -> None:
    tokenize(job(tmp_path / "whole", per_file=1))
    made = job(tmp_path / "killed", per_file=1)
    data = Path(made.output, "data")
    rng, left = random.Random(0), [0]
    for attempt in range(12):
        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                tokenize(made, num_shards=2, shard_index=attempt % 2, num_workers=attempt // 10)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 20  # after the first or second new file, or before there is any
        while len(list(data.glob("train-*"))) < left[-1] + attempt % 3 and time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                child = 0  # its share was finished
                break
            time.sleep(0.001)
        if child:
            time.sleep(rng.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        whole = sorted(data.glob("train-*"))
        for file in whole:
            with file.open("rb") as opened:
                assert read_footer(opened, file.name)
        left.append(len(whole))
    assert left == sorted(left) and len(set(left)) > 4
    tokenize(made)
    assert digests(made.output) == digests(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_shares_the_work(
    pictures: Path, model_folder: Path, job: MakeJob, tmp_path: Path, digests: Digests
) -> None:
    output = tmp_path / "tokens"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "lgq_hf.cli.main", "tokenize", str(pictures), "-o", str(output), "--model", str(model_folder)]
    command += ["--size", "64", "--batch-size", "4", "--pictures-per-file", "3", "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "11 pictures, 11 rows of 8 x 8 tokens in 4 files" in run.stdout
    made = job(tmp_path / "other")
    made = replace(made, plan=replace(made.plan, tokenizer=replace(made.plan.tokenizer, name=str(model_folder))))
    tokenize(made)
    assert digests(output) == digests(made.output)


def test_crops_and_copies_are_rows_of_their_own(job: MakeJob, pictures: Path, model_folder: Path) -> None:
    made = job(crops=5, crop_scale=1.25, flip=True, size=48)
    manifest = tokenize(made)
    assert manifest is not None and manifest["counts"]["rows"] == 110
    rows = datasets.load_dataset(made.output, split="train")
    views = Preprocessing(48, 5, 1.25, True).views()
    assert list(zip(rows["crop"], rows["flip"], strict=True)) == views * 11
    checkpoint = load_checkpoint(str(model_folder), "cpu")
    first, _ = cut_views(Image.open(pictures / rows[0]["id"]), checkpoint.processor, made.plan.preprocessing)
    values = checkpoint.processor(list(first.transpose(0, 2, 3, 1)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = torch.cat([checkpoint.model.encode(values[i : i + 4]).image_tokens for i in (0, 4)])
    assert np.array_equal(rows[:8]["image_tokens"], expected.numpy())


def test_mixed_sizes_keep_their_grids(job: MakeJob, pictures: Path, digests: Digests, tmp_path: Path) -> None:
    made = job(mixed_sizes=True, split="validation[:50%]")
    manifest = tokenize(made)
    assert manifest is not None and manifest["grid"] is None
    rows = datasets.load_dataset(made.output, split="validation").with_format("numpy")
    checkpoint = made.reference.load("cpu")
    for row in rows:
        picture = Image.open(pictures / row["id"])
        assert (row["original_width"], row["original_height"]) == picture.size
        pixels, _ = checkpoint.pixels(picture, None)
        with torch.inference_mode():
            expected = checkpoint.model.encode(pixels).image_tokens[0]
        assert (row["height"], row["width"]) == expected.shape
        agree = (row["image_tokens"].reshape(expected.shape) == expected.numpy()).mean()
        assert agree > 0.9  # another batch size rounds differently
    for index in range(2):
        tokenize(job(tmp_path / "two", mixed_sizes=True, split="validation"), num_shards=2, shard_index=index)
    assert digests(tmp_path / "two") == digests(made.output)


def test_batches_of_images_of_one_size_are_filled_up(
    job: MakeJob, chelsea: Image.Image, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution rounds by the size of its batch, on some machines: then tokens must not depend on what is left."""
    seen: list[int] = []
    original = Encoder.pixel_values

    def note(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Encoder, "pixel_values", note)
    tokenize(job())
    EncodeImages(model_folder, size=64, batch_size=4)({"image": [chelsea] * 5})
    assert set(seen) == {4}
    seen.clear()
    tokenize(job(tmp_path / "mixed", mixed_sizes=True))
    EncodeImages(model_folder, batch_size=4)({"image": [chelsea] * 5})
    assert seen[-2:] == [4, 1] and min(seen[:-2]) < 4


def test_sizes_that_differ_without_leave(job: MakeJob) -> None:
    with pytest.raises(ValueError, match=r"has 72 x 72 pixels.*80 x 72.*--mixed-sizes"):
        tokenize(job(size=None))
    with pytest.raises(ValueError, match="mixed_sizes"):
        job(mixed_sizes=True, size=64)


def test_pictures_that_cannot_be_read(job: MakeJob, pictures: Path, broken: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(pictures, folder)
    for name, file in broken.items():
        shutil.copy(file, folder / "cats" / f"00-{name}.jpg")
    made = job(source=open_source(str(folder)))
    manifest = tokenize(made)
    assert manifest is not None
    assert manifest.counts == {"pictures": 15, "rows": 11, "failures": 4}
    reasons = {failure["id"]: failure["reason"] for failure in manifest.failures}
    assert reasons["cats/00-empty.jpg"] == "empty file"
    assert reasons["cats/00-text.jpg"].startswith("not an image")
    assert len(datasets.load_dataset(made.output, split="train")) == 11
    verify(made.output)
    with pytest.raises(ValueError, match=r"cats/00-empty\.jpg: empty file .*--on-error"):
        tokenize(job(tmp_path / "stopped", source=open_source(str(folder)), on_error="stop"))
    with pytest.raises(ValueError, match="on_error.*'ignore'"):
        job(on_error="ignore")


def test_nothing_that_can_be_read(job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"nothing")
    source = open_source(str(tmp_path / "bad"))
    with pytest.raises(ValueError, match=r"not one of 1 pictures of .*a\.jpg: not an image"):
        job(source=source, size=None)
    with pytest.raises(ValueError, match=r"not one of 1 pictures could be read; the last: a\.jpg"):
        tokenize(job(source=source, mixed_sizes=True))


def test_an_output_that_holds_something_else(job: MakeJob, other_model_folder: Path, tmp_path: Path) -> None:
    tokenize(job())
    for other, message in (
        (job(like=find_checkpoint(str(other_model_folder))), "train-00000-of-00004.parquet .*weights_sha256"),
        (job(batch_size=8), "encoding.batch_size: 4 and 8"),
        (job(per_file=2), "train-00000-of-00004.parquet .*files: 4 and 6"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenize(other)
    foreign = tmp_path / "foreign"
    (foreign / "data").mkdir(parents=True)
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(foreign / "data" / "train-00000-of-00004.parquet")
    with pytest.raises(ValueError, match=r"train-00000-of-00004\.parquet in .* is no token shard"):
        tokenize(job(foreign))


def test_an_output_that_cannot_be_written(job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "data").write_text("a file where a folder belongs")
    with pytest.raises(OSError, match=r"cannot write data/train-00000-of-00004.parquet to .*tokens"):
        tokenize(job())


def test_an_output_elsewhere(job: MakeJob, digests: Digests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through fsspec, as on the Hub: each file arrives whole, by one call, and is not read again to be hashed."""
    fs, made, opened = fsspec.filesystem("memory"), job("memory://org/name"), list[str]()
    original = Folder.open
    try:
        tokenize(made, num_shards=2, shard_index=0)
        assert len(fs.ls("/org/name/data")) == 2
        monkeypatch.setattr(Folder, "open", lambda self, name: opened.append(name) or original(self, name))
        manifest = tokenize(made, num_shards=2, shard_index=1)
        assert Counter(opened) == dict.fromkeys(made.plan.names[::2], 2)  # the other's: footers, and to be hashed
        opened.clear()
        assert tokenize(made) == manifest
        assert Counter(opened) == {**dict.fromkeys(made.plan.names, 1), "manifest.json": 1}
        assert manifest == verify("memory://org/name")
        fs.get("/org/name/", str(tmp_path / "copy"), recursive=True)
    finally:
        fs.rm("/org", recursive=True)
    tokenize(job(tmp_path / "local"))
    assert digests(tmp_path / "copy") == digests(tmp_path / "local")


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert world() == (2, 4)
    assert world(1, 3) == (1, 3)
    with pytest.raises(ValueError, match="belong together"):
        world(world_size=3)
    with pytest.raises(ValueError, match="expected 0 to 2, .*got 3"):
        world(3, 3)


def test_each_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "6")
    devices = [own_device(device) for device in ("auto", "cuda", "cpu", "cuda:1")]
    assert devices == ["cuda:2", "cuda:2", "cpu", "cuda:1"]


@pytest.mark.parametrize("options", [{"per_file": 0}, {"split": "[]"}])
def test_options_out_of_range(job: MakeJob, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got (0|'\[\]')"):
        job(**options)
