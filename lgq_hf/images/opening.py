"""Finding the images that the user means; `read_image` of the image processor opens them."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lgq_hf.tokenizer.image_processing_lgq import read_image, reason_of

# What a folder is searched for. A file that is named by itself may have any suffix; its content is of these formats.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif"}
    | {".tiff", ".webp"}
)


@dataclass(frozen=True)
class Source:
    """A picture to work on: its path as the user would write it, and its unique name with '/' between folders."""

    path: Path
    name: str


@dataclass(frozen=True)
class _Found:
    path: Path
    depth: int  # how many of the path's last parts make the name


def find_pictures(inputs: Sequence[str], leave_out: Path | None = None) -> tuple[list[Source], list[tuple[str, str]]]:
    """The pictures that files, folders and globs stand for, in the order given, each once.

    A folder is searched recursively for the suffixes of `SUFFIXES`, in sorted order, without hidden files and without
    following links to folders; `leave_out` (a former output) is passed over. Names are relative to the input folder,
    or to the part of a glob before its first wildcard; where two would be equal, folders above are added. A file that
    does not exist is returned as well: opening it tells.

    Returns:
        The pictures, and (input, reason) for each folder or glob that holds none or cannot be searched.

    Raises:
        ValueError: there is nothing to do, because no input stands for any picture.
    """
    found: dict[str, _Found] = {}
    failures: list[tuple[str, str]] = []
    for text in inputs:
        before = len(failures)
        pictures = _expand(text, leave_out, failures)
        if not pictures and len(failures) == before:
            failures.append((text, "no pictures found"))
        for one in pictures:
            found.setdefault(os.path.abspath(one.path), one)
    if not found:
        raise ValueError("nothing to do: " + "; ".join(f"{text}: {reason}" for text, reason in failures))
    names = _unique_names([(Path(key), one.depth) for key, one in found.items()])
    return [Source(one.path, name) for one, name in zip(found.values(), names, strict=True)], failures


def _expand(text: str, leave_out: Path | None, failures: list[tuple[str, str]]) -> list[_Found]:
    """The pictures of one input."""
    path = Path(text)
    if path.is_dir():
        matches, above = [path], path
    elif not os.path.lexists(path) and glob.has_magic(text):
        matches, above = [Path(match) for match in sorted(glob.glob(text, recursive=True))], _glob_root(path)
    else:
        matches, above = [path], path.parent
    pictures: list[Path] = []
    for match in matches:
        pictures.extend(_search(match, leave_out, failures) if match.is_dir() else [match])
    return [_Found(picture, max(1, _depth(picture) - _depth(above))) for picture in pictures]


def _depth(path: Path) -> int:
    return len(Path(os.path.abspath(path)).parts)


def _glob_root(pattern: Path) -> Path:
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _search(folder: Path, leave_out: Path | None, failures: list[tuple[str, str]]) -> Iterator[Path]:
    """Pictures below `folder` by suffix; a folder that cannot be read is noted in `failures`."""

    def note(error: OSError) -> None:
        failures.append((str(error.filename), reason_of(error)))

    left_out = leave_out and os.path.abspath(leave_out)
    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES and os.path.abspath(path) != left_out:
                yield path


def _unique_names(paths: Sequence[tuple[Path, int]]) -> list[str]:
    """The last `depth` parts of each path, and as many more as it takes to tell them apart."""
    depths = [depth for _, depth in paths]
    while True:
        names = ["/".join(path.parts[1:][-depth:]) for (path, _), depth in zip(paths, depths, strict=True)]
        counts = Counter(names)
        if len(counts) == len(names):
            return names
        depths = [depth + (counts[name] > 1) for depth, name in zip(depths, names, strict=True)]


def open_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """Reads a picture as `read_image` does, and collects warnings; for one thread, since filters belong to all.

    Returns:
        The picture, of any mode, and what Pillow warned of (a damaged EXIF block, for example).

    Raises:
        ValueError: as `read_image`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = read_image(path)
    return picture, [str(warning.message) for warning in caught]


def check_shorter_side(picture: Image.Image, size: int) -> None:
    """Refuses (`ValueError`) a picture too long and thin to be resized until its shorter side has `size` pixels."""
    resized = size * size * max(picture.size) // min(picture.size)
    if Image.MAX_IMAGE_PIXELS is not None and resized > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels is too long and thin for a size of {size}: it would have "
            f"{resized} pixels before it is cropped"
        )


__all__ = [
    "SUFFIXES",
    "Source",
    "check_shorter_side",
    "find_pictures",
    "open_picture",
]
