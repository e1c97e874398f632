"""Trains a generator, from token shards to a folder that a pipeline's `from_pretrained` loads.

    accelerate launch -m training.train_generator --config training/recipes/NAME.yaml [key=value ...]

A run that finds checkpoints in its output folder goes on from the newest one, to the same result as if it had never
stopped. On SIGTERM it writes a checkpoint and ends.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor
from transformers import LlamaForCausalLM

from lgq_hf.generation import LGQAutoregressivePipeline, LGQMaskedPipeline, LGQMaskedTransformer
from training.command_line import call
from training.generator_recipe import GeneratorRecipe, read_recipe
from training.generator_results import portable_recipe, write_final
from training.generator_step import GeneratorStep
from training.generator_validation import GeneratorValidator
from training.published import portable_place
from training.run import Run
from training.token_data import TokenBatch, TokenSets, make_collator, token_batches

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
        """See `training.generator_results`."""
        write_final(
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
