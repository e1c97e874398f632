"""Trains a generator."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from lgq_hf.evaluation.likelihood import LABELS, PROTOCOLS, code_logits, held_out, held_out_collator, summary
from lgq_hf.generation import LGQAutoregressivePipeline, LGQMaskedPipeline, LGQMaskedTransformer
from lgq_hf.images.sheet import draw_grid
from lgq_hf.tokens.collators import IGNORED
from training.generator_recipe import GeneratorRecipe, read_recipe
from training.optimization import BaseStep, adamw, at_least_fp32, decayed_groups, gradients_norm, set_learning_rate
from training.results import portable_place, portable_recipe, write_generator
from training.token_data import TokenBatch, TokenSets, fixed_batches, make_collator, token_batches
from training.trainer import Run, call

TokenPass = dict[str, Tensor]


class GeneratorStep(BaseStep):
    """A generator, its optimizer, and `__call__`: one optimizer step.

    Args:
        accelerator: places and wraps the model; its own mixed precision must be off.
        model: `LGQMaskedTransformer` or `LlamaForCausalLM`, on the device.
        codebook_size: K.
    """

    def __init__(
        self, accelerator: Accelerator, recipe: GeneratorRecipe, model: nn.Module, codebook_size: int
    ) -> None:
        optimizer = adamw(decayed_groups(model.parameters(), recipe.optimizer), recipe.optimizer)
        super().__init__(accelerator, recipe, model, optimizer)
        self.recipe, self.model, self.codebook_size = recipe, model, codebook_size
        if recipe.engine.compile:
            model.compile()  # after the average was copied, which is run with other shapes

    def __call__(self, micro_batches: list[TokenPass], step: int, *, measure: bool = False) -> None:
        """One optimizer step from passes of what a collator makes, on the device."""
        self.schedule = {"lr_factor": set_learning_rate(self.optimizer, self.recipe, step)}
        counts = torch.stack([(batch[LABELS] != IGNORED).sum() for batch in micro_batches]).sum()
        labels = self._sum(counts)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                total = total + self._pass(batch, labels)
        self.scaler.unscale_(self.optimizer)
        norm = gradients_norm(self.model.parameters(), float(self.recipe.optimizer.max_grad_norm))
        loss = self._sum(total) / labels
        self.values = {"loss": loss, "grad_norm": norm}
        if self.recipe.kind == "masked":
            places = self.accelerator.num_processes * sum(batch[LABELS].numel() for batch in micro_batches)
            self.values["masked_share"] = labels / places
        self.advance(step, self.judge(step, loss, norm.isfinite()))

    def _pass(self, batch: TokenPass, labels: Tensor) -> Tensor:
        """Forward and backward; returns the summed cross entropy of the pass's labels, of `labels` in the step."""
        with self.autocast():
            logits = code_logits(self.wrapped, batch, self.codebook_size)
        logits = at_least_fp32(logits).flatten(0, 1)
        nats = F.cross_entropy(logits, batch[LABELS].flatten(), ignore_index=IGNORED, reduction="sum")
        # gradients of processes are averaged, and what is wanted is their sum
        self.scaler.scale(nats * self.accelerator.num_processes / labels).backward()
        return nats.detach()

    def _sum(self, value: Tensor) -> Any:
        """Over processes."""
        return self.accelerator.reduce(value.clone(), reduction="sum")


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


MODELS: dict[str, Any] = {"masked": LGQMaskedTransformer, "autoregressive": LlamaForCausalLM}
PIPELINES: dict[str, Any] = {"masked": LGQMaskedPipeline, "autoregressive": LGQAutoregressivePipeline}


