"""What of a checkpoint's folder is published, and whether it is fit for it: it works, has a licence, and results."""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers.dynamic_module_utils import get_relative_import_files

from lgq_hf.checkpoint.loading import SHORT, load_checkpoint, quiet, weights_fingerprint
from lgq_hf.files import file_sha256

CARD, RESULTS, INDEX = "README.md", "results.json", "model_index.json"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # the form of the Hub's identifiers
HERE = 'from_pretrained(".")'  # what a generated card loads, in the folder that it lies in
# what a generated card says where its writer knows more than the code
STATE_PICTURES = "State here that of the pictures that they were trained on."
STATE_BOTH = "State the licence of these weights here, and of the pictures that they were trained on."

_IMAGES = ("*.png", "*.jpg", "*.jpeg", "*.webp")
_KINDS = ("*.safetensors", "*.json", "*.md", "*.yaml", "*.yml", "*.csv", "licen[sc]e*", "notice*", "copying*")
_NEVER = (".*", "__pycache__", "checkpoint-*", "optimizer*", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


@dataclass(frozen=True)
class Publication:
    """A folder that may be published.

    Attributes:
        folder: it.
        files: what goes, by path in the repository: sizes in bytes.
        left_out: paths of what does not.
        notes: what whoever publishes it should know, in sentences.
    """

    folder: Path
    files: dict[str, int]
    left_out: list[str]
    notes: list[str]


def check_publishable(folder: Path, *, as_generated: bool = False) -> Publication:
    """What of a folder is published, after everything that can be checked without a network.

    It is loaded on the CPU, and makes tokens and an image.

    Args:
        folder: a tokenizer's, as `save_pretrained` or a trainer writes it, or a pipeline's.
        as_generated: take a card that does not state the training images' licence yet, and note it.

    Raises:
        ValueError: it is no checkpoint, cannot be loaded or computes what is not finite, a file leads out of it, it
            lacks a card with licences, or results of these weights.
        OSError: code that a config.json names is not there.
        ModuleNotFoundError: a pipeline, and diffusers is not installed.
    """
    pipeline = (folder / INDEX).is_file()
    if not pipeline and not (folder / "config.json").is_file():
        raise ValueError(
            f"no checkpoint in {str(folder)!r}: expected config.json (of a tokenizer) or {INDEX} (of a pipeline); the "
            "folder of a run has it in final/"
        )
    code = _code(folder)
    files, left_out = _sort_out(folder, code)
    text, notes = _card_text(folder), []
    if any(placeholder in text for placeholder in (STATE_PICTURES, STATE_BOTH)):
        told = f"{CARD} does not state the licence of the training pictures yet: write it where it says so, if known"
        if not as_generated:
            raise ValueError(f"the card in {str(folder)!r} is not finished: {told}")
        notes.append(told)
    _check_results(folder, [folder / path for path in files if path.endswith(".safetensors")])
    _try(folder, pipeline)
    if not code:
        notes.append("no code travels along (no auto_map in config.json): it loads only where lgq_hf is installed")
    if HERE in text:
        notes.append(f"{CARD} goes with the repository's name where it says {HERE}; the file here stays as it is")
    return Publication(folder, files, left_out, notes)


def _code(folder: Path) -> set[Path]:
    """The code that configurations name, and what it imports; FileNotFoundError where some is missing."""
    found: set[Path] = set()
    for path in [*folder.rglob("config.json"), *folder.rglob("preprocessor_config.json")]:
        for reference in json.loads(path.read_text(encoding="utf-8")).get("auto_map", {}).values():
            if "--" not in reference:  # "org/name--module.Class" is another repository's
                module = path.parent / f"{reference.rpartition('.')[0]}.py"
                found |= {module, *map(Path, get_relative_import_files(module))}
    return found


def _sort_out(folder: Path, code: set[Path]) -> tuple[dict[str, int], list[str]]:
    """Sizes of what goes by path, and what does not; `ValueError` for a part that is a link to elsewhere."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8")) if (folder / INDEX).is_file() else {}
    places = {folder, *(folder / name for name, value in index.items() if isinstance(value, list))}
    files, left_out = dict[str, int](), []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and path not in places:
            continue
        path_in_repo = path.relative_to(folder)
        hidden = any(fnmatchcase(part.lower(), never) for part in path_in_repo.parts for never in _NEVER)
        kinds = (*_KINDS, *_IMAGES) if path.parent in places else _IMAGES
        named = path in code or path in places or any(fnmatchcase(path.name.lower(), kind) for kind in kinds)
        if hidden or not named or not path.exists():
            left_out.append(path_in_repo.as_posix())
        elif not path.resolve().is_relative_to(folder.resolve()) or (path.is_dir() and path.is_symlink()):
            raise ValueError(
                f"{str(path)!r} is a link to {str(path.resolve())!r}: expected files that lie in the folder, so that "
                f"nothing else is published. `cp -rL {folder} NEW` makes a folder without links"
            )
        elif path.is_file():
            files[path_in_repo.as_posix()] = path.stat().st_size
    return files, left_out


def _card_text(folder: Path) -> str:
    """The card's text; `ValueError` where its metadata name no licence. The Hub validates the rest."""
    if not (folder / CARD).is_file():
        raise ValueError(f"no card in {str(folder)!r}: expected {CARD}; trainers and conversions write one")
    try:
        card = ModelCard.load(folder / CARD)
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of {str(folder / CARD)!r} cannot be read: {error}") from error
    named = card.data.get("license")
    if not named or (named == "other" and not card.data.get("license_name")):
        raise ValueError(
            f"the card {str(folder / CARD)!r} names no license: expected an identifier of the Hub's, such as mit, or "
            f"'other' and license_name beside it, in its metadata between lines of ---, got {named!r}"
        )
    return " ".join(card.text.split())


def _check_results(folder: Path, weights: list[Path]) -> None:
    """Refuses what nothing was measured of, and results that say they are of other weights."""
    path = folder / RESULTS
    if not path.is_file() and getattr(ModelCard.load(folder / CARD).data, "eval_results", None):
        return  # the card has a model-index
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not results.get("validation") and not results.get("metrics"):
        raise ValueError(
            f"no results in {str(folder)!r}: expected {RESULTS} with validation (of a trainer) or metrics (of lgq "
            f"evaluate). Measure it: lgq evaluate {folder} IMAGES --output {path}"
        )
    # results name weights by sha256 of the file, or over the tensors
    claimed = {results.get("weights_sha256"), results.get("model", {}).get("fingerprint")} - {None}
    models = [file for file in weights if file.name.startswith("model")]
    held = {*map(file_sha256, models), *(weights_fingerprint(place) for place in {file.parent for file in models})}
    if claimed and not claimed & held:
        raise ValueError(
            f"{str(path)!r} is of other weights: it names {' and '.join(str(one)[:SHORT] for one in claimed)}, which "
            "is the hash of no weights in this folder. Measure these anew, or put back those that were measured"
        )


def _try(folder: Path, pipeline: bool) -> None:
    """Loads it, and lets it work once; `ValueError` where it does not."""
    checkpoint = load_checkpoint(str(folder / "vqvae" if pipeline else folder), "cpu")
    side = 2 * checkpoint.config.spatial_downsample_factor
    pixels, _ = checkpoint.pixels(Image.linear_gradient("L").resize((side, side)).convert("RGB"), None)
    with torch.inference_mode():
        tokens = checkpoint.model.encode(pixels).image_tokens
        if not checkpoint.model.decode(tokens).decoded_pixel_values.isfinite().all():
            raise ValueError(f"the model in {str(checkpoint.folder)!r} decodes to values that are not finite")
    if not pipeline:
        return
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
        raise ValueError(f"the pipeline in {str(folder)!r} draws no image: {error}") from error


__all__ = ["CARD", "HERE", "LICENSE", "STATE_BOTH", "STATE_PICTURES", "Publication", "check_publishable"]
