"""What is measured of a trained model, and on which crops."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.equal_budget.crops import fingerprint, read_manifest
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.files import atomic_file
from lgq_hf.images.sources import ImageSource, open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import EfficientNetDistance

BATCH = 64


class KnownFeatures(EfficientNetLite0):
    """The network, which no picture goes through whose features are known.

    Attributes:
        known: features (1280,) of pictures that are met again, by `key_of`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.known: dict[bytes, Tensor] = {}

    def pooled(self, pictures: Tensor) -> Tensor:
        """As the network's own."""
        known = [self.known[key] for picture in pictures if (key := key_of(picture)) in self.known]
        if len(known) < len(pictures):
            return super().pooled(pictures)
        return torch.stack(known).to(pictures.device)


def key_of(picture: Tensor) -> bytes:
    """sha256 over the values of a picture."""
    return hashlib.sha256(picture.cpu().contiguous().numpy().tobytes()).digest()


@torch.inference_mode()
def features_of_originals(place: Path, source: ImageSource, network: KnownFeatures) -> dict[bytes, Tensor]:
    """Features of the test crops, computed once and kept beside them."""
    file = place / f"features-{fingerprint(read_manifest(place / 'crops'))[:12]}.safetensors"
    if not file.is_file():
        device = next(network.parameters()).device
        keys, rows = [], []
        for start in range(0, len(source), BATCH):
            batch = range(start, min(start + BATCH, len(source)))
            pictures = torch.stack([_as_tensor(source, index) for index in batch]).to(device)
            keys += [torch.frombuffer(bytearray(key_of(picture)), dtype=torch.uint8) for picture in pictures]
            rows.append(network.pooled(pictures).cpu())
        with atomic_file(file) as temporary:
            save_file({"keys": torch.stack(keys), "features": torch.cat(rows)}, temporary)
    table = load_file(file)
    return {bytes(key.tolist()): row for key, row in zip(table["keys"], table["features"], strict=True)}


def _as_tensor(source: ImageSource, index: int) -> Tensor:
    """A picture (3,H,W) in [0, 1], with the values that the evaluation has."""
    picture = source.read(index)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


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
    network = KnownFeatures().to(checkpoint.device)
    network.known = features_of_originals(place, source, network)
    settings = Settings(preprocessing=Preprocessing(size=size), batch_size=BATCH)
    distance = EfficientNetDistance().to(checkpoint.device)
    result = evaluate_tokenizer(checkpoint, source, settings, network, perceptual=distance, classifier=network)
    protocol = {name: value for name, value in result["protocol"].items() if name not in ("source", "failed")}
    counts = sorted((count for count in result["codebook_counts"] if count), reverse=True)
    return {"metrics": result["metrics"], "protocol": protocol, "codebook_counts": counts}


def validated(trained: dict[str, Any]) -> dict[str, Any]:
    """What the trainer measured last, on the validation crops, of the averaged weights."""
    last, codes = trained["validation"][-1], trained["model"]["codebook_size"]
    names = ("psnr", "ssim", "perplexity", "tokens", "pictures")
    used = {"codes_used": codes - int(last["dead_codes"]), "share_used": last["codebook_usage"]}
    return {"metrics": {**{name: last[name] for name in names}, **used}, "protocol": trained["protocol"]}
