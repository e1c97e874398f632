"""The recipe of a generator on token shards: everything that decides a run's result, as typed fields of a YAML file.

Checked as `training.recipe` is. `batch_size` counts the rows of one optimizer step over all processes.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig

from lgq_hf.generation import LGQMaskedConfig, llama_config
from training.run_recipe import (
    Number,
    Optimizer,
    Report,
    RunEngine,
    RunRecipe,
    check_counts,
    check_known,
    fill,
    read_values,
)

Kind = Literal["masked", "autoregressive"]
_CONFIGS: dict[str, Any] = {"masked": LGQMaskedConfig, "autoregressive": LlamaConfig}
# fields that follow from the tokens, or that mean nothing here
_DERIVED = {"codebook_size", "num_classes", "grid_height", "grid_width", "vocab_size", "max_position_embeddings"}
_DERIVED |= {"bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "use_cache", "model_type"}
_MASKED_ONLY = (("data", "mask_schedule"), ("validation", "num_inference_steps"))
_LABELS_ONLY = (("data", "num_classes"), ("data", "label_dropout"), ("validation", "guidance_scale"))


@strict
@dataclasses.dataclass
class Tokens:
    """Token shards to learn from, made by `lgq tokenize`.

    Attributes:
        path, validation_path: folders with a manifest; labels of validation are matched to training's by name.
        tokenizer: folder or repository of the checkpoint that made the tokens; `None`: the built-in one.
        use_labels: learn pictures of a class, where the tokens have labels.
        num_classes: of labels that are numbers without names.
        label_dropout: share of labels that are replaced by none, for classifier-free guidance.
        mask_schedule: how many tokens are masked, one of `lgq_hf.tokens.collators.SCHEDULES`; masked generators only.
        num_workers: processes that read ahead, for each process of the run.
    """

    path: str = "tokens/train"
    validation_path: str = "tokens/validation"
    tokenizer: str | None = None
    use_labels: bool = True
    num_classes: int | None = None
    label_dropout: Number = 0.1
    mask_schedule: Literal["cosine", "linear", "square", "square_root"] = "cosine"
    num_workers: int = 2

    def validate_ranges(self) -> None:
        """Refuses values out of range."""
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"data.label_dropout must lie in [0, 1], got {self.label_dropout}")
        check_counts("data.", self, ("num_workers",), least=0)
        if self.num_classes is not None:
            check_counts("data.", self, ("num_classes",))


@strict
@dataclasses.dataclass
class GeneratorValidation:
    """What is measured every `every` steps, on the averaged weights and always the same rows.

    Attributes:
        rows: of the validation tokens, in one fixed random order; all where there are fewer.
        batch_size: rows of a pass, and pictures that are generated at once.
        samples: pictures on the grid of samples, classes in turn; 0 for none.
        guidance_scale: of these pictures; 1 for none.
        num_inference_steps: of these pictures; masked generators only.
    """

    every: int = 1000
    rows: int = 256
    batch_size: int = 16
    samples: int = 16
    guidance_scale: Number = 1.0
    num_inference_steps: int = 12

    def validate_ranges(self) -> None:
        """Refuses values out of range."""
        check_counts("validation.", self, ("every", "rows", "batch_size", "num_inference_steps"))
        check_counts("validation.", self, ("samples",), least=0)
        if self.guidance_scale < 0:
            raise ValueError(f"validation.guidance_scale must be 0 or more, got {self.guidance_scale}")


@strict
@dataclasses.dataclass
class GeneratorRecipe(RunRecipe):
    """One run.

    Attributes:
        batch_size: rows of one optimizer step, over all processes and passes.
        kind: `"masked"`: an `LGQMaskedTransformer`. `"autoregressive"`: a `LlamaForCausalLM`.
        model: fields of its configuration; those that follow from the tokens are left out.
    """

    output_dir: str
    kind: Kind
    max_steps: int
    batch_size: int
    seed: int = 0
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: Tokens = dataclasses.field(default_factory=Tokens)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    engine: RunEngine = dataclasses.field(default_factory=RunEngine)
    validation: GeneratorValidation = dataclasses.field(default_factory=GeneratorValidation)
    report: Report = dataclasses.field(default_factory=Report)

    def validate_ranges(self) -> None:
        """Refuses counts below one, and options that would have no say."""
        check_counts("", self, ("max_steps", "batch_size"))
        if self.kind != "masked":
            self._refuse(_MASKED_ONLY, f"is for kind 'masked', got {self.kind!r}: leave it out")
        if not self.data.use_labels:
            self._refuse(_LABELS_ONLY, "needs labels, and data.use_labels is false: leave it out")
        if self.validation.guidance_scale != 1 and not self.data.label_dropout:
            raise ValueError(
                f"validation.guidance_scale={self.validation.guidance_scale} compares with pictures of no class, "
                "which are learned only where data.label_dropout is above 0"
            )

    def _refuse(self, options: tuple[tuple[str, str], ...], why: str) -> None:
        """Raises where one of (section, field) is not at its default."""
        for section, name in options:
            given = getattr(self, section)
            if (value := getattr(given, name)) != type(given).__dataclass_fields__[name].default:
                raise ValueError(f"{section}.{name}={value!r} {why}")

    def config(self, *, codebook_size: int, num_classes: int, grid: tuple[int, int]) -> PreTrainedConfig:
        """Of the model, for such tokens."""
        shape: dict[str, Any] = {"codebook_size": codebook_size, "num_classes": num_classes}
        if self.kind == "autoregressive":
            return llama_config(**shape, num_tokens=grid[0] * grid[1], **self.model)
        return LGQMaskedConfig(**shape, grid_height=grid[0], grid_width=grid[1], **self.model)


def recipe_from(values: dict[str, Any], where: str = "the recipe") -> GeneratorRecipe:
    """A recipe from nested plain values, as in its YAML file.

    Raises:
        ValueError: for unknown or missing keys.
        StrictDataclassError: for a value of a wrong type or out of range.
    """
    recipe = fill(GeneratorRecipe, values, where)
    known = sorted(set(_CONFIGS[recipe.kind].__annotations__) - _DERIVED)
    check_known(recipe.model, known, f"model of {where}")
    return recipe


def read_recipe(path: str | Path, overrides: list[str]) -> GeneratorRecipe:
    """A recipe from a YAML file and overrides, as `training.run_recipe.read_values` takes them.

    Raises:
        ValueError: as `recipe_from`, or for an override without `=`.
    """
    return recipe_from(read_values(path, overrides), str(path))
