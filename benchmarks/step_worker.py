"""A variant of the training step, in a process of its own; and the loader, alone and in a loop with the step."""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks import photographs
from benchmarks.step_parts import StepParts, count_flop
from benchmarks.timed import Timed, times
from benchmarks.training_step import GATE_STEPS, VARIANTS, WORKERS, Setting
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.metrics.perceptual import build_perceptual
from training.crops import scaled_crop
from training.data import Batch, open_source, training_batches
from training.losses import PatchDiscriminator
from training.recipe import recipe_from
from training.step import TrainingStep


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
        self._parts: StepParts | None = None

    def gate(self) -> dict[str, Any]:
        """What the first steps say of themselves: `values`, one row for each."""
        values = []
        for _ in range(GATE_STEPS):
            self._call()
            values.append(self.step.take_window()[0])
        return {"values": values}

    def flop(self) -> dict[str, Any]:
        """See [`count_flop`]."""
        return count_flop(self._call, self.step, self.pixels)

    def parts(self) -> dict[str, Any]:
        """Milliseconds of one round of the parts, and of the whole `step`; the first round is preceded by a call."""
        if self._parts is None:
            self._parts = StepParts(self.step, self.pixels, self.number)
            for call in self._parts.calls().values():
                call()
        calls = self.setting.part_timing.calls[0]
        return {
            "ms": {
                name: times(call, calls, self.device)
                for name, call in {**self._parts.calls(), "step": self._call}.items()
            }
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

    def alone(self) -> dict[str, Any]:
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

    def loop(self) -> dict[str, Any]:
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
