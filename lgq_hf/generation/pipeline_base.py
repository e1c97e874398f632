"""What both pipelines share: components and their agreement, loading, labels, pictures in and out.

Shapes: B pictures, h w grid of tokens, T = h*w, K codes, f downsampling factor of the tokenizer.
"""

import json
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, SupportsIndex

import numpy as np
import torch

try:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import BaseOutput
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "diffusers":
        raise
    hint = "pipelines need the package diffusers, which is missing: pip install '.[generate]' in a checkout of lgq_hf"
    raise ModuleNotFoundError(hint, name="diffusers") from error
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from lgq_hf.checkpoint.loading import CODEBOOK, SHORT, fingerprint
from lgq_hf.files import one_line
from lgq_hf.generation.sampling import Generators
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokens.manifest import check_tokenizer

INDEX = "model_index.json"
OUTPUT_TYPES = ("pil", "np", "pt", "token")
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_LISTED = 20  # names of classes that a message tells
Label = int | str | None
Callback = Callable[[Any, int, int, dict[str, Any]], dict[str, Any] | None]


@dataclass
class LGQPipelineOutput(BaseOutput):
    """What a pipeline returns.

    Args:
        images: B pictures as `output_type` says: "pil" a list of RGB pictures, "np" (B,H,W,3) float32 in [0, 1], "pt"
            (B,3,H,W) float32 in [0, 1], "token" the tokens.
        image_tokens: (B,h,w) int64 in [0, K).
    """

    images: list[Image.Image] | np.ndarray | Tensor
    image_tokens: Tensor


def local_folder(place: str | os.PathLike[str], hub: dict[str, Any]) -> str:
    """The folder of a pipeline on this machine; a repository of the Hub is downloaded.

    Args:
        place: folder, or repository.
        hub: options of `snapshot_download`.

    Raises:
        ValueError: a folder without a pipeline, options of the Hub for a folder, or a repository that cannot be had.
    """
    name = os.fspath(place)
    if not os.path.isdir(name):
        try:
            name = snapshot_download(name, allow_patterns=[INDEX, "*/*.json", "*/*.safetensors"], **hub)
        except (OSError, ValueError, HfHubHTTPError) as error:  # the client's own errors are of these kinds
            raise ValueError(
                f"no folder {name!r}, and no such repository can be had from the Hub: {one_line(error)}"
            ) from error
    elif hub:
        raise ValueError(f"{', '.join(hub)}: for a repository of the Hub, and {name!r} is a folder; leave it out")
    if not os.path.isfile(os.path.join(name, INDEX)):
        raise ValueError(f"no pipeline in {os.fspath(place)!r}: it has no {INDEX}, which save_pretrained writes")
    return name


def class_name(folder: str) -> str:
    """Of the pipeline in a folder; `ValueError` where its index is no JSON."""
    return str(json.loads(Path(folder, INDEX).read_text(encoding="utf-8")).get("_class_name"))


