"""An optimizer step of the trainer: what is measured, in which variants, what they must agree in, and the target.

`benchmarks.run_training_step` measures in workers of `benchmarks.step_worker`; `benchmarks.step_table` renders.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks import memory
from benchmarks.assignment import PRODUCTS
from benchmarks.timed import Timing

Values = dict[str, float]

GATE_STEPS = 2  # the second step's losses and gradients have the first one's gradients in them
LOSSES = ("l1_loss", "perceptual_loss", "gan_loss", "embedding_loss", "loss", "discriminator_loss", "lecam_loss")
NORMS = ("grad_norm", "discriminator_grad_norm")
# By mixed precision and step: of losses and of norms. AdamW moves a parameter by the learning rate however small its
# gradient is, so what the second step differs in is rounding made larger.
TOLERANCES = {"no": ((1e-4, 1e-3), (1e-2, 5e-2)), "bf16": ((2e-2, 0.1), (0.1, 0.2))}
# an untrained network changes so much in a step of 1e-4 that two right variants then differ by a third in bf16
LEARNING_RATE = 1e-5
FLOOR = 0.1  # a value below it is compared as if it were this large
TARGET_SHARE = 0.1  # of a step, at most, for quantizer and bookkeeping together
PARTS = {
    "networks": "encoder and decoder, forward and backward, from pictures and from codes",
    "quantizer": "forward in training mode with the usage term, and backward",
    "losses": "pixel and perceptual distance, forward and backward to the picture",
    "discriminator": "the model's pass through it, forward and backward to the picture, and its own pass",
    "bookkeeping": "gradient norms and clipping, both AdamW steps, average of the weights, token counts, flags, "
    "schedules",
}


@dataclass(frozen=True)
class Variant:
    """A way to compute the same step.

    Attributes:
        backend: of the quantizer's assignment, see [`lgq_hf.tokenizer.assignment.soft_assign`].
        compile: the recipe's `engine.compile`.
    """

    backend: str = "auto"
    compile: bool = False


VARIANTS = {
    "step": Variant(),
    "materialised": Variant(backend="reference"),
    "compiled": Variant(compile=True),
}


@dataclass(frozen=True)
class Setting:
    """Sizes of what is measured.

    Attributes:
        image_size: side of the pictures, in pixels.
        batch_sizes: the first that "step" has memory for is measured.
        mixed_precision: as in the recipe's engine.
        model, discriminator: the recipe's fields that differ from the defaults.
        timing: of the variants' rounds.
        part_timing: of the rounds of parts.
        sides: of the pictures in files, in pixels: each photograph at each of them that it has.
        loader_pictures: in one timed window of a loader, at least.
        loader_windows: of each loader.
        loop_steps: of the loop of loader and step.
    """

    image_size: int
    batch_sizes: tuple[int, ...]
    mixed_precision: Literal["no", "bf16"]
    timing: Timing
    part_timing: Timing
    sides: tuple[int, ...]
    loader_pictures: int
    loader_windows: int
    loop_steps: int
    model: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] = field(default_factory=dict)

    def recipe(self, variant: Variant, batch_size: int, seed: int) -> dict[str, Any]:
        """The recipe's values: everything that the trainer has is on from the first step."""
        return {
            "output_dir": "unused",
            "max_steps": 1_000_000,
            "batch_size": batch_size,
            "image_size": self.image_size,
            "seed": seed,
            "model": self.model,
            "loss": {"perceptual": "efficientnet-lite0", "perceptual_weight": 0.5},
            "discriminator": {"weight": 0.1, "lecam": 0.001, "adaptive_cap": 100, "learning_rate": LEARNING_RATE}
            | self.discriminator,
            "optimizer": {"warmup_steps": 0, "learning_rate": LEARNING_RATE},
            "engine": {"mixed_precision": self.mixed_precision, "compile": variant.compile, "channels_last": True},
        }


