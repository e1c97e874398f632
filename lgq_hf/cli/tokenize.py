"""`lgq tokenize`: pictures of a folder or dataset to token shards, and the check of such shards."""

import argparse
import math
import os
from pathlib import Path

from lgq_hf import default_checkpoint
from lgq_hf.checkpoint.loading import SHORT, find_checkpoint
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.engine import Job, default_workers, tokenize
from lgq_hf.tokens.manifest import Manifest, check_tokenizer, verify
from lgq_hf.tokens.plan import make_plan
from lgq_hf.tokens.ray_engine import tokenize_with_ray
from lgq_hf.tokens.shards import Folder

from .output import check_output_folder
from .report import list_failures, progress_bar, shown


def run(args: argparse.Namespace) -> int:
    """Tokenizes `args.source` into `args.output`, or checks `args.verify`; returns the exit status.

    Raises:
        ValueError: wrong arguments, nothing to do, damaged shards, or an output that holds something else.
        OSError: the output cannot be written.
    """
    if args.verify is not None:
        verified = verify(args.verify)
        if args.model is not None:
            check_tokenizer(verified, find_checkpoint(args.model, args.revision))
        print(f"{shown(args.verify)}: {_summary(verified)}: all as in the manifest")
        return 0
    job = _job(args)
    with progress_bar("tokenizing") as update:
        seen = total = 0

        def started(images: int) -> None:
            nonlocal total
            total = images

        def progress(images: int) -> None:
            nonlocal seen
            seen += images
            update(seen, total)

        manifest: Manifest | None
        if args.engine == "ray":
            manifest = tokenize_with_ray(
                job,
                workers=args.ray_workers,
                cpus_per_worker=args.ray_cpus,
                gpus_per_worker=args.ray_gpus,
                num_workers=args.workers or 0,
                started=started,
                progress=progress,
            )
        else:
            manifest = tokenize(
                job,
                num_shards=args.num_shards,
                shard_index=args.shard_index,
                device=args.device,
                num_workers=default_workers(args.device) if args.workers is None else args.workers,
                started=started,
                progress=progress,
            )
    if manifest is None:
        print(f"{shown(args.output)}: this process's files are there; others are not yet", flush=True)
        return 0
    return _report(args.output, manifest)


def _job(args: argparse.Namespace) -> Job:
    if args.source is None or args.output is None:
        raise ValueError("expected a SOURCE and --output, or --verify DIR")
    if args.engine == "ray" and (args.device != "auto" or args.num_shards is not None or args.shard_index is not None):
        raise ValueError(
            "--device, --num-shards and --shard-index are for --engine local; Ray has --ray-workers and -gpus"
        )
    output = Folder(args.output)
    if output.local:
        check_output_folder(Path(output.root))
        inside, outside = Path(output.root).resolve(), Path(args.source).resolve()
        if outside.is_dir() and inside.is_relative_to(outside):
            raise ValueError(f"{args.output} lies in {args.source}, which is to be read: choose another output folder")
    reference = find_checkpoint(args.model, args.revision)
    source = open_source(
        args.source,
        kind=args.kind,
        split=args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        id_column=args.id_column,
        keep=args.keep,
        name=args.config,
        revision=args.source_revision,
    )
    plan = make_plan(
        reference,
        default_checkpoint().name if args.model is None else args.model,
        source,
        Preprocessing(args.size, args.crops, args.crop_scale, args.flip),
        Encoding(args.batch_size, args.dtype, args.channels_last, args.compile),
        split=args.split,
        mixed_sizes=args.mixed_sizes,
        per_file=args.pictures_per_file,
    )
    return Job(plan, reference, source, os.path.abspath(output.root) if output.local else args.output, args.on_error)


def _summary(manifest: Manifest) -> str:
    counts, made_by = manifest.counts, manifest.tokenizer
    grid = " x ".join(map(str, manifest.grid)) if manifest.grid else "different numbers of"
    size = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{counts['pictures']} pictures, {counts['rows']} rows of {grid} tokens in {len(manifest.shards)} files of "
        f"{size} bytes, by {made_by.name} ({made_by.weights_sha256[:SHORT]})"
    )


def _report(output: str, manifest: Manifest) -> int:
    print(f"{shown(output)}: {_summary(manifest)}")
    if grid := manifest.grid:
        tokens = manifest.counts["rows"] * math.prod(grid)
        stored = sum(shard.bytes for shard in manifest.shards) / tokens
        bound = math.log2(manifest.tokenizer.codebook_size) / 8
        print(f"{stored:.2f} bytes a token with labels and names; log2(K) / 8 = {bound:.2f}")
    failures = [(failure["id"], failure["reason"]) for failure in manifest.failures]
    return list_failures(failures, manifest.counts["pictures"], place="manifest.json")
