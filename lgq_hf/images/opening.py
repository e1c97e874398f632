"""Finding the pictures that the user means, and opening one of them safely."""

import errno
import glob
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

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


@cache
def formats() -> tuple[str, ...]:
    """The formats of `SUFFIXES`, as Pillow names them; those alone are opened, whatever a file is called.

    Pillow has readers that start programs: that of EPS runs Ghostscript. One that it was built without is left out.
    """
    known = Image.registered_extensions()
    return tuple(sorted({known[suffix] for suffix in SUFFIXES if suffix in known}))


def open_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """Reads a picture as `read_picture` does, and collects warnings; for one thread, since filters belong to all.

    Returns:
        The picture, of any mode, and what Pillow warned of (a damaged EXIF block, for example).

    Raises:
        ValueError: as `read_picture`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = read_picture(path)
    return picture, [str(warning.message) for warning in caught]


def read_picture(source: Path | bytes) -> Image.Image:
    """Reads a file, or the content of one, to its end and turns it upright as its EXIF orientation says.

    Returns:
        The picture, of any mode; what Pillow warns of is left to the filters of `warnings`.

    Raises:
        ValueError: the file is missing, forbidden, no regular file, no image of one of `formats`, truncated, damaged,
            or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`; the message is one line without the path.
    """
    if isinstance(source, Path):
        _check_file(source)
    elif not source:
        raise ValueError("empty file")
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source), formats=formats()) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height}")  # Pillow itself may only warn
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(_other_format(source) or reason_of(error)) from error
    except Exception as error:  # Pillow's readers meet hostile bytes with errors of every type
        raise ValueError(reason_of(error)) from error


def _other_format(source: Path | bytes) -> str:
    """Says of a picture in another format of Pillow's, known by its first bytes, what is read; empty for the rest."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(16)
    start = source[:16].ljust(16, b"\0")  # as many as Pillow looks at
    for name, (_, accepts) in Image.OPEN.items():
        if name not in formats() and accepts is not None and accepts(start) is True:
            return f"expected a picture in one of the formats {', '.join(formats())}, got {name}: convert it"
    return ""


def check_shorter_side(picture: Image.Image, size: int) -> None:
    """Refuses (`ValueError`) a picture too long and thin to be resized until its shorter side has `size` pixels."""
    resized = size * size * max(picture.size) // min(picture.size)
    if Image.MAX_IMAGE_PIXELS is not None and resized > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels is too long and thin for a size of {size}: it would have "
            f"{resized} pixels before it is cropped"
        )


def _check_file(path: Path) -> None:
    """Refuses what cannot be opened like a file; opening a named pipe would wait for ever."""
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(reason_of(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if not status.st_size:
        raise ValueError("empty file")


def reason_of(error: Exception) -> str:
    """Why a picture could not be read, in one line."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read, or damaged in its header"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"decompression bomb: more than {Image.MAX_IMAGE_PIXELS} pixels ({text})"
    if isinstance(error, MemoryError):
        return "not enough memory to read it"
    if isinstance(error, OSError) and error.errno is not None:
        words = {errno.ENOENT: "no such file", errno.EACCES: "permission denied", errno.EPERM: "permission denied"}
        return words.get(error.errno, os.strerror(error.errno))
    if "truncated" in text.lower():  # not all formats' readers say so
        return "truncated: the file ends before the picture does"
    return f"damaged or truncated: {text or type(error).__name__}"


__all__ = [
    "SUFFIXES",
    "Source",
    "check_shorter_side",
    "find_pictures",
    "formats",
    "open_picture",
    "read_picture",
    "reason_of",
]
