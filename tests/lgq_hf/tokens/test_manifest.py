import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from lgq_hf import LGQModel
from lgq_hf.checkpoint.loading import Reference, find_checkpoint
from lgq_hf.images.views import Preprocessing
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.manifest import check_tokenizer, read_manifest, verify
from lgq_hf.tokens.plan import Encoding, differences, make_plan
from lgq_hf.tokens.reading import TokenStream


@pytest.fixture
def tokens(job: Callable[..., Job]) -> Path:
    made = job()
    tokenize(made)
    return Path(made.output)


def test_verify_finds_what_is_damaged(tokens: Path) -> None:
    verify(tokens)
    file = tokens / "data" / "train-00001-of-00004.parquet"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match=r"00001-of-00004.parquet has \d+ bytes with sha256"):
        verify(tokens)
    file.unlink()
    with pytest.raises(ValueError, match="00001-of-00004.parquet is missing"):
        verify(tokens)
    file.write_bytes(whole)
    shutil.copy(file, tokens / "data" / "train-00009-of-00004.parquet")
    with pytest.raises(ValueError, match="data/train-00009-of-00004.parquet is not in"):
        verify(tokens)


def test_verify_looks_into_the_files(tokens: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    file, place = tokens / "data" / "train-00001-of-00004.parquet", tokens / "manifest.json"
    table, manifest = parquet.read_table(file), json.loads(place.read_text())
    tokenize(job(tmp_path / "other", batch_size=2))
    parquet.write_table(table.slice(1), tmp_path / "short")
    parquet.write_table(table.take([0, 1, 1]), tmp_path / "twice")
    changed = {**manifest, "shards": [dict(shard) for shard in manifest["shards"]]}
    for damaged, message in (
        (tmp_path / "short", "has 2 rows, expected 3"),
        (tmp_path / "twice", "holds a row twice"),
        (tmp_path / "other" / "data" / file.name, "is of another plan: encoding.batch_size: 2 and 4"),
    ):
        whole = file.read_bytes()
        content = damaged.read_bytes()
        file.write_bytes(content)
        changed["shards"][1] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        place.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"00001-of-00004.parquet {message}"):
            verify(tokens)
        file.write_bytes(whole)
    place.write_text(json.dumps(manifest))
    largest = max(int(row["image_tokens"].max()) for row in TokenStream(tokens))
    fewer = {**manifest["tokenizer"], "codebook_size": largest}
    for change, message in (
        ({"tokenizer": fewer}, f"token {largest}, but there are {largest} codes"),
        ({"grid": [8, 9]}, r"grids of \[8\] tokens along one side, expected \[9\]"),
    ):
        place.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=message):
            verify(tokens)


