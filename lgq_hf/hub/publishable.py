"""What of a checkpoint's folder is published, and whether it is fit for it: it loads, has a card, and results."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError, safe_open

from lgq_hf.checkpoint.downloaded import digest_like
from lgq_hf.checkpoint.loading import SHORT, Checkpoint, load_checkpoint, quiet, weights_fingerprint
from lgq_hf.hub.publishable_card import CARD, HERE, read_card, unstated
from lgq_hf.hub.publishable_files import PIPELINE, code_of, kind_of, read_json, sort_out

RESULTS = "results.json"


@dataclass(frozen=True)
class Publication:
    """A folder that may be published.

    Attributes:
        folder: it.
        card: its README.md.
        files: what goes, by path in the repository: sizes in bytes.
        left_out: what does not, with the reason.
        notes: what whoever publishes it should know, in sentences.
    """

    folder: Path
    card: ModelCard
    files: dict[str, int]
    left_out: dict[str, str]
    notes: list[str]


def check_publishable(folder: Path, *, as_generated: bool = False) -> Publication:
    """What of a folder is published, after everything that can be checked without a network.

    It is loaded on the CPU, and makes tokens and a picture.

    Args:
        folder: a tokenizer's, as `save_pretrained` or a trainer writes it, or a pipeline's.
        as_generated: take a card that does not state the training pictures' licence yet, and note it.

    Raises:
        ValueError: it is no checkpoint, cannot be loaded or computes what is not finite, a file leads out of it, it
            lacks a card with licences, or results of these weights.
        ModuleNotFoundError: a pipeline, and diffusers is not installed.
    """
    kind = kind_of(folder)
    code = code_of(folder)
    files, left_out = sort_out(folder, kind, code)
    with quiet():
        card = read_card(folder)
        missing = unstated(card)
        if missing and not as_generated:
            raise ValueError(f"the card in {str(folder)!r} is not finished: {missing}")
        _check_results(folder, kind, card)
        for path in files:
            if path.lower().endswith(".safetensors"):
                _check_header(folder / path)
    _try(folder, kind)
    notes = [missing] if missing else []
    if not code:
        notes.append("no code travels along (no auto_map in config.json): it loads only where lgq_hf is installed")
    if HERE in card.text:
        notes.append(f"{CARD} goes with the repository's name where it says {HERE}; the file here stays as it is")
    return Publication(folder, card, files, left_out, notes)


def _check_results(folder: Path, kind: str, card: ModelCard) -> None:
    """Refuses what nothing was measured of, and results that say they are of other weights."""
    path = folder / RESULTS
    if not path.is_file():
        if getattr(card.data, "eval_results", None):  # of ModelCardData, which the class is not typed to have
            return
        raise ValueError(
            f"no results in {str(folder)!r}: expected {RESULTS}, as trainers and `lgq evaluate --output` write it, or "
            f"a model-index with results in the metadata of {CARD}. Measure it: lgq evaluate {folder} PICTURES "
            f"--output {path}"
        )
    results = read_json(path)
    if not any(_measured(results.get(name)) for name in ("validation", "metrics")):
        raise ValueError(
            f"{str(path)!r} holds no results: expected numbers in validation (of a trainer) or metrics (of lgq "
            f"evaluate), found none in {sorted(results)}. Measure it: lgq evaluate {folder} PICTURES --output {path}"
        )
    model = results.get("model")
    claims = [results.get("weights_sha256"), model.get("fingerprint") if isinstance(model, dict) else None]
    claimed = {one for one in claims if one is not None}
    if claimed and not claimed & set(_hashes(folder, kind)):
        named = " and ".join(str(one)[:SHORT] for one in claimed)
        raise ValueError(
            f"{str(path)!r} is of other weights: it names {named}, which is the hash of no weights in this folder. "
            "Measure these anew, or put back those that were measured"
        )


def _measured(value: Any) -> bool:
    """Whether a finite number stands in it that is not that of a step."""
    if isinstance(value, dict):
        return any(_measured(entry) for name, entry in value.items() if name != "step")
    if isinstance(value, list):
        return any(map(_measured, value))
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hashes(folder: Path, kind: str) -> Iterator[str]:
    """What results call these weights by: sha256 of the file, or over the tensors."""
    for place in (folder / "transformer", folder / "vqvae") if kind == PIPELINE else (folder,):
        try:
            yield weights_fingerprint(place)
        except (OSError, SafetensorError):  # `_try` says what is wrong with them
            continue
        for path in place.glob("model*.safetensors"):
            yield digest_like(path, "0" * 64)


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no whole safetensors file: {error}") from error


def _try(folder: Path, kind: str) -> None:
    """Loads it, and lets it work once; `ValueError` where it does not."""
    _try_tokenizer(load_checkpoint(str(folder / "vqvae" if kind == PIPELINE else folder), "cpu"))
    if kind == PIPELINE:
        _try_pipeline(folder)


@torch.inference_mode()
def _try_tokenizer(checkpoint: Checkpoint) -> None:
    side = 2 * checkpoint.config.spatial_downsample_factor
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    pixels, _ = checkpoint.pixels(picture, None)
    tokens = checkpoint.model.encode(pixels).image_tokens
    if not checkpoint.model.decode(tokens).decoded_pixel_values.isfinite().all():
        raise ValueError(
            f"the model in {str(checkpoint.folder)!r} decodes to values that are not finite: it is damaged"
        )


def _try_pipeline(folder: Path) -> None:
    from lgq_hf.generation import LGQMaskedPipeline, load_pipeline  # takes seconds, and says what is missing

    with quiet():
        pipe = load_pipeline(folder, device="cpu", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"num_inference_steps": 1}
    if not isinstance(pipe, LGQMaskedPipeline):  # a token takes a pass: the last row is enough
        height, width = pipe.grid
        how = {"image_tokens": torch.zeros(1, height, width, dtype=torch.int64), "keep_rows": height - 1}
    try:
        pipe(None, generator=torch.Generator().manual_seed(0), output_type="token", **how)
    except ArithmeticError as error:
        raise ValueError(f"the pipeline in {str(folder)!r} draws no picture: {error}") from error


__all__ = ["Publication", "check_publishable"]
