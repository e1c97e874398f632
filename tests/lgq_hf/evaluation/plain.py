"""Evaluations with networks that are quick, and what they should find, in plain steps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.images.sources import ImageSource
from lgq_hf.images.views import Preprocessing

COUNT = 7  # photographs of conftest.py


class MeanColours:
    """An extractor of six features, a classifier of six classes and a distance."""

    name, weights_sha256, preparation, dimensions = "colours", "0" * 64, "none", 6

    def pooled(self, pictures: Tensor) -> Tensor:
        """Mean colours of the upper and the lower half, (B,6)."""
        upper, lower = pictures[:, :, : pictures.shape[2] // 2], pictures[:, :, pictures.shape[2] // 2 :]
        return torch.cat([upper.mean((2, 3)), lower.mean((2, 3))], dim=1)

    def logits(self, pictures: Tensor) -> Tensor:
        """The same."""
        return self.pooled(pictures)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))


def settings(size: int | None = 32, batch_size: int = 4, **more: Any) -> Settings:
    """Crops of 32 pixels in batches of 4, unless somebody says otherwise."""
    cut = {name: more.pop(name) for name in ("crops", "crop_scale", "flip") if name in more}
    return Settings(Preprocessing(size, **cut), batch_size=batch_size, **more)


def evaluated(checkpoint: Checkpoint, source: ImageSource, how: Settings, **more: Any) -> dict[str, Any]:
    """With quick networks."""
    network = MeanColours()
    return evaluate_tokenizer(
        checkpoint, source, how, network, **{"perceptual": network, "classifier": network, **more}
    )


class Seen:
    """Every view of a source through a model in plain steps, in batches as large as the evaluation's.

    Attributes:
        pairs: original and reconstruction of each view, (h,w,3) uint8.
        tokens: (N,G), latents, codes: (N,C) float64, of all positions.
    """

    def __init__(self, checkpoint: Checkpoint, source: ImageSource, size: int, batch_size: int) -> None:
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        tokens, latents, codes = [], [], []
        for first in range(0, len(source), batch_size):
            indices = range(first, min(first + batch_size, len(source)))
            made = [checkpoint.pixels(source.read(index), size)[0] for index in indices]
            batch = torch.cat([*made, *[made[-1]] * (batch_size - len(made))])
            with torch.inference_mode():
                encoded = checkpoint.model.encode(batch)
                decoded = checkpoint.model.decode(encoded.image_tokens).decoded_pixel_values
            sizes = [(size, size)] * batch_size
            originals, again = (checkpoint.processor.postprocess(x, sizes) for x in (batch, decoded))
            self.pairs += [(np.asarray(originals[i]), np.asarray(again[i])) for i in range(len(made))]
            tokens.append(encoded.image_tokens[: len(made)].flatten(0, 2).numpy())
            vectors = (encoded.last_hidden_state, encoded.quantized_last_hidden_state)
            some = [v[: len(made)].permute(0, 2, 3, 1).flatten(0, 2).double().numpy() for v in vectors]
            latents.append(some[0])
            codes.append(some[1])
        self.tokens = np.concatenate(tokens)
        self.tokens = self.tokens.reshape(len(self.tokens), -1)
        self.latents, self.codes = np.concatenate(latents), np.concatenate(codes)
