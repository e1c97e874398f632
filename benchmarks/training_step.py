"""An optimizer step of the trainer: what is measured, in which variants, what they must agree in, and the target.

`benchmarks.step_parts` has the parts of a step; `benchmarks.tables` renders the result.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks import photographs
from benchmarks.harness import (
    Isolated,
    Row,
    Timed,
    Timing,
    admit,
    begin,
    compare,
    gpu_rates,
    line,
    reason_of,
    result_name,
    seconds,
    shared_protocol,
    time_in_turns,
)
from benchmarks.results_file import write_result
from benchmarks.step_parts import PARTS, StepParts, count_flop
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.metrics.perceptual import build_perceptual
from training.crops import scaled_crop
from training.data import Batch, open_source, training_batches
from training.losses import PatchDiscriminator
from training.recipe import recipe_from
from training.step import TrainingStep

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
ANSWER_S = 3600  # to compile and to take three steps on a CPU is slow


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
        timing=Timing(rounds=5, share_s=0.3, calls=(1, 50), enough_s=60),
        part_timing=Timing(rounds=5, share_s=0.3, calls=(1, 1), enough_s=60),
        sides=(288, 384, 512),
        loader_pictures=128,
        loader_windows=5,
        loop_steps=4,
    ),
    "cuda": Setting(
        image_size=256,
        batch_sizes=(32, 24, 16, 8),
        mixed_precision="bf16",
        timing=Timing(rounds=10, share_s=1, calls=(3, 50), enough_s=30),
        part_timing=Timing(rounds=10, share_s=1, calls=(5, 5), enough_s=30),
        sides=(288, 384, 512),
        loader_pictures=512,
        loader_windows=3,
        loop_steps=30,
    ),
    "quick": Setting(
        image_size=32,
        batch_sizes=(4,),
        mixed_precision="no",
        timing=Timing(rounds=2, share_s=0.01, calls=(1, 5), enough_s=3),
        part_timing=Timing(rounds=2, share_s=0.01, calls=(1, 1), enough_s=3),
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


def disagreements(values: list[Values], expected: list[Values], mixed_precision: str) -> tuple[float, list[str]]:
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
                if not difference <= tolerance or not math.isfinite(row[name]):  # NaN too
                    failures.append(
                        f"{name} of step {number} is {row[name]:.6g}, that of 'step' {right[name]:.6g}: they differ "
                        f"by {difference:.2e}, allowed {tolerance:.2e}"
                    )
    return max(differences), failures


def protocol(setting: Setting) -> Row:
    """How the figures of a result file came about."""
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
        "call": "one optimizer step, above networks, moments and average",
        "rounds": asdict(setting.timing),
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
            "wait_share: of the host's time, in waiting for a batch; idle_share: of the time, between two steps",
        },
    }


def make_step(setting: Setting, variant: str, batch_size: int, device: str, seed: int) -> TrainingStep:
    """The trainer's step with first weights that depend on the seed alone."""
    recipe = recipe_from(setting.recipe(VARIANTS[variant], batch_size, seed))
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    model = LGQModel(LGQConfig(**recipe.model)).to(accelerator.device, memory_format=torch.channels_last).train()
    model.quantizer.backend = VARIANTS[variant].backend
    gan = recipe.discriminator
    discriminator = PatchDiscriminator(gan.base_channels, gan.num_layers, gan.norm).to(accelerator.device)
    discriminator = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    perceptual = build_perceptual("efficientnet-lite0").to(accelerator.device)
    processor = LGQImageProcessor()
    mean, std = list(processor.image_mean), list(processor.image_std)
    return TrainingStep(accelerator, recipe, model, perceptual, discriminator, mean, std)


