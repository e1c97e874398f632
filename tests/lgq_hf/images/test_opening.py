"""Which pictures are meant, what they are called, and what is wrong with those that cannot be read."""

import os
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from lgq_hf.images.opening import SUFFIXES, find_pictures, open_picture
from lgq_hf.images.stored import read_stored
from lgq_hf.tokenizer import image_processing_lgq
from lgq_hf.tokenizer.image_processing_lgq import formats, read_image


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names_of(*inputs: str | Path, leave_out: Path | None = None) -> list[str]:
    return [source.name for source in find_pictures([str(one) for one in inputs], leave_out)[0]]


def test_a_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/y.tiff", "notes.txt", ".hidden.png", ".git/x.png", "c.webp", "model.pt")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)  # not followed
    assert names_of(tmp_path) == ["b.JPG", "c.webp", "a/z.png", "a/b/y.tiff"]


def test_names_are_relative_to_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a/x.png", "in/y.png")
    monkeypatch.chdir(tmp_path)
    assert names_of("in") == names_of("in/") == names_of("./in") == names_of(tmp_path / "in") == ["y.png", "a/x.png"]
    assert names_of("in/a/x.png") == ["x.png"]
    monkeypatch.chdir(tmp_path / "in" / "a")
    assert names_of(".") == ["x.png"]
    assert names_of("..") == ["y.png", "a/x.png"]


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a/1.png", "in/b/1.png", "in/b/2.jpg", "in/b/readme.txt")
    monkeypatch.chdir(tmp_path)
    assert names_of("in/**/*.png") == ["a/1.png", "b/1.png"]
    assert names_of("in/?") == ["a/1.png", "b/1.png", "b/2.jpg"]  # folders
    assert names_of("in/b/*.jpg") == ["2.jpg"]
    assert names_of("i[n]/b/2.jpg") == ["in/b/2.jpg"]
    touch(tmp_path, "photo[1].png", "photo1.png")
    assert names_of("photo[1].png") == ["photo[1].png"]


def test_equal_names_get_folders_above(tmp_path: Path) -> None:
    touch(tmp_path, "one/x/a.png", "two/x/a.png", "two/b.png")
    assert names_of(tmp_path / "one/x", tmp_path / "two/x", tmp_path / "two/b.png") == [
        "one/x/a.png",
        "two/x/a.png",
        "b.png",
    ]


def test_a_picture_given_twice_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.png", "in/b.png")
    monkeypatch.chdir(tmp_path)
    assert names_of("in/b.png", "in", "in/*.png", tmp_path / "in" / "a.png") == ["b.png", "a.png"]


def test_a_former_output_is_passed_over_in_folders_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out.png")
    assert names_of(tmp_path, leave_out=tmp_path / "out.png") == ["a.png"]
    assert names_of(tmp_path / "out.png", leave_out=tmp_path / "out.png") == ["out.png"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "secret/b.png")
    scandir = os.scandir

    def forbidden(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    sources, failures = find_pictures([str(tmp_path)])
    assert [source.name for source in sources] == ["a.png"]
    assert failures == [(str(tmp_path / "secret"), "permission denied")]


def test_inputs_that_stand_for_nothing_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "empty/notes.txt")
    nothing = [str(tmp_path / "empty"), str(tmp_path / "*.gif")]
    sources, failures = find_pictures([str(tmp_path / "a.png"), *nothing])
    assert [source.name for source in sources] == ["a.png"]
    assert failures == [(text, "no pictures found") for text in nothing]
    with pytest.raises(ValueError, match=r"nothing to do: .*empty: no pictures found; .*\*\.gif: no pictures found"):
        find_pictures(nothing)


READ = "AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TGA, TIFF, WEBP"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("truncated", "truncated: "), ("header", "truncated: "), ("text", "not an image"), ("empty", "empty")],
)
def test_broken_files_say_what_is_wrong(broken: dict[str, Path], kind: str, reason: str) -> None:
    for source in (broken[kind], broken[kind].read_bytes()):
        with pytest.raises(ValueError, match=f"^{reason}"):
            read_image(source)


def test_other_formats_are_not_opened_whatever_they_are_called(
    tmp_path: Path, astronaut: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's reader of EPS would run Ghostscript."""
    known = Image.registered_extensions()
    assert formats() == tuple(sorted({known[suffix] for suffix in SUFFIXES}))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    for kind in ("EPS", "PCX", "ICO"):
        path = tmp_path / "photo.png"
        astronaut.resize((16, 16)).save(path, kind)
        for source in (path, path.read_bytes()):
            with pytest.raises(ValueError, match="^not an image that can be read, .*AVIF, BMP"):
                read_image(source)


def test_what_is_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no such file$"):
        read_image(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"^not a regular file$"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TGA"])
def test_a_file_cut_anywhere_fails_in_one_line_or_is_whole(tmp_path: Path, astronaut: Image.Image, kind: str) -> None:
    path = tmp_path / "whole"
    picture = astronaut.resize((64, 64))
    picture.save(path, kind)
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none may get out
        whole = np.asarray(open_picture(path)[0].convert("RGB"))
        reasons = []
        for length in range(1, len(content), max(1, len(content) // 40)):
            path.write_bytes(content[:length])
            try:
                read = open_picture(path)[0]
            except ValueError as error:
                reasons.append(str(error))
            else:  # nothing but an end marker was lost
                assert (np.asarray(read.convert("RGB")) == whole).all(), length
    assert len(reasons) > 30
    assert not any("\n" in reason or str(path) in reason for reason in reasons)


def test_warnings_are_returned_and_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # five entries announced, none there
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture, notes = open_picture(path)
    assert picture.size == (8, 8)
    assert notes
    assert "EXIF" in notes[0]


@pytest.mark.parametrize("limit", [1000, 3000])  # of which Pillow itself would refuse the first and warn at the second
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("1", (80, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, open_picture):
        with pytest.raises(ValueError, match=f"^decompression bomb: more than {limit} pixels"):
            read(tmp_path / "bomb.png")


def test_what_an_address_gives_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with fsspec.open("memory://images/large.png", "wb") as file:
        Image.new("RGB", (64, 64)).save(file, "PNG")
    assert read_stored("memory://images/large.png").size == (64, 64)
    monkeypatch.setattr(image_processing_lgq, "MAX_BYTES", 50)
    with pytest.raises(ValueError, match="more than 50 bytes"):
        read_stored({"bytes": None, "path": "memory://images/large.png"})
