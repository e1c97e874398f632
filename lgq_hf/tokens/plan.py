"""What decides every byte of a set of token shards, before any image is encoded; and what came of it.

A plan stands in the footer of each shard, so that a shard says by itself what it is part of, and in the manifest. All
records here stand in JSON under the names of their fields. Shapes: H W pixels of an image, f downsampling factor,
h = ceil(H / f) and w = ceil(W / f), C tokens per position.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
from huggingface_hub.dataclasses import strict

from lgq_hf.checkpoint.loading import Reference
from lgq_hf.files import canonical_sha256
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS, ImageSource
from lgq_hf.images.stored import import_datasets
from lgq_hf.images.views import Grid, Preprocessing, cut_views
from lgq_hf.runtime import DTYPES
from lgq_hf.tokenizer.configuration_lgq import LGQConfig
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor

FORMAT, VERSION = "lgq-token-shards", 1
_PROCESSOR = ["do_resize", "size", "do_center_crop", "crop_size", "resample", "do_convert_rgb", "do_pad"]
_PROCESSOR += ["pad_to_multiple_of", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"]


class Record(Mapping[str, Any]):
    """A dataclass that can be read as the JSON it stands in: `record["grid"]` is `record.grid`, and it equals it."""

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))


@dataclass(frozen=True, eq=False)
class Encoding(Record):
    """How the model is run.

    Attributes:
        batch_size: pictures that go through the model together. A last batch of pictures of one size is filled up to
            it, so that a picture's tokens do not depend on what else was there to encode.
        dtype: "float32", "bfloat16" or "float16"; of the encoder, for the lookup is always fp32.
        channels_last: memory format of the encoder.
        compile: run the encoder through `torch.compile`.
    """

    batch_size: int = 16
    dtype: str = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {self.dtype!r}")


@strict
@dataclass(eq=False)
class MadeBy(Record):
    """The tokenizer: what it is called, hashes (hex) as in `Reference`, and what its tokens are."""

    name: str
    revision: str | None
    weights_sha256: str
    codebook_sha256: str
    config_sha256: str
    codebook_size: int
    downsample_factor: int
    tokens_per_position: int


@dataclass(frozen=True, eq=False)
class Views(Record, Preprocessing):
    """What is cut out of each picture, and what the image processor does to it before."""

    processor_sha256: str = ""
    processor: dict[str, Any] = field(default_factory=dict)


@strict
@dataclass(eq=False)
class Source(Record):
    """The pictures; `split` is what files are called."""

    kind: str
    name: str
    split: str
    pictures: int
    sha256: str


@strict
@dataclass(eq=False)
class Plan(Record):
    """What a set of token shards is to be.

    Attributes:
        size: (H,W) in pixels of every picture; `None`: they differ.
        grid: (h,w), or (h,w,C) with several tokens per position, of every picture; `None`: they differ.
        dtype: of the tokens in files.
        features: of the rows, as `datasets.Features.to_dict` gives them.
    """

    format: str
    format_version: int
    tokenizer: MadeBy
    size: list[int] | None
    grid: list[int] | None
    dtype: str
    encoding: Encoding
    preprocessing: Views
    source: Source
    pictures_per_file: int
    files: int
    features: dict[str, Any]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """From parsed JSON; raises one of `DAMAGED` where a part is missing or of another type."""
        parts = {"tokenizer": MadeBy, "encoding": Encoding, "preprocessing": Views, "source": Source}
        return cls(**{**content, **{name: kind(**content[name]) for name, kind in parts.items()}})

    @property
    def names(self) -> list[str]:
        """The shards, as `data/train-00000-of-00064.parquet`."""
        return [f"data/{self.source.split}-{number:05d}-of-{self.files:05d}.parquet" for number in range(self.files)]

    def pictures_of(self, number: int) -> range:
        """Which pictures of the source a file holds."""
        start = number * self.pictures_per_file
        return range(start, min(start + self.pictures_per_file, self.source.pictures))

    def identity(self) -> str:
        """sha256 (hex) of what decides the content: all of a plan but what tokenizer and source are called."""
        content = {name: part for name, part in asdict(self).items() if name in Plan.__dataclass_fields__}
        for part, name in (("tokenizer", "name"), ("tokenizer", "revision"), ("source", "name")):
            del content[part][name]
        return canonical_sha256(content)


@strict
@dataclass(eq=False)
class Shard(Record):
    """A file of the set."""

    file: str
    rows: int
    bytes: int
    sha256: str


@strict
@dataclass(eq=False)
class Manifest(Plan):
    """The plan, and what came of it.

    Attributes:
        counts: over all files, of "pictures", "rows" and "failures".
        failures: {"id", "reason"} of each picture that could not be read.
        devices: kinds of devices that encoded.
        versions: of the packages that were used, by name; several where files were made by several.
    """

    counts: dict[str, int]
    failures: list[dict[str, str]]
    devices: list[str]
    versions: list[dict[str, str | None]]
    shards: list[Shard]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """As `Plan.read`."""
        return super().read({**content, "shards": [Shard(**shard) for shard in content["shards"]]})

    @property
    def plan(self) -> Plan:
        """Without what came of it."""
        return Plan(**{one.name: self[one.name] for one in fields(Plan)})


@strict
@dataclass(eq=False)
class Footer(Record):
    """What a shard says of itself; other fields as in `Manifest`, for one file, whose number is `file`."""

    plan: Plan
    file: int
    pictures: int
    rows: int
    failures: list[dict[str, str]]
    device: str
    versions: dict[str, str | None]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """As `Plan.read`."""
        return cls(**{**content, "plan": Plan.read(content["plan"])})


def token_dtype(codebook_size: int) -> np.dtype:
    """uint16 for up to 65,536 codes, else uint32; `ValueError` where no token column can hold a token."""
    if not 1 <= codebook_size <= 2**32:
        raise ValueError(f"codebook_size: expected 1 to 2**32, what uint32 tokens can tell apart, got {codebook_size}")
    return np.dtype(np.uint16 if codebook_size <= 2**16 else np.uint32)


def grid_of(config: LGQConfig, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a picture's tokens: (h,w), or (h,w,C) where a position has several; `size` is (H,W) in pixels."""
    factor = config.spatial_downsample_factor
    grid = tuple(-(-edge // factor) for edge in size)
    return grid if config.tokens_per_position == 1 else (*grid, config.tokens_per_position)


def token_features(config: LGQConfig, size: int | tuple[int, int] | None = None) -> Any:
    """The `datasets.Features` of token columns, in the narrowest types.

    With a size: `image_tokens` as Array2D (h,w), or Array3D (h,w,C) for per-channel bins, of uint16 (K <= 65,536) or
    uint32, which `set_format("torch")` gives as (h,w) int64. Without: `image_tokens` as a flat list of h*w*C such
    numbers in raster order, and the int32 columns of `SIZES`.

    Args:
        config: of the tokenizer.
        size: H = W, or (H,W), in pixels where all pictures have one size; `None` where they differ.

    Raises:
        ValueError: a size below 1, or more codes than uint32 holds.
        ModuleNotFoundError: without the package datasets, naming the extra.
    """
    datasets = import_datasets()
    dtype = token_dtype(config.codebook_size).name
    if size is None:
        sizes = {name: datasets.Value("int32") for name in SIZES}
        return datasets.Features({TOKENS: datasets.List(datasets.Value(dtype)), **sizes})
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size: expected height and width of at least 1 pixel, got {size}")
    grid = grid_of(config, (height, width))
    array = datasets.Array2D if len(grid) == 2 else datasets.Array3D
    return datasets.Features({TOKENS: array(grid, dtype)})


def make_plan(
    reference: Reference,
    name: str,
    source: ImageSource,
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
        per_file: images of one file; `None`: as many as make 64 files, but 64 to 16,384.

    Raises:
        ValueError: an option out of range, nothing to do, or, without `mixed_sizes`, not one picture can be read.
    """
    config, processor = reference.settings()
    dtype = token_dtype(config.codebook_size).name
    if mixed_sizes and preprocessing.size is not None:
        raise ValueError("mixed_sizes is for pictures that keep their size: leave it or the size out")
    if mixed_sizes and encoding.compile:
        raise ValueError("compile needs pictures of one size: what a graph computes would depend on the sizes before")
    if not len(source):
        raise ValueError(f"nothing to do: {source.name} has no pictures")
    if per_file is None:
        per_file = min(16384, max(64, -(-len(source) // 64)))
    if per_file < 1:
        raise ValueError(f"pictures_per_file: expected at least 1, got {per_file}")
    word = re.match(r"\w+", split)
    if word is None:
        raise ValueError(f"split: expected a name like 'train', got {split!r}")
    size = None if mixed_sizes else _common_size(source, processor, preprocessing)
    datasets, settings = import_datasets(), processor.to_dict()
    given = {ID: datasets.Value("string"), CROP: datasets.Value("string"), FLIP: datasets.Value("bool")}
    plan = Plan(
        format=FORMAT,
        format_version=VERSION,
        tokenizer=MadeBy(
            name,
            *(reference.revision, reference.weights, reference.codebook, reference.config),
            *(config.codebook_size, config.spatial_downsample_factor, config.tokens_per_position),
        ),
        size=size and list(size),
        grid=size and list(grid_of(config, size)),
        dtype=dtype,
        encoding=encoding,
        preprocessing=Views(
            **asdict(preprocessing),
            processor_sha256=reference.processor,
            processor={name: settings.get(name) for name in _PROCESSOR},
        ),
        source=Source(source.kind, source.name, word.group(), len(source), source.digest()),
        pictures_per_file=per_file,
        files=-(-len(source) // per_file),
        features=datasets.Features({**token_features(config, size), **given, **source.features}).to_dict(),
    )
    return Plan.read(json.loads(json.dumps(asdict(plan))))  # as a footer gives it back: tuples are lists


def differences(one: Plan, other: Plan) -> list[str]:
    """Which entries of two plans or manifests differ, as "encoding.dtype: 'float32' and 'bfloat16'"."""
    return _differences(asdict(one), asdict(other))


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in _differences(a, b)]
        elif a != b:
            found.append(f"{key}: {_short(a)} and {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:24]}...{text[-8:]}"


def _common_size(source: ImageSource, processor: LGQImageProcessor, preprocessing: Preprocessing) -> Grid:
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
    "Encoding",
    "Footer",
    "Manifest",
    "Plan",
    "Shard",
    "differences",
    "grid_of",
    "make_plan",
    "token_dtype",
    "token_features",
]
