"""Token files: the layout that is promised, and every file that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lgq_hf.cli.token_file import TokenFile, read_tokens, write_tokens


def token_file(**changes: Any) -> TokenFile:
    fields: dict[str, Any] = {
        "tokens": [np.arange(6, dtype=np.uint16).reshape(2, 3), np.full((1, 1), 63, np.uint16)],
        "original_sizes": np.array([[16, 20], [1, 8]]),
        "names": ["a/b.png", "ü \udc80\n.png"],
        "model": "some/model",
        "fingerprint": "ab" * 32,
        "codebook_size": 64,
        "downsample_factor": 8,
    }
    return TokenFile(**{**fields, **changes})


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape"), [(".safetensors", np.uint16, (2, 3)), (".npz", np.uint32, (2, 3, 4))]
)
def test_what_is_written_is_read(tmp_path: Path, suffix: str, dtype: type, shape: tuple[int, ...]) -> None:
    tokens = np.arange(24, dtype=dtype)[: int(np.prod(shape))].reshape(shape)
    written = token_file(tokens=[tokens, np.asfortranarray(tokens)], original_sizes=np.array([[9, 24], [16, 17]]))
    path = tmp_path / "new" / f"tokens{suffix}"
    write_tokens(path, written)
    read = read_tokens(path)
    for one, other in zip(written.tokens, read.tokens, strict=True):
        assert other.dtype == dtype
        assert (one == other).all()
    assert read.original_sizes.tolist() == [[9, 24], [16, 17]]
    assert (read.names, read.model, read.codebook_size) == (written.names, written.model, written.codebook_size)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_layout_can_be_read_without_us(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t.safetensors", token_file())
    write_tokens(tmp_path / "t.npz", token_file())
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        assert json.loads(str(file["metadata"])) == metadata
        arrays = {key: file[key] for key in file if key != "metadata"}
    assert set(tensors) == set(arrays) == {"image_tokens.000000", "image_tokens.000001", "original_sizes"}
    for key, tensor in tensors.items():
        assert (tensor == arrays[key]).all()
        assert tensor.dtype == arrays[key].dtype == (np.int64 if key == "original_sizes" else np.uint16)
    assert json.loads(metadata.pop("names")) == ["a/b.png", "ü \udc80\n.png"]
    assert metadata == {
        "format": "lgq-tokens",
        "format_version": "1",
        "model": "some/model",
        "fingerprint": "ab" * 32,
        "codebook_size": "64",
        "downsample_factor": "8",
    }


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


NOT_TOKENS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": (".safetensors", lambda path: path.write_text("tokens")),
    "weights with metadata": (".safetensors", lambda path: save_file({"w": np.zeros(3)}, path, {"format": "pt"})),
    "empty.npz": (".npz", lambda path: path.write_bytes(b"")),
    "npy": (".npz", _npy),
    "arrays": (".npz", lambda path: np.savez(path, w=np.zeros(3))),
    "pickle": (".npz", lambda path: np.savez(path, metadata=np.array([{}], dtype=object))),
    "a list": (".npz", lambda path: np.savez(path, metadata=np.array("[]"))),
}


@pytest.mark.parametrize("kind", list(NOT_TOKENS))
def test_what_is_no_token_file_is_refused(tmp_path: Path, kind: str) -> None:
    suffix, write = NOT_TOKENS[kind]
    write(tmp_path / f"t{suffix}")
    with pytest.raises(ValueError, match=rf"t\{suffix} is not a token file"):
        read_tokens(tmp_path / f"t{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_tokens(path, token_file())
    content = path.read_bytes()
    for length in range(0, len(content), 29):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a token file"):
            read_tokens(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["a", "b", "c"]}, "image_tokens.000002 is missing"),
        ({"names": ["a"]}, "image_tokens.000001"),
        ({"names": ["a", "a"]}, "all different"),
        ({"names": "ab"}, "names should be a list"),
        ({"names": ["a", 3]}, ""),
        *(
            ({"names": ["a", name]}, "is no relative name with '/' between folders")
            for name in ("../b", "/etc/b", "a/../../b", "", "b\0")
        ),
        ({"codebook_size": "many"}, "many"),
        ({"codebook_size": 63}, "has token 63, the codebook ends at 62"),
        ({"downsample_factor": 4}, "give 8 x 12 pixels, not 16 x 20"),
        ({"original_sizes": np.array([[16, 25], [1, 8]])}, "give 16 x 24 pixels, not 16 x 25"),
        ({"original_sizes": np.array([[16, 20]])}, r"original_sizes should be int64 \(2, 2\), got int64 \(1, 2\)"),
        (
            {"tokens": [np.zeros((2, 3)), np.zeros((1, 1))]},
            r"should be uint16 or uint32 \(h,w\), got float64 \(2, 3\)",
        ),
        ({"tokens": [np.zeros((0, 3), np.uint16)] * 2}, r"got uint16 \(0, 3\)"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.safetensors"
    write_tokens(path, token_file(**changes))
    with pytest.raises(ValueError, match=rf"t\.safetensors is damaged: .*{message}"):
        read_tokens(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    metadata = {"format": "lgq-tokens", "format_version": "2"}
    save_file({"x": np.zeros(1)}, tmp_path / "t.safetensors", metadata)
    with pytest.raises(ValueError, match="expected lgq-tokens, version 1, got lgq-tokens, version 2"):
        read_tokens(tmp_path / "t.safetensors")
