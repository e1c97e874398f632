"""Judge one picture file for a training corpus and write the pictures made from it.

Pictures here are 8-bit RGB, values 0..255, sizes in pixels as (width, height).
"""

import hashlib
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SMALLEST_SIDE = 128  # pixels; below this an upscaled picture would be needed
LARGEST_ASPECT = 4.0  # long side / short side; strips and atlases lie above
LARGE_SIDE = 1024  # pixels of shorter side from which extra crops are taken
SAMPLE_SIDE = 64  # pixels; all content tests look at a picture of this size
GROUNDS = ((128, 128, 128), (255, 255, 255))
VALIDATION_PERCENT = 2

_AUXILIARY_WORDS = (
    r"norm|normal|normals|normalmap|nmap|nm|nrm|n|bump|bumpmap|gloss|glossy|glossmap|spec|specular|sm|gm|glow|luma|height|"
    r"heightmap|local|mask|colou?rmask|alpha|alphamask|ao|roughness|metalness|metallic|displacement|pbr|pbrdata|"
    r"shadow|shirt|pants|ibl"
)
_AUXILIARY_NAME = re.compile(rf"[_\-.]({_AUXILIARY_WORDS})([_\-.]?\d+)?$")
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, NotImplementedError)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Job:
    """One picture file and what to make of it; `name` is its path inside the package."""

    path: Path
    name: str
    output: Path
    package: str
    split: str
    short_side: int
    seed: int
    photographs_only: bool = False
    colour_suffixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Either `drop` holds the reason, or `files` lists (path below the output folder, width, height)."""

    name: str
    drop: str = ""
    split: str = ""
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    files: list[tuple[str, int, int]] = field(default_factory=list)
    fingerprint: dict[str, str] = field(default_factory=dict)


class Dropped(Exception):
    """Raised inside `process` with the reason why a picture is not kept."""


def is_auxiliary_name(name: str, colour_suffixes: tuple[str, ...] = ()) -> bool:
    """Whether a file name says normal, bump, gloss, specular, glow or height map, or mask.

    `colour_suffixes` are suffixes such as "_n" that mean something else in this package and do not count.
    """
    stem = Path(name).stem.lower()
    found = _AUXILIARY_NAME.search(stem)
    return found is not None and not stem.endswith(colour_suffixes)


def sample_pixels(picture: Image.Image) -> np.ndarray:
    """Picked, not averaged, pixels of a picture: int64 (64, 64, 3), values 0..255."""
    picked = picture.convert("RGB").resize((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.NEAREST)
    return np.asarray(picked).astype(np.int64)


def is_normal_map(pixels: np.ndarray) -> bool:
    """Whether pixels (h, w, 3), 0..255, look like tangent-space normals: unit vectors that point at blue."""
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    if abs(red - 128) > 30 or abs(green - 128) > 30 or blue < 150:
        return False
    lengths = np.linalg.norm(pixels / 127.5 - 1.0, axis=-1)
    bluest = (pixels[..., 2] > pixels[..., 0]) & (pixels[..., 2] > pixels[..., 1])
    unit = np.abs(lengths - 1.0) < 0.15
    return bool(bluest.mean() > 0.85 and unit.mean() > 0.7)


def commonest_share(pixels: np.ndarray) -> float:
    """Share 0..1 of pixels (h, w, 3), 0..255, in the commonest of 16x16x16 colours."""
    coarse = pixels.reshape(-1, 3) // 16
    return float(np.bincount(coarse @ np.array([256, 16, 1]), minlength=4096).max() / len(coarse))


def distinct_colours(pixels: np.ndarray) -> int:
    """Number of different colours among pixels (h, w, 3), 0..255."""
    return len(np.unique(pixels.reshape(-1, 3) @ np.array([65536, 256, 1])))


def is_two_level(pixels: np.ndarray) -> bool:
    """Whether pixels (h, w, 3), 0..255, hold two far apart brightness levels and hardly anything else."""
    counts = np.bincount(pixels.mean(axis=-1).astype(np.int64).ravel() // 8, minlength=32)
    second, first = np.argsort(counts, kind="stable")[-2:]
    return bool(counts[first] + counts[second] > 0.95 * counts.sum() and abs(int(first) - int(second)) >= 8)


def reason_to_drop(pixels: np.ndarray, photographs_only: bool = False) -> str:
    """Why pixels (h, w, 3), 0..255, of a whole picture should not be learned from; "" where they should."""
    brightness = pixels @ np.array([0.299, 0.587, 0.114])
    if brightness.std() < 6.0:
        return "near-constant"
    if distinct_colours(pixels) < 16 or is_two_level(pixels):
        return "mask or few colours"
    share = commonest_share(pixels)
    if share > 0.85:
        return "one colour nearly everywhere"
    if photographs_only and (share > 0.25 or distinct_colours(pixels) < 96):
        return "not a photograph"
    return ""


def fingerprint(picture: Image.Image) -> dict[str, str]:
    """What duplicates share, as hexadecimal text: `exact` (sha256 of the 64x64 RGB thumbnail), `shape` (64-bit
    difference hash of the brightness) and `colours` (mean RGB of a 4x4 grid, 48 bytes)."""
    thumbnail = picture.resize((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.BOX)
    grey = np.asarray(thumbnail.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int64)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return {
        "exact": hashlib.sha256(thumbnail.tobytes()).hexdigest(),
        "shape": bits.tobytes().hex(),
        "colours": thumbnail.resize((4, 4), Image.Resampling.BOX).tobytes().hex(),
    }


def _hashed(sha256: str, seed: int, use: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{use}:{sha256}".encode()).digest()[:8], "big")


def validation_split(sha256: str, seed: int) -> bool:
    """Whether a source file with this sha256 belongs to the 2 % of training pictures kept for validation."""
    return _hashed(sha256, seed, "split") % 100 < VALIDATION_PERCENT


def flatten(picture: Image.Image, sha256: str, seed: int) -> Image.Image:
    """RGB picture without transparency, on mid grey or white as the source's sha256 decides.

    Raises Dropped where hardly anything is opaque.
    """
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layers = picture.convert("RGBA")
    if np.asarray(layers.getchannel("A").resize((SAMPLE_SIDE, SAMPLE_SIDE))).mean() < 0.15 * 255:
        raise Dropped("almost transparent")
    ground = Image.new("RGBA", layers.size, (*GROUNDS[_hashed(sha256, seed, "ground") % 2], 255))
    return Image.alpha_composite(ground, layers).convert("RGB")


def shrink(picture: Image.Image, short_side: int) -> Image.Image:
    """The picture with its shorter side at most `short_side` pixels; never enlarged."""
    width, height = picture.size
    scale = short_side / min(width, height)
    if scale >= 1:
        return picture
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def corner_crops(picture: Image.Image, short_side: int) -> list[Image.Image]:
    """The corner squares of `short_side` pixels from the picture at twice the scale, less those without content."""
    double = shrink(picture, 2 * short_side)
    lefts, tops = (0, double.width - short_side), (0, double.height - short_side)
    boxes = [(left, top, left + short_side, top + short_side) for top in tops for left in lefts]
    return [crop for crop in map(double.crop, boxes) if not reason_to_drop(sample_pixels(crop))]


def _open(job: Job) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded, upright picture and its size in the file."""
    with Image.open(job.path) as picture:
        size = picture.size
        if min(size) < SMALLEST_SIDE:
            raise Dropped(f"shorter side < {SMALLEST_SIDE} px")
        if max(size) > LARGEST_ASPECT * min(size):
            raise Dropped(f"aspect ratio > {LARGEST_ASPECT:g}")
        if picture.mode[0] in "IF":
            raise Dropped("not 8 bits a channel")
        scale = min(1.0, 4 * job.short_side / min(size))  # JPEG decodes faster at a half, quarter or eighth
        picture.draft(None, (round(size[0] * scale), round(size[1] * scale)))
        upright = ImageOps.exif_transpose(picture)
        upright.load()
    return upright, size if (upright.width > upright.height) == (size[0] > size[1]) else (size[1], size[0])


