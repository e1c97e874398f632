"""Reading foreign checkpoints: files, folders, tensors and digests."""

import argparse
import collections
import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion.plan import CheckpointError
from conversion.read import Inert, own_tensors, read_weights, weight_files
from tests.conversion.pickled import (
    LEGACY,
    WEIGHTS,
    is_inert,
    is_inert_class,
    refused,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vqgan_family"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


# ---- what is read


def test_lightning_callbacks_are_keyed_by_inert_classes() -> None:
    content = read_weights([FIXTURES / "taming_a" / "checkpoint.ckpt"])
    assert [is_inert_class(key) for key in content["callbacks"]] == [True]
    assert is_inert(read_weights([FIXTURES / "llamagen_a" / "checkpoint.pt"])["args"])


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "a.anything"])
def test_formats_go_by_content(tmp_path: Path, name: str, options: dict) -> None:
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, tmp_path / name, **options)
    content = read_weights([tmp_path / name])
    assert content["epoch"] == 3 and torch.equal(content["state_dict"]["weight"], WEIGHTS["weight"])


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.bin")
    assert torch.equal(read_weights([tmp_path / "a.bin"])["weight"], WEIGHTS["weight"])
    torch.save(WEIGHTS, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "under the name .safetensors")


def test_plain_objects_keep_their_values(file: Path) -> None:
    plain = {
        "sched": collections.Counter({30: 1}),
        "ordered": collections.OrderedDict(a=1),
        "misc": [1, 2**70, 1.5, "ä", b"bytes", {1, 2}, (None, True), 1 + 2j, torch.float16, torch.Size([2])],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "double": torch.ones(2, dtype=torch.float64)[1:],
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(True),
    }
    torch.save(plain, file)
    content = read_weights([file])
    assert {key: content[key] for key in ("sched", "ordered", "misc")} == {
        key: plain[key] for key in ("sched", "ordered", "misc")
    }
    assert content["double"].tolist() == [1] and content["empty"].shape == (0, 3) and content["scalar"].item()


# ---- damaged files and other files


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.3, 0.95, -1])
def test_truncated(file: Path, kind: str, part: float) -> None:
    content = {"a": torch.arange(500.0), "b": torch.arange(500)}
    save_file(content, file) if kind == "safetensors" else torch.save(
        content, file, **LEGACY if kind == "legacy" else {}
    )
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * part) if part > 0 else -1])
    refused(file, "truncated|damaged")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page"),
        (b"<html><head>", "HTML page"),
        (b'{"weight_map": {}}', "JSON"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "neither|damaged"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "neither safetensors nor"),
        (b"x", "neither"),
    ],
)
def test_other_files(file: Path, content: bytes, reason: str) -> None:
    file.write_bytes(content)
    refused(file, reason)


def test_other_archives(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photos/1.png", "x")
    refused(file, "without data.pkl")


@pytest.mark.parametrize("content", [torch.ones(2), [1], {1: torch.ones(2)}, argparse.Namespace()])
def test_content_that_is_no_dictionary(file: Path, content: object) -> None:
    torch.save(content, file)
    refused(file, "where a dictionary with names was expected")


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "model.ckpt", "No such file")


# ---- folders


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def write_index(folder: Path, names: list, name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {f"k{i}": n for i, n in enumerate(names)}}))
    return folder / name


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".pth", ".bin"])
def test_one_weight_file_in_a_folder(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", "config.json", "readme.md", f"._a{suffix}")
    (tmp_path / "folder.bin").mkdir()
    assert weight_files(tmp_path) == [tmp_path / f"a{suffix}"]
    assert weight_files(tmp_path / "readme.md") == [tmp_path / "readme.md"]


def test_safetensors_before_pickles_of_the_same_name(tmp_path: Path) -> None:
    touch(tmp_path, "model.safetensors", "model.bin", "model.ckpt")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    touch(tmp_path, "pytorch_model.bin")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize(
    "names",
    [("a.ckpt", "b.ckpt"), ("a.ckpt", "a.pt"), ("model.safetensors", "other.bin"), ("a.safetensors.ckpt", "b.pt")],
)
def test_ambiguous_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match=f"found: {', '.join(map(re.escape, names))}; name the file"):
        weight_files(tmp_path)


