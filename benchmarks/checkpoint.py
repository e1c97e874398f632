"""What a checkpoint reconstructs, how its codes are used, and its speed.

    python -m benchmarks.checkpoint [MODEL] --name lgq_tiny [--corpus corpus]

Everything but the speed is `lgq evaluate`'s (docs/evaluating.md defines each number), on sets of pictures whose
shorter side is resized to 256 px (LANCZOS) and whose middle square is taken: photographs of scikit-image, and where a
corpus is given its test split and the stamps of its validation split. Speed: fp32, batches of one 256 px picture, the
median of the timed repetitions.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import photographs
from benchmarks.results_file import write_result
from lgq_hf import LGQModel, default_checkpoint
from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import EfficientNetDistance
from training.initialization import energies, is_alignable, latents_and_gradients

SIDE = 256
BATCH = 4
SETS = {"photographs": photographs.NAMED, "all_photographs": (*photographs.NAMED, *photographs.MORE)}
STAMPS = Path("images") / "validation" / "tuxpaint-stamps-default"
PROTOCOL = {
    "size": SIDE,
    "resize": "shorter side, LANCZOS",
    "crop": "centre",
    "pixels": "8 bit",
    "psnr": "mean over pictures of 10 log10(1 / MSE) in dB",
    "ssim": "mean over pictures, Gaussian window of 11 with sigma 1.5 (pytorch-msssim)",
    "dtype": "float32",
    "batch_size": BATCH,
}


def weights_sha256(model: str) -> str | None:
    """Hash of a local checkpoint's weight files; `None` for a repository."""
    files = sorted(Path(model).glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else None


def _rate(call: Callable[[], Any], repetitions: int = 30) -> float:
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


@torch.inference_mode()
def speed(model: LGQModel) -> dict[str, float]:
    """256 px pictures a second."""
    pixels = torch.rand(1, model.config.in_channels, SIDE, SIDE) * 2 - 1
    tokens = model.encode(pixels).image_tokens
    return {
        "encode_pictures_per_second": _rate(lambda: model.encode(pixels)),
        "decode_pictures_per_second": _rate(lambda: model.decode(tokens)),
    }


def latent_axes(checkpoint: Checkpoint, draws: int = 16) -> list[float] | None:
    """Shares of the latents' axes in what changes all photographs, largest first; `None` where axes mean nothing.

    See `training.initialization.energies`: gradients of `draws` random sums of each picture's pixels, seed 0.
    """
    model = checkpoint.model
    if not is_alignable(model.config):
        return None
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for name in SETS["all_photographs"]:
        pixels = checkpoint.processor(photographs.load(name, SIDE), return_tensors="pt")["pixel_values"]
        pairs += [latents_and_gradients(model, pixels, generator) for _ in range(draws)]
    latents, gradients = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    found = energies(latents, gradients)[0]
    return (found / found.sum()).flip(0).tolist()


def measure(source: str, corpus: Path | None) -> dict[str, Any]:
    """Everything that the result file holds, apart from its provenance."""
    checkpoint = load_checkpoint(source, "cpu")
    network, distance = EfficientNetLite0(), EfficientNetDistance()

    def evaluated(folder: Path) -> dict[str, Any]:
        settings = Settings(preprocessing=Preprocessing(size=SIDE), batch_size=BATCH)
        pictures = open_source(str(folder), kind="folder")
        found = evaluate_tokenizer(checkpoint, pictures, settings, network, distance, network)
        return {**found["metrics"], "pictures": found["protocol"]["pictures"]}

    result: dict[str, Any] = {
        "weights_sha256": weights_sha256(source),
        "protocol": PROTOCOL | {"network": network.name, "network_sha256": network.weights_sha256},
        "seed": None,
        "speed": speed(checkpoint.model),
    }
    for key, names in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                photographs.load(name, SIDE).save(Path(folder) / f"{name}.png")
            result[key] = evaluated(Path(folder))
    if corpus is not None:
        result["corpus_test"] = evaluated(corpus / "images" / "test")
        result["stamps"] = evaluated(corpus / STAMPS)
    return result | described(checkpoint) | {"latent_axes": latent_axes(checkpoint)}


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoint is."""
    config = checkpoint.config
    return {
        "quantizer": config.quantizer,
        "codebook_size": config.codebook_size,
        "code_dim": config.quantizer_dim,
        "downsampling_factor": config.spatial_downsample_factor,
        "bits_per_pixel": config.bits_per_pixel,
        "parameters": checkpoint.model.num_parameters(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(default_checkpoint()))
    parser.add_argument("--name", required=True, help="of the result file in benchmarks/results")
    parser.add_argument("--corpus", type=Path, help="corpus whose test split is measured too")
    arguments = parser.parse_args()
    print(write_result(arguments.name, measure(arguments.model, arguments.corpus)))


if __name__ == "__main__":
    main()
