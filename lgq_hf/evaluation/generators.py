"""How good a generator is: its pictures beside real ones, and the floor that the tokenizer under it sets.

Generated, real and reconstructed pictures go the same way: 8 bits, [0, 1], one extractor. A Fréchet distance is named
by that extractor and by the numbers of pictures; it is no FID, which has 50,000 pictures and Inception's features.

Shapes: B pictures of a batch, H W pixels, N generated and M real pictures, D features.
"""

import os
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor
from transformers.image_utils import PILImageResampling

from lgq_hf.checkpoint.loading import fingerprint
from lgq_hf.evaluation.likelihood import held_out_bits
from lgq_hf.generation.draw import Draw, class_counts, draw_pictures, to_bytes
from lgq_hf.generation.pipeline_base import LGQPipeline
from lgq_hf.images.sources import FolderSource
from lgq_hf.images.views import Preprocessing, cut_views
from lgq_hf.metrics.extractors import Extractor
from lgq_hf.metrics.frechet import FeatureStatistics, frechet_distance
from lgq_hf.metrics.precision_recall import precision_recall
from lgq_hf.provenance import provenance
from lgq_hf.runtime import Clock

NEIGHBOURS = 3  # k of precision and recall
FEWEST = NEIGHBOURS + 1  # pictures on either side
Watch = Callable[[str, int, Tensor], None]


def evaluate(
    pipe: LGQPipeline,
    pictures: FolderSource,
    num: int,
    extractor: Extractor,
    draw: Draw | None = None,
    *,
    tokens: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Generates pictures and compares them with real ones.

    Args:
        pipe: the generator; it, its tokenizer and the extractor are on one device.
        pictures: M real pictures, at least 4; the classes of the generated ones have the proportions of its folders,
            or are even where it has none, see `class_counts`. Each is resized until it covers the generator's size,
            and its middle cropped: what `lgq tokenize --size` does for squares.
        num: N, at least 4; precision and recall compare best where N = M.
        extractor: makes the features.
        draw: how pictures are drawn; `None`: with the defaults of `Draw`.
        tokens: folder of token shards held out from training, for `bits_per_token` and `bits_per_pixel`.
        watch: called with "real" or "generated", the number of the first and a batch (B,3,H,W) uint8.

    Returns:
        Provenance, `protocol`, `cost` and `metrics`: `frechet_distance` of generated and real pictures, `precision`
        and `recall` (k = 3), and `frechet_distance_of_reconstructions`, that of the real pictures' reconstructions by
        the tokenizer: with these tokens no generator can be expected below it. With `tokens` also what
        `held_out_bits` gives.

    Raises:
        ValueError: fewer than 4 pictures on a side, one that cannot be read, folders that are no classes of the
            pipeline, options that it refuses, or tokens that are not for it.
    """
    draw = draw or Draw()
    draw.options(pipe)  # refuses early
    if min(num, len(pictures)) < FEWEST:
        got = f"{num} to generate and {len(pictures)} in {pictures.name}"
        raise ValueError(f"expected at least {FEWEST} pictures on both sides, got {got}")
    counts, proportions = class_counts(pipe, pictures, num)
    classes = [number for number, count in counts for _ in range(count)]
    # before what takes long, so that tokens that do not fit are refused early
    bits, held_out = held_out_bits(pipe, tokens, batch_size=draw.batch_size) if tokens is not None else ({}, {})
    real, reconstructed = _real_features(pipe, pictures, extractor, draw.batch_size, watch)
    clock, parts = Clock(pipe.vqvae.device), []
    for first, batch in draw_pictures(pipe, classes, draw, clock):
        parts.append(_features(extractor, batch))
        if watch is not None:
            watch("generated", first, batch)
    generated = torch.cat(parts)
    near = precision_recall(real, generated, k=NEIGHBOURS)
    base = provenance(strict=False)
    return {
        **base,
        "versions": {**base["versions"], "diffusers": diffusers.__version__},
        "pipeline": _described(pipe),
        "protocol": {"classes": proportions, **_protocol(pipe, pictures, num, extractor, draw), **held_out},
        "metrics": {
            "frechet_distance": _distance(generated, real),
            "frechet_distance_of_reconstructions": _distance(reconstructed, real),
            "precision": near.precision,
            "recall": near.recall,
            **bits,
        },
        "cost": clock.cost(),
    }


def _protocol(pipe: LGQPipeline, pictures: FolderSource, num: int, extractor: Extractor, draw: Draw) -> dict[str, Any]:
    """What must be equal where numbers are compared."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.weights_sha256,
        "generated_pictures": num,
        "real_pictures": len(pictures),
        "real_names_and_sizes_sha256": pictures.digest(),
        "picture_size": list(pipe.picture_size),
        "resize": f"to cover, {PILImageResampling(pipe.image_processor.resample).name.lower()}, then the middle",
        "pixels": "rounded to 8 bits",
        "neighbours": NEIGHBOURS,
        **draw.options(pipe),
        "seed": draw.seed,
        "batch_size": draw.batch_size,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
    }


