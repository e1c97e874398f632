"""A small training step for the tests, the same in every process that makes it.

As a program: `steps.py FOLDER` is two ranks; `python -m tests.training.steps golden` records the golden curve.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lgq_hf import LGQConfig, LGQModel
from training.losses import PatchDiscriminator
from training.recipe import Recipe, recipe_from
from training.step import TrainingStep, train_autoencoder_alone, train_decoder_alone

STEPS = 6
GOLDEN = Path(__file__).parents[1] / "fixtures" / "training" / "golden_curve.json"
VALUES: dict[str, Any] = {
    "output_dir": "unused",
    "max_steps": 20,
    "batch_size": 8,
    "image_size": 16,
    "model": {
        "base_channels": 8,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "bottleneck_attention": False,
        "latent_channels": 8,
        "codebook_size": 32,
        "lambda_usage": 0.5,
        "lambda_peak": 0.1,
        "lambda_floor": 0.1,
        "min_perplexity": 31.0,
    },
    "discriminator": {
        "weight": 0.5,
        "start": 1,
        "warmup": 1,
        "ramp": 2,
        "base_channels": 8,
        "num_layers": 1,
        "lecam": 0.1,
        "learning_rate": 1e-3,
    },
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
}
RUN_MODEL: dict[str, Any] = {  # of the runs in test_train_tokenizer.py and test_launch.py
    "base_channels": 8,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "bottleneck_attention": False,
    "latent_channels": 4,
    "codebook_size": 32,
    "lambda_usage": 0.05,
}


def changed(**sections: Any) -> Recipe:
    """The recipe above with other fields, those of a section one by one, such as `engine={"micro_batch_size": 2}`."""
    return recipe_from(
        {
            **VALUES,
            **{
                name: {**VALUES.get(name, {}), **values} if isinstance(values, dict) else values
                for name, values in sections.items()
            },
        }
    )


def make(
    recipe: Recipe, *, dtype: torch.dtype = torch.float32, perceptual: Any = None, cpu: bool = True
) -> TrainingStep:
    """A training step with fixed first weights."""
    torch.manual_seed(0)
    model = LGQModel(LGQConfig(**recipe.model)).to(dtype).train()
    if dtype == torch.float64:
        model.quantizer.double()
    if recipe.train_only == "decoder":
        train_decoder_alone(model)
    elif recipe.train_only == "autoencoder":
        train_autoencoder_alone(model)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    model = model.to(accelerator.device)
    settings = recipe.discriminator
    discriminator = None
    if settings.weight:
        discriminator = PatchDiscriminator(settings.base_channels, settings.num_layers, settings.norm).to(dtype)
        discriminator = discriminator.to(accelerator.device)
    return TrainingStep(accelerator, recipe, model, perceptual, discriminator, [0.5] * 3, [0.5] * 3)


def pictures(dtype: torch.dtype = torch.float32, steps: int = STEPS) -> list[Tensor]:
    """Batches (8, 3, 16, 16) in [-1, 1], smooth enough to be learned."""
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(steps)]
    return [torch.nn.functional.interpolate(x, size=(16, 16), mode="bicubic").clamp(-1, 1).to(dtype) for x in coarse]


def run(step: TrainingStep, batches: list[Tensor], micro_batch_size: int) -> list[dict[str, float]]:
    """One optimizer step for each batch; returns what each step's window says."""
    rows = []
    for number, batch in enumerate(batches):
        step(list(batch.split(micro_batch_size)), number)
        rows.append(step.take_window()[0])
    return rows


def weights(step: TrainingStep) -> dict[str, Tensor]:
    """Everything that a run learns, by name."""
    parts = {"model": step.model, "discriminator": step.discriminator, "lecam": step.lecam}
    if step.average is not None:
        parts["average"] = step.average.average
    found = {}
    for part, module in parts.items():
        if module is not None:
            found |= {f"{part}.{name}": tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return found


def forget_processes() -> None:
    """Lets the next Accelerator look at its surroundings anew."""
    AcceleratorState._reset_state(True)


class Blur(nn.Module):
    """A perceptual distance that costs nothing: of blurred pictures."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (nn.functional.avg_pool2d(x, 4) for x in (a, b))
        return (a - b).square().mean(dim=(1, 2, 3))


def golden_curve() -> list[dict[str, float]]:
    """What 20 steps with every term of the loss say."""
    step = make(changed(quantizer={"temperature_start": 0.7}), perceptual=Blur())
    return run(step, pictures(steps=20), 4)


def on_two_ranks(main: Callable[[], None], folder: Path) -> None:
    """Calls it in this process and in a fork of it, which are one group: everything is imported once."""
    child = os.fork()
    rank = int(child == 0)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    main()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def main(folder: Path) -> None:
    """Trains on this rank's half of each batch, once whole and once in two passes; leaves it in `rank-<r>.pt`."""
    found: dict[str, Any] = {}
    for size in (4, 2):
        step = make(changed(), dtype=torch.float64)
        rank = step.accelerator.process_index
        messages = []

        def count(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            messages.append(bucket.index())  # noqa: B023
            return allreduce_hook(state, bucket)

        for wrapped in (step.wrapped, step.wrapped_discriminator):
            wrapped.register_comm_hook(None, count)
        halves = [batch.chunk(2)[rank] for batch in pictures(torch.float64)]
        rows = run(step, halves, size)
        found[f"passes of {size}"] = {"rows": rows, "weights": weights(step), "messages": len(messages)}
    torch.save(found, folder / f"rank-{rank}.pt")
    del step  # its reducers must go before the processes part, or the last one waits for ever now and then
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "golden":
        rows = [{name: float(f"{value:.6g}") for name, value in row.items()} for row in golden_curve()]
        GOLDEN.write_text(json.dumps(rows, indent=0) + "\n")
    else:
        on_two_ranks(lambda: main(Path(sys.argv[1])), Path(sys.argv[1]))
