"""Trains a tokenizer, from pictures to a folder that `LGQTokenizer.from_pretrained` loads.

    accelerate launch -m training.train_tokenizer --config training/recipes/NAME.yaml [key=value ...]

A run that finds checkpoints in its output folder goes on from the newest one, to the same result as if it had never
stopped. On SIGTERM it writes a checkpoint and ends. See docs/training.md.
"""

import argparse
import json
import logging
import math
import shutil
import signal
import sys
import time
import warnings
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.files import atomic_file, atomic_folder
from lgq_hf.metrics.codebook import codebook_statistics
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import build_perceptual
from lgq_hf.provenance import provenance
from training.broken import BrokenPictures
from training.crops import Crop, center_crop, resized_crop, scaled_crop
from training.discriminator import PatchDiscriminator
from training.launch import check_launch, check_sizes, end_with_the_launcher
from training.loader import training_batches, validation_batches
from training.log import Clock, RunLog, check_tracker, read_csv, usage_warning
from training.pictures import open_source
from training.recipe import Data, Recipe, flat, read_recipe
from training.results import corpus_summary, portable_recipe, prepare_push, push, write_final
from training.run_state import Progress, check_recipe, run_on_main, save_checkpoint, shared_checkpoint
from training.step import TrainingStep
from training.validation import HIGHER_IS_BETTER, Validator

TERMINATED = 143  # 128 + SIGTERM, as a shell would say
ASK_EVERY = 10  # steps after which several processes ask each other whether one of them was told to end


class Terminated(Exception):
    """The run was asked to end, and has written a checkpoint."""


