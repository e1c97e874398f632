"""Bits per token that a pipeline's network needs for held-out token shards."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lgq_hf.evaluation.likelihood import PROTOCOLS, held_out, held_out_collator, summary
from lgq_hf.generation.pipeline_base import LGQPipeline, check_made_by
from lgq_hf.generation.pipeline_masked import LGQMaskedPipeline
from lgq_hf.images.sources import LABEL
from lgq_hf.tokens.manifest import Manifest
from lgq_hf.tokens.reading import Row, TokenStream


def held_out_bits(
    pipe: LGQPipeline, place: str | os.PathLike[str], *, batch_size: int = 16
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures the network on all rows of a folder of token shards, with their labels.

    Args:
        pipe: the generator, in evaluation mode.
        place: folder that `lgq tokenize` finished, of pictures that the generator did not learn from.
        batch_size: rows at once.

    Returns:
        `bits_per_token`, `bits_per_pixel` and `perplexity` (codes), as `likelihood.summary` defines them; and their
        protocol: `bits` says how, then `held_out_rows`, `held_out_source_sha256`, `held_out_classes`.

    Raises:
        ValueError: no tokens there, of another tokenizer, another grid, or labels that the generator does not know.
    """
    stream = TokenStream(place, rank=0, world_size=1, shuffle_buffer=0)
    manifest = stream.manifest
    check_made_by(pipe.vqvae, manifest.tokenizer)
    if manifest.grid != list(pipe.grid):
        found = " x ".join(map(str, manifest.grid)) if manifest.grid else "several sizes"
        raise ValueError(f"tokens in {place}: expected grids of {pipe.grid[0]} x {pipe.grid[1]}, got {found}")
    kind = "masked" if isinstance(pipe, LGQMaskedPipeline) else "autoregressive"
    collate = held_out_collator(kind, codebook_size=pipe.codebook_size, num_classes=pipe.num_classes)
    numbers = _class_numbers(pipe, manifest, stream.place)

    def batch(rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate(rows if numbers is None else [{**row, LABEL: numbers[row[LABEL]]} for row in rows])

    # a generator of its own, as torch's global one would be moved
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=batch, generator=torch.Generator())
    assert manifest.size is not None  # as there is a grid
    height, width = manifest.size  # as in training; what the tokenizer padded is not counted
    made = summary(
        held_out(pipe.transformer, loader, pipe.codebook_size),
        tokens=pipe.grid[0] * pipe.grid[1],
        pixels=height * width,
    )
    labelled = pipe.num_classes and LABEL in manifest.features
    protocol = {
        "bits": PROTOCOLS[kind],
        "held_out_rows": made["rows"],
        "held_out_source_sha256": manifest.source.sha256,
        "held_out_classes": "of the rows" if labelled else "none",
    }
    return {name: made[name] for name in ("bits_per_token", "bits_per_pixel", "perplexity")}, protocol


def _class_numbers(pipe: LGQPipeline, manifest: Manifest, place: str) -> list[int] | None:
    """The pipeline's number of each label, by name; `None` where labels are its numbers, or are not looked at."""
    named = manifest.features.get(LABEL, {}).get("names")
    if not pipe.num_classes or named is None or not pipe.id2label:
        return None
    known = {name: number for number, name in pipe.id2label.items()}
    if unknown := [name for name in named if name not in known]:
        raise ValueError(
            f"tokens in {place} have the class {unknown[0]!r}, the pipeline has {', '.join([*known][:5])}: measure it "
            "on pictures of classes that it knows"
        )
    return [known[name] for name in named]


__all__ = ["held_out_bits"]
