"""The pictures that all runs of a scale see: square crops of a corpus, cut once.

A crop depends on the picture's name, the seed and its number alone; splits are the corpus's, which are by source
picture. What trains and what evaluates read the same parquet shards.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lgq_hf.files import atomic_folder
from lgq_hf.images.sources import ImageSource
from training.crops import scaled_crop
from training.data import open_source

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
MAX_SCALE = 4.0  # a crop is a square of 1 to so many times its side, at most the picture's shorter one
MIN_STD = 0.03  # of the values in [0, 1]; what has less is nearly flat, and its PSNR would outweigh all else
_PER_SHARD = 10_000
_TRIES = 6  # draws for each crop that a picture owes
_FEATURES = {"image": {"_type": "Image"}, "id": {"dtype": "string", "_type": "Value"}}
_SCHEMA = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("id", pa.string())],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},  # what `datasets` reads as pictures
)


def contrast(crop: Image.Image) -> float:
    """How much an RGB picture varies: the root of its channels' mean variance, in [0, 0.5]."""
    return float((np.asarray(crop, dtype=np.float64) / 255).var((0, 1)).mean() ** 0.5)


def crops_of(picture: Image.Image, name: str, size: int, seed: int, turn: int = 0) -> Iterator[Image.Image | None]:
    """Crops of one picture without end, `None` for each that is nearly flat.

    Args:
        picture: RGB.
        name: of the picture in its source; with `seed` and `turn` it decides what is drawn.
        size: of the crops, in pixels.
        seed: of all crops.
        turn: another one gives other crops.
    """
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng([seed, turn, int.from_bytes(digest[:8], "big")])
    while True:
        crop = scaled_crop(picture, rng, size=size, max_scale=MAX_SCALE, flip=0.0)
        yield crop if contrast(crop) >= MIN_STD else None


def cut_split(pictures: ImageSource, size: int, count: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """`count` crops with their names, spread evenly over the pictures, in their order.

    What a picture cannot give, because it is flat where it was looked at, the following ones give, none of them more
    than twice its share; those that are left at the end are taken from the beginning again, one of each picture.

    Raises:
        ValueError: a turn over all pictures gives nothing more.
    """
    given, turn, most = 0, 0, max(1, 2 * -(-count // len(pictures)))
    while given < count:
        before = given
        for index in range(len(pictures)):
            owed = (count if turn else (index + 1) * count // len(pictures)) - given
            want = min(owed, 1 if turn else most)
            if not want:
                continue
            name = pictures.id(index)
            tried = islice(crops_of(pictures.read(index), name, size, seed, turn), _TRIES * want)
            for number, crop in enumerate(islice((crop for crop in tried if crop is not None), want)):
                yield f"{name}#{turn}.{number}", crop
                given += 1
        if given == before:
            raise ValueError(f"{len(pictures)} pictures gave {given} of {count} crops that are not flat")
        turn += 1


def _png(crop: Image.Image) -> bytes:
    buffer = io.BytesIO()
    crop.save(buffer, "png")
    return buffer.getvalue()


def _write_shards(folder: Path, split: str, crops: Iterator[tuple[str, Image.Image]]) -> dict[str, str]:
    """Parquet files `<split>-<number>.parquet`; their sha256 by name."""
    hashes: dict[str, str] = {}
    while some := list(islice(crops, _PER_SHARD)):
        rows = [{"image": {"bytes": _png(crop), "path": None}, "id": name} for name, crop in some]
        file = folder / f"{split}-{len(hashes):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), file, compression="none", row_group_size=1000)
        hashes[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashes


def _corpus_summary(corpus: Path) -> dict[str, Any]:
    """What the crops were cut from: files and source pictures of each split, files by package, the manifest's hash."""
    text = (corpus / "manifest.jsonl").read_bytes()
    rows = [json.loads(line) for line in text.splitlines()]
    by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    return {
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
        "files": {split: len(rows) for split, rows in by_split.items()},
        "source_pictures": {split: len({row["source_sha256"] for row in rows}) for split, rows in by_split.items()},
        "packages": {
            split: dict(sorted(Counter(r["package"] for r in rows).items())) for split, rows in by_split.items()
        },
    }


def settings_of(size: int, counts: dict[str, int], seed: int) -> dict[str, Any]:
    """What decides the crops besides the corpus."""
    return {"size": size, "counts": counts, "seed": seed, "max_scale": MAX_SCALE, "min_std": MIN_STD}


def cut(corpus: Path, folder: Path, *, size: int, counts: dict[str, int], seed: int) -> dict[str, Any]:
    """Cuts the crops of all splits into `folder`, unless they are there; returns their manifest.

    Args:
        corpus: built by `training.corpus`.
        folder: written as a whole or not at all.
        size: side in pixels.
        counts: crops of each split.
        seed: of the crops.

    Raises:
        ValueError: other crops are there; or a split without enough pictures.
    """
    settings = settings_of(size, counts, seed)
    if folder.exists():
        manifest = read_manifest(folder)
        if manifest["settings"] != settings:
            raise ValueError(f"{folder} holds crops of other settings {manifest['settings']}: expected {settings}")
        return manifest
    with atomic_folder(folder) as temporary:
        files: dict[str, str] = {}
        for split in SPLITS:
            pictures = open_source("corpus", corpus, split)
            files |= _write_shards(temporary, split, cut_split(pictures, size, counts[split], seed))  # type: ignore[arg-type]
        manifest = {"settings": settings, "corpus": _corpus_summary(corpus), "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `cut` wrote.

    Raises:
        FileNotFoundError: nothing was cut there.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"no crops in {folder}: cut them by the stage 'crops'")
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 (hex) over the manifest: of all crops, through the hashes of their files."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
