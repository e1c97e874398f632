"""What a generator's run is judged by: held-out tokens, always the same rows, and a grid of samples to look at."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from lgq_hf.evaluation.likelihood import PROTOCOLS, held_out, held_out_collator, summary
from lgq_hf.images.sheet import draw_grid
from training.generator_recipe import GeneratorRecipe
from training.token_data import TokenSets, fixed_batches


class GeneratorValidator:
    """Measures a generator on held-out rows with their true labels, and lets it make pictures.

    Args:
        pipeline: of a model, to make pictures with.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: GeneratorRecipe,
        tokens: TokenSets,
        pipeline: Callable[[Any], Any],
    ) -> None:
        self.accelerator, self.recipe, self.tokens, self.pipeline = accelerator, recipe, tokens, pipeline
        self.collator = held_out_collator(
            recipe.kind, codebook_size=tokens.codebook_size, num_classes=tokens.num_classes
        )

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        settings, accelerator = self.recipe.validation, self.accelerator
        for batch in fixed_batches(
            self.tokens.validation,
            self.collator,
            count=settings.rows,
            batch_size=settings.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        ):
            yield batch.tensors

    @torch.no_grad()
    def __call__(self, model: Any) -> tuple[dict[str, float], Image.Image | None]:
        """What `summary` says of all processes' rows, and (on the main process) a grid of samples."""
        training = model.training
        model.eval()
        try:
            sums = self.accelerator.reduce(
                held_out(model, self._batches(), self.tokens.codebook_size), reduction="sum"
            )
            grid = self._samples(model) if self.accelerator.is_main_process else None
        finally:
            model.train(training)
        height, width = self.tokens.grid
        return summary(sums, tokens=height * width, pixels=self.tokens.pixels), grid

    def _samples(self, model: Any) -> Image.Image | None:
        """Pictures of the classes in turn, of the same noise at every validation."""
        settings, classes = self.recipe.validation, self.tokens.num_classes
        if not settings.samples:
            return None
        pipeline = self.pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"guidance_scale": settings.guidance_scale}
        if self.recipe.kind == "masked":
            options["num_inference_steps"] = settings.num_inference_steps
        labels = [number % classes if classes else None for number in range(settings.samples)]
        pictures: list[Image.Image] = []
        for first in range(0, len(labels), settings.batch_size):
            some = labels[first : first + settings.batch_size]
            noise = [torch.Generator().manual_seed(first + number) for number in range(len(some))]
            pictures += pipeline(class_labels=some, generator=noise, output_type="pil", **options).images
        return draw_grid(pictures, [self._caption(label) for label in labels])

    def _caption(self, label: int | None) -> str:
        if label is None:
            return ""
        return self.tokens.classes[label] if self.tokens.classes else str(label)

    def protocol(self) -> dict[str, Any]:
        """How the figures came about, for the results."""
        settings = self.recipe.validation
        return {
            "rows": "a fixed random choice of the validation tokens, with their true labels",
            "bits_per_token": PROTOCOLS[self.recipe.kind],
            "perplexity": "2 to the power of bits_per_token, in codes",
            "bits_per_pixel": "bits_per_token, for all tokens of a picture, over its pixels",
            "samples": {
                "guidance_scale": settings.guidance_scale,
                **({"num_inference_steps": settings.num_inference_steps} if self.recipe.kind == "masked" else {}),
                "seeds": f"0 to {settings.samples - 1}, one for each picture",
            }
            if settings.samples
            else None,
            "weights": "moving average, if the recipe keeps one",
            "dtype": "float32",
        }
