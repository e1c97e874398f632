"""What the tokenization benchmark measures: pictures, the parts of the work, and the work as a whole."""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from benchmarks import photographs
from benchmarks.rounds import Row
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import Checkpoint, find_checkpoint
from lgq_hf.images.loading import chunks
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing, cut_views
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.engine import FileMaker, Job
from lgq_hf.tokens.plan import make_plan, token_features
from lgq_hf.tokens.shards import Folder, write_shard

JPEG_SIZE, QUALITY = (500, 375), 95


@dataclass(frozen=True)
class Setting:
    """What is measured on a kind of machine.

    Attributes:
        pictures: of a round; two files.
        size: of the crops, in pixels.
        encoding: how the model is run.
        full_model: the published net of `LGQConfig`, with random weights, instead of the built-in checkpoint.
        workers: processes that read ahead, each a row.
        rounds: in which the rows take turns.
        storage_rows: rows of the files whose bytes are counted.
    """

    pictures: int
    size: int
    encoding: Encoding
    full_model: bool
    workers: tuple[int, ...]
    rounds: int
    storage_rows: int


SETTINGS = {
    "cpu": Setting(64, 256, Encoding(16), False, (0, 1, 2), 5, 16384),
    "cuda": Setting(8192, 256, Encoding(128, "bfloat16", channels_last=True), True, (0, 4, 8, 15), 5, 16384),
    "quick": Setting(16, 64, Encoding(4), False, (0, 1), 2, 256),
}


