"""How good a tokenizer is: every image beside its reconstruction, all codes in one histogram.

Images that are compared are those that a user would save: 8 bits, in [0, 1]."""

from typing import Any

import torch
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.pictures import Batch, chosen, keys_of, shares
from lgq_hf.evaluation.results import cost, describe_model, describe_protocol, extremes, metrics, smallest_side
from lgq_hf.evaluation.settings import Classifier, Distance, Networks, Settings, Watch
from lgq_hf.evaluation.totals import Processes, Reconstructor, Totals, processes
from lgq_hf.images.sheet import Pair, draw_sections
from lgq_hf.images.sources import ImageSource
from lgq_hf.images.views import Grid, cut_views
from lgq_hf.metrics.extractors import Extractor
from lgq_hf.provenance import provenance


def evaluate_tokenizer(
    checkpoint: Checkpoint,
    source: ImageSource,
    settings: Settings,
    extractor: Extractor,
    perceptual: Distance | None = None,
    classifier: Classifier | None = None,
    lpips: Distance | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Encodes and decodes pictures, and says how they compare with the originals.

    Started by torchrun or accelerate launch, or within a torch.distributed group, the processes share the pictures,
    and each returns the same result.

    Args:
        checkpoint: the tokenizer, of any dtype; it and the networks are on one device.
        source: pictures, at least 2.
        settings: which of them, how they are cut and batched.
        extractor: makes the features of the Fréchet distance.
        perceptual: a distance such as `EfficientNetDistance`; `None`: left out.
        classifier: for the share of pictures whose reconstruction has the same first class; `None`: left out.
        lpips: one more distance, such as `LPIPS`; `None`: left out.
        watch: called after each part with the pictures seen and to be seen by this process.

    Returns:
        Of JSON's types: provenance, `model`, `protocol`, `metrics` (docs/evaluating.md defines each), `extremes` (the
        pictures with the highest and lowest PSNR), `codebook_counts` (K integers; with G > 1 tokens for each position
        summed over them) and `cost`. A number that is not finite is `None`.

    Raises:
        ValueError: too few pictures; one that cannot be read or is too small, unless the settings say to skip it; NaN
            from a network.
        ModuleNotFoundError: pytorch-msssim is not installed.
    """
    networks = Networks(extractor, perceptual, classifier, lpips)
    smallest_side(networks, settings)  # refuses early
    some = chosen(source, settings)
    with processes(checkpoint.device) as group:
        totals, costs = _measured(checkpoint, some, settings, networks, group, watch)

        pictures = len(totals.rows) // len(settings.preprocessing.views())
        if pictures < 2:  # the same on all ranks
            raise ValueError(f"expected at least 2 pictures that can be used, got {pictures} in {source.name}")

        def result() -> dict[str, Any]:
            return {
                **provenance(strict=False),
                "model": describe_model(checkpoint),
                "protocol": {
                    "pictures": pictures,
                    "views": len(totals.rows),
                    "chosen": "all" if some is source else f"{len(some)} of {len(source)}, drawn by the seed",
                    **describe_protocol(checkpoint, some, settings, totals, group),
                },
                "metrics": metrics(totals, pictures),
                "extremes": extremes(totals, some, settings),
                "codebook_counts": totals.counts_GK.sum(0).tolist(),
                "cost": cost(costs),
            }

        return group.from_first(result)


def _measured(
    checkpoint: Checkpoint,
    source: ImageSource,
    settings: Settings,
    networks: Networks,
    group: Processes,
    watch: Watch | None,
) -> tuple[Totals, list[dict[str, Any] | None]]:
    """The totals of all processes, and what the work of each cost (`None` where it had none)."""
    reconstructor = Reconstructor(checkpoint, settings)
    totals = Totals(networks, checkpoint.config, checkpoint.device)
    keys = keys_of(len(source), settings)[group.rank :: group.count]
    total, seen = sum(stop - start for _, start, stop in keys), 0
    with group.together():
        for share in shares(
            source,
            checkpoint.processor,
            settings,
            keys,
            smallest=smallest_side(networks, settings),
            pin_memory=checkpoint.device.type == "cuda",
        ):
            for batch in share.batches:
                totals.add(reconstructor(batch))
            totals.failures += share.failures
            seen += share.pictures
            if watch is not None:
                watch(seen, total)
    own = reconstructor.clock.cost() if totals.rows else None
    totals.reduce(group)
    return totals, group.gathered(own)


def draw_extremes(
    checkpoint: Checkpoint, source: ImageSource, settings: Settings, result: dict[str, Any]
) -> Image.Image:
    """The best and worst pictures of a result by PSNR, the extreme first, original left of reconstruction.

    Args:
        checkpoint: the tokenizer that was evaluated.
        source: the pictures that `evaluate_tokenizer` had.
        settings: as it had them.
        result: what it returned.

    Returns:
        RGB. Pictures whose longer side is below 128 pixels are magnified by whole numbers, those above 512 reduced.

    Raises:
        ValueError: a picture that cannot be read any more.
    """
    some, extremes = chosen(source, settings), result["extremes"]
    views = [view for part in ("best", "worst") for view in extremes[part]]
    pairs = _pairs(checkpoint, some, settings, views)
    half = len(extremes["best"])
    mean, count = result["metrics"]["psnr"], result["protocol"]["views"]
    what = "pictures" if count == result["protocol"]["pictures"] else "crops"
    told = "all exact" if mean is None else f"mean PSNR {mean:.2f} dB"
    title = f"{result['model']['name']}, {told} of {count:,} {what}: original left, reconstruction right"
    return draw_sections(title, {"Best": pairs[:half], "Worst": pairs[half:]})


def _pairs(checkpoint: Checkpoint, source: ImageSource, settings: Settings, views: list[dict[str, Any]]) -> list[Pair]:
    """Reads and reconstructs these views, as entries of `extremes` name them; in their order."""
    waiting: dict[Grid, list[tuple[int, torch.Tensor]]] = {}
    count = len(settings.preprocessing.views())
    for place, view in enumerate(views):
        index, which = divmod(view["view"], count)
        try:
            cuts, size = cut_views(source.read(index), checkpoint.processor, settings.preprocessing)
        except ValueError as error:
            raise ValueError(f"{view['id']} in {source.name}: {error}") from error
        waiting.setdefault(size, []).append((place, torch.from_numpy(cuts[which].copy())))
    reconstructor, found = Reconstructor(checkpoint, settings), dict[int, list[Image.Image]]()
    for size, group in waiting.items():
        for start in range(0, len(group), settings.batch_size):
            part = group[start : start + settings.batch_size]
            batch = Batch([place for place, _ in part], torch.stack([pixels for _, pixels in part]), size)
            made = reconstructor(batch)
            for place, original, picture in zip(made.numbers, made.originals, made.pictures, strict=False):
                found[place] = [Image.fromarray(x.permute(1, 2, 0).cpu().numpy()) for x in (original, picture)]
    return [Pair(found[i][0], found[i][1], _name(view), _decibels(view["psnr"])) for i, view in enumerate(views)]


def _name(view: dict[str, Any]) -> str:
    told = ", ".join([view["crop"]] * (view["crop"] not in ("", "center")) + ["mirrored"] * view["flip"])
    name = "".join(character if character.isprintable() else "?" for character in view["id"])
    return f"{name} ({told})" if told else name


def _decibels(psnr: float | None) -> str:
    return "identical" if psnr is None else f"{psnr:.2f} dB"
