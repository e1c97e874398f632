"""A checkpoint as commands and jobs use it: model, image processor, device and fingerprints."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, default_checkpoint
from lgq_hf.files import canonical_sha256, one_line
from lgq_hf.images.opening import check_shorter_side

SHORT = 12  # hex digits of a fingerprint that people are shown
CODEBOOK = "quantizer."  # what names of the quantizer's tensors begin with
# what transformers and safetensors raise on files that are not what they should be
_LOADING = (
    *(OSError, ValueError, RuntimeError, TypeError, AttributeError, ImportError),
    *(StrictDataclassError, SafetensorError),
)
_ADDED_AT_SAVE = frozenset({"_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version"})


class Checkpoint:
    """A model in evaluation mode, with its image processor.

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
        """As `weights_fingerprint` of its folder."""
        return weights_fingerprint(self.folder)

    def pixels(self, picture: Image.Image, size: int | None) -> tuple[torch.Tensor, tuple[int, int]]:
        """`pixel_values` (1,3,H,W) on the device, and height and width before padding; `size` as in `--size`.

        Raises:
            ValueError: a picture that the processor refuses, or that is too long and thin to be resized to `size`.
        """
        options: dict[str, Any] = {}
        if size is not None:
            options = {"do_resize": True, "size": {"shortest_edge": size}}
            options |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
            check_shorter_side(picture, size)
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


def load_checkpoint(
    reference: str | None, device: str = "auto", *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Loads a checkpoint folder or Hub repository onto "auto" or a device of torch's.

    The built-in one is `None`, or its name where no folder is called so.

    Raises:
        ValueError: it is not there, is no LGQ checkpoint or a damaged one, its image processor does not fit the model,
            or the device is missing; the message is one line.
    """
    place = _place(reference)
    name = default_checkpoint().name if reference is None else reference
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no CUDA device here; leave it out, or use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        with quiet():
            config, _ = LGQConfig.get_config_dict(place, **at)
            if config.get("model_type") != LGQConfig.model_type:
                raise ValueError(f"it is of type {config.get('model_type')!r}, expected {LGQConfig.model_type!r}")
            model = LGQModel.from_pretrained(place, dtype=dtype, use_safetensors=True, **at)
            processor = LGQImageProcessor.from_pretrained(place, **at)
            folder = Path(str(cached_file(place, "config.json", **at))).parent
    except _LOADING as error:
        raise ValueError(f"cannot load the model {name!r}: {one_line(error)}") from error
    factor = model.config.spatial_downsample_factor
    if processor.pad_to_multiple_of % factor:
        raise ValueError(
            f"the image processor of {name!r} pads to multiples of {processor.pad_to_multiple_of}, the model needs "
            f"multiples of {factor}: set pad_to_multiple_of in preprocessor_config.json"
        )
    return Checkpoint(name, folder, model, processor, torch.device(device))


@dataclass(frozen=True)
class Reference:
    """A checkpoint by its contents, without its tensors: cheap to compare and to send to another process.

    Attributes:
        name: the repository, or the folder's absolute path.
        revision: commit of a repository; `None` for a folder.
        weights: as `weights_fingerprint`.
        codebook: the same over the quantizer's tensors alone, which stay fp32 in a model of any dtype.
        config: sha256 (hex) over config.json, without what transformers adds to it at each save.
        processor: the same over preprocessor_config.json.
    """

    name: str
    revision: str | None
    weights: str
    codebook: str
    config: str
    processor: str

    def load(self, device: str = "auto", dtype: torch.dtype = torch.float32) -> Checkpoint:
        """The checkpoint itself, as `load_checkpoint`; `ValueError` if its folder now holds another one."""
        if self.revision is None and (now := find_checkpoint(self.name)) != self:
            raise ValueError(
                f"the checkpoint in {self.name!r} was changed after this job began: its fingerprint is "
                f"{now.weights[:SHORT]}, expected {self.weights[:SHORT]}. Begin again with what is there now"
            )
        return load_checkpoint(self.name, device, revision=self.revision, dtype=dtype)

    def settings(self) -> tuple[LGQConfig, LGQImageProcessor]:
        """Configuration and image processor, without the weights."""
        at: dict[str, Any] = {} if self.revision is None else {"revision": self.revision}
        return LGQConfig.from_pretrained(self.name, **at), LGQImageProcessor.from_pretrained(self.name, **at)


def find_checkpoint(reference: str | None, revision: str | None = None) -> Reference:
    """What a folder or Hub repository (`None`: the built-in one) holds now; a repository's files are downloaded.

    Args:
        reference: folder, or repository.
        revision: commit, branch or tag of a repository.

    Raises:
        ValueError: it is not there, or no checkpoint; or a revision is asked of a folder. The message is one line.
    """
    place = _place(reference)
    in_folder = Path(place).is_dir()
    if in_folder and revision is not None:
        raise ValueError(f"revision={revision!r} is for a Hub repository, and {place!r} is a folder: leave it out")
    try:
        if in_folder:
            folder = Path(place)
        else:
            patterns: Any = {"allow_patterns": ["*.json", "*.safetensors"], "ignore_patterns": ["*/*"]}
            folder = Path(snapshot_download(place, revision=revision, **patterns))
        return Reference(
            name=str(folder.resolve()) if in_folder else place,
            revision=None if in_folder else folder.name,
            weights=weights_fingerprint(folder),
            codebook=weights_fingerprint(folder, CODEBOOK),
            config=_json_sha256(folder / "config.json"),
            processor=_json_sha256(folder / "preprocessor_config.json"),
        )
    except _LOADING as error:
        raise ValueError(f"cannot load the model {place!r}: {one_line(error)}") from error


def weights_fingerprint(folder: Path, prefix: str = "") -> str:
    """`fingerprint` of all tensors of a checkpoint whose names begin with `prefix`, by name.

    How the tensors are shared out over files makes no difference. Raises FileNotFoundError without any.
    """
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            places |= dict.fromkeys(file.keys(), file)
        if not places:
            raise FileNotFoundError(f"no model*.safetensors in {folder}")
        return fingerprint(
            (name, file.get_tensor(name)) for name, file in sorted(places.items()) if name.startswith(prefix)
        )


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of tensors in the order given, floating point ones as fp32."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        tensor = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _json_sha256(path: Path) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    return canonical_sha256({key: value for key, value in content.items() if key not in _ADDED_AT_SAVE})


def _place(reference: str | None) -> str:
    """Folder or repository, and the built-in folder for its name; `ValueError` for a path where no model is.

    The last would be taken for a repository, and the Hub's error would hint at it at best.
    """
    builtin = default_checkpoint()
    if reference is None or (reference == builtin.name and not Path(reference).exists()):
        return str(builtin)
    path = Path(reference)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"no model in the folder {reference!r}: it has no config.json")
    if path.is_file():
        raise ValueError(f"the model is a folder (or a Hub repository), got the file {reference!r}")
    is_path = path.is_absolute() or reference.startswith((".", "~")) or reference.count("/") > 1
    if not path.exists() and (is_path or reference.endswith("/")):
        raise ValueError(f"no model at {reference!r}: no such folder")
    return reference


@contextmanager
def quiet() -> Iterator[None]:
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


__all__ = [
    "CODEBOOK",
    "SHORT",
    "Checkpoint",
    "Reference",
    "find_checkpoint",
    "fingerprint",
    "load_checkpoint",
    "quiet",
    "weights_fingerprint",
]
