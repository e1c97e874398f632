"""Photographs that come with scikit-image: a test set that no corpus of ours contains."""

from pathlib import Path

from PIL import Image, ImageOps

NAMED = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")
MORE = (
    "brick.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
)


def folder() -> Path:
    """Where scikit-image keeps its pictures.

    Raises:
        ModuleNotFoundError: without scikit-image, naming the extra that installs it.
    """
    try:
        import skimage.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "sample photographs come with scikit-image: pip install '.[samples]' in a checkout of lgq_hf"
        ) from error
    return Path(skimage.data.__file__).parent


def load(name: str, side: int = 256) -> Image.Image:
    """One photograph as RGB, its shorter side resized to `side` (LANCZOS) and the centre square cut out."""
    with Image.open(folder() / name) as picture:
        return ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)


def shorter_side(name: str) -> int:
    """Pixels of a photograph's shorter side, as it is stored."""
    with Image.open(folder() / name) as picture:
        return min(picture.size)