def test_manifests_that_cannot_be_used(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json in"):
        read_manifest(tmp_path)
    (tokens / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json in .* is damaged"):
        read_manifest(tokens)
    (tokens / "manifest.json").write_text(json.dumps({"format": "lgq-token-shards", "format_version": 2}))
    with pytest.raises(ValueError, match="expected format 'lgq-token-shards' version 1, got 'lgq-token-shards' 2"):
        read_manifest(tokens)


def test_another_tokenizer_is_refused(tokens: Path, model_folder: Path, other_model_folder: Path) -> None:
    manifest = read_manifest(tokens)
    check_tokenizer(manifest, model_folder)
    check_tokenizer(manifest, find_checkpoint(str(model_folder)))
    message = r"these tokens were made by 'org/tiny' \(weights_sha256 \w{12}, K=64\), not by .*other"
    with pytest.raises(ValueError, match=message):
        check_tokenizer(manifest, other_model_folder)
    with pytest.raises(ValueError, match=message):
        check_tokenizer(manifest, LGQModel.from_pretrained(other_model_folder))
    model = LGQModel.from_pretrained(model_folder)
    check_tokenizer(manifest, model)
    with torch.no_grad():
        next(model.decoder.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match="these tokens were made by"):
        check_tokenizer(manifest, model)


def test_in_half_precision_the_codebook_tells(tokens: Path, model_folder: Path, other_model_folder: Path) -> None:
    manifest = read_manifest(tokens)
    check_tokenizer(manifest, LGQModel.from_pretrained(model_folder, dtype=torch.bfloat16))
    check_tokenizer(manifest, LGQModel.from_pretrained(model_folder).half())
    with pytest.raises(ValueError, match=r"made by 'org/tiny' \(codebook_sha256"):
        check_tokenizer(manifest, LGQModel.from_pretrained(other_model_folder, dtype=torch.bfloat16))


def test_names_do_not_matter_and_contents_do(job: Callable[..., Job]) -> None:
    plan = job().plan
    moved = replace(
        plan, tokenizer=replace(plan.tokenizer, name="elsewhere"), source=replace(plan.source, name="moved")
    )
    assert plan.identity() == moved.identity()
    other = replace(moved, source=replace(moved.source, sha256="0"))
    assert plan.identity() != other.identity()
    found = [line.partition(":")[0] for line in differences(plan, other)]
    assert found == ["source.name", "source.sha256", "tokenizer.name"]


def test_the_layout_of_files_that_others_wrote(tokens: Path) -> None:
    """Shards of earlier versions are read and continued by these names and this order."""
    plan = ["format", "format_version", "tokenizer", "size", "grid", "dtype", "encoding", "preprocessing", "source"]
    plan += ["pictures_per_file", "files", "features"]
    content = json.loads((tokens / "manifest.json").read_text())
    assert list(content) == [*plan, "counts", "failures", "devices", "versions", "shards"]
    assert list(content["preprocessing"]) == ["size", "crops", "crop_scale", "flip", "processor_sha256", "processor"]
    assert list(content["shards"][0]) == ["file", "rows", "bytes", "sha256"]
    footer = parquet.read_metadata(tokens / "data" / "train-00003-of-00004.parquet").metadata[b"lgq_hf"]
    told = json.loads(footer)
    assert footer.decode() == json.dumps(told, sort_keys=True)
    assert told == {
        "plan": {name: content[name] for name in plan},
        "file": 3,
        "pictures": 2,
        "rows": 2,
        "failures": [],
        "device": "cpu",
        "versions": content["versions"][0],
    }
    manifest = read_manifest(tokens)
    assert manifest == asdict(manifest) == content
    assert manifest["tokenizer"]["codebook_size"] == 64 and {**manifest["counts"]} == content["counts"]
    with pytest.raises(KeyError):
        manifest["codes"]


@pytest.mark.parametrize(
    ("count", "per_file"),
    [(1, 64), (64, 64), (65, 64), (4096, 64), (4097, 65), (1_281_167, 16384), (10**6, 15625), (10**8, 16384)],
)
def test_files_cover_every_image_once(reference: Reference, count: int, per_file: int) -> None:
    methods = {"digest": lambda self: "0", "__len__": lambda self: count}  # nothing is read: all are cut to one size
    many = type("Many", (), {"kind": "folder", "name": "many", "features": {}, **methods})()
    plan = make_plan(reference, "org/tiny", many, Preprocessing(64), Encoding())
    ranges = [plan.pictures_of(number) for number in range(len(plan.names))]
    assert ranges[0].start == 0 and ranges[-1].stop == count and len(ranges[0]) == min(count, per_file)
    assert all(one.stop == two.start and len(one) == per_file for one, two in itertools.pairwise(ranges))


def test_a_rerun_does_not_make_a_damaged_shard_good(job: Callable[..., Job]) -> None:
    made = job()
    tokenize(made)
    shard = Path(made.output, "data", "train-00001-of-00004.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(
        ValueError, match=r"00001-of-00004\.parquet in .* does not have the bytes that manifest\.json says"
    ):
        tokenize(made)
    shard.unlink()
    tokenize(made)
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["counts"].update(pictures=99), "counts.pictures: 99 and 11"),
        (lambda manifest: manifest.update(devices=["tpu"]), "devices: .*tpu"),
        (lambda manifest: manifest["tokenizer"].update(revision="abc"), "is of revision None"),
        (lambda manifest: manifest.pop("counts"), "manifest.json in .* is damaged: .*'counts'"),
        (lambda manifest: manifest["shards"][0].update(rows="3"), "'rows' expected int, got str"),
    ],
)
def test_a_manifest_that_was_changed(tokens: Path, change: Callable[[Any], Any], message: str) -> None:
    manifest = json.loads((tokens / "manifest.json").read_text())
    change(manifest)
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        verify(tokens)
