"""Reconstruction, codebook usage and speed of a checkpoint.

    python -m benchmarks.checkpoint [MODEL] --name lgq_default [--corpus corpus]

Photographs: those of scikit-image, shorter side to 256 px (LANCZOS), centre square. PSNR and SSIM per picture on 8-bit
pixels, then averaged. Codes: hard tokens of the photographs, and of the corpus's test split where one is given. Speed:
fp32, batches of one 256 px picture, the median of the timed repetitions.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage.metrics import structural_similarity
from tqdm.auto import tqdm

from benchmarks import photographs
from benchmarks.results_file import write_result
from lgq_hf import LGQImageProcessor, LGQModel, default_checkpoint
from lgq_hf.metrics.reconstruction import psnr

SIDE = 256
PROTOCOL = {
    "size": SIDE,
    "resize": "shorter side, LANCZOS",
    "crop": "centre",
    "pixels": "8 bit",
    "psnr": "mean over pictures of 10 log10(1 / MSE) in dB",
    "ssim": "scikit-image, Gaussian window sigma 1.5, mean over channels and pictures",
    "dtype": "float32",
}


def weights_sha256(model: str) -> str | None:
    """Hash of a local checkpoint's weight files; `None` for a repository."""
    files = sorted(Path(model).glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else None


@torch.inference_mode()
def reconstruct(model: LGQModel, processor: LGQImageProcessor, picture: Image.Image) -> tuple[Image.Image, np.ndarray]:
    """The picture after encode and decode, and its tokens, flat."""
    batch = processor(picture, return_tensors="pt")
    tokens = model.encode(batch["pixel_values"]).image_tokens
    decoded = model.decode(tokens).decoded_pixel_values
    return processor.postprocess(decoded, batch["original_sizes"])[0], tokens.flatten().numpy()


def quality(picture: Image.Image, reconstruction: Image.Image) -> dict[str, float]:
    """PSNR in dB and SSIM of one pair of 8-bit pictures."""
    a, b = (np.asarray(p, dtype=np.float64) / 255 for p in (picture, reconstruction))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = structural_similarity(a, b, channel_axis=2, data_range=1.0, **window)
    pair = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in (a, b))
    return {"psnr": float(psnr(*pair)[0]), "ssim": float(ssim)}


def codebook(tokens: Iterable[np.ndarray], codebook_size: int) -> dict[str, float]:
    """How many tokens there were, how many codes they used, and the entropy of the codes in bits."""
    counts = np.bincount(np.concatenate(list(tokens)), minlength=codebook_size)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    return {
        "tokens": int(counts.sum()),
        "codes_used": len(share),
        "entropy_bits": entropy,
        "perplexity": 2**entropy,
    }


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


def measure(source: str, corpus: Path | None) -> dict[str, Any]:
    """Everything that the result file holds, apart from its provenance."""
    model = LGQModel.from_pretrained(source, dtype=torch.float32)
    processor = LGQImageProcessor.from_pretrained(source)
    result: dict[str, Any] = {"weights_sha256": weights_sha256(source), "protocol": PROTOCOL, "seed": None}
    result["speed"] = speed(model)
    pictures, tokens = {}, {}
    for name in (*photographs.NAMED, *photographs.MORE):
        picture = photographs.load(name, SIDE)
        reconstruction, tokens[name] = reconstruct(model, processor, picture)
        pictures[name] = quality(picture, reconstruction)
    for key, names in {"photographs": photographs.NAMED, "all_photographs": tuple(pictures)}.items():
        rows = [pictures[name] for name in names]
        result[key] = {metric: statistics.mean(row[metric] for row in rows) for metric in ("psnr", "ssim")}
        result[key] |= {"pictures": len(names), **codebook([tokens[n] for n in names], model.config.codebook_size)}
    result["by_picture"] = pictures
    if corpus is not None:
        result["corpus_test"] = measure_corpus(model, processor, corpus)
    config = model.config
    return result | {
        "codebook_size": config.codebook_size,
        "code_dim": config.quantizer_dim,
        "downsampling_factor": config.spatial_downsample_factor,
        "bits_per_pixel": config.bits_per_pixel,
        "parameters": model.num_parameters(),
    }


def measure_corpus(model: LGQModel, processor: LGQImageProcessor, corpus: Path) -> dict[str, Any]:
    """Mean quality and codebook usage over the test split of a corpus built by `training.corpus`."""
    files = sorted((corpus / "images" / "test").rglob("*.png"))
    if not files:
        raise FileNotFoundError(f"no pictures under {corpus / 'images' / 'test'}")
    rows, tokens = [], []
    for file in tqdm(files, unit="picture"):
        with Image.open(file) as opened:
            picture = ImageOps.fit(opened.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        reconstruction, found = reconstruct(model, processor, picture)
        rows.append(quality(picture, reconstruction))
        tokens.append(found)
    means = {metric: statistics.mean(row[metric] for row in rows) for metric in ("psnr", "ssim")}
    return means | {"pictures": len(files), **codebook(tokens, model.config.codebook_size)}


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
