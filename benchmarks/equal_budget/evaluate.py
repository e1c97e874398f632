"""What is measured of a trained model, and on which crops."""

from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.equal_budget.crops import read_manifest
from lgq_hf.checkpoint import load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import EfficientNetDistance
from lgq_hf.tokens.encoding import Preprocessing
from lgq_hf.tokens.sources import open_source

BATCH = 64


class SharedFeatures(EfficientNetLite0):
    """The network as extractor and as classifier, through which each batch goes once."""

    def __init__(self) -> None:
        super().__init__()
        self._last: list[tuple[Tensor, Tensor]] = []  # two batches with their features: originals and reconstructions

    def pooled(self, pictures: Tensor) -> Tensor:
        """As the network's own; `logits` are made of it."""
        for batch, features in self._last:
            if batch is pictures:
                return features
        features = super().pooled(pictures)
        self._last = [*self._last[-1:], (pictures, features)]
        return features


def evaluate(model: Path, place: Path, device: str = "auto") -> dict[str, Any]:
    """Everything, on the test crops.

    Args:
        model: folder of a published model.
        place: of the scale, with its crops.
        device: "auto", or one of torch's.
    """
    checkpoint = load_checkpoint(str(model), device)
    source = open_source(str(place / "crops"), kind="parquet", split="test", image_column="image", id_column="id")
    size = read_manifest(place / "crops")["settings"]["size"]
    shared = SharedFeatures().to(checkpoint.device)
    settings = Settings(preprocessing=Preprocessing(size=size), batch_size=BATCH)
    distance = EfficientNetDistance().to(checkpoint.device)
    result = evaluate_tokenizer(checkpoint, source, settings, shared, perceptual=distance, classifier=shared)
    protocol = {name: value for name, value in result["protocol"].items() if name not in ("source", "failed")}
    counts = sorted((count for count in result["codebook_counts"] if count), reverse=True)
    return {"metrics": result["metrics"], "protocol": protocol, "codebook_counts": counts}


def validated(trained: dict[str, Any]) -> dict[str, Any]:
    """What the trainer measured last, on the validation crops, of the averaged weights."""
    last, codes = trained["validation"][-1], trained["model"]["codebook_size"]
    names = ("psnr", "ssim", "perplexity", "tokens", "pictures")
    used = {"codes_used": codes - int(last["dead_codes"]), "share_used": last["codebook_usage"]}
    return {"metrics": {**{name: last[name] for name in names}, **used}, "protocol": trained["protocol"]}
