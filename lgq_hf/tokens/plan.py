"""What decides every byte of a set of token shards, before any picture is encoded.

A plan is plain JSON. It stands in the footer of each shard, so that a shard says by itself what it is part of, and in
the manifest, together with what came of it.
"""

import json
import re
from dataclasses import asdict
from typing import Any

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.files import canonical_sha256
from lgq_hf.images.sources import CROP, FLIP, ID, TokenSource
from lgq_hf.images.stored import import_datasets
from lgq_hf.images.views import Grid, Preprocessing, cut_views
from lgq_hf.tokenizer.configuration_lgq import LGQConfig
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.features import grid_of, token_dtype, token_features

FORMAT, VERSION = "lgq-token-shards", 1
# by default there are about this many files, of no more and no fewer pictures than these
_FILES, _MOST, _FEWEST = 64, 16384, 64
Plan = dict[str, Any]


def pictures_per_file(count: int) -> int:
    """How many pictures a file holds unless somebody says otherwise."""
    return min(_MOST, max(_FEWEST, -(-count // _FILES)))


def file_names(plan: Plan) -> list[str]:
    """The shards, as `data/train-00000-of-00064.parquet`."""
    split, count = plan["source"]["split"], plan["files"]
    return [f"data/{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def pictures_of(plan: Plan, number: int) -> range:
    """Which pictures of the source a file holds."""
    per_file = plan["pictures_per_file"]
    return range(number * per_file, min((number + 1) * per_file, plan["source"]["pictures"]))


def row_features(plan: Plan, config: LGQConfig, columns: dict[str, Any]) -> Any:
    """The `datasets.Features` of a row; `columns` are those of the source."""
    datasets = import_datasets()
    features = token_features(config, tuple(plan["size"]) if plan["size"] else None)
    given = {ID: datasets.Value("string"), CROP: datasets.Value("string"), FLIP: datasets.Value("bool")}
    return datasets.Features({**features, **given, **columns})


def make_plan(
    reference: Reference,
    name: str,
    source: TokenSource,
    preprocessing: Preprocessing,
    encoding: Encoding,
    *,
    split: str = "train",
    mixed_sizes: bool = False,
    per_file: int | None = None,
) -> Plan:
    """The plan for a source and a tokenizer, the same in every process.

    Args:
        reference: the tokenizer.
        name: what the manifest calls it.
        source: pictures.
        preprocessing: what is cut out of each.
        encoding: how the model is run.
        split: what files are called; of "train[:10%]" the first word.
        mixed_sizes: pictures may differ in size. Without it, all must have that of the first that can be read.
        per_file: pictures of one file; `None`: about 64 files.

    Raises:
        ValueError: an option out of range, nothing to do, or, without `mixed_sizes`, not one picture can be read.
    """
    config, processor = reference.settings()
    token_dtype(config.codebook_size)
    if mixed_sizes and preprocessing.size is not None:
        raise ValueError("mixed_sizes is for pictures that keep their size: leave it or the size out")
    if mixed_sizes and encoding.compile:
        raise ValueError("compile needs pictures of one size: what a graph computes would depend on the sizes before")
    if not len(source):
        raise ValueError(f"nothing to do: {source.name} has no pictures")
    per_file = pictures_per_file(len(source)) if per_file is None else per_file
    if per_file < 1:
        raise ValueError(f"pictures_per_file: expected at least 1, got {per_file}")
    word = re.match(r"\w+", split)
    if word is None:
        raise ValueError(f"split: expected a name like 'train', got {split!r}")
    size = None if mixed_sizes else _common_size(source, processor, preprocessing)
    plan: Plan = {
        "format": FORMAT,
        "format_version": VERSION,
        "tokenizer": {
            "name": name,
            "revision": reference.revision,
            "weights_sha256": reference.weights,
            "codebook_sha256": reference.codebook,
            "config_sha256": reference.config,
            "codebook_size": config.codebook_size,
            "downsample_factor": config.spatial_downsample_factor,
            "tokens_per_position": config.tokens_per_position,
        },
        "size": size and list(size),
        "grid": size and list(grid_of(config, size)),
        "dtype": token_dtype(config.codebook_size).name,
        "encoding": asdict(encoding),
        "preprocessing": {
            **asdict(preprocessing),
            "processor_sha256": reference.processor,
            **_settings(processor),
        },
        "source": {
            "kind": source.kind,
            "name": source.name,
            "split": word.group(),
            "pictures": len(source),
            "sha256": source.digest(),
        },
        "pictures_per_file": per_file,
        "files": -(-len(source) // per_file),
    }
    plan["features"] = row_features(plan, config, source.features).to_dict()
    return json.loads(json.dumps(plan))  # as a footer gives it back: tuples are lists


def identity(plan: Plan) -> str:
    """sha256 (hex) of what decides the content: all of a plan but what tokenizer and source are called."""
    content = {key: value for key, value in plan.items() if key not in ("tokenizer", "source")}
    for part, names in (("tokenizer", {"name", "revision"}), ("source", {"name"})):
        content[part] = {key: value for key, value in plan[part].items() if key not in names}
    return canonical_sha256(content)


def differences(one: Plan, other: Plan) -> list[str]:
    """Which entries of two plans differ, as "encoding.dtype: 'float32' and 'bfloat16'"."""
    found = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b)]
        elif a != b:
            found.append(f"{key}: {_short(a)} and {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:24]}...{text[-8:]}"


def _settings(processor: LGQImageProcessor) -> dict[str, Any]:
    """What the image processor does to a picture."""
    settings = processor.to_dict()
    names = ["do_resize", "size", "do_center_crop", "crop_size", "resample", "do_convert_rgb", "do_pad"]
    names += ["pad_to_multiple_of", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"]
    return {"processor": {name: settings.get(name) for name in names}}


def _common_size(source: TokenSource, processor: LGQImageProcessor, preprocessing: Preprocessing) -> Grid:
    if preprocessing.size is not None:
        return preprocessing.size, preprocessing.size
    reason = ""
    for index in range(len(source)):
        try:
            return cut_views(source.read(index), processor, preprocessing)[1]
        except ValueError as error:
            reason = f"{source.id(index)}: {error}"
    raise ValueError(f"not one of {len(source)} pictures of {source.name} can be read (the last: {reason})")


__all__ = [
    "FORMAT",
    "VERSION",
    "Plan",
    "differences",
    "file_names",
    "identity",
    "make_plan",
    "pictures_of",
    "row_features",
]
