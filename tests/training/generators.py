"""Token shards of photographs and small generators for the tests, the same in every process that makes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from transformers import LlamaForCausalLM

from benchmarks import photographs
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.cli.main import main as lgq
from lgq_hf.generation import LGQMaskedTransformer
from training.generator_recipe import GeneratorRecipe, recipe_from
from training.train_generator import GeneratorStep

CODES, SIDE = 32, 4  # K, and tokens along a side
PIXELS = 8 * SIDE
KINDS = ("masked", "autoregressive")
NAMES = (*photographs.NAMED, "coins.png", "moon.png", "brick.png")
MODEL: dict[str, dict[str, Any]] = {
    "masked": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0},
    "autoregressive": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
}


def pieces(name: str, count: int) -> list[Image.Image]:
    """Squares of a photograph, each of other content."""
    photograph = photographs.load(name, 4 * PIXELS)
    places = [(number % 4 * PIXELS, number // 4 * PIXELS) for number in range(count)]
    return [photograph.crop((x, y, x + PIXELS, y + PIXELS)) for x, y in places]


def save_tokenizer(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random f8 tokenizer whose codes stand where the photographs' latents are, so that it uses many of them."""
    small: dict[str, Any] = {"base_channels": 8, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}
    small |= {"bottleneck_attention": False, "latent_channels": 8, "codebook_size": CODES, "image_size": PIXELS}
    processor = LGQImageProcessor()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = LGQModel(LGQConfig(**{**small, **changes})).eval()
        pictures = [piece for name in NAMES for piece in pieces(name, 8)]
        latents = model.latents(processor(pictures, return_tensors="pt")["pixel_values"])
        model.quantizer.init_from(latents, "kmeans", torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_pictures(folder: Path, classes: Mapping[str, Sequence[Image.Image]]) -> Path:
    """A folder of pictures in a folder for each class; those of the class "" have none."""
    for name, pictures in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(folder / name / f"{number:02d}.png")
    return folder


def tokenize(pictures: Path, output: Path, tokenizer: Path, *options: str) -> Path:
    """Token shards of a folder, as the command makes them."""
    size = [] if "--mixed-sizes" in options else ["--size", str(PIXELS)]
    words = ["tokenize", str(pictures), "--output", str(output), "--model", str(tokenizer), "--batch-size", "8"]
    assert lgq([*words, *size, *options]) == 0
    return output


def relabel(tokens: Path, feature: dict[str, Any] | None) -> Path:
    """Lets a manifest say something else of the labels; `None`: that there are none."""
    manifest = json.loads((tokens / "manifest.json").read_text())
    if feature is None:
        del manifest["features"]["label"]
    else:
        manifest["features"]["label"] = feature
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    return tokens


def values(tokens: Path, kind: str, **sections: Any) -> dict[str, Any]:
    """A recipe's plain values: 24 rows in steps of eight, four by four, so that checkpoints lie amid an epoch."""
    least: dict[str, Any] = {
        "output_dir": str(tokens.parent / "run"),
        "kind": kind,
        "max_steps": 8,
        "batch_size": 8,
        "model": MODEL[kind],
        "data": {
            "path": str(tokens / "train"),
            "validation_path": str(tokens / "validation"),
            "tokenizer": str(tokens / "tokenizer"),
            "num_workers": 0,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "engine": {"micro_batch_size": 4},
        "validation": {"every": 4, "rows": 5, "batch_size": 2, "samples": 3},
        "report": {"log_every": 1, "checkpoint_every": 2},
    }
    for name, section in sections.items():
        least[name] = {**least[name], **section} if isinstance(section, dict) else section
    return least


def a_recipe(kind: str, **sections: Any) -> GeneratorRecipe:
    """A recipe without a run."""
    return recipe_from(values(Path("nowhere"), kind, **sections))


def a_model(recipe: GeneratorRecipe, *, num_classes: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With fixed first weights."""
    config: Any = recipe.config(codebook_size=CODES, num_classes=num_classes, grid=(SIDE, SIDE))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LGQMaskedTransformer(config) if recipe.kind == "masked" else LlamaForCausalLM(config)
    return model.to(dtype).train()


def a_step(recipe: GeneratorRecipe, **options: Any) -> GeneratorStep:
    """A training step of it, on the CPU."""
    return GeneratorStep(Accelerator(cpu=True, mixed_precision="no"), recipe, a_model(recipe, **options), CODES)