class StepBench(Timed):
    """A variant in this process: `gate`, then `prepare`, then `round`; of "step" also `flop` and `parts`."""

    def __init__(
        self,
        variant: str,
        setting: Setting,
        batch_size: int,
        device: str,
        seed: int,
        threads: int,
        limit_bytes: int | None = None,
    ) -> None:
        super().__init__(device, setting.timing, threads, limit_bytes)
        self.setting = setting
        self.step = make_step(setting, variant, batch_size, device, seed)
        shape = (batch_size, 3, setting.image_size, setting.image_size)
        pixels = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        self.pixels = pixels.to(self.step.device, memory_format=torch.channels_last)
        self.number = 0  # of the optimizer step

    def gate(self, expected: list[Values] | None) -> Row:
        """What the first steps say of themselves: `values`, one row for each; and how those of "step" differ."""
        values = []
        for _ in range(GATE_STEPS):
            self._call()
            values.append(self.step.take_window()[0])
        largest, failures = disagreements(values, expected or values, self.setting.mixed_precision)
        return {"values": values, "largest_error": largest, "failures": failures}

    def flop(self) -> Row:
        """See [`count_flop`]."""
        return count_flop(self._call, self.step, self.pixels)

    def parts(self) -> Row:
        """Seconds of each part and of the whole step, in turns, and shares of it."""
        calls = {**StepParts(self.step, self.pixels, self.number).calls(), "step": self._call}
        timing = self.setting.part_timing
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(timing.rounds):
            for name, call in calls.items():
                times[name].append(seconds(call, timing.calls[0]))
        medians = {name: statistics.median(values) for name, values in times.items()}
        step = medians.pop("step")
        share = {name: medians[name] / step for name in PARTS}
        return {
            "step_seconds": step,
            "seconds": medians,
            "share": share,
            "outside_networks_share": 1 - share["networks"],
            "quantizer_and_bookkeeping_share": share["quantizer"] + share["bookkeeping"],
            "unexplained_share": 1 - sum(share.values()),
            "calls": timing.rounds * timing.calls[0],
        }

    def _call(self) -> None:
        self.step([self.pixels], self.number)
        self.number += 1


def write_photographs(folder: Path, sides: tuple[int, ...]) -> int:
    """Writes each photograph as a square PNG of each side that it has; returns how many there are."""
    written = 0
    for name in (*photographs.NAMED, *photographs.MORE):
        for side in (side for side in sides if side <= photographs.shorter_side(name)):
            photographs.load(name, side).save(folder / f"{Path(name).stem}-{side}.png")
            written += 1
    return written


