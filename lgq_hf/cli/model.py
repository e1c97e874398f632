"""A checkpoint as the commands use it: model, image processor, device and fingerprint."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from safetensors import SafetensorError
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, default_checkpoint

SHORT = 12  # hex digits of a fingerprint that people are shown


class Checkpoint:
    """A model in fp32 and evaluation mode, with its image processor.

    Attributes:
        name: the path or repository as the user gave it; the folder's name for the built-in checkpoint.
        folder: where its files are on this machine.
    """

    def __init__(
        self, name: str, folder: Path, model: LGQModel, processor: LGQImageProcessor, device: torch.device
    ) -> None:
        self.name, self.folder, self.processor, self.device = name, folder, processor, device
        self.model = model.to(device).eval()  # type: ignore[arg-type]  # transformers' decorator hides `self`
        self.config: LGQConfig = model.config

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over names, dtypes, shapes and bytes of all tensors of the model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def pixels(self, picture: Image.Image, size: int | None) -> tuple[torch.Tensor, tuple[int, int]]:
        """`pixel_values` (1,3,H,W) on the device, and height and width before padding; `size` as in `--size`.

        Raises:
            ValueError: a picture that the processor refuses, or that is too long and thin to be resized to `size`.
        """
        options: dict[str, Any] = {}
        if size is not None:
            options = {"do_resize": True, "size": {"shortest_edge": size}}
            options |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
            resized = size * size * max(picture.size) // min(picture.size)
            if Image.MAX_IMAGE_PIXELS is not None and resized > Image.MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{picture.width} x {picture.height} pixels is too long and thin for --size {size}: it would have "
                    f"{resized} pixels before it is cropped"
                )
        batch = self.processor(picture, return_tensors="pt", **options)
        height, width = batch["original_sizes"][0].tolist()
        return batch["pixel_values"].to(self.device), (height, width)

    def picture(self, pixel_values: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        """The RGB picture of one (1,3,H,W) batch, cropped to height and width `size`."""
        picture: Image.Image = self.processor.postprocess(pixel_values, [size])[0]
        return picture

    def encode(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Tokens (h,w), or (h,w,C) with per-channel bins, of one (1,3,H,W) batch: uint16 if K <= 65536, or uint32."""
        with torch.inference_mode():
            image_tokens = self.model.encode(pixel_values).image_tokens[0]
        return image_tokens.cpu().numpy().astype(np.uint16 if self.config.codebook_size <= 2**16 else np.uint32)

    def decode(self, tokens: np.ndarray, size: tuple[int, int]) -> Image.Image:
        """The picture of one token grid, cropped to height and width `size`; `ValueError` if they do not fit."""
        image_tokens = torch.from_numpy(tokens.astype(np.int64))[None].to(self.device)
        with torch.inference_mode():
            return self.picture(self.model.decode(image_tokens).decoded_pixel_values, size)


def load_checkpoint(reference: str | None, device: str = "auto") -> Checkpoint:
    """Loads a checkpoint folder or Hub repository (`None`: the built-in one) onto "cpu", "cuda" or "auto".

    Raises:
        ValueError: it is not there, is no LGQ checkpoint or a damaged one, its image processor does not fit the model,
            or the device is missing; the message is one line.
    """
    name, place = (default_checkpoint().name, str(default_checkpoint())) if reference is None else (reference,) * 2
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; leave it out, or use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_reference(place)
    with _quiet():
        try:
            folder, model, processor = _load(place)
        except (OSError, ValueError, RuntimeError, StrictDataclassError, SafetensorError) as error:
            raise ValueError(f"cannot load the model {reference or place!r}: {_one_line(error)}") from error
    return Checkpoint(name, folder, model, processor, torch.device(device))


def _check_reference(place: str) -> None:
    """Says at once what the Hub's errors would only hint at: a path that does not exist, or a file."""
    path = Path(place)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"no model in the folder {place!r}: it has no config.json")
    elif path.exists():
        raise ValueError(f"the model is a folder (or a Hub repository), got the file {place!r}")
    elif path.is_absolute() or place.startswith((".", "~")) or place.endswith("/") or place.count("/") > 1:
        raise ValueError(f"no model at {place!r}: no such folder")


def _load(place: str) -> tuple[Path, LGQModel, LGQImageProcessor]:
    config, _ = LGQConfig.get_config_dict(place)
    if config.get("model_type") != LGQConfig.model_type:
        raise ValueError(f"it is of type {config.get('model_type')!r}, expected {LGQConfig.model_type!r}")
    model = LGQModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True)
    processor = LGQImageProcessor.from_pretrained(place)
    factor = model.config.spatial_downsample_factor
    if processor.pad_to_multiple_of % factor:
        raise ValueError(
            f"its image processor pads to multiples of {processor.pad_to_multiple_of}, the model needs multiples of "
            f"{factor}: set pad_to_multiple_of in preprocessor_config.json"
        )
    return Path(str(cached_file(place, "config.json"))).parent, model, processor


def _one_line(error: Exception) -> str:
    """The message without line breaks, and without the first line of a config's errors, which names our internals."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[1:] if isinstance(error, StrictDataclassError) and len(lines) > 1 else lines)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' bars and both libraries' warnings off the terminal; a download still shows its progress."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    hook = transformers_logging.set_tqdm_hook(lambda _, args, kwargs: transformers_logging.EmptyTqdm(*args, **kwargs))
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        transformers_logging.set_tqdm_hook(hook)


__all__ = ["SHORT", "Checkpoint", "load_checkpoint"]
