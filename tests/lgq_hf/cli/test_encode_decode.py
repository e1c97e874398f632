"""`lgq encode` and `lgq decode`: the same tokens and pictures as the library gives, whatever the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.cli.decode import output_names
from lgq_hf.cli.token_file import read_tokens

Lgq = Callable[..., Any]


def direct(path: Path, model_folder: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and reconstruction of one picture by the library alone."""
    model, processor = LGQModel.from_pretrained(model_folder), LGQImageProcessor.from_pretrained(model_folder)
    inputs = processor(str(path), return_tensors="pt", **options)
    with torch.inference_mode():
        output = model(inputs["pixel_values"])
    picture = processor.postprocess(output.decoded_pixel_values, inputs["original_sizes"])[0]
    return output.image_tokens[0].numpy(), np.asarray(picture)


def save_kind(kind: str, folder: Path, picture: Image.Image) -> Path:
    """Saves `picture` as a file of the kind that is named."""
    path = folder / "picture.png"
    if kind == "rgb":
        picture.save(path)
    elif kind == "16 bit":
        values = np.asarray(picture.convert("L")).astype(np.uint16) * 257 + 13
        Image.fromarray(values.clip(0, 65535)).save(path)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 8
        picture.save(path := folder / "picture.jpg", exif=exif)
    elif kind == "one pixel":
        picture.crop((0, 0, 1, 1)).save(path)
    elif kind == "animation":
        picture.save(path := folder / "picture.gif", save_all=True, append_images=[picture.rotate(90)])
    return path


KINDS = ["rgb", "16 bit", "rotated", "one pixel", "animation"]


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_what_the_library_does(
    tmp_path: Path, lgq: Lgq, model_folder: Path, chelsea: Image.Image, kind: str
) -> None:
    path = save_kind(kind, tmp_path, chelsea)
    tokens, picture = direct(path, model_folder)
    result = lgq("encode", path, "-o", tmp_path / "tokens.safetensors")
    assert (result.status, result.err) == (0, "")
    file = read_tokens(tmp_path / "tokens.safetensors")
    assert (file.tokens[0] == tokens).all()
    assert file.tokens[0].dtype == np.uint16
    assert file.original_sizes.tolist() == [list(picture.shape[:2])]
    assert (file.names, file.codebook_size, file.downsample_factor) == ([path.name], 64, 8)
    assert lgq("decode", tmp_path / "tokens.safetensors", "-o", tmp_path / "out").status == 0
    with Image.open(tmp_path / "out" / "picture.png") as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", "RGB")
        assert (np.asarray(decoded) == picture).all()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["picture.png"]


@pytest.fixture
def album(tmp_path: Path, astronaut: Image.Image, chelsea: Image.Image) -> Path:
    """A folder of four pictures, two of them with one stem."""
    folder = tmp_path / "album"
    (folder / "cats").mkdir(parents=True)
    astronaut.resize((64, 64)).save(folder / "a.jpg")
    astronaut.resize((40, 30)).save(folder / "a.png")
    chelsea.save(folder / "cats" / "chelsea.webp")
    chelsea.resize((20, 10)).save(folder / "cats" / "b.c.tiff")
    return folder


@pytest.mark.parametrize("given", ["glob", "files"])
def test_folders_keep_their_shape(tmp_path: Path, lgq: Lgq, album: Path, given: str) -> None:
    inputs: dict[str, list[Path]] = {
        "glob": [album / "**" / "*.*"],
        "files": sorted(album.rglob("*.*")),
    }
    assert lgq("encode", *inputs[given], "-o", tmp_path / "t.npz").status == 0
    names = ["a.jpg", "a.png", "cats/b.c.tiff", "cats/chelsea.webp"]
    if given == "files":  # each is called by its own name
        names = [name.removeprefix("cats/") for name in names]
    assert read_tokens(tmp_path / "t.npz").names == names
    result = lgq("decode", tmp_path / "t.npz", "-o", tmp_path / "out")
    assert (result.status, result.out, result.err) == (0, f"{tmp_path / 'out'}: 4 pictures\n", "")
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    expected = ["a.jpg.png", "a.png.png", "cats/b.c.png", "cats/chelsea.png"]
    assert written == sorted(name.removeprefix("cats/") if given == "files" else name for name in expected)