def _write(picture: Image.Image, output: Path, name: str) -> tuple[str, int, int]:
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(temporary, format="PNG", compress_level=2)
    os.replace(temporary, path)
    return name, picture.width, picture.height


def _keep(job: Job) -> Outcome:
    if is_auxiliary_name(job.name, job.colour_suffixes):
        raise Dropped("normal, gloss or other map by name")
    decoded, size = _open(job)
    if is_normal_map(sample_pixels(decoded)):  # before flattening: their alpha often holds heights
        raise Dropped("normal map by content")
    sha256 = hashlib.sha256(job.path.read_bytes()).hexdigest()
    picture = flatten(decoded, sha256, job.seed)
    reason = reason_to_drop(sample_pixels(picture), job.photographs_only)
    if reason:
        raise Dropped(reason)
    split = "validation" if job.split == "train" and validation_split(sha256, job.seed) else job.split
    made: list[Image.Image] = [shrink(picture, job.short_side)]
    if min(size) >= max(LARGE_SIDE, 2 * job.short_side):
        made += corner_crops(picture, job.short_side)
    base = f"images/{split}/{job.package}/{sha256[:16]}"
    files = [_write(image, job.output, f"{base}-{i}.png" if i else f"{base}.png") for i, image in enumerate(made)]
    return Outcome(job.name, "", split, sha256, size, files, fingerprint(picture))


def process(job: Job) -> Outcome:
    """Judge one file, write the pictures made from it, and say what became of it; broken files never raise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd palettes and metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _keep(job)
    except Dropped as reason:
        return Outcome(job.name, drop=str(reason))
    except _BOMBS:
        return Outcome(job.name, drop="too many pixels to decode safely")
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk or a missing folder is not the picture's fault
        return Outcome(job.name, drop=f"unreadable: {type(error).__name__}")


def drop_duplicates(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], str]]]:
    """Split source rows into those kept and (row, reason) of those that show what a kept one shows.

    Of equals the test picture stays, else the largest. Near duplicates differ in at most 3 of the 64 bits of `shape`
    and by less than 10 of 255 in the mean over `colours`.
    """
    order = sorted(rows, key=lambda r: (r["split"] != "test", -r["size"][0] * r["size"][1], r["package"], r["name"]))
    shapes = np.array([int(row["fingerprint"]["shape"], 16) for row in order], dtype=np.uint64)
    means = [list(bytes.fromhex(row["fingerprint"]["colours"])) for row in order]
    colours = np.array(means, dtype=np.int64).reshape(-1, 48)
    kept: list[int] = []
    exact: set[str] = set()
    lost = []
    for i, row in enumerate(order):
        if row["fingerprint"]["exact"] in exact:
            lost.append((row, "exact duplicate"))
            continue
        others = np.array(kept, dtype=np.int64)
        # numpy 1 has no bitwise_count: count set bits of the eight bytes
        different = (shapes[others] ^ shapes[i]).view(np.uint8).reshape(-1, 8)
        others = others[np.unpackbits(different, axis=1).sum(axis=1) <= 3]
        if (np.abs(colours[others] - colours[i]).mean(axis=1) < 10).any():
            lost.append((row, "near duplicate"))
            continue
        kept.append(i)
        exact.add(row["fingerprint"]["exact"])
    return [order[i] for i in kept], lost