@torch.inference_mode()
def _real_features(
    pipe: LGQPipeline, pictures: FolderSource, extractor: Extractor, batch_size: int, watch: Watch | None
) -> tuple[Tensor, Tensor]:
    """(M,D) of real pictures, and of their reconstructions."""
    processor = pipe.image_processor
    real, reconstructed = [], []
    for first in range(0, len(pictures), batch_size):
        batch = torch.stack(
            [_cut(pipe, pictures, number) for number in range(first, min(first + batch_size, len(pictures)))]
        )
        inputs = processor(
            list(batch),
            do_resize=False,
            do_center_crop=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        decoded = pipe.vqvae(inputs["pixel_values"].to(pipe.vqvae.device)).decoded_pixel_values
        again = processor.postprocess(decoded, inputs["original_sizes"], output_type="pt")
        real.append(_features(extractor, batch.to(pipe.vqvae.device)))
        reconstructed.append(_features(extractor, to_bytes(torch.stack(again))))
        if watch is not None:
            watch("real", first, batch)
    return torch.cat(real), torch.cat(reconstructed)


def _cut(pipe: LGQPipeline, pictures: FolderSource, number: int) -> Tensor:
    """(3,H,W) uint8 of one real picture, H W those of the generator."""
    height, width = pipe.picture_size
    try:
        picture = pictures.read(number)
        if height == width:
            return torch.from_numpy(cut_views(picture, pipe.image_processor, Preprocessing(height))[0][0])
    except ValueError as error:
        raise ValueError(f"{pictures.id(number)} in {pictures.name}: {error}; take it out to go on") from error
    fitted = ImageOps.fit(picture, (width, height), PILImageResampling(pipe.image_processor.resample))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


@torch.inference_mode()
def _features(extractor: Extractor, pictures: Tensor) -> Tensor:
    """(B,D) of (B,3,H,W) uint8."""
    return extractor.pooled(pictures.float() / 255)


def _distance(a: Tensor, b: Tensor) -> float:
    statistics = []
    for features in (a, b):
        statistics.append(FeatureStatistics(features.shape[1]))
        statistics[-1].update(features)
    return frechet_distance(*statistics)


def _described(pipe: LGQPipeline) -> dict[str, Any]:
    """Which weights drew the pictures."""
    return {
        "class": type(pipe).__name__,
        "transformer_sha256": fingerprint(sorted(pipe.transformer.state_dict().items())),
        "tokenizer_sha256": fingerprint(sorted(pipe.vqvae.state_dict().items())),
        "grid": list(pipe.grid),
        "codebook_size": pipe.codebook_size,
        "num_classes": pipe.num_classes,
    }


__all__ = ["FEWEST", "NEIGHBOURS", "evaluate"]
