"""Trains a tokenizer, from pictures to a folder that `LGQTokenizer.from_pretrained` loads.

    accelerate launch -m training.train_tokenizer --config training/recipes/NAME.yaml [key=value ...]

A run that finds checkpoints in its output folder goes on from the newest one, to the same result as if it had never
stopped. On SIGTERM it writes a checkpoint and ends. See docs/training.md.
"""

import math
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.metrics.codebook import codebook_statistics
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import build_perceptual
from lgq_hf.metrics.reconstruction import ssim
from training.crops import Crop, center_crop, resized_crop, scaled_crop
from training.data import Batch, UnreadableImages, open_source, training_batches, validation_batches
from training.initialization import (
    align_latents,
    check_alignable,
    check_same_pixels,
    check_same_tokens,
    latents_and_gradients,
    take_over,
)
from training.losses import PatchDiscriminator
from training.output import usage_warning
from training.recipe import Data, Recipe, read_recipe
from training.results import WITHOUT_CODES, corpus_summary, portable_recipe, write_tokenizer
from training.step import TrainingStep, train_autoencoder_alone, train_decoder_alone
from training.trainer import Run, call
from training.validation import HIGHER_IS_BETTER, Validator

ALIGN_PICTURES = 64  # at most so many crops say what latents change
CODEBOOK_FIGURES = ("codebook_usage", "perplexity", "dead_codes", "tokens")


def check_sizes(recipe: Recipe) -> None:
    """Refuses at once what would fail at a later step.

    Raises:
        ValueError: pictures too small, or of a size that the model cannot take, or settings that do not fit the model.
        ModuleNotFoundError: naming the extra that validation needs.
    """
    config = recipe.config()
    factor = config.spatial_downsample_factor
    if config.quantizer == "simvq" and not config.learn_projection:
        raise ValueError("model.quantizer=simvq trains with model.learn_projection=true alone")
    if recipe.quantizer.align_latents:
        check_alignable(config, "quantizer.align_latents")
    if recipe.train_only == "autoencoder":  # others bound or normalise what the decoder gets
        check_alignable(config, "train_only=autoencoder")
    if recipe.image_size % factor:
        raise ValueError(f"image_size={recipe.image_size} is no multiple of {factor}, the model's downsampling")
    smallest = {"SSIM": 11}
    if recipe.discriminator.weight:
        discriminator = PatchDiscriminator(num_layers=recipe.discriminator.num_layers)
        smallest[f"a discriminator of {recipe.discriminator.num_layers} layers"] = discriminator.min_size
    for what, side in smallest.items():
        if recipe.image_size < side:
            raise ValueError(f"image_size={recipe.image_size} is too small for {what}: {side} at least")
    ssim(*torch.zeros(2, 1, 3, 11, 11))  # says now which extra it needs


def crop_of(data: Data, size: int) -> Crop:
    """The augmentation that a recipe asks for."""
    crops: dict[str, Crop] = {
        "scaled": partial(scaled_crop, size=size, max_scale=float(data.max_scale), flip=float(data.flip)),
        "resized": partial(resized_crop, size=size, area=data.area, aspect=data.aspect, flip=float(data.flip)),
        "center": partial(center_crop, size=size, flip=float(data.flip)),
    }
    return crops[data.crop]


