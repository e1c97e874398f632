"""What is looked at before a run begins: how it was launched, and what would fail hours later."""

import ctypes
import os
import signal
import sys

import torch
from accelerate import Accelerator

from lgq_hf.metrics.reconstruction import ssim
from training.discriminator import PatchDiscriminator
from training.recipe import Recipe

_PR_SET_PDEATHSIG = 1


def check_launch(accelerator: Accelerator, recipe: Recipe) -> None:
    """Refuses what `accelerate launch` can be told and a run would not do.

    Raises:
        ValueError: naming what it was told, and the recipe's field for it.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes != accelerator.num_processes:
        raise ValueError(
            f"launched in {processes} processes, of which accelerate makes {accelerator.num_processes}: on "
            "CPUs set ACCELERATE_USE_CPU=true"
        )
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(f"{accelerator.distributed_type} is not supported: choose multi-GPU (DDP)")
    told = {
        "ACCELERATE_MIXED_PRECISION": ("no", recipe.engine.mixed_precision, "engine.mixed_precision"),
        "ACCELERATE_DYNAMO_BACKEND": ("no", "no", "engine.compile"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "1", "engine.micro_batch_size"),
    }
    for name, (default, wanted, field) in told.items():
        value = os.environ.get(name, default).lower()
        if value not in (default, wanted):
            raise ValueError(f"accelerate was launched with {name}={value}: say so in the recipe, by {field}")


def check_sizes(recipe: Recipe) -> None:
    """Refuses at once what would fail at a later step.

    Raises:
        ValueError: pictures too small, or of a size that the model cannot take.
        ModuleNotFoundError: naming the extra that validation needs.
    """
    factor = recipe.config().spatial_downsample_factor
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


def end_with_the_launcher() -> None:
    """Sends this process SIGTERM when its parent ends: `accelerate launch` does not pass SIGTERM on (Linux only)."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:  # which the launcher sets
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
