"""What the tokenization benchmark measures: pictures, the parts of the work, and the work as a whole."""

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from benchmarks import memory, photographs
from benchmarks.harness import Isolated, Row, begin, result_name
from benchmarks.results_file import write_result
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
CODES = (4096, 16384, 65536, 2**18)
MORE = 4  # times as many images, to see whether memory grows


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


def _protocol(setting: Setting) -> Row:
    width, height = JPEG_SIZE
    return {
        "pictures": f"{setting.pictures} JPEGs of {width} x {height} pixels, quality {QUALITY}, cut at random from "
        "scikit-image's photographs; in the page cache",
        "model": "LGQConfig() with random weights" if setting.full_model else "the built-in checkpoint",
        "setting": asdict(setting),
        "time": "pictures a second; model loaded and warm; encoder alone, JPEG decoder alone and the whole take turns "
        "in rounds, and ratios are taken within a round; medians",
        "gate": "tokens in the files equal those of the model on the image processor's own pixels, in equal batches",
        "processes": "on one thread each, pinned to a core; one alone and two at once take turns",
        "memory": "peak resident set of one process",
        "storage": f"{setting.storage_rows} rows of 16 x 16 uniformly random tokens; 200 rows read at random",
    }


def measure_parts(parts: Parts, setting: Setting) -> Row:
    """Rates of the parts and the whole, or why it was refused."""
    count = len(parts.pixels)
    parts.encode()
    for workers in setting.workers:
        parts.whole(workers)
        if reason := parts.gate():
            return {"refused": f"workers={workers}: {reason}"}
    seconds: dict[str, list[float]] = {}
    for _ in range(setting.rounds):
        seconds.setdefault("encode", []).append(parts.encode())
        seconds.setdefault("look_up", []).append(parts.look_up())
        for workers in setting.workers:
            seconds.setdefault(f"read_{workers}", []).append(parts.read(workers))
            seconds.setdefault(f"whole_{workers}", []).append(parts.whole(workers))
        seconds.setdefault("write", []).append(parts.write())
    middle = statistics.median
    rates = {name: count / middle(times) for name, times in seconds.items()}
    result: Row = {
        "encoder": rates["encode"],
        "lookup_share": middle(a / b for a, b in zip(seconds["look_up"], seconds["encode"], strict=True)),
        "writing_share": middle(seconds["write"]) / middle(seconds[f"whole_{setting.workers[0]}"]),
        "decoding_share": middle(seconds[f"read_{setting.workers[0]}"])
        / middle(seconds[f"whole_{setting.workers[0]}"]),
        "rounds_s": seconds,
        "workers": {},
    }
    for workers in setting.workers:
        slower = [max(a, b) for a, b in zip(seconds["encode"], seconds[f"read_{workers}"], strict=True)]
        ratios = [a / b for a, b in zip(slower, seconds[f"whole_{workers}"], strict=True)]
        result["workers"][str(workers)] = {
            "jpeg_decoder": rates[f"read_{workers}"],
            "whole": rates[f"whole_{workers}"],
            "against_slower": middle(ratios),
        }
    return result


class Share:
    """One process's share of the work, on one thread pinned to a core where the system can do that."""

    def __init__(self, images: Path, output: Path, name: str, rank: int, world_size: int) -> None:
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))  # a container may not have core 0
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
        self.job = make_job(images, output / str(rank), None, SETTINGS[name])
        self.maker = FileMaker(self.job, "cpu")
        self.own = list(range(rank, self.job.plan.files, world_size))
        assert self.job.plan.size is not None
        self.maker.encoder(torch.zeros(1, 3, *self.job.plan.size, dtype=torch.uint8), fill=True)  # warm

    def make(self) -> Row:
        """Makes its files: seconds, and the peak resident set in MiB."""
        shutil.rmtree(self.job.output, ignore_errors=True)
        memory.reset_peak("cpu")
        start = time.perf_counter()
        self.maker.make(self.own)
        return {"seconds": time.perf_counter() - start, "peak_mib": memory.resident_peak_mib()}


def measure_processes(images: Path, output: Path, name: str) -> Row:
    """One process against two that share the same work."""
    setting = SETTINGS[name]
    one = Isolated(Share, images, output / "one", name, 0, 1)
    two = [Isolated(Share, images, output / "two", name, rank, 2) for rank in range(2)]
    for process in (one, *two):
        process.call("make")  # loads what is loaded once
    alone, together = [], []
    for _ in range(setting.rounds):
        alone.append(one.call("make")["seconds"])
        for process in two:
            process.begin("make")
        together.append(max(process.answer()["seconds"] for process in two))
    for process in (one, *two):
        process.close()
    return {
        "one_pictures_per_s": setting.pictures / statistics.median(alone),
        "two_pictures_per_s": setting.pictures / statistics.median(together),
        "ratio": statistics.median(a / b for a, b in zip(alone, together, strict=True)),
        "rounds_s": {"one": alone, "two": together},
    }


def measure_memory(images: Path, more: Path, output: Path, name: str) -> Row:
    """Peak of a process over some pictures, and over several times as many."""
    result: Row = {"pictures": [], "peak_mib": []}
    for folder in (images, more):
        process = Isolated(Share, folder, output / "memory", name, 0, 1)
        result["peak_mib"].append(process.call("make")["peak_mib"])
        result["pictures"].append(len(list(folder.iterdir())))
        process.close()
    return result


def run(arguments: argparse.Namespace) -> int:
    """Measures all of it and writes the file; 1 where wrong tokens were refused."""
    device, name = arguments.device, "quick" if arguments.quick else arguments.device
    setting = SETTINGS[name]
    result, _ = begin(arguments)
    result["protocol"] = _protocol(setting)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_pictures(place / "pictures", setting.pictures, arguments.seed)
        model = make_model(place / "model", setting.full_model, arguments.seed)
        parts = Parts(make_job(place / "pictures", place / "tokens", model, setting), device)
        result["parts"] = measure_parts(parts, setting)
        del parts
        if device == "cpu" and "refused" not in result["parts"]:
            (place / "more").mkdir()
            for file in (place / "pictures").iterdir():
                for copy in range(MORE):
                    (place / "more" / f"{copy}-{file.name}").hardlink_to(file)
            result["processes"] = measure_processes(place / "pictures", place, name)
            result["memory"] = measure_memory(place / "pictures", place / "more", place, name)
        result["storage"] = [
            storage(place / "storage", setting.storage_rows, codes, arguments.seed) for codes in CODES
        ]
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    path = write_result(result_name("tokenize", device, arguments.quick), result, arguments.output)
    shown = {key: result[key] for key in ("parts", "processes", "memory", "storage") if key in result}
    print(json.dumps(shown, indent=1))
    print(path)
    return int("refused" in result["parts"])
