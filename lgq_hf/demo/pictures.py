"""Pictures of the page: uploads within bounds, sample photographs, and the size that is worked at."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw

from lgq_hf.images.opening import read_picture
from lgq_hf.images.stored import to_rgb

MOST_BYTES = 20 * 2**20  # of an uploaded file
LONGEST = 2048  # pixels of the longer side that are worked at
SIZES = (128, 256, 384, 512)  # pixels of the shorter side, to choose from
SIZE = 256
_SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # photographs in scikit-image's package


@dataclass(frozen=True)
class Sample:
    """An RGB picture to begin with, and its name."""

    name: str
    picture: Image.Image


def open_upload(path: Path) -> Image.Image:
    """Reads an uploaded file as RGB.

    Raises:
        ValueError: more than `MOST_BYTES`, more pixels than Pillow allows (a decompression bomb), or no picture; one
            line without the path.
    """
    if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"the file has {size / 2**20:.1f} MB, expected at most {MOST_BYTES // 2**20} MB: shrink it")
    try:
        return to_rgb(read_picture(path))
    except ValueError as error:
        raise ValueError(f"this file cannot be shown: {error}") from error


def fit(picture: Image.Image, shorter: int) -> tuple[Image.Image, str]:
    """Shrinks a picture until its shorter side has `shorter` pixels and its longer one at most `LONGEST`.

    Args:
        picture: RGB, of any size.
        shorter: pixels, one of `SIZES`.

    Returns:
        The picture, never larger than it came, and one sentence that says what was done.

    Raises:
        ValueError: `shorter` is none of `SIZES`.
    """
    if shorter not in SIZES:
        raise ValueError(f"working size: expected one of {SIZES} pixels, got {shorter!r}")
    came = f"{picture.width} x {picture.height}"
    scale = min(shorter / min(picture.size), LONGEST / max(picture.size))
    if scale >= 1:
        return picture, f"{came} pixels, as it came."
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    reason = f"shorter side {shorter}" if min(size) == shorter else f"longer side at most {LONGEST}"
    text = f"Resized from {came} to {size[0]} x {size[1]} pixels ({reason})."
    return picture.resize(size, Image.Resampling.LANCZOS), text


@cache
def samples() -> tuple[Sample, ...]:
    """Photographs that come with scikit-image (the extra `samples`), or a drawn picture where it is not installed."""
    package = find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package and package.origin else Path()
    found = [folder / name for name in _SAMPLES if (folder / name).is_file()]
    if not found:
        return (Sample("drawn", drawn_picture()),)
    return tuple(Sample(path.stem, to_rgb(read_picture(path))) for path in found)


def drawn_picture() -> Image.Image:
    """A picture of 384 x 256 pixels with smooth colours, edges, thin lines and letters; the same each time."""
    width, height = 384, 256
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    picture = Image.merge("RGB", (across, down, Image.new("L", (width, height), 150)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((40, 50, 180, 190), fill=(240, 190, 40), outline=(60, 30, 10), width=5)
    draw.polygon([(230, 200), (290, 60), (350, 200)], fill=(40, 90, 60))
    for number in range(12):
        draw.line((200 + 6 * number, 215, 260 + 10 * number, 250), fill=(20, 20, 40), width=1 + number % 3)
    draw.text((24, 208), "tokens", fill=(255, 255, 255), font_size=34)
    return picture


__all__ = [
    "LONGEST",
    "MOST_BYTES",
    "SIZE",
    "SIZES",
    "Sample",
    "drawn_picture",
    "fit",
    "open_upload",
    "samples",
]