class DataBench:
    """The trainer's loader on PNG files in `folder`: `alone`, and in a `loop` with the step."""

    def __init__(self, folder: str, setting: Setting, batch_size: int, device: str, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.setting, self.batch_size, self.device, self.seed = setting, batch_size, device, seed
        self.source = open_source("folder", folder, "train")

    def _batches(self, num_workers: int) -> Iterator[Batch]:
        data = recipe_from(self.setting.recipe(VARIANTS["step"], self.batch_size, self.seed)).data
        return training_batches(
            self.source,
            partial(scaled_crop, size=self.setting.image_size, max_scale=float(data.max_scale), flip=float(data.flip)),
            LGQImageProcessor(),
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=num_workers,
            pin_memory=self.device == "cuda",
        )

    def alone(self) -> Row:
        """Pictures a second by number of worker processes: the median window."""
        rates = {}
        for num_workers in WORKERS:
            batches = self._batches(num_workers)
            for _ in range(2 * num_workers + 1):  # what workers read ahead, two batches each, and one more
                next(batches)
            rates[str(num_workers)] = statistics.median(
                self._window(batches) for _ in range(self.setting.loader_windows)
            )
            del batches  # ends its workers
        return {"pictures_per_s": rates}

    def _window(self, batches: Iterator[Batch]) -> float:
        count = -(-self.setting.loader_pictures // self.batch_size)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return count * self.batch_size / (time.perf_counter() - start)

    def loop(self) -> Row:
        """Steps on what the loader delivers: pictures a second, and shares of the time, see the protocol."""
        step = make_step(self.setting, "step", self.batch_size, self.device, self.seed)
        batches = self._batches(WORKERS[-1])
        cuda = self.device == "cuda"
        waited, begin = 0.0, 0.0
        ends: list[Any] = []
        starts: list[Any] = []
        for number in range(self.setting.loop_steps + 1):
            if number == 1:  # the first step is not timed
                self._synchronize()
                waited, begin = 0.0, time.perf_counter()
                ends = [_event()] if cuda else []
                starts = []
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            if cuda:
                starts.append(_event())
            step([self._placed(batch.pixel_values, step)], number)
            if cuda:
                ends.append(_event())
        self._synchronize()
        elapsed = time.perf_counter() - begin
        del batches  # ends its workers
        pairs = zip(ends[:-1], starts, strict=True)  # until the next batch is there
        idle = sum(end.elapsed_time(start) for end, start in pairs) / 1000 if cuda else waited
        return {
            "num_workers": WORKERS[-1],
            "pictures_per_s": self.setting.loop_steps * self.batch_size / elapsed,
            "wait_share": waited / elapsed,
            "idle_share": idle / elapsed,
        }

    def _placed(self, pixels: Tensor, step: TrainingStep) -> Tensor:
        return pixels.to(step.device, non_blocking=True).contiguous(memory_format=step.memory_format)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _gate(worker: Any, rows: dict[str, Row]) -> Row:
    """Lets a variant be compared with "step", which is the first of the rows."""
    if rows and "gate" not in rows["step"]:
        return {"unavailable": "'step' has no losses to compare with"}
    answer: Row = worker.call("gate", rows["step"]["gate"]["values"] if rows else None)
    return answer


def add_rates(result: Row, setting: Setting) -> None:
    """Adds FLOP a second, and their share of the GPU's own rate: plain products in the convolutions' precision."""
    total = result.get("flop", {}).get("total")
    for row in result["variants"].values():
        if total is not None and "seconds" in row:
            row["tflop_per_s"] = total / row["seconds"]["p50"] / 1e12
            if "gpu_rates" in result:
                precision = "bf16" if setting.mixed_precision == "bf16" else "tf32"
                row["mfu"] = row["tflop_per_s"] / result["gpu_rates"][f"{precision}_tflop_per_s"]


def measure_variants(names: list[str], setting: Setting, result: Row, *settings: Any) -> None:
    """Adds rows of the variants, FLOP and parts, at the first batch size that "step" has memory for."""

    def start(batch_size: int, name: str) -> Isolated:
        return Isolated(StepBench, name, setting, batch_size, *settings, answer_s=ANSWER_S)

    result["batch_sizes_out_of_memory"] = {}
    for batch_size in setting.batch_sizes:
        result["batch_size"] = batch_size
        with ExitStack() as stack:
            workers, rows = admit(names, partial(start, batch_size), stack, _gate)
            result["variants"] = rows
            if "out_of_memory" in rows["step"] and batch_size != setting.batch_sizes[-1]:
                result["batch_sizes_out_of_memory"][str(batch_size)] = rows["step"]["out_of_memory"]
                continue
            time_in_turns(workers, rows, setting.timing)
            compare(rows, "step", batch_size)
            for name in [name for name in workers if name != "step"]:
                workers.pop(name).close()  # what they hold would be missing from here on
            if "step" in workers:
                result["flop"] = workers["step"].call("flop")
                result["parts"] = workers["step"].call("parts")
        add_rates(result, setting)
        return


def measure_data(setting: Setting, *settings: Any) -> Row:
    """What the loader delivers alone and in a loop, from files in a temporary folder; or why nothing is known."""
    with tempfile.TemporaryDirectory() as folder:
        images = write_photographs(Path(folder), setting.sides)
        worker = Isolated(DataBench, folder, setting, *settings, answer_s=ANSWER_S, parent=True)
        try:
            return {"pictures": images, "alone": worker.call("alone"), "loop": worker.call("loop")}
        finally:
            worker.close()


def run(arguments: argparse.Namespace) -> int:
    """Measures, writing the file after each stage; 1 where a variant was refused or 'step' did not run."""
    device, seed = arguments.device, arguments.seed
    name = result_name("training_step", device, arguments.quick)
    setting = SETTINGS["quick" if arguments.quick else device]
    photographs.folder()  # where it fails, it should before anything is measured
    result, limit_bytes = begin(arguments)
    result["protocol"] = {**protocol(setting), **shared_protocol(device, limit_bytes)}
    result["setting"] = asdict(setting)
    if device == "cuda":
        result["gpu_rates"] = gpu_rates()
    chosen = [variant for variant in VARIANTS if variant == "step" or variant in (arguments.variant or VARIANTS)]
    threads = torch.get_num_threads()
    measure_variants(chosen, setting, result, device, seed, threads, limit_bytes)
    path = write_result(name, result, arguments.output)
    rows = result["variants"]
    for variant, row in rows.items():
        print(line(variant, row), flush=True)
    if not reason_of(rows["step"]):
        result["data"] = measure_data(setting, result["batch_size"], device, seed, threads)
        path = write_result(name, result, arguments.output)
        print(result["parts"], result["data"], path, sep="\n")
    return int("seconds" not in rows["step"] or any("refused" in row for row in rows.values()))
