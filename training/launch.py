"""How a run is launched: what is looked at before it begins, and what ends it."""

import ctypes
import os
import signal
import sys

from accelerate import Accelerator

from training.run_recipe import RunRecipe

_PR_SET_PDEATHSIG = 1


def check_launch(accelerator: Accelerator, recipe: RunRecipe) -> None:
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


def end_with_the_launcher() -> None:
    """Sends this process SIGTERM when its parent ends: `accelerate launch` does not pass SIGTERM on (Linux only)."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:  # which the launcher sets
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