class TokenizerRun(Run[Recipe]):
    """A run of a tokenizer's recipe, on one of its processes."""

    samples = "pictures"
    step: TrainingStep

    def check(self) -> None:
        """Refuses sizes that the networks cannot take."""
        check_sizes(self.recipe)

    def open_data(self) -> int:
        """Opens pictures to train and validate on; returns how many there are to train on, 0 for a stream."""
        recipe = self.recipe
        factor = recipe.config().spatial_downsample_factor
        self.processor = LGQImageProcessor(**{"pad_to_multiple_of": factor, **recipe.processor})
        self.sources = {split: self._source(split) for split in ("train", "validation")}
        size = 0 if recipe.data.streaming else len(self.sources["train"])
        self.broken = UnreadableImages(self.output / "broken.jsonl", float(recipe.data.max_broken), size)
        return size

    def parts(self) -> dict[str, Any]:
        """The unreadable images."""
        return {"broken": self.broken}

    def _source(self, split: str) -> Any:
        data = self.recipe.data
        validation = split == "validation"
        return open_source(
            data.kind,
            (data.validation_path or data.path) if validation else data.path,
            data.validation_split if validation else data.split,
            image_column=data.image_column,
            repeat=None if validation else data.repeat,
            streaming=data.streaming,
            revision=data.revision,
            name=data.name,
            shuffle_buffer=data.shuffle_buffer,
            seed=self.recipe.seed,
        )

    def batches(self, *, start: int, num_workers: int) -> Generator[Batch, None, None]:
        """Crops, as `training.data` makes them."""
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

    def make_step(self) -> TrainingStep:
        """All networks; at step 0 with what `start_from` holds, and with the codebook placed."""
        recipe, device = self.recipe, self.accelerator.device
        model = LGQModel(recipe.config()).to(device).train()
        if recipe.engine.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if recipe.engine.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if recipe.train_only == "decoder":
            train_decoder_alone(model)
        elif recipe.train_only == "autoencoder":
            train_autoencoder_alone(model)
        discriminator = self._discriminator()
        if self.checkpoint is None:
            if recipe.start_from:
                if Path(recipe.start_from).is_absolute() and not Path(recipe.start_from).is_dir():
                    raise FileNotFoundError(f"start_from: no folder {recipe.start_from}")
                source = LGQModel.from_pretrained(recipe.start_from)
                self.accelerator.print(take_over(model, source.state_dict(), recipe.start_from))
                if recipe.train_only == "decoder":
                    source = source.to(device, model.dtype)  # and the layout, so that both round alike
                    if recipe.engine.channels_last:
                        source = source.to(memory_format=torch.channels_last)
                    size = recipe.image_size
                    check_same_tokens(model, source, torch.randn(1, model.config.in_channels, size, size).to(device))
                    check_same_pixels(self.processor, recipe.start_from)
                weights = Path(recipe.start_from) / "discriminator.safetensors"
                if discriminator is not None and weights.is_file():
                    self.accelerator.print(take_over(discriminator, load_file(weights), str(weights)))
            if recipe.quantizer.align_latents:
                self._align_latents(model)
            if recipe.quantizer.init_method != "keep" and recipe.train_only is None:
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

    def _first_crops(self, count: int) -> Iterator[Tensor]:
        """`pixel_values` of at least `count` of the first training crops, over all processes, in passes."""
        batches = self.batches(start=0, num_workers=0)
        for _ in range(math.ceil(count / (self.micro_batch_size * self.accelerator.num_processes))):
            yield next(batches).pixel_values.to(self.accelerator.device)

    def _align_latents(self, model: LGQModel) -> None:
        """Changes latents by the first training crops, pooled over all processes, and says what it found."""
        generator = torch.Generator().manual_seed(self.recipe.seed + self.accelerator.process_index)
        count = min(self.recipe.quantizer.init_pictures, ALIGN_PICTURES)
        pairs = [latents_and_gradients(model, pixels, generator) for pixels in self._first_crops(count)]
        latents, gradients = (self.accelerator.gather(torch.cat(rows)) for rows in zip(*pairs, strict=True))
        shares = align_latents(model, latents, gradients, float(self.recipe.quantizer.least_energy))
        told = ", ".join(f"{share:.1%}" if share >= 0.001 else f"{share:.0e}" for share in shares)
        self.accelerator.print(f"of what changes the picture, the latents' axes had {told}")

    @torch.no_grad()
    def _place_codebook(self, model: LGQModel) -> None:
        """Places the codebook on the latents of the first training crops, pooled over all processes in their order."""
        settings = self.recipe.quantizer
        crops = self._first_crops(settings.init_pictures)
        pool = torch.cat([self.accelerator.gather(model.latents(pixels)) for pixels in crops])
        rows_per_picture = pool.shape[2] * pool.shape[3]
        pool = pool[: max(1, settings.init_vectors // rows_per_picture)]
        model.quantizer.init_from(pool, settings.init_method, torch.Generator().manual_seed(self.recipe.seed))

    def prepare_validation(self) -> None:
        """A [`Validator`] with the networks that the recipe's metrics need."""
        settings = self.recipe.validation
        self.best_metric, self.higher_is_better = settings.best, HIGHER_IS_BETTER[settings.best]
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
        self.validator = Validator(self.accelerator, settings, self.processor, batches, perceptual, extractor)

    @property
    def _heard_from(self) -> int:
        """The step from which the model hears the discriminator; -1 if it never does."""
        gan = self.recipe.discriminator
        return gan.start + gan.warmup if gan.weight else -1

    def next_pass(self, batches: Iterator[Batch]) -> tuple[Tensor, list[str]]:
        """`pixel_values` (B,3,H,W) on the device, and names of pictures."""
        batch = next(batches)
        self.broken.add(batch.unreadable, seen=len(batch.ids))
        pixels = batch.pixel_values.to(self.accelerator.device, non_blocking=True)
        return pixels.contiguous(memory_format=self.step.memory_format), batch.ids

    def window(self) -> tuple[dict[str, float], list[str]]:
        """Losses and the codebook's use, and a warning where it collapses."""
        values, counts = self.step.take_window()
        if self.recipe.train_only == "autoencoder":
            return values, []
        statistics = codebook_statistics(counts)
        warning = usage_warning(int(statistics["codes_used"]), int(statistics["tokens"]), counts.shape[0])
        names = ("perplexity", "dead_codes", "tokens")
        values |= {"codebook_usage": statistics["share_used"], **{name: statistics[name] for name in names}}
        return values, [f"warning: {warning}"] if warning else []

    def postfix(self, row: dict[str, float]) -> dict[str, str]:
        """Loss, codes in use, pictures a second."""
        used = {"used": f"{100 * row['codebook_usage']:.0f}%"} if "codebook_usage" in row else {}
        return {
            "loss": f"{row['loss']:.4g}",
            **used,
            "pictures/s": f"{row['pictures_per_second']:.3g}",
        }

    def is_milestone(self, step: int) -> bool:
        """Where the model begins to hear the discriminator."""
        return step == self._heard_from

    def at_milestone(self) -> None:
        """Keeps the model as it was before."""
        self.log.say(
            f"step {self.progress.step}: the model hears the discriminator from now on. Pixel metrics fall at first; "
            "the model as it was is kept in before-gan/"
        )
        self.save_model("before-gan")

    def measure(self) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics of reconstructions, and a sheet of them."""
        values, sheet = self.validator(self.step.published)
        if self.recipe.train_only == "autoencoder":  # tokens are of codes that nothing was decoded from
            values = {name: value for name, value in values.items() if name not in CODEBOOK_FIGURES}
        return values, sheet

    def save_published(self, folder: Path) -> None:
        """Model and image processor, and of an autoencoder the word that it is no tokenizer yet."""
        self.step.published.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.recipe.train_only == "autoencoder":
            (folder / "README.md").write_text(WITHOUT_CODES)

    def write_final(self, folder: Path, results: dict[str, Any]) -> None:
        """See `training.results`."""
        write_tokenizer(
            folder,
            model=self.step.published,
            processor=self.processor,
            discriminator=self.step.discriminator,
            recipe=self.recipe,
            results=results,
            repo_id=self.recipe.report.push_to_hub,
            logs=[self.output / "training.csv", self.output / "validation.csv"],
        )

    def results(self) -> dict[str, Any]:
        """What is the tokenizer's own."""
        recipe, model = self.recipe, self.step.published
        portable = portable_recipe(recipe)
        data = portable["data"]
        if recipe.data.kind == "corpus":
            data = {"kind": "corpus", **corpus_summary(Path(recipe.data.path), recipe.data.repeat)}
        return {
            "recipe": portable,
            "model": {
                "codebook_size": model.config.codebook_size,
                "downsampling_factor": model.config.spatial_downsample_factor,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
            },
            "data": data,
            "broken_pictures": len(self.broken.listed()),
            "protocol": self.validator.protocol(),
        }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    call(TokenizerRun, read_recipe, __doc__, arguments)


if __name__ == "__main__":
    main()
