"""Trains a tokenizer on a corpus: L1 and the quantizer's loss, by an Accelerate loop that can be killed and resumed.

    accelerate launch -m training.train_tokenizer --config training/recipes/lgq_default.yaml [key=value ...]

Writes `checkpoint-<step>` folders, `log.jsonl` and, at the end, `final/`: a folder for `LGQTokenizer.from_pretrained`.
A run that finds checkpoints in its output folder goes on from the newest one.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.files import atomic_folder
from lgq_hf.metrics.reconstruction import psnr
from training.data import CropDataset, StepSampler, corpus_files
from training.run_state import Log, check_recipe, newest_checkpoint, save_checkpoint, stop_unless_finite
from training.schedules import TemperatureSchedule, learning_rate_factor, temperature_at


@strict
@dataclasses.dataclass
class Recipe:
    """One run. `model` and `processor` are the fields of `LGQConfig` and `LGQImageProcessor` that differ from default.

    Attributes:
        batch_size: crops per process and step.
        crop: side of a training crop, in pixels.
        max_scale: crops are cut up to this many times larger and scaled down.
        center_lr_scale: factor on the learning rate of the quantizer's parameters.
        init_method: how the codebook is placed on the latents of `init_pictures` crops before the first step.
        temperature_steps: optimizer steps from the first temperature to the last; 0 for all of them.
        compile: `torch.compile` for encoder and decoder.
        start_from: folder of a model whose tensors of the same name and shape are taken over at step 0; the codebook
            is placed anew. Empty for random weights.
        validation_pictures: validation crops for the PSNR in the log.
    """

    corpus: str
    output_dir: str
    max_steps: int
    batch_size: int
    crop: int
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    processor: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_scale: float | int = 1.5
    learning_rate: float | int = 1e-3
    center_lr_scale: float | int = 10.0
    weight_decay: float | int = 0.01
    warmup_steps: int = 200
    max_grad_norm: float | int = 1.0
    init_method: str = "kmeans"
    init_pictures: int = 256
    temperature_start: float | int = 1.0
    temperature_end: float | int = 0.1
    temperature_schedule: TemperatureSchedule = "linear"
    temperature_steps: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    channels_last: bool = True
    compile: bool = False
    num_workers: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoints_kept: int = 2
    validation_pictures: int = 64
    start_from: str = ""
    seed: int = 0

    def validate_ranges(self) -> None:
        """Refuses counts below one, and crops that would be enlarged (`ValueError`)."""
        counts = ("max_steps", "batch_size", "crop", "log_every", "checkpoint_every", "checkpoints_kept")
        for name in (*counts, "init_pictures", "validation_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_scale < 1:
            raise ValueError(f"max_scale must be at least 1, got {self.max_scale}")


def read_recipe(path: str | Path, overrides: list[str]) -> Recipe:
    """A recipe from a YAML file and `key=value` or `model.key=value` overrides (values are YAML too).

    Raises:
        ValueError: for unknown or missing keys, or an override without `=`.
        StrictDataclassFieldValidationError: for a value of a wrong type.
    """
    values = yaml.safe_load(Path(path).read_text()) or {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"expected key=value, got '{override}'")
        *parents, leaf = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = yaml.safe_load(value)
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"unknown keys {unknown} in {path}; known: {sorted(fields)}")
    required = {
        name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ValueError(f"{path} lacks {missing}")
    return Recipe(**values)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups: the quantizer at its own rate, and no weight decay on it, on norms and on biases."""
    quantizer: list[nn.Parameter] = []
    flat: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.startswith("quantizer."):
            quantizer.append(parameter)
        else:
            (flat if parameter.ndim < 2 else rest).append(parameter)
    rate = recipe.learning_rate
    return [
        {"params": rest, "base_lr": rate, "weight_decay": recipe.weight_decay},
        {"params": flat, "base_lr": rate, "weight_decay": 0.0},
        {"params": quantizer, "base_lr": rate * recipe.center_lr_scale, "weight_decay": 0.0},
    ]


def crops(recipe: Recipe, processor: LGQImageProcessor, split: str, start: int, workers: int) -> DataLoader:
    """Endless batches of crops of one split, beginning with crop number `start`."""
    dataset = CropDataset(corpus_files(recipe.corpus, split), processor, recipe.crop, recipe.max_scale, recipe.seed)
    sampler = StepSampler(len(dataset), recipe.seed, start)
    return DataLoader(dataset, recipe.batch_size, sampler=sampler, num_workers=workers, drop_last=True)


@torch.no_grad()
def init_codebook(model: LGQModel, recipe: Recipe, processor: LGQImageProcessor) -> None:
    """Places the codebook on the latents of the first `init_pictures` crops; the same on every process."""
    batches = iter(crops(recipe, processor, "train", 0, workers=0))
    count = math.ceil(recipe.init_pictures / recipe.batch_size)
    latents = torch.cat([model.latents(next(batches)["pixel_values"].to(model.device)) for _ in range(count)])
    model.quantizer.init_from(latents, recipe.init_method, torch.Generator().manual_seed(recipe.seed))


