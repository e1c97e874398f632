"""The recipe of a tokenizer: everything that decides a run's result, as typed fields that a YAML file fills.

Values of a wrong type and values out of range are refused when a recipe is made, with huggingface_hub's
`StrictDataclassError`, which carries the reason. Steps are optimizer steps everywhere. Nothing depends on how many
ranks share the work: `batch_size` counts the images of one optimizer step over all of them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from lgq_hf import LGQConfig
from training.run_recipe import (
    Number,
    Optimizer,
    Report,
    RunEngine,
    RunRecipe,
    TemperatureSchedule,
    check_betas,
    check_counts,
    check_known,
    fill,
    read_values,
)

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "best": {
        "model": {
            "latent_group_norm": False,
            "code_dim": 8,
            "distance": "sq_l2",
            "straight_through": "identity",
            "commitment_weight": 0.25,
            "lambda_peak": 0.005,
            "lambda_usage": 0.005,
        },
        "quantizer": {
            "init_method": "random",
            "learning_rate_scale": 10.0,
            "temperature_start": 1.0,
            "temperature_end": 0.1,
            "temperature_schedule": "linear",
        },
    },
    "paper": {
        "model": {
            "latent_group_norm": True,
            "code_dim": None,
            "distance": "sq_l2",
            "straight_through": "soft",
            "commitment_weight": 1.0,
            "lambda_peak": 0.005,
            "lambda_usage": 0.005,
        },
        "quantizer": {
            "init_method": "random",
            "learning_rate_scale": 1.0,
            "temperature_start": 1.0,
            "temperature_end": 0.1,
            "temperature_schedule": "linear",
        },
    },
}
DEFAULT = "best"
NONE = "none"  # the defaults of the recipe's own fields; what the recipe says that a run leaves behind


def with_preset(values: Any, where: str) -> Any:
    """A recipe's values with those of its `preset` (`"best"` where it names none) for what it leaves out.

    Presets are of LGQ's vector form: another quantizer, or scalar bins, begin with the recipe's own defaults. Where a
    recipe sets one of the fields that hang together, the others follow: the soft estimator has a commitment of 1.

    Raises:
        ValueError: an unknown preset.
    """
    if not isinstance(values, dict):
        return values  # refused later, by name
    values = copy.deepcopy(values)
    explicit = "preset" in values
    name = values.pop("preset", DEFAULT)
    if name == NONE:
        return values
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset of {where} must be one of {sorted([*PRESETS, NONE])}, got {name!r}")
    given = values.get("model") or {}
    if not isinstance(given, dict):
        return values
    for field, own in (("quantizer", "lgq"), ("codebook_mode", "vector")):
        if given.get(field, own) != own:
            if explicit:
                got = f"{field}='{own}', got '{given[field]}'"
                raise ValueError(f"preset '{name}' of {where} is of {got}: leave the preset out")
            return values
    preset = copy.deepcopy(PRESETS[name])
    if given.get("backbone", "lgq") != "lgq":
        del preset["model"]["latent_group_norm"]  # the other backbone has none
    if given.get("straight_through") == "soft":
        preset["model"]["commitment_weight"] = 1.0
    for section, fields in preset.items():
        if values.get(section) is None:
            values[section] = {}
        if isinstance(values[section], dict):  # what is not is refused by name, later
            values[section] = {**fields, **values[section]}
    return values


@strict
@dataclasses.dataclass
class Data:
    """Where pictures come from and how they are cut; see `pictures.py` and `crops.py`.

    Attributes:
        kind: `"corpus"` (built by `training.corpus`), `"folder"`, `"dataset"` (of Hugging Face, saved or by name),
            `"parquet"`.
        path: folder, name or glob of it; `name` is a dataset's configuration, `revision` its commit.
        validation_path: where the validation split is, if not at `path`.
        repeat: of a corpus: how often an epoch has each training picture of a package, each time cut anew (and counted
            anew where it cannot be read). 0 leaves the package out; those that are not named come once.
        streaming: read a dataset or parquet from its beginning, shuffled within `shuffle_buffer` pictures.
        crop: `"scaled"`: a square of `image_size` to `max_scale * image_size` pixels. `"resized"`: a share `area` of
            the picture with an aspect ratio in `aspect`. `"center"`: the picture's middle, always the same.
        flip: how often a crop is mirrored.
        max_broken: share of broken pictures above which the run stops (ten are always borne).
        num_workers: processes (threads for streams) that read ahead, for each process of the run.
    """

    kind: Literal["corpus", "folder", "dataset", "parquet"] = "corpus"
    path: str = "corpus"
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    validation_path: str | None = None
    validation_split: str = "validation"
    image_column: str = "image"
    repeat: dict[str, int] | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    crop: Literal["scaled", "resized", "center"] = "scaled"
    max_scale: Number = 2.0
    area: list[Number] = dataclasses.field(default_factory=lambda: [0.5, 1.0])
    aspect: list[Number] = dataclasses.field(default_factory=lambda: [0.75, 4 / 3])
    flip: Number = 0.5
    max_broken: Number = 0.01
    num_workers: int = 2

    def validate_ranges(self) -> None:
        """Refuses crops that would be enlarged, and ranges upside down."""
        if self.max_scale < 1:
            raise ValueError(f"data.max_scale must be at least 1, got {self.max_scale}")
        for field, largest in (("area", 1.0), ("aspect", float("inf"))):
            values = getattr(self, field)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= largest:
                raise ValueError(f"data.{field} must be [low, high] with 0 < low <= high <= {largest}, got {values}")
        for field in ("flip", "max_broken"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"data.{field} must lie in [0, 1], got {getattr(self, field)}")
        if self.repeat is not None and (self.kind != "corpus" or min(self.repeat.values(), default=0) < 0):
            raise ValueError(
                f"data.repeat is for kind 'corpus' and counts 0, 1, ..., got kind '{self.kind}' and {self.repeat}"
            )
        if self.num_workers < 0 or self.shuffle_buffer < 1:
            raise ValueError("data.num_workers must be 0 or more and data.shuffle_buffer at least 1")
        if self.streaming and self.kind not in ("dataset", "parquet"):
            raise ValueError(f"data.streaming is for kind 'dataset' and 'parquet', got '{self.kind}'")


@strict
@dataclasses.dataclass
class Loss:
    """What a reconstruction is compared by. Pixel terms are taken in the processor's normalised space.

    Attributes:
        perceptual: network of the perceptual term; `"lpips-vgg16"` needs the files `vgg_weights` and `lpips_heads`.
    """

    pixel: Literal["l1", "l2"] = "l1"
    pixel_weight: Number = 1.0
    perceptual: Literal["none", "efficientnet-lite0", "lpips-vgg16"] = "none"
    perceptual_weight: Number = 1.0
    vgg_weights: str | None = None
    lpips_heads: str | None = None

    def validate_weights(self) -> None:
        """Refuses negative weights and LPIPS without its files."""
        if self.pixel_weight < 0 or self.perceptual_weight < 0:
            raise ValueError("loss.pixel_weight and loss.perceptual_weight must be 0 or more")
        if self.perceptual == "lpips-vgg16" and not (self.vgg_weights and self.lpips_heads):
            raise ValueError("loss.perceptual=lpips-vgg16 needs the files loss.vgg_weights and loss.lpips_heads")


@strict
@dataclasses.dataclass
class Discriminator:
    """The PatchGAN. It learns from step `start`; the model hears of it `warmup` steps later, louder over `ramp` steps.

    Attributes:
        weight: of the adversarial term; 0: no discriminator.
        adaptive: multiply the weight by the ratio of gradient norms at the decoder's last layer (Esser et al. 2021,
            eq. 7), at most `adaptive_cap`. The ratio is the previous step's, so that it can be taken over all
            micro-batches and processes.
        lecam: weight of LeCAM's regularizer (Tseng et al. 2021).
    """

    weight: Number = 0.0
    start: int = 0
    warmup: int = 0
    ramp: int = 0
    adaptive: bool = True
    adaptive_cap: Number = 1e4
    norm: Literal["spectral", "group", "none"] = "spectral"
    base_channels: int = 64
    num_layers: int = 3
    lecam: Number = 0.0
    learning_rate: Number = 1e-4
    betas: list[Number] = dataclasses.field(default_factory=lambda: [0.5, 0.9])
    weight_decay: Number = 0.0

    def validate_ranges(self) -> None:
        """Refuses negative weights and steps."""
        for field in ("weight", "start", "warmup", "ramp", "lecam", "adaptive_cap", "learning_rate", "weight_decay"):
            if getattr(self, field) < 0:
                raise ValueError(f"discriminator.{field} must be 0 or more, got {getattr(self, field)}")
        check_betas("discriminator.betas", self.betas)


@strict
@dataclasses.dataclass
class Quantizer:
    """How the codebook starts and how the assignment hardens.

    Attributes:
        init_method: how codes are placed on the latents of `init_pictures` training crops, pooled over all processes;
            `"keep"`: they stay as the model in `start_from` has them.
        init_vectors: at most so many of these latents are used.
        align_latents: before codes are placed, the projections to and from them are changed so that squared distance
            between latents is squared error of the picture, see `training.initialization`.
        least_energy: with it, an axis with a smaller share of what changes the picture is spread as if it had it.
        learning_rate_scale: factor on the learning rate of the quantizer's parameters.
        temperature_steps: steps from the first temperature to the last; 0 for all of them.
    """

    init_method: Literal["random", "uniform", "gaussian", "kmeans", "keep"] = "kmeans"
    init_pictures: int = 256
    init_vectors: int = 1_048_576
    align_latents: bool = False
    least_energy: Number = 0.0
    learning_rate_scale: Number = 1.0
    temperature_start: Number = 1.0
    temperature_end: Number = 0.1
    temperature_schedule: TemperatureSchedule = "linear"
    temperature_steps: int = 0

    def validate_ranges(self) -> None:
        """Refuses temperatures and counts that are not positive."""
        for field in ("init_pictures", "init_vectors", "temperature_start", "temperature_end"):
            if not getattr(self, field) > 0:
                raise ValueError(f"quantizer.{field} must be positive, got {getattr(self, field)}")
        if not 0 <= self.least_energy < 1 or (self.least_energy and not self.align_latents):
            raise ValueError(
                f"quantizer.least_energy must lie in [0, 1) and needs quantizer.align_latents, got {self.least_energy}"
            )
        if self.temperature_steps < 0 or self.learning_rate_scale < 0:
            raise ValueError("quantizer.temperature_steps and learning_rate_scale must be 0 or more")


@strict
@dataclasses.dataclass
class Engine(RunEngine):
    """As `RunEngine`; the quantizer computes in fp32 always."""

    channels_last: bool = True


@strict
@dataclasses.dataclass
class Validation:
    """What is measured every `every` steps, on the averaged weights and centre crops of validation pictures.

    Attributes:
        frechet: extractor of the Fréchet distance.
        best: metric by which `best/` is chosen.
        sheet: pictures on the sheet of reconstructions.
    """

    every: int = 1000
    pictures: int = 256
    batch_size: int = 16
    perceptual: Literal["none", "efficientnet-lite0", "lpips-vgg16"] = "none"
    frechet: Literal["none", "efficientnet-lite0"] = "none"
    best: Literal["psnr", "ssim", "perceptual", "frechet"] = "psnr"
    sheet: int = 8

    def validate_ranges(self) -> None:
        """Refuses counts below one, and a choice by what is not measured."""
        check_counts("validation.", self, ("every", "pictures", "batch_size", "sheet"))
        if self.frechet != "none" and self.pictures < 2:
            raise ValueError("validation.frechet needs at least 2 validation.pictures")
        if self.best in ("perceptual", "frechet") and getattr(self, self.best) == "none":
            raise ValueError(f"validation.best={self.best} needs validation.{self.best} to be set")


@strict
@dataclasses.dataclass
class Recipe(RunRecipe):
    """One run. `model` and `processor` are the fields of `LGQConfig` and `LGQImageProcessor` that differ from default.

    Attributes:
        batch_size: pictures of one optimizer step, over all processes and micro-batches.
        image_size: side of a training crop, in pixels.
        start_from: folder of a model whose tensors of the same name and shape are taken over at step 0 (the decoder's
            stages counted from the picture, so that a deeper model takes over a shallower one), and those of
            `discriminator.safetensors` beside it where this run has one of the same shape. The codebook is placed
            anew, unless `quantizer.init_method` is `"keep"`. `None` for random weights.
        train_only: `"decoder"`: encoder and codebook stay those of `start_from`, so that pictures have the tokens that
            they had, and the loss is that of the picture alone. `"autoencoder"`: encoder and decoder, without
            quantization: what is measured is decoded from latents, and the codebook stays whatever it is, for
            another run to place; what a recipe says of the codebook and of temperatures has no effect.
            `None`: everything learns.
    """

    output_dir: str
    max_steps: int
    batch_size: int
    image_size: int
    seed: int = 0
    start_from: str | None = None
    train_only: Literal["decoder", "autoencoder"] | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    processor: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: Data = dataclasses.field(default_factory=Data)
    loss: Loss = dataclasses.field(default_factory=Loss)
    discriminator: Discriminator = dataclasses.field(default_factory=Discriminator)
    quantizer: Quantizer = dataclasses.field(default_factory=Quantizer)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    engine: Engine = dataclasses.field(default_factory=Engine)
    validation: Validation = dataclasses.field(default_factory=Validation)
    report: Report = dataclasses.field(default_factory=Report)

    def validate_ranges(self) -> None:
        """Refuses counts below one."""
        check_counts("", self, ("max_steps", "batch_size", "image_size"))
        if self.validation.perceptual == "lpips-vgg16" and not (self.loss.vgg_weights and self.loss.lpips_heads):
            raise ValueError("validation.perceptual=lpips-vgg16 needs the files loss.vgg_weights and loss.lpips_heads")
        if self.quantizer.init_method == "keep" and not self.start_from:
            raise ValueError("quantizer.init_method=keep needs start_from: there is no codebook to keep")
        if self.train_only == "autoencoder" and self.report.push_to_hub:
            raise ValueError(
                "train_only=autoencoder makes no tokenizer: its codes do not fit; leave report.push_to_hub out"
            )
        if self.quantizer.align_latents and self.quantizer.init_method == "keep" and self.train_only is None:
            raise ValueError(
                "quantizer.align_latents changes the latents, so codes cannot stay: set another init_method"
            )
        if self.train_only == "decoder" and self.quantizer.align_latents:
            raise ValueError("train_only=decoder keeps tokens, and quantizer.align_latents changes them: leave it out")
        if self.train_only == "decoder" and self.quantizer.init_method != "keep":
            raise ValueError(
                f"train_only={self.train_only} needs start_from and quantizer.init_method=keep, got "
                f"init_method={self.quantizer.init_method}: its codebook stays"
            )
        quantizer = self.model.get("quantizer", "lgq")
        if quantizer != "lgq":
            for field in dataclasses.fields(Quantizer):
                value = getattr(self.quantizer, field.name)
                if field.name.startswith("temperature_") and value != field.default:
                    raise ValueError(
                        f"quantizer.{field.name} is LGQ's, and model.quantizer is '{quantizer}': leave it out, "
                        f"got {value}"
                    )

    def config(self) -> LGQConfig:
        """Of the model; its `image_size` is the recipe's unless `model` says otherwise."""
        return LGQConfig(**{"image_size": self.image_size, **self.model})


def recipe_from(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from nested plain values, as in its YAML file.

    Raises:
        ValueError: for unknown or missing keys.
        StrictDataclassError: for a value of a wrong type or out of range.
    """
    recipe = fill(Recipe, values, where)
    check_known(recipe.model, sorted(LGQConfig.__annotations__), f"model of {where}")
    return recipe


def read_recipe(path: str | Path, overrides: list[str]) -> Recipe:
    """A recipe from a YAML file and overrides, as `training.run_recipe.read_values` takes them.

    What it leaves out of LGQ's settings is that of its `preset`, see `training.recipe`.

    Raises:
        ValueError: as `recipe_from`, for an override without `=`, or an unknown preset.
    """
    return recipe_from(with_preset(read_values(path, overrides), str(path)), str(path))