def take_over(network: nn.Module, tensors: dict[str, Tensor], where: str) -> str:
    """Copies the tensors that have the same name and shape in `network`; returns how many, as a sentence.

    Raises:
        ValueError: where not one tensor fits.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    fitting = {name: tensor for name, tensor in tensors.items() if tensor.shape == shapes.get(name)}
    if not fitting:
        raise ValueError(f"no tensor of {where} has the name and shape of one of this network's")
    network.load_state_dict(fitting, strict=False)
    return f"took over {len(fitting)} of {len(shapes)} tensors from {where}"


def crop_of(data: Data, size: int) -> Crop:
    """The augmentation that a recipe asks for."""
    crops: dict[str, Crop] = {
        "scaled": partial(scaled_crop, size=size, max_scale=float(data.max_scale), flip=float(data.flip)),
        "resized": partial(resized_crop, size=size, area=data.area, aspect=data.aspect, flip=float(data.flip)),
        "center": partial(center_crop, size=size, flip=float(data.flip)),
    }
    return crops[data.crop]


class Run:
    """A run of one recipe, on one of its processes."""

    def __init__(self, recipe: Recipe, *, allow_change: list[str], push_to_hub: str | None) -> None:
        self.recipe, self.push_to_hub = recipe, push_to_hub
        check_tracker(recipe.report.tracker)
        self.output = Path(recipe.output_dir)
        self.output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision="no",  # the step casts and scales by itself: two optimizers share one scale
            log_with=None if recipe.report.tracker == "none" else recipe.report.tracker,
            project_dir=str(self.output),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        check_launch(self.accelerator, recipe)
        self.micro_batch_size, self.passes = recipe.micro_batches(self.accelerator.num_processes)
        check_sizes(recipe)
        self.checkpoint = shared_checkpoint(self.accelerator, self.output)
        run_on_main(self.accelerator, partial(self._prepare_output, allow_change))
        if push_to_hub:
            run_on_main(self.accelerator, partial(prepare_push, push_to_hub))
        self.provenance = provenance(strict=False)
        set_seed(recipe.seed)
        factor = recipe.config().spatial_downsample_factor
        self.processor = LGQImageProcessor(**{"pad_to_multiple_of": factor, **recipe.processor})
        self.sources = {split: self._source(split) for split in ("train", "validation")}
        size = 0 if recipe.data.streaming else len(self.sources["train"])
        self.broken = BrokenPictures(self.output / "broken.jsonl", float(recipe.data.max_broken), size)
        self.step = self._networks()
        self.progress = Progress({"step": self.step, "broken": self.broken}, source_size=size)
        self.accelerator.register_for_checkpointing(self.progress)
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        self.validator = self._validator()
        self.terminate = False

    def _prepare_output(self, allow_change: list[str]) -> None:
        check_recipe(self.output, flat(self.recipe), resuming=self.checkpoint is not None, allowed=allow_change)
        for leftover in self.output.glob(".*.tmp"):  # of a run that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover)

    def _load(self, checkpoint: Path) -> None:
        size = self.progress.source_size
        try:
            self.accelerator.load_state(str(checkpoint))
        except Exception as error:
            raise RuntimeError(
                f"{checkpoint} cannot be loaded; remove it to go on from the one before ({error})"
            ) from error
        if self.progress.source_size != size:
            raise ValueError(f"the run began with {self.progress.source_size} training pictures, and there are {size}")

    def _source(self, split: str) -> Any:
        data = self.recipe.data
        validation = split == "validation"
        return open_source(
            data.kind,
            (data.validation_path or data.path) if validation else data.path,
            data.validation_split if validation else data.split,
            image_column=data.image_column,
            streaming=data.streaming,
            revision=data.revision,
            name=data.name,
            shuffle_buffer=data.shuffle_buffer,
            seed=self.recipe.seed,
        )

    def _batches(self, *, start: int, num_workers: int) -> Any:
        return training_batches(
            self.sources["train"],
            crop_of(self.recipe.data, self.recipe.image_size),
            self.processor,
            batch_size=self.micro_batch_size,
            seed=self.recipe.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start=start,
            num_workers=num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _networks(self) -> TrainingStep:
        recipe, device = self.recipe, self.accelerator.device
        model = LGQModel(recipe.config()).to(device).train()
        if recipe.engine.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if recipe.engine.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        discriminator = self._discriminator()
        if self.checkpoint is None:
            if recipe.start_from:
                if Path(recipe.start_from).is_absolute() and not Path(recipe.start_from).is_dir():
                    raise FileNotFoundError(f"start_from: no folder {recipe.start_from}")
                source = LGQModel.from_pretrained(recipe.start_from)
                self.accelerator.print(take_over(model, source.state_dict(), recipe.start_from))
                weights = Path(recipe.start_from) / "discriminator.safetensors"
                if discriminator is not None and weights.is_file():
                    self.accelerator.print(take_over(discriminator, load_file(weights), str(weights)))
            if recipe.quantizer.init_method != "keep":
                self._place_codebook(model)
        self.perceptual = self._perceptual(recipe.loss.perceptual)
        mean, std = (list(getattr(self.processor, name)) for name in ("image_mean", "image_std"))
        return TrainingStep(self.accelerator, recipe, model, self.perceptual, discriminator, mean, std)

    def _discriminator(self) -> PatchDiscriminator | None:
        settings = self.recipe.discriminator
        if not settings.weight:
            return None
        discriminator = PatchDiscriminator(settings.base_channels, settings.num_layers, settings.norm)
        if self.recipe.engine.channels_last:
            discriminator = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return discriminator.to(self.accelerator.device)

    def _perceptual(self, name: str) -> nn.Module | None:
        if name == "none":
            return None
        loss = self.recipe.loss
        network = build_perceptual(name, vgg_weights=loss.vgg_weights, heads=loss.lpips_heads)  # type: ignore[arg-type]
        return network.to(self.accelerator.device)

    @torch.no_grad()
    def _place_codebook(self, model: LGQModel) -> None:
        """Places the codebook on the latents of the first training crops, pooled over all processes in their order."""
        settings = self.recipe.quantizer
        together = self.micro_batch_size * self.accelerator.num_processes
        latents = []
        batches = self._batches(start=0, num_workers=0)
        for _ in range(math.ceil(settings.init_pictures / together)):
            pixels = next(batches).pixel_values.to(self.accelerator.device)
            latents.append(self.accelerator.gather(model.latents(pixels)))
        pool = torch.cat(latents)
        rows_per_picture = pool.shape[2] * pool.shape[3]
        pool = pool[: max(1, settings.init_vectors // rows_per_picture)]
        model.quantizer.init_from(pool, settings.init_method, torch.Generator().manual_seed(self.recipe.seed))

    def _validator(self) -> Validator:
        settings = self.recipe.validation
        perceptual = None
        if settings.perceptual != "none":
            same = settings.perceptual == self.recipe.loss.perceptual
            perceptual = self.perceptual if same else self._perceptual(settings.perceptual)
        extractor = None
        if settings.frechet != "none":
            extractor = EfficientNetLite0().to(self.accelerator.device)
        batches = partial(
            validation_batches,
            self.sources["validation"],
            self.recipe.image_size,
            self.processor,
            count=settings.pictures,
            batch_size=settings.batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return Validator(self.accelerator, settings, self.processor, batches, perceptual, extractor)

    def train(self) -> Path:
        """Runs to the end; returns the published folder.

        Raises:
            Terminated: after SIGTERM, when the checkpoint is written.
            FloatingPointError: where a loss or gradient was not finite; that step was not taken.
        """
        recipe, progress = self.recipe, self.progress
        self.log = RunLog(self.accelerator, self.output, progress.step, recipe.max_steps, flat(recipe))
        previous = signal.signal(signal.SIGTERM, self._on_terminate)
        end_with_the_launcher()
        recent: deque[tuple[int, list[str]]] = deque(maxlen=recipe.report.log_every + 1)
        batches = self._batches(start=progress.pictures, num_workers=recipe.data.num_workers)
        clock, window_start = Clock(), progress.step
        try:
            while progress.step < recipe.max_steps:
                measure = self._due(progress.step + 1)
                micro_batches, ids = self._next(batches, clock)
                recent.append((progress.step, ids))
                self.step(micro_batches, progress.step, measure=measure)
                progress.step += 1
                progress.pictures += recipe.batch_size
                self.log.step()
                row = measure or self._asked_to_stop(progress.step)
                if row or self.accelerator.device.type == "cpu":
                    self._stop_if_not_finite(recent)
                if row:
                    self._write_row(clock, progress.step - window_start)
                    window_start = progress.step
                    self._after_row()
                    clock.start()
            return self._finish()
        finally:
            signal.signal(signal.SIGTERM, previous)
            self.log.close()

    def _due(self, step: int) -> bool:
        """Whether after `step` steps something is written, for which the device is waited for."""
        every = (self.recipe.report.log_every, self.recipe.report.checkpoint_every, self.recipe.validation.every)
        return step == self.recipe.max_steps or any(step % n == 0 for n in every) or step == self._heard_from

    @property
    def _heard_from(self) -> int:
        """The step from which the model hears the discriminator; -1 if it never does."""
        gan = self.recipe.discriminator
        return gan.start + gan.warmup if gan.weight else -1

    def _next(self, batches: Any, clock: Clock) -> tuple[list[torch.Tensor], list[str]]:
        started = time.perf_counter()
        micro_batches, ids = [], []
        for _ in range(self.passes):
            batch = next(batches)
            self.broken.add(batch.broken, seen=len(batch.ids))
            ids += batch.ids
            pixels = batch.pixel_values.to(self.accelerator.device, non_blocking=True)
            micro_batches.append(pixels.contiguous(memory_format=self.step.memory_format))
        clock.wait(time.perf_counter() - started)
        return micro_batches, ids

    def _write_row(self, clock: Clock, steps: int) -> None:
        values, counts = self.step.take_window()
        statistics = codebook_statistics(counts)
        row = {
            **values,
            "codebook_usage": statistics["share_used"],
            **{name: statistics[name] for name in ("perplexity", "dead_codes", "tokens")},
            **clock.read(steps, steps * self.recipe.batch_size),
        }
        self.progress.seconds += row["step_seconds"] * steps
        row["seconds"] = self.progress.seconds
        self.log.train(self.progress.step, row)
        if warning := usage_warning(int(statistics["codes_used"]), int(statistics["tokens"]), counts.shape[0]):
            self.log.say(f"warning: {warning}")

    def _stop_if_not_finite(self, recent: deque[tuple[int, list[str]]]) -> None:
        scaler = self.step.scaler
        failed = self.step.failure()
        if failed is None and not (scaler.is_enabled() and scaler.get_scale() < 1):
            return
        step = recent[-1][0] if failed is None else failed
        dump = self.output / f"not-finite-step-{step:08d}-process-{self.accelerator.process_index}.json"
        with atomic_file(dump) as temporary:
            ids = dict(recent)
            temporary.write_text(json.dumps({"step": step, "pictures": ids.get(step, [])}, indent=1) + "\n")
        what = "loss or gradient is not finite" if failed is not None else "gradients overflow fp16 at every scale"
        raise FloatingPointError(
            f"{what} at step {step}, which was not taken; its pictures are listed in {dump}. The run can go on from "
            f"its last checkpoint with a lower optimizer.learning_rate or another engine.mixed_precision "
            "(--allow-change)"
        )

    def _after_row(self) -> None:
        """What follows a row of the log, where its step is due: the model before the GAN, validation, checkpoint."""
        step, report = self.progress.step, self.recipe.report
        last = step == self.recipe.max_steps
        if step == self._heard_from and not last:
            self.log.say(
                f"step {step}: the model hears the discriminator from now on. Pixel metrics fall at first; the model "
                "as it was is kept in before-gan/"
            )
            self._save_model("before-gan")
        stop = self._asked_to_stop(0) and not last  # asked again: all processes are here
        try:
            if not stop and (last or step % self.recipe.validation.every == 0):
                self._validate()
        finally:  # work is not lost to a validation that fails
            if last or stop or step % report.checkpoint_every == 0:
                save_checkpoint(self.accelerator, self.output, step, report.checkpoints_kept)
        if stop:
            raise Terminated

    def _on_terminate(self, number: int, frame: Any) -> None:
        self.terminate = True

    def _asked_to_stop(self, step: int) -> bool:
        """Whether any process got SIGTERM, in which case all stop at the same step; several ask every tenth step."""
        if self.accelerator.num_processes == 1 or step % ASK_EVERY:
            return self.terminate and self.accelerator.num_processes == 1
        asked = torch.tensor(float(self.terminate), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def _save_model(self, name: str) -> None:
        if self.accelerator.is_main_process:
            with atomic_folder(self.output / name) as folder:
                self.step.published.save_pretrained(folder)
                self.processor.save_pretrained(folder)

    def _validate(self) -> None:
        values, sheet = self.validator(self.step.published)
        step, settings = self.progress.step, self.recipe.validation
        self.log.validate(step, values, sheet, self.output)
        score = values[settings.best]
        better = self.progress.best is None or (
            score > self.progress.best if HIGHER_IS_BETTER[settings.best] else score < self.progress.best
        )
        if better:
            self.progress.best, self.progress.best_step = score, step
            self._save_model("best")

    def _finish(self) -> Path:
        final = self.output / "final"
        if self.accelerator.is_main_process:
            write_final(
                final,
                model=self.step.published,
                processor=self.processor,
                discriminator=self.step.discriminator,
                recipe=self.recipe,
                results=self._results(),
                repo_id=self.push_to_hub,
                logs=[self.output / "training.csv", self.output / "validation.csv"],
            )
        self.accelerator.wait_for_everyone()
        return final

    def _results(self) -> dict[str, Any]:
        recipe, model = self.recipe, self.step.published
        portable = portable_recipe(recipe)
        data = portable["data"]
        if recipe.data.kind == "corpus":
            data = {"kind": "corpus", **corpus_summary(Path(recipe.data.path))}
        return {
            **self.provenance,
            "recipe": portable,
            "steps": self.progress.step,
            "hours": round(self.progress.seconds / 3600, 4),
            "processes": self.accelerator.num_processes,
            "model": {
                "codebook_size": model.config.codebook_size,
                "downsampling_factor": model.config.spatial_downsample_factor,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
            },
            "data": data,
            "broken_pictures": len(self.broken.listed()),
            "protocol": self.validator.protocol(),
            "validation": read_csv(self.output / "validation.csv"),
            "best": {"metric": recipe.validation.best, "value": self.progress.best, "step": self.progress.best_step},
            "last_row": read_csv(self.output / "training.csv")[-1],
        }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe, a YAML file")
    parser.add_argument(
        "--allow-change", nargs="+", default=[], metavar="NAME", help="fields in which a resumed run may differ"
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload the result to this repository of the Hub")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a value of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of each file of each checkpoint
    transformers_logging.disable_progress_bar()  # one for each model that is saved
    # accelerate names it to DDP whatever it is
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    recipe = read_recipe(parsed.config, parsed.overrides)
    run = Run(recipe, allow_change=parsed.allow_change, push_to_hub=parsed.push_to_hub)
    try:
        final = run.train()
        run.accelerator.print(final)
        if parsed.push_to_hub and run.accelerator.is_main_process:
            print(push(final, parsed.push_to_hub))  # the others have ended: none waits for an upload
    except Terminated:
        run.accelerator.print(f"stopped by SIGTERM at step {run.progress.step}; the same command goes on from there")
        sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
