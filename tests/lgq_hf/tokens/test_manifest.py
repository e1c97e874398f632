import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from pyarrow import parquet

from lgq_hf import LGQModel
from lgq_hf.checkpoint.loading import find_checkpoint
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.manifest import check_tokenizer, finish, read_manifest, verify
from lgq_hf.tokens.plan import differences, file_names, identity, pictures_of, pictures_per_file
from lgq_hf.tokens.shards import Folder


@pytest.fixture
def tokens(job: Callable[..., Job]) -> Path:
    made = job()
    tokenize(made)
    return Path(made.output)


def _rehash(folder: Path, number: int) -> None:
    """Makes the manifest agree with a file's bytes, so that only what is in it can betray it."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["shards"][number]
    content = (folder / shard["file"]).read_bytes()
    shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_verify_finds_what_is_damaged(tokens: Path, tmp_path: Path) -> None:
    verify(tokens)
    file = tokens / "data" / "train-00001-of-00004.parquet"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match=r"train-00001-of-00004.parquet: its \d+ bytes have sha256 \w{12}, expected"):
        verify(tokens)
    file.unlink()
    with pytest.raises(ValueError, match="train-00001-of-00004.parquet is missing"):
        verify(tokens)
    file.write_bytes(whole)
    shutil.copy(file, tokens / "data" / "train-00009-of-00004.parquet")
    with pytest.raises(ValueError, match="data/train-00009-of-00004.parquet is not in manifest.json"):
        verify(tokens)


def test_verify_looks_into_the_files(tokens: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    file = tokens / "data" / "train-00001-of-00004.parquet"
    whole = file.read_bytes()
    table = parquet.read_table(file)
    parquet.write_table(table.slice(1), file)
    _rehash(tokens, 1)
    with pytest.raises(ValueError, match=r"00001-of-00004.parquet has 2 rows, expected 3"):
        verify(tokens)
    parquet.write_table(table.take([0, 1, 1]), file)
    _rehash(tokens, 1)
    with pytest.raises(ValueError, match="00001-of-00004.parquet holds a row twice"):
        verify(tokens)
    other = job(tmp_path / "other", batch_size=2)
    tokenize(other)
    shutil.copy(Path(other.output, "data", file.name), file)
    _rehash(tokens, 1)
    with pytest.raises(ValueError, match=r"00001.* is of another plan: encoding.batch_size: 2 and 4"):
        verify(tokens)
    file.write_bytes(whole)
    _rehash(tokens, 1)
    manifest = json.loads((tokens / "manifest.json").read_text())
    largest = max(
        pc.max(parquet.read_table(one)["image_tokens"].combine_chunks().storage.flatten().flatten()).as_py()
        for one in (tokens / "data").glob("*.parquet")
    )
    manifest["tokenizer"]["codebook_size"] = largest
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"token {largest}, but there are {largest} codes"):
        verify(tokens)
    manifest["tokenizer"]["codebook_size"] = 64
    manifest["grid"] = [8, 9]
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"grids of \[8\] tokens along one side, expected \[9\]"):
        verify(tokens)


def test_manifests_that_cannot_be_used(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json in .*: expected a folder that `lgq tokenize` finished"):
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


def test_names_do_not_matter_and_contents_do(job: Callable[..., Job], tmp_path: Path) -> None:
    plan, other = job().plan, job().plan
    other["tokenizer"]["name"], other["source"]["name"] = "elsewhere", "moved"
    assert identity(plan) == identity(other)
    other["source"]["sha256"] = "0"
    assert identity(plan) != identity(other)
    assert [line.partition(":")[0] for line in differences(plan, other)] == [
        "source.name",
        "source.sha256",
        "tokenizer.name",
    ]


def test_files_cover_every_picture_once() -> None:
    for count in (1, 63, 64, 65, 4096, 4097, 1_281_167):
        per_file = pictures_per_file(count)
        plan = {"pictures_per_file": per_file, "files": -(-count // per_file)}
        plan |= {"source": {"pictures": count, "split": "train"}}  # type: ignore[dict-item]
        ranges = [pictures_of(plan, number) for number in range(len(file_names(plan)))]
        assert ranges[0].start == 0 and ranges[-1].stop == count
        assert all(one.stop == two.start and len(one) == per_file for one, two in itertools.pairwise(ranges))
    assert pictures_per_file(4096) == 64 and pictures_per_file(10**6) == 15625 and pictures_per_file(10**8) == 16384


def test_two_processes_that_finish_at_once(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One finds its temporary file gone, because the other has written the manifest and tidied up."""
    manifest, file = read_manifest(tokens), tokens / "manifest.json"
    whole = file.read_text()
    found = ("counts", "failures", "devices", "versions", "shards")
    plan = {key: value for key, value in manifest.items() if key not in found}
    folder = Folder(tokens)

    @contextmanager
    def overtaken(self: Folder, name: str) -> Iterator[Path]:
        yield tokens / ".1-ab.tmp.json"
        (tokens / ".1-ab.tmp.json").unlink()
        file.write_text(whole + extra)
        raise FileNotFoundError(name)

    monkeypatch.setattr(Folder, "write", overtaken)
    for extra in ("", " "):
        file.unlink()
        if not extra:
            assert finish(plan, folder) == manifest
        else:
            with pytest.raises(FileNotFoundError):
                finish(plan, folder)


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
        (
            lambda manifest: manifest["tokenizer"].update(revision="abc"),
            "is of revision None, manifest.json says anot",
        ),
        (lambda manifest: manifest.pop("counts"), "manifest.json in .* is damaged: KeyError 'counts'"),
        (lambda manifest: manifest.pop("shards"), "manifest.json in .* is damaged: KeyError 'shards'"),
        (lambda manifest: manifest["shards"][0].update(rows="3"), "is damaged: TypeError expected int, got '3'"),
    ],
)
def test_a_manifest_that_was_changed(tokens: Path, change: Callable[[Any], Any], message: str) -> None:
    manifest = read_manifest(tokens)
    change(manifest)
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        verify(tokens)