@pytest.mark.parametrize(
    ("changes", "shape", "dtype"),
    [
        ({"codebook_size": 65537}, (8, 8), np.uint32),
        ({"codebook_mode": "per_channel", "codebook_size": 8}, (8, 8, 16), np.uint16),
    ],
)
def test_other_models(
    tmp_path: Path, lgq: Lgq, album: Path, make_model: Callable[..., Path], changes: Any, shape: Any, dtype: type
) -> None:
    folder = make_model(tmp_path / "model", **changes)
    tokens, picture = direct(album / "a.jpg", folder)
    assert lgq("encode", album / "a.jpg", "-o", tmp_path / "t.npz", "--model", folder).status == 0
    file = read_tokens(tmp_path / "t.npz")
    assert (file.tokens[0].shape, file.tokens[0].dtype) == (shape, dtype)
    assert (file.tokens[0] == tokens).all()
    assert lgq("decode", tmp_path / "t.npz", "-o", tmp_path, "--model", folder).status == 0
    with Image.open(tmp_path / "a.png") as decoded:
        assert (np.asarray(decoded) == picture).all()


def test_size_resizes_and_crops(tmp_path: Path, lgq: Lgq, album: Path, model_folder: Path) -> None:
    assert lgq("encode", album, "--size", "36", "-o", tmp_path / "t.npz").status == 0
    file = read_tokens(tmp_path / "t.npz")
    assert file.original_sizes.tolist() == [[36, 36]] * 4
    options = {"do_resize": True, "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 36}
    tokens, _ = direct(album / "cats" / "chelsea.webp", model_folder, **options)
    assert (file.tokens[3] == tokens).all()


def test_broken_pictures_are_listed_and_the_rest_is_done(
    tmp_path: Path, lgq: Lgq, album: Path, broken: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (500, 500)).save(album / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 512)
    missing = tmp_path / "missing.png"
    inputs = (missing, album, broken["text"], broken["truncated"], tmp_path / "*.bmp")
    result = lgq("encode", *inputs, "-o", tmp_path / "t.npz")
    assert result.status == 1
    assert read_tokens(tmp_path / "t.npz").names == ["a.jpg", "a.png", "cats/b.c.tiff", "cats/chelsea.webp"]
    assert result.out.startswith(f"{tmp_path / 't.npz'}: 4 pictures, ")
    first, listed = result.err.split("\n\n")
    reasons = {
        missing: "no such file",
        album / "bomb.png": "decompression bomb: more than 102400 pixels",
        broken["truncated"]: "truncated: the file ends before the picture does",
        broken["text"]: "not an image",
        tmp_path / "*.bmp": "no pictures found",
    }
    assert listed.splitlines()[0] == "lgq: 5 of 9 images failed:"
    for path, reason in reasons.items():
        assert f"lgq: {path}: {reason}" in first
        assert f"  {path}: {reason}" in listed


def test_where_all_fail_nothing_is_written(tmp_path: Path, lgq: Lgq, broken: dict[str, Path]) -> None:
    output = tmp_path / "new" / "t.npz"
    result = lgq("encode", broken["text"], broken["truncated"], "-o", output)
    assert (result.status, result.out) == (1, "")
    assert "2 of 2 images failed" in result.err
    assert not output.parent.exists()


def test_tokens_of_another_model_are_refused(
    tmp_path: Path, lgq: Lgq, album: Path, model_folder: Path, other_model_folder: Path
) -> None:
    lgq("encode", album, "-o", tmp_path / "t.npz")
    result = lgq("decode", tmp_path / "t.npz", "-o", tmp_path / "out", "--model", other_model_folder)
    assert (result.status, result.out) == (2, "")
    fingerprint = read_tokens(tmp_path / "t.npz").fingerprint
    assert f"was made by the model {model_folder} ({fingerprint[:12]}), not by {other_model_folder} (" in result.err
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_written_fails_alone(tmp_path: Path, lgq: Lgq, album: Path) -> None:
    lgq("encode", album, "-o", tmp_path / "t.npz")
    (tmp_path / "out" / "cats" / "chelsea.png").mkdir(parents=True)
    result = lgq("decode", tmp_path / "t.npz", "-o", tmp_path / "out")
    assert (result.status, result.out) == (1, f"{tmp_path / 'out'}: 3 pictures\n")
    assert "lgq: 1 of 4 images failed:\n  cats/chelsea.webp: [Errno 21] Is a directory" in result.err
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.png", "b.png"], ["a.jpg.png", "a.png.png", "b.png"]),
        (["a.jpg", "a.png", "a.jpg.bmp"], ["a.jpg.png", "a.png.png", "a.jpg.bmp.png"]),
        (["b.c.tiff", "b.c", ".jpg"], ["b.c.png", "b.png", ".jpg.png"]),
    ],
)
def test_output_names(names: list[str], expected: list[str]) -> None:
    assert output_names(names) == expected