class LGQPipeline(DiffusionPipeline):
    """Tokenizer, its image processor and a transformer that makes tokens; the two pipelines are its subclasses."""

    model_cpu_offload_seq = "transformer->vqvae"  # type: ignore[assignment]  # which diffusers declares as None
    _callback_tensor_inputs = ["image_tokens"]

    vqvae: LGQModel
    image_processor: LGQImageProcessor
    transformer: PreTrainedModel
    codebook_size: int
    num_classes: int
    grid: tuple[int, int]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a folder that `save_pretrained` wrote, or a repository of the Hub.

        diffusers itself refuses repositories whose components are of another package; the files are therefore
        downloaded first.

        Args:
            pretrained_model_name_or_path: folder, or repository.
            **kwargs: as `DiffusionPipeline.from_pretrained`: `dtype`, `revision`, `token`, components, ...

        Raises:
            ValueError: no pipeline there, one of another class, or components that do not belong together.
        """
        hub = {name: kwargs.pop(name) for name in _OF_THE_HUB if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, hub)
        if (found := class_name(folder)) != cls.__name__:
            raise ValueError(
                f"{os.fspath(pretrained_model_name_or_path)!r} holds a {found}, not a {cls.__name__}: load it with "
                f"that class, or with lgq_hf.generation.load_pipeline"
            )
        return super().from_pretrained(folder, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As diffusers does; the tokenizer's folder `vqvae` gets its image processor too, and so is a checkpoint."""
        self.image_processor.save_pretrained(os.path.join(save_directory, "vqvae"))
        super().save_pretrained(os.fspath(save_directory), *args, **kwargs)

    def _register(
        self,
        vqvae: LGQModel,
        image_processor: LGQImageProcessor,
        transformer: PreTrainedModel,
        *,
        num_classes: int,
        grid: tuple[int, int],
        id2label: Mapping[int, str] | Mapping[str, str] | None,
        tokens_made_by: Mapping[str, Any] | None,
    ) -> None:
        """Keeps the components and the settings that are saved beside them, after a look whether they fit."""
        if vqvae.config.tokens_per_position != 1:
            raise ValueError(
                f"expected a tokenizer with one token per position, got {vqvae.config.tokens_per_position}: these "
                "generators have no order within a position"
            )
        if tokens_made_by is not None:
            check_made_by(vqvae, tokens_made_by)
        labels = None if id2label is None else {int(number): str(name) for number, name in id2label.items()}
        if labels and (wrong := sorted(number for number in labels if not 0 <= number < num_classes)):
            raise ValueError(f"id2label names classes {wrong[:5]}, there are {num_classes} classes from 0 on")
        self.register_modules(vqvae=vqvae, image_processor=image_processor, transformer=transformer)
        self.register_to_config(
            grid_height=grid[0],
            grid_width=grid[1],
            id2label=labels,
            tokens_made_by=None if tokens_made_by is None else dict(tokens_made_by),
        )
        self.codebook_size, self.num_classes, self.grid = vqvae.config.codebook_size, num_classes, grid

    @property
    def id2label(self) -> dict[int, str]:
        """Names of classes by number; empty where they have none."""
        return dict(self.config["id2label"] or {})

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of what is generated."""
        factor = self.vqvae.config.spatial_downsample_factor
        return self.grid[0] * factor, self.grid[1] * factor

    def class_numbers(self, class_labels: Label | Sequence[Label], repeat: int = 1) -> list[int]:
        """Numbers in [0, num_classes], the last for no class, each `repeat` times.

        Raises:
            ValueError: a class that the model does not have, no labels at all, or `repeat` below 1.
        """
        if repeat < 1:
            raise ValueError(f"num_images_per_label: expected at least 1, got {repeat}")
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.tolist()
        one = class_labels is None or isinstance(class_labels, str) or not isinstance(class_labels, Iterable)
        several: list[Any] = [class_labels] if one else [*class_labels]  # type: ignore[misc]
        if not several:
            raise ValueError("class_labels: expected at least one class, or None for a picture of no class")
        return [self._class_number(label) for label in several for _ in range(repeat)]

    def _class_number(self, label: Any) -> int:
        if label is None:
            return self.num_classes
        if isinstance(label, str):
            found = [number for number, name in self.id2label.items() if name == label]
            if len(found) != 1:
                known = ", ".join([*self.id2label.values()][:_LISTED]) or "none with a name"
                raise ValueError(f"{len(found)} classes are called {label!r}; the first of all classes are: {known}")
            return found[0]
        if isinstance(label, bool) or not isinstance(label, SupportsIndex):
            raise TypeError(f"expected classes as whole numbers, names or None, got {label!r}")
        number = operator.index(label)
        if not 0 <= number < self.num_classes:
            raise ValueError(f"class {number}: expected one of {self.num_classes} classes from 0 on, or None for none")
        return number

    def _check_sampling(
        self,
        guidance_scale: float,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        output_type: str,
        classes: Sequence[int],
        tensor_inputs: Sequence[str],
    ) -> None:
        """Refuses options out of range, guidance where no picture has a class, and networks in training mode."""
        for name in ("transformer", "vqvae"):
            if getattr(self, name).training:
                raise ValueError(f"{name} is in training mode: call pipe.{name}.eval() first")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: expected one of {list(OUTPUT_TYPES)}, got {output_type!r}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature: expected 0 or more, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k: expected at least 1 code or None, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p: expected a share in (0, 1] or None, got {top_p}")
        if not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale: expected 0 or more, got {guidance_scale}")
        if guidance_scale != 1 and all(number == self.num_classes for number in classes):
            raise ValueError(f"guidance_scale={guidance_scale} needs class_labels: nothing guides without a class")
        if unknown := sorted(set(tensor_inputs) - set(self._callback_tensor_inputs)):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: expected some of {self._callback_tensor_inputs}, got {unknown}"
            )

    def _check_tokens(self, image_tokens: Tensor, count: int) -> Tensor:
        """Given tokens (h,w) or (B,h,w) as (B,T) int64 on the pipeline's device.

        Raises:
            ValueError: another grid or number of pictures, or what this tokenizer cannot have made.
        """
        if image_tokens.ndim == 2:
            image_tokens = image_tokens[None]
        if image_tokens.ndim != 3 or tuple(image_tokens.shape[1:]) != self.grid:
            raise ValueError(
                f"expected image_tokens (B, {self.grid[0]}, {self.grid[1]}), the grid that this generator was trained "
                f"on, got shape {tuple(image_tokens.shape)}"
            )
        self.vqvae.quantizer.check_tokens(image_tokens)
        if image_tokens.shape[0] not in (1, count):
            raise ValueError(f"expected 1 given picture or {count}, as many as are made, got {image_tokens.shape[0]}")
        return image_tokens.long().flatten(1).expand(count, -1).to(self._execution_device)

    @torch.no_grad()
    def encode_images(self, image: Any) -> Tensor:
        """Tokens (B,h,w) of pictures that have the size of the generator's.

        Raises:
            ValueError: pictures of another size, or that the image processor refuses.
        """
        batch = self.image_processor(image, do_resize=False, do_center_crop=False, return_tensors="pt")
        if (found := tuple(batch["original_sizes"][0].tolist())) != self.picture_size:
            raise ValueError(
                f"expected pictures of {self.picture_size[0]} x {self.picture_size[1]} pixels (height x width), got "
                f"{found[0]} x {found[1]}: resize and crop them first, for example with PIL.ImageOps.fit"
            )
        tokens: Tensor = self.vqvae.encode(batch["pixel_values"].to(self._execution_device)).image_tokens
        return tokens

    def _given_tokens(self, image: Any, image_tokens: Tensor | None, count: int) -> Tensor | None:
        """(B,T) int64 of a picture or tokens that the caller gave, `None` where there are neither; not both."""
        if image is not None and image_tokens is not None:
            raise ValueError("image and image_tokens are two forms of the same: give one of them")
        if image is not None:
            image_tokens = self.encode_images(image)
        return None if image_tokens is None else self._check_tokens(image_tokens, count)

    def _step_end(
        self, callback: Callback | None, tensor_inputs: Sequence[str], step: int, tokens_BT: Tensor
    ) -> Tensor:
        """Lets the caller look at the tokens after a step, and change them."""
        if callback is None:
            return tokens_BT
        grids = tokens_BT.unflatten(1, self.grid)
        left = int((tokens_BT == self.codebook_size).sum(1).max())
        given = {"image_tokens": grids} if "image_tokens" in tensor_inputs else {}
        changed = (callback(self, step, left, given) or {}).get("image_tokens", grids)
        if changed.shape != grids.shape or changed.dtype != grids.dtype:
            raise ValueError(
                f"expected image_tokens of shape {tuple(grids.shape)}, {grids.dtype}, from callback_on_step_end, got "
                f"{tuple(changed.shape)}, {changed.dtype}"
            )
        return changed.flatten(1)

    @torch.no_grad()
    def _finish(
        self, tokens_BT: Tensor, finite: Tensor, output_type: str, return_dict: bool
    ) -> LGQPipelineOutput | tuple[Any]:
        """Tokens to what the caller wants; `finite` (0-dim bool): whether all logits were."""
        if not finite:
            raise FloatingPointError(
                f"the transformer's logits, in {self.transformer.dtype}, were not all finite: these are no pictures. "
                "float16 overflows where bfloat16 and float32 do not; in float32 the weights are damaged"
            )
        tokens = tokens_BT.unflatten(1, self.grid)
        if tokens.numel() and int(tokens.max()) >= self.codebook_size:
            raise ValueError("callback_on_step_end left tokens masked at the last step: return codes there")
        images: Any = tokens
        if output_type != "token":
            decoded = self.vqvae.decode(tokens).decoded_pixel_values
            images = self.image_processor.postprocess(decoded, output_type=output_type)
            images = {"pil": list, "np": np.stack, "pt": torch.stack}[output_type](images)  # type: ignore[operator]
        self.maybe_free_model_hooks()
        return LGQPipelineOutput(images=images, image_tokens=tokens) if return_dict else (images,)


def check_made_by(vqvae: LGQModel, made_by: Mapping[str, Any]) -> None:
    """Refuses a tokenizer whose codebook is not that of the tokens that the transformer learned from.

    The decoder behind it may have been trained further, or be in half precision. A tokenizer without a codebook is
    compared whole.
    """
    codebook = [item for item in sorted(vqvae.state_dict().items()) if item[0].startswith(CODEBOOK)]
    if not codebook:
        return check_tokenizer({"tokenizer": dict(made_by)}, vqvae)
    found = fingerprint(codebook)
    if found != made_by["codebook_sha256"]:
        raise ValueError(
            f"the transformer learned tokens of {made_by['name']!r} (codebook {made_by['codebook_sha256'][:SHORT]}, K="
            f"{made_by['codebook_size']}), vqvae has the codebook {found[:SHORT]}, K={vqvae.config.codebook_size}: to "
            "another tokenizer the same numbers mean other pictures"
        )


__all__ = [
    "Callback",
    "Generators",
    "LGQPipeline",
    "LGQPipelineOutput",
    "check_made_by",
    "class_name",
    "local_folder",
]
