"""What a run is judged by: metrics over some validation pictures, always the same ones, shared by all ranks."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.images.sheet import Row, draw_sheet
from lgq_hf.metrics.codebook import codebook_statistics, count_tokens
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.frechet import FeatureStatistics, frechet_distance
from lgq_hf.metrics.reconstruction import psnr, ssim
from training.recipe import Validation

logger = logging.getLogger(__name__)

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "perceptual": False, "frechet": False}


class Validator:
    """Measures a model on validation pictures (centre crops).

    Args:
        batches: makes an iterator over this process's batches; called anew for each validation.
        perceptual: a distance `(a, b) -> (B,)` of pictures in [0, 1], or `None`.
        extractor: of the features that the Fréchet distance compares, or `None`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: Validation,
        processor: LGQImageProcessor,
        batches: Callable[[], Iterator[Any]],
        perceptual: nn.Module | None,
        extractor: EfficientNetLite0 | None,
    ) -> None:
        self.accelerator, self.settings, self.processor, self.batches = accelerator, settings, processor, batches
        self.perceptual, self.extractor = perceptual, extractor
        self.reference: FeatureStatistics | None = None
        self.warned: set[str] = set()  # unreadable images that were told once

    def _sum(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    def _whole(self, features: FeatureStatistics) -> FeatureStatistics:
        return FeatureStatistics.from_state(self._sum(features.state))

    @torch.no_grad()
    def __call__(self, model: LGQModel) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics over all processes' pictures, and (on the main process) a sheet of its first ones.

        PSNR (dB), SSIM and perceptual distance are means over pictures, of values clamped to [0, 1] and not rounded to
        8 bits. The Fréchet distance is between the features of these pictures and their reconstructions; `protocol`
        names the extractor. Codebook figures are over all tokens of these pictures.
        """
        device = self.accelerator.device
        training = model.training
        model.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # psnr, ssim, perceptual, pictures
        counts = torch.zeros(model.config.codebook_size, dtype=torch.int64, device=device)
        first = self.reference is None and self.extractor is not None
        references, reconstructions = (FeatureStatistics(1280, device=device) for _ in range(2))
        rows: list[Row] = []
        for batch in self.batches():
            for name, reason in batch.unreadable:
                if name not in self.warned:
                    logger.warning("validation image %s cannot be read and is left out: %s", name, reason)
                self.warned.add(name)
            pixels = batch.pixel_values.to(device)
            encoded = model.encode(pixels)
            counts += count_tokens(encoded.image_tokens, counts.shape[0])
            decoded = model.decode_codes(encoded.quantized_last_hidden_state).decoded_pixel_values
            a, b = (torch.stack(self.processor.postprocess(x.float(), output_type="pt")) for x in (pixels, decoded))
            scores = psnr(a, b)
            sums[0] += scores.sum()
            sums[1] += ssim(a, b).sum()
            if self.perceptual is not None:
                sums[2] += self.perceptual(a, b).sum()
            sums[3] += a.shape[0]
            if self.extractor is not None:
                reconstructions.update(self.extractor.pooled(b))
                if first:
                    references.update(self.extractor.pooled(a))
            if self.accelerator.is_main_process and len(rows) < self.settings.sheet:
                rows += _rows(a, b, scores, batch.ids)[: self.settings.sheet - len(rows)]
        model.train(training)
        sums, counts = self._sum(sums), self._sum(counts)
        if not sums[3]:
            raise ValueError("not one validation image can be read: look at data.validation_path and the warnings")
        names = ["psnr", "ssim"] + ["perceptual"] * (self.perceptual is not None)
        values = {name: float(total / sums[3]) for name, total in zip(names, sums[:3], strict=False)}
        if self.extractor is not None:
            if self.reference is None:
                self.reference = self._whole(references)
            values["frechet"] = frechet_distance(self.reference, self._whole(reconstructions))
        statistics = codebook_statistics(counts)
        values |= {"codebook_usage": statistics["share_used"], "pictures": int(sums[3])}
        values |= {name: statistics[name] for name in ("perplexity", "dead_codes", "tokens")}
        return values, draw_sheet(rows) if rows else None

    def protocol(self) -> dict[str, Any]:
        """How the figures came about, for the results."""
        return {
            "pictures": "a fixed random choice of the validation split, of a stream its first; shorter side resized, "
            "centre square",
            "psnr, ssim": "per picture, mean over pictures, values clamped to [0, 1]",
            "perceptual": None if self.perceptual is None else _named(self.perceptual),
            "frechet": None if self.extractor is None else _named(self.extractor),
            "codebook": "over all tokens of these pictures; usage is the share of codes used at least once",
            "weights": "moving average, if the recipe keeps one",
            "dtype": "float32; on a GPU convolutions as torch.backends.cudnn.allow_tf32 says",
        }


def _named(module: Any) -> dict[str, str]:
    return {"network": module.name, "weights_sha256": module.weights_sha256}


def _rows(a: Tensor, b: Tensor, scores: Tensor, names: list[str]) -> list[Row]:
    pictures = [
        [Image.fromarray((x * 255).round().byte().permute(1, 2, 0).cpu().numpy()) for x in batch] for batch in (a, b)
    ]
    captions = [(f"{name}  {float(score):.2f} dB",) for name, score in zip(names, scores, strict=True)]
    return [Row(*row) for row in zip(*pictures, captions, strict=True)]
