"""How good a tokenizer is: every picture beside its reconstruction, all codes in one histogram.

Pictures that are compared are those that a user would save: 8 bits, in [0, 1]. A Fréchet distance is named by its
extractor and the number of pictures; `naming` says when it may be called rFID.
"""

from typing import Any

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.described import describe_model, describe_protocol
from lgq_hf.evaluation.pictures import chosen, keys_of, shares
from lgq_hf.evaluation.processes import Processes, processes
from lgq_hf.evaluation.reconstruction import Reconstructor
from lgq_hf.evaluation.results import cost, extremes, metrics, smallest_side
from lgq_hf.evaluation.settings import Classifier, Distance, Networks, Settings, Watch
from lgq_hf.evaluation.totals import Totals
from lgq_hf.images.sources import ImageSource
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

        def result() -> dict[str, Any]:
            views = len(settings.preprocessing.views())
            pictures = len(totals.rows) // views
            if pictures < 2:
                raise ValueError(f"expected at least 2 pictures that can be used, got {pictures} in {source.name}")
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


__all__ = ["evaluate_tokenizer"]