def make_pictures(folder: Path, count: int, seed: int) -> None:
    """JPEGs cut at random from scikit-image's photographs."""
    rng = np.random.default_rng(seed)
    opened = [Image.open(photographs.folder() / name).convert("RGB") for name in photographs.NAMED]
    folder.mkdir(parents=True)
    for number in range(count):
        picture = opened[number % len(opened)]
        width = int(rng.integers(picture.width // 2, picture.width + 1))
        height = min(picture.height, width * JPEG_SIZE[1] // JPEG_SIZE[0])
        left = int(rng.integers(0, picture.width - width + 1))
        top = int(rng.integers(0, picture.height - height + 1))
        cut = picture.resize(JPEG_SIZE, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        cut.save(folder / f"{number:06d}.jpg", quality=QUALITY)


def make_model(folder: Path, full: bool, seed: int) -> str | None:
    """`None` for the built-in checkpoint, else the folder of one with random weights."""
    if not full:
        return None
    torch.manual_seed(seed)
    LGQModel(LGQConfig()).save_pretrained(folder)
    LGQImageProcessor(pad_to_multiple_of=16).save_pretrained(folder)
    return str(folder)


def make_job(pictures: Path, output: Path, model: str | None, setting: Setting) -> Job:
    """Files of half as many pictures as the setting says, of a folder of any number of them."""
    source, reference = open_source(str(pictures)), find_checkpoint(model)
    cut = Preprocessing(setting.size)
    plan = make_plan(reference, "benchmark", source, cut, setting.encoding, per_file=setting.pictures // 2)
    return Job(plan, reference, source, str(output))


class Parts:
    """The parts and the whole over the same pictures; each call gives seconds.

    Args:
        job: what is to be made.
        device: of torch's.
    """

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.device = job, device
        self.maker = FileMaker(job, device)
        self.encoder, self.batch_size = self.maker.encoder, job.plan.encoding.batch_size
        source, cut = job.source, job.plan.preprocessing
        cuts = [cut_views(source.read(i), self.maker.processor, cut)[0] for i in range(len(source))]
        self.pixels = torch.from_numpy(np.concatenate(cuts))

    def _batches(self) -> list[torch.Tensor]:
        return list(self.pixels.split(self.batch_size))

    def _seconds(self, start: float) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def encode(self) -> float:
        """Encoder and lookup, on pictures that are cut already."""
        start = time.perf_counter()
        for batch in self._batches():
            self.encoder(batch, fill=True)
        return self._seconds(start)

    @torch.inference_mode()
    def look_up(self) -> float:
        """The lookup alone."""
        latents = [self.encoder.latents(self.encoder.pixel_values(batch)) for batch in self._batches()]
        if self.device == "cuda":
            torch.cuda.synchronize()  # or the encoder would be timed too
        start = time.perf_counter()
        for one in latents:
            self.encoder.model.quantizer(one)
        return self._seconds(start)

    def read(self, num_workers: int) -> float:
        """Reading, decoding and cutting the JPEGs alone."""
        keys = [(0, i, i + self.batch_size) for i in range(0, len(self.pixels) - self.batch_size + 1, self.batch_size)]
        start = time.perf_counter()
        source, cut = self.job.source, self.job.plan.preprocessing
        for _ in chunks(source, self.maker.processor, cut, keys, num_workers=num_workers, pin_memory=False):
            pass
        return (time.perf_counter() - start) * len(self.pixels) / (len(keys) * self.batch_size)

    def whole(self, num_workers: int) -> float:
        """From files of pictures to files of tokens."""
        shutil.rmtree(self.job.output, ignore_errors=True)
        self.maker.num_workers = num_workers
        start = time.perf_counter()
        self.maker.make([0, 1])
        return self._seconds(start)

    def write(self) -> float:
        """Writing the rows alone."""
        columns = [self._columns(name) for name in self.job.plan.names]
        start = time.perf_counter()
        for number, one in enumerate(columns):
            write_shard(Folder(f"{self.job.output}-copy"), f"{number}.parquet", one, self.maker.features, {})
        return time.perf_counter() - start

    def _columns(self, name: str) -> dict[str, Any]:
        rows = datasets.Dataset.from_parquet(str(Path(self.job.output, name))).with_format("numpy")
        return {column: rows[column] for column in rows.column_names}

    def gate(self) -> str | None:
        """Why the tokens in the files are not those of the model on the processor's own pixels; `None`: they are."""
        checkpoint: Checkpoint = self.maker.checkpoint
        found = {row["id"]: row["image_tokens"] for row in _rows(self.job.output)}
        size = {"height": self.job.plan["size"][0], "width": self.job.plan["size"][1]}
        options: dict[str, Any] = {
            "do_resize": True,
            "size": {"shortest_edge": size["height"]},
            "do_center_crop": True,
        }
        names = [self.job.source.id(i) for i in range(len(self.job.source))]
        per_file = self.job.plan["pictures_per_file"]
        for first in range(0, len(names), self.batch_size):
            if first % per_file + self.batch_size > per_file and first + self.batch_size < len(names):
                return "the files of this setting do not hold whole batches"
            pictures = [self.job.source.read(i) for i in range(first, min(first + self.batch_size, len(names)))]
            batch = checkpoint.processor(pictures, crop_size=size, return_tensors="pt", **options)["pixel_values"]
            if self.job.plan.encoding.channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():  # its own latents: a compiled encoder rounds otherwise in bf16
                latents = self.encoder.latents(batch.to(checkpoint.device))
                expected = checkpoint.model.quantizer(latents).image_tokens.cpu()
            for name, tokens in zip(names[first : first + self.batch_size], expected, strict=True):
                if not torch.equal(found[name], tokens):
                    return f"{int((found[name] != tokens).sum())} tokens of {name} differ"
        return None


def _rows(place: str) -> Any:
    folder = Folder(place)
    for name in folder.sizes("data"):
        yield from datasets.Dataset.from_parquet(folder.path(name)).with_format("torch")


def storage(folder: Path, rows: int, codes: int, seed: int) -> Row:
    """Bytes and access times of uniformly random tokens, 16 x 16 of each picture."""
    from pyarrow import parquet

    config = LGQConfig(codebook_size=codes)
    features = token_features(config, 256)
    grids = np.random.default_rng(seed).integers(0, codes, (rows, 16, 16))
    dtype = next(iter(features.values())).dtype
    write_shard(Folder(folder), f"{codes}.parquet", {"image_tokens": grids.astype(dtype)}, features, {})
    file = folder / f"{codes}.parquet"
    metadata = parquet.read_metadata(file)
    column = sum(metadata.row_group(i).column(0).total_compressed_size for i in range(metadata.num_row_groups))
    stored = datasets.Dataset.from_parquet(str(file), cache_dir=str(folder / "cache")).with_format("torch")
    picked = np.random.default_rng(seed).integers(0, rows, 200).tolist()
    stored[0]
    start = time.perf_counter()
    for number in picked:
        one = stored[number]["image_tokens"]
    seconds = (time.perf_counter() - start) / len(picked)
    return {
        "codes": codes,
        "bound": math.log2(codes) / 8,
        "parquet_bytes_a_token": column / grids.size,
        "file_bytes_a_token": file.stat().st_size / grids.size,
        "arrow_bytes_a_token": stored.data.nbytes / grids.size,
        "row_ms": 1000 * seconds,
        "torch": f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}",
        "equal": bool(np.array_equal(one.numpy(), grids[picked[-1]])),
    }


__all__ = ["SETTINGS", "Parts", "Setting", "make_job", "make_model", "make_pictures", "storage"]