class GeneratorRun(Run[GeneratorRecipe]):
    """A run of a generator's recipe, on one of its processes."""

    samples = "rows"
    best_metric, higher_is_better = "bits_per_token", False
    step: GeneratorStep

    def open_data(self) -> int:
        """Opens tokens and loads the tokenizer that made them; returns how many rows there are to train on."""
        self.tokens = TokenSets(self.recipe.data)
        scale = self.recipe.validation.guidance_scale
        if scale != 1 and not self.tokens.num_classes:
            raise ValueError(f"validation.guidance_scale={scale} needs labels, and {self.tokens.train.place} has none")
        self.tokenizer = self.tokens.reference.load(str(self.accelerator.device))
        return len(self.tokens.train)

    def make_step(self) -> GeneratorStep:
        """The generator, with random weights."""
        recipe, tokens = self.recipe, self.tokens
        shape: dict[str, Any] = {"codebook_size": tokens.codebook_size, "num_classes": tokens.num_classes}
        config: Any = recipe.config(**shape, grid=tokens.grid)
        model = MODELS[recipe.kind](config)
        model = model.to(self.accelerator.device).train()
        if recipe.engine.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        step = GeneratorStep(self.accelerator, recipe, model, tokens.codebook_size)
        set_seed(recipe.seed, device_specific=True)  # processes must not drop the same units
        return step

    def prepare_validation(self) -> None:
        """A [`GeneratorValidator`]."""
        self.validator = GeneratorValidator(self.accelerator, self.recipe, self.tokens, self._pipeline)

    def _pipeline(self, model: Any) -> Any:
        """What users load: the model with the tokenizer of its tokens."""
        tokens = self.tokens
        made_by = tokens.manifest["tokenizer"]
        return PIPELINES[self.recipe.kind](
            vqvae=self.tokenizer.model,
            image_processor=self.tokenizer.processor,
            transformer=model,
            grid_height=tokens.grid[0],
            grid_width=tokens.grid[1],
            id2label=dict(enumerate(tokens.classes)) or None,
            tokens_made_by={**made_by, "name": portable_place(made_by["name"])},
        )

    def batches(self, *, start: int, num_workers: int) -> Generator[TokenBatch, None, None]:
        """Rows, as `training.token_data` makes them."""
        recipe, data = self.recipe, self.recipe.data
        draws = {"label_dropout": float(data.label_dropout), "seed": recipe.seed}
        return token_batches(
            self.tokens.train,
            make_collator(recipe.kind, self.tokens, mask_schedule=data.mask_schedule, **draws),
            batch_size=self.micro_batch_size,
            seed=recipe.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start=start,
            num_workers=num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def next_pass(self, batches: Iterator[TokenBatch]) -> tuple[dict[str, Tensor], list[str]]:
        """What the collator made, on the device, and names of rows."""
        batch = next(batches)
        device = self.accelerator.device
        return {name: one.to(device, non_blocking=True) for name, one in batch.tensors.items()}, batch.ids

    def window(self) -> tuple[dict[str, float], list[str]]:
        """Loss and gradient."""
        return self.step.take_values(), []

    def postfix(self, row: dict[str, float]) -> dict[str, str]:
        """Loss, rows a second."""
        return {"loss": f"{row['loss']:.4g}", "rows/s": f"{row['rows_per_second']:.3g}"}

    def measure(self) -> tuple[dict[str, float], Image.Image | None]:
        """Held-out bits, and a grid of samples."""
        return self.validator(self.step.published)

    def save_published(self, folder: Path) -> None:
        """The pipeline."""
        self._pipeline(self.step.published).save_pretrained(folder)

    def write_final(self, folder: Path, results: dict[str, Any]) -> None:
        """See `training.results`."""
        write_generator(
            folder,
            pipeline=self._pipeline(self.step.published),
            recipe=self.recipe,
            results=results,
            logs=[self.output / "training.csv", self.output / "validation.csv"],
            samples=self.output / "samples" / f"step-{self.progress.step:08d}.png",
            repo_id=self.recipe.report.push_to_hub,
        )

    def results(self) -> dict[str, Any]:
        """What is the generator's own."""
        tokens, made_by = self.tokens, self.tokens.manifest["tokenizer"]
        data = tokens.summary()
        for one in data.values():
            one["source"]["name"] = portable_place(one["source"]["name"])
        return {
            "recipe": portable_recipe(self.recipe),
            "model": {
                "kind": self.recipe.kind,
                "pipeline": PIPELINES[self.recipe.kind].__name__,
                "codebook_size": tokens.codebook_size,
                "grid": list(tokens.grid),
                "num_classes": tokens.num_classes,
                "classes": tokens.classes,
                "parameters": self.step.published.num_parameters(),
            },
            "data": {**data, "tokenizer": {**made_by, "name": portable_place(made_by["name"])}},
            "protocol": self.validator.protocol(),
        }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    call(GeneratorRun, read_recipe, __doc__, arguments)


if __name__ == "__main__":
    main()