def take_over(model: LGQModel, folder: str) -> str:
    """Copies the tensors of the model in `folder` that have the same name and shape in `model`; returns how many.

    Raises:
        ValueError: where not one tensor fits.
    """
    source, target = LGQModel.from_pretrained(folder).state_dict(), model.state_dict()
    shapes = {name: tensor.shape for name, tensor in target.items()}
    fitting = {name: tensor for name, tensor in source.items() if tensor.shape == shapes.get(name)}
    if not fitting:
        raise ValueError(f"no tensor of {folder} has the name and shape of one of this model's")
    model.load_state_dict(fitting, strict=False)
    return f"took over {len(fitting)} of {len(target)} tensors from {folder}"


@torch.no_grad()
def validation_psnr(model: LGQModel, recipe: Recipe, processor: LGQImageProcessor) -> float:
    """Mean PSNR in dB over `validation_pictures` fixed validation crops, of pictures with values in [0, 1]."""
    model.eval()
    batches = iter(crops(recipe, processor, "validation", 0, workers=0))
    values: list[Tensor] = []
    for _ in range(math.ceil(recipe.validation_pictures / recipe.batch_size)):
        pixels = next(batches)["pixel_values"].to(model.device)
        decoded = model(pixels).decoded_pixel_values
        values.append(psnr(*(processor.postprocess(x, output_type="pt") for x in (pixels, decoded))))
    model.train()
    return float(torch.cat(values).mean())


def train(recipe: Recipe) -> Path:
    """Runs or resumes a recipe; returns the folder of the finished model."""
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    set_seed(recipe.seed)
    output = Path(recipe.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    config = LGQConfig(**recipe.model)
    processor = LGQImageProcessor(**recipe.processor, pad_to_multiple_of=config.spatial_downsample_factor)
    model = LGQModel(config).to(accelerator.device).train()
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(memory_format=memory_format)
    if recipe.compile:
        model.encoder.compile()
        model.decoder.compile()
    checkpoint, step = newest_checkpoint(output)
    if accelerator.is_main_process:
        check_recipe(output, recipe, resuming=checkpoint is not None)
    if checkpoint is None:
        if recipe.start_from:
            accelerator.print(take_over(model, recipe.start_from))
        init_codebook(model, recipe, processor)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.learning_rate, betas=(0.9, 0.95))
    loader = crops(
        recipe, processor, "train", step * recipe.batch_size * accelerator.num_processes, recipe.num_workers
    )
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
    log = Log(output / "log.jsonl", step) if accelerator.is_main_process else None
    progress = tqdm(total=recipe.max_steps, initial=step, disable=not accelerator.is_main_process, unit="step")
    batches, started = iter(loader), time.perf_counter()
    while step < recipe.max_steps:
        pixels = next(batches)["pixel_values"].contiguous(memory_format=memory_format)
        row = train_step(accelerator, wrapped, model, optimizer, pixels, recipe, step)
        step += 1
        progress.update()
        saving = step % recipe.checkpoint_every == 0 or step == recipe.max_steps
        if saving or step % recipe.log_every == 0:
            stop_unless_finite(accelerator, row, step)
            values = {name: float(value) for name, value in row.items()}
            progress.set_postfix({name: f"{values[name]:.3g}" for name in ("l1", "codebook_usage")})
            if saving:
                values["validation_psnr"] = validation_psnr(model, recipe, processor)
            if log is not None:
                log.write({"step": step, **values}, time.perf_counter() - started)
        if saving:
            save_checkpoint(accelerator, output, step, recipe.checkpoints_kept)
    progress.close()
    if accelerator.is_main_process:
        with atomic_folder(output / "final") as folder:
            model.eval().save_pretrained(folder)
            processor.save_pretrained(folder)
    return output / "final"


def train_step(
    accelerator: Accelerator,
    wrapped: nn.Module,
    model: LGQModel,
    optimizer: Any,
    pixels: Tensor,
    recipe: Recipe,
    step: int,
) -> dict[str, Tensor | float]:
    """One optimizer step on `pixels`; returns what is logged (tensors, so that the device need not be waited for)."""
    factor = learning_rate_factor(step, warmup_steps=recipe.warmup_steps, max_steps=recipe.max_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    temperature = temperature_at(
        step,
        start=recipe.temperature_start,
        end=recipe.temperature_end,
        steps=recipe.temperature_steps or recipe.max_steps,
        schedule=recipe.temperature_schedule,
    )
    model.quantizer.set_temperature(temperature)
    result = wrapped(pixels)
    l1 = (result.decoded_pixel_values.float() - pixels).abs().mean()
    loss = l1 + result.embedding_loss
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    fixed = {
        "loss": loss.detach(),
        "l1": l1.detach(),
        "grad_norm": norm,
        "temperature": temperature,
        "lr_factor": factor,
    }
    return {**fixed, **result.statistics}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe, a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a value of the recipe")
    arguments = parser.parse_args()
    print(train(read_recipe(arguments.config, arguments.overrides)))


if __name__ == "__main__":
    main()