def test_nothing_to_find(tmp_path: Path) -> None:
    touch(tmp_path, "config.json")
    with pytest.raises(CheckpointError, match=r"none of \*.safetensors, \*.ckpt"):
        weight_files(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        weight_files(tmp_path / "nowhere")


def test_sharded_folder(tmp_path: Path) -> None:
    save_file({"weight": WEIGHTS["weight"]}, tmp_path / "b-2.safetensors")
    save_file({"bias": WEIGHTS["bias"]}, tmp_path / "a-1.safetensors")
    write_index(tmp_path, ["b-2.safetensors", "a-1.safetensors", "b-2.safetensors"])
    files = weight_files(tmp_path)
    assert [file.name for file in files] == ["a-1.safetensors", "b-2.safetensors"]
    content = read_weights(files)
    assert content.keys() == WEIGHTS.keys() and torch.equal(content["weight"], WEIGHTS["weight"])
    (tmp_path / "b-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="names b-2.safetensors, not in its folder"):
        weight_files(tmp_path)


def test_repeated_keys(tmp_path: Path) -> None:
    for name in ("m-1.bin", "m-2.bin"):
        torch.save(WEIGHTS, tmp_path / name)
    write_index(tmp_path, ["m-1.bin", "m-2.bin"], "model.bin.index.json")
    with pytest.raises(CheckpointError, match="m-2.bin' repeats 2 keys of other files, such as 'bias'"):
        read_weights(weight_files(tmp_path))


@pytest.mark.parametrize("name", ["../x.bin", "a\\x.bin", "/etc/x.bin", ""])
def test_shards_outside_the_folder(tmp_path: Path, name: str) -> None:
    touch(tmp_path.parent, "x.bin")
    write_index(tmp_path, [name])
    with pytest.raises(CheckpointError, match="no plain file name"):
        weight_files(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": []}}', "\xff"])
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(text, encoding="latin1")
    with pytest.raises(CheckpointError, match="no weight_map"):
        weight_files(tmp_path)


# ---- tensors and digests


def test_owned_tensors_are_contiguous_copies() -> None:
    base = torch.arange(12.0).view(3, 4)
    given = {
        "view": base.T,
        "same": base,
        "half": base.half()[1:],
        "brain": base.bfloat16(),
        "double": base.double() / 3,
        "parameter": torch.nn.Parameter(base),
        "expanded": torch.ones(1).expand(5),
        "last": base.view(1, 3, 2, 2).to(memory_format=torch.channels_last),
        "empty": torch.ones(0),
    }
    owned = own_tensors(given)
    assert owned.keys() == given.keys()
    for key, tensor in owned.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.requires_grad
        assert type(tensor) is torch.Tensor and torch.equal(tensor, given[key].float())
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    starts = {tensor.data_ptr() for key, tensor in owned.items() if key != "empty"}
    assert len(starts) == len(owned) - 1 and base.data_ptr() not in starts


def test_views_that_claim_terabytes(file: Path) -> None:
    torch.save({"a": torch.ones(1).expand(2**40)}, file)
    assert file.stat().st_size < 5000
    content = read_weights([file])
    with pytest.raises(CheckpointError, match=f"take {2**42} bytes"):
        own_tensors(content)
    many = {str(index): torch.ones(1).expand(2**30) for index in range(5)}
    with pytest.raises(CheckpointError, match=f"take {5 * 2**32} bytes"):
        own_tensors(many)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        Inert(),
        1.5,
    ],
)
def test_what_is_no_dense_float_tensor(tensor: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "to", None)  # nothing may be copied before all are looked at
    with pytest.raises(CheckpointError, match="'odd' is"):
        own_tensors({"good": torch.ones(1), "odd": tensor})  # type: ignore[dict-item]


def test_values_that_are_not_finite() -> None:
    tensors = {f"t{index}": torch.tensor([1.0, float("nan"), float("-inf")]) for index in range(7)}
    tensors["wide"] = torch.tensor([1e300], dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"15 values in 8 tensors are NaN.*: t0 \(2\), .*t4 \(2\);"):
        own_tensors(tensors)
    with pytest.raises(CheckpointError, match=r"wide \(1\)"):
        own_tensors({"wide": tensors["wide"]})