WORKERS = (0, 2)  # processes of the loaders that are measured alone; the loop has the last
SETTINGS = {
    "cpu": Setting(
        image_size=256,
        batch_sizes=(4, 2, 1),
        mixed_precision="no",
        timing=Timing(rounds=5, share_s=0.3, calls=(1, 50), enough_s=60, fewest=5),
        part_timing=Timing(rounds=5, share_s=0.3, calls=(1, 1), enough_s=60, fewest=3),
        sides=(288, 384, 512),
        loader_pictures=128,
        loader_windows=5,
        loop_steps=4,
    ),
    "cuda": Setting(
        image_size=256,
        batch_sizes=(32, 24, 16, 8),
        mixed_precision="bf16",
        timing=Timing(rounds=10, share_s=1, calls=(3, 50), enough_s=30, fewest=20),
        part_timing=Timing(rounds=10, share_s=1, calls=(5, 5), enough_s=30, fewest=20),
        sides=(288, 384, 512),
        loader_pictures=512,
        loader_windows=3,
        loop_steps=30,
    ),
    "quick": Setting(
        image_size=32,
        batch_sizes=(4,),
        mixed_precision="no",
        timing=Timing(rounds=2, share_s=0.01, calls=(1, 5), enough_s=3, fewest=2),
        part_timing=Timing(rounds=2, share_s=0.01, calls=(1, 1), enough_s=3, fewest=2),
        sides=(36, 48),
        loader_pictures=16,
        loader_windows=2,
        loop_steps=2,
        model={
            "base_channels": 8,
            "channel_multiplier": [1, 2],
            "num_res_blocks": 1,
            "latent_channels": 8,
            "codebook_size": 512,
        },
        discriminator={"base_channels": 8, "num_layers": 1},
    ),
}


def compare(values: list[Values], expected: list[Values], mixed_precision: str) -> tuple[float, list[str]]:
    """The largest difference of a loss or norm from that of "step", and a sentence for each that is too large.

    Args:
        values: one row for each step, by name.
        expected: those of "step".
        mixed_precision: decides what is allowed.
    """
    differences, failures = [0.0], []
    for number, (row, right) in enumerate(zip(values, expected, strict=True), start=1):
        for names, tolerance in zip((LOSSES, NORMS), TOLERANCES[mixed_precision][number - 1], strict=True):
            for name in names:
                difference = abs(row[name] - right[name]) / max(abs(right[name]), FLOOR)
                differences.append(difference)
                if not difference <= tolerance:  # NaN too
                    failures.append(
                        f"{name} of step {number} is {row[name]:.6g}, that of 'step' {right[name]:.6g}: they differ "
                        f"by {difference:.2e}, allowed {tolerance:.2e}"
                    )
    return max(differences), failures


def not_finite(values: list[Values]) -> list[str]:
    """A sentence for each loss and norm that is NaN or infinite."""
    return [
        f"{name} of step {number} is {row[name]}"
        for number, row in enumerate(values, start=1)
        for name in LOSSES + NORMS
        if not math.isfinite(row[name])
    ]


def quantizer_flop(rows: int, channels: int, codes: int) -> int:
    """FLOP of the matrix products that forward and backward of the assignment cannot do without."""
    return PRODUCTS * 2 * rows * codes * channels


def protocol(device: str, setting: Setting, limit_bytes: int | None) -> dict[str, Any]:
    """How the figures of a result file came about."""
    events = "; between CUDA events, calls issued one behind the other" if device == "cuda" else ""
    return {
        "step": "training.step.TrainingStep: model and discriminator, heard and learning, perceptual loss, average of "
        "the weights, clipping, fused AdamW; initial weights, uniform pixels in [-1, 1], the same in all steps",
        "recipe": setting.recipe(VARIANTS["step"], setting.batch_sizes[0], 0),
        "variants": {name: asdict(variant) for name, variant in VARIANTS.items()},
        "gate": {
            "steps": GATE_STEPS,
            "losses": list(LOSSES),
            "norms": list(NORMS),
            "error": f"|value - step's| / max(|step's|, {FLOOR})",
            "allowed": [
                dict(zip(("losses", "norms"), allowed, strict=True)) for allowed in TOLERANCES[setting.mixed_precision]
            ],
        },
        "time": "one optimizer step, seconds; a process for each variant, rounds of the variants alternate" + events,
        "rounds": asdict(setting.timing),
        "memory": f"{memory.method(device)}: above networks, moments and average",
        "memory_limit_gib": None if limit_bytes is None else limit_bytes / 2**30,
        "flop": "matrix products and convolutions of 'step' by torch.utils.flop_counter, and of the assignment its 7 "
        "products of 2NKC, once however often a backend repeats them",
        "parts": {
            **PARTS,
            "rounds": asdict(setting.part_timing),
            "where": "in the process of 'step', in turns with it",
        },
        "data": {
            "pictures": f"photographs of scikit-image as PNG, squares of {', '.join(map(str, setting.sides))} px",
            "crop": "scaled",
            "alone": f"after what workers had read ahead, {setting.loader_windows} windows of at least "
            f"{setting.loader_pictures} pictures; the median window",
            "loop": f"{setting.loop_steps} steps with {WORKERS[-1]} worker processes after one that is not timed; "
            "wait_share: of the host's time, in waiting for a batch"
            + ("; idle_share: of the time, with nothing to do on the GPU between two steps" if events else ""),
        },
    }
