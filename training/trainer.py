"""The loop of every run, whatever it trains: launch, steps, checkpoints, rows of the log, validation, the end.

What a run is about stands in a subclass of [`Run`]."""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from PIL import Image
from transformers.utils import logging as transformers_logging

from lgq_hf.files import atomic_file, atomic_folder
from lgq_hf.hub import prepare
from lgq_hf.provenance import provenance
from training.optimization import BaseStep
from training.output import (
    Clock,
    Progress,
    RunLog,
    check_recipe,
    check_tracker,
    keep_recipe,
    read_csv,
    run_on_main,
    save_checkpoint,
    shared_checkpoint,
)
from training.results import push_final
from training.run_recipe import AnyRecipe, RunRecipe, flat

ASK_EVERY = 10  # steps after which several processes ask each other whether one of them was told to end


class Terminated(Exception):
    """The run was asked to end, and has written a checkpoint."""


class Run(ABC, Generic[AnyRecipe]):
    """A run of one recipe, on one of its processes. Subclasses say what is trained, on what, and what is told of it.

    Attributes:
        samples: what a step is made of, in columns and messages: "pictures", "rows".
        best_metric: name of the value of a validation by which `best/` is chosen.
        higher_is_better: of it.
    """

    samples: str
    best_metric: str
    higher_is_better: bool
    step: BaseStep

    def __init__(self, recipe: AnyRecipe, *, allow_change: list[str]) -> None:
        self.recipe = recipe
        check_tracker(recipe.report.tracker)
        self.output = Path(recipe.output_dir)
        self.output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision="no",  # the step casts and scales by itself: two optimizers share one scale
            log_with=None if recipe.report.tracker == "none" else recipe.report.tracker,
            project_dir=str(self.output),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        check_launch(self.accelerator, recipe)
        self.micro_batch_size, self.passes = recipe.micro_batches(self.accelerator.num_processes)
        self.check()
        self.checkpoint = shared_checkpoint(self.accelerator, self.output)
        run_on_main(self.accelerator, partial(self._prepare_output, allow_change))
        if repository := recipe.report.push_to_hub:  # what is missing for it shows now, not after hours
            run_on_main(self.accelerator, partial(prepare, repository, private=recipe.report.hub_private))
        self.provenance = provenance(strict=False)
        set_seed(recipe.seed)
        size = self.open_data()
        self.step = self.make_step()
        self.progress = Progress({"step": self.step, **self.parts()}, source_size=size)
        self.accelerator.register_for_checkpointing(self.progress)
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        self.prepare_validation()
        run_on_main(self.accelerator, partial(keep_recipe, self.output, flat(recipe)))  # now it can go on
        self.terminate = False

    def check(self) -> None:  # most runs have nothing to add
        """Refuses at once what would fail at a later step."""

    @abstractmethod
    def open_data(self) -> int:
        """Opens what is trained and validated on; returns how many samples there are to train on, 0 for a stream."""

    @abstractmethod
    def make_step(self) -> BaseStep:
        """The networks and their optimizers; where `self.checkpoint` is set, their weights are loaded afterwards."""

    def parts(self) -> dict[str, Any]:
        """What else changes from step to step, by name, each with `state_dict` and `load_state_dict`."""
        return {}

    @abstractmethod
    def prepare_validation(self) -> None:
        """Makes what `measure` needs."""

    @abstractmethod
    def batches(self, *, start: int, num_workers: int) -> Generator[Any, None, None]:
        """This process's endless batches from a position in the order of samples on."""

    @abstractmethod
    def next_pass(self, batches: Iterator[Any]) -> tuple[Any, list[str]]:
        """The next batch as the step takes it, on the device, and the names of its samples."""

    @abstractmethod
    def window(self) -> tuple[dict[str, float], list[str]]:
        """What the steps since the last row came to, and lines to say below it; waits for the device."""

    @abstractmethod
    def postfix(self, row: dict[str, float]) -> dict[str, str]:
        """What the progress bar shows of a row of the log."""

    def is_milestone(self, step: int) -> bool:
        """Whether `at_milestone` is called after this step."""
        return False

    def at_milestone(self) -> None:  # most runs have none
        """What is done there, before the last step."""

    @abstractmethod
    def measure(self) -> tuple[dict[str, float], Image.Image | None]:
        """Validates what would be published; on the main process perhaps with a picture to look at."""

    @abstractmethod
    def save_published(self, folder: Path) -> None:
        """Writes what is published into a folder, in the form that users load."""

    @abstractmethod
    def write_final(self, folder: Path, results: dict[str, Any]) -> None:
        """Publishes: weights, recipe, results, logs and card."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """What stands in results.json beside what every run has: recipe, model, data, protocol, ..."""

    def _prepare_output(self, allow_change: list[str]) -> None:
        check_recipe(self.output, flat(self.recipe), resuming=self.checkpoint is not None, allowed=allow_change)
        for leftover in self.output.glob(".*.tmp"):  # of a run that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover)

    def _load(self, checkpoint: Path) -> None:
        size = self.progress.source_size
        try:
            self.accelerator.load_state(str(checkpoint))
        except Exception as error:
            raise RuntimeError(
                f"{checkpoint} cannot be loaded; remove it to go on from the one before ({error})"
            ) from error
        if (began := self.progress.source_size) != size:
            raise ValueError(f"the run began with {began} training {self.samples}, and there are {size}")

    def train(self) -> Path:
        """Runs to the end; returns the published folder.

        Raises:
            Terminated: after SIGTERM, when the checkpoint is written.
            FloatingPointError: where a loss or gradient was not finite; that step was not taken.
        """
        recipe, progress = self.recipe, self.progress
        self.log = RunLog(
            self.accelerator, self.output, progress.step, recipe.max_steps, flat(recipe), postfix=self.postfix
        )
        previous = signal.signal(signal.SIGTERM, self._on_terminate)
        recent: deque[tuple[int, list[str]]] = deque(maxlen=recipe.report.log_every + 1)
        batches = self.batches(start=progress.pictures, num_workers=recipe.data.num_workers)
        clock, window_start = Clock(self.samples), progress.step
        try:
            while progress.step < recipe.max_steps:
                measure = self._due(progress.step + 1)
                passes, ids = self._next(batches, clock)
                recent.append((progress.step, ids))
                self.step(passes, progress.step, measure=measure)
                progress.step += 1
                progress.pictures += recipe.batch_size
                self.log.step()
                row = measure or self._asked_to_stop(progress.step)
                if row or self.accelerator.device.type == "cpu":
                    stop_if_not_finite(self.step, recent, self.output, self.samples)
                if row:
                    self._write_row(clock, progress.step - window_start)
                    window_start = progress.step
                    self._after_row()
                    clock.start()
            return self._finish()
        finally:
            batches.close()  # ends the workers
            signal.signal(signal.SIGTERM, previous)
            self.log.close()

    def _due(self, step: int) -> bool:
        """Whether after `step` steps something is written, for which the device is waited for."""
        every = (self.recipe.report.log_every, self.recipe.report.checkpoint_every, self.recipe.validation.every)
        return step == self.recipe.max_steps or any(step % n == 0 for n in every) or self.is_milestone(step)

    def _next(self, batches: Iterator[Any], clock: Clock) -> tuple[list[Any], list[str]]:
        started = time.perf_counter()
        passes, ids = [], []
        for _ in range(self.passes):
            one, names = self.next_pass(batches)
            passes.append(one)
            ids += names
        clock.wait(time.perf_counter() - started)
        return passes, ids

    def _write_row(self, clock: Clock, steps: int) -> None:
        values, lines = self.window()
        row = {**values, **clock.read(steps, steps * self.recipe.batch_size)}
        self.progress.seconds += row["step_seconds"] * steps
        row["seconds"] = self.progress.seconds
        self.log.train(self.progress.step, row)
        for line in lines:
            self.log.say(line)

    def _after_row(self) -> None:
        """What follows a row of the log, where its step is due: a milestone, validation, checkpoint."""
        step, report = self.progress.step, self.recipe.report
        last = step == self.recipe.max_steps
        if self.is_milestone(step) and not last:
            self.at_milestone()
        stop = self._asked_to_stop(0) and not last  # asked again: all processes are here
        try:
            if not stop and (last or step % self.recipe.validation.every == 0):
                self._validate()
        finally:  # work is not lost to a validation that fails
            if last or stop or step % report.checkpoint_every == 0:
                save_checkpoint(self.accelerator, self.output, step, report.checkpoints_kept)
        if stop:
            raise Terminated

    def _on_terminate(self, number: int, frame: Any) -> None:
        self.terminate = True

    def _asked_to_stop(self, step: int) -> bool:
        """Whether any process got SIGTERM, in which case all stop at the same step; several ask every tenth step."""
        if self.accelerator.num_processes == 1 or step % ASK_EVERY:
            return self.terminate and self.accelerator.num_processes == 1
        asked = torch.tensor(float(self.terminate), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def save_model(self, name: str) -> None:
        """Writes what is published into a folder of the output, as a whole or not at all."""
        if self.accelerator.is_main_process:
            with atomic_folder(self.output / name) as folder:
                self.save_published(folder)

    def _validate(self) -> None:
        values, sheet = self.measure()
        step, best = self.progress.step, self.progress.best
        self.log.validate(step, values, sheet, self.output)
        score = values[self.best_metric]
        if best is None or (score > best if self.higher_is_better else score < best):
            self.progress.best, self.progress.best_step = score, step
            self.save_model("best")

    def _finish(self) -> Path:
        final = self.output / "final"
        if self.accelerator.is_main_process:
            self.write_final(final, self._results())
        self.accelerator.wait_for_everyone()
        return final

    def _results(self) -> dict[str, Any]:
        progress = self.progress
        return {
            **self.provenance,
            "steps": progress.step,
            "hours": round(progress.seconds / 3600, 4),
            "processes": self.accelerator.num_processes,
            **self.results(),
            "validation": read_csv(self.output / "validation.csv"),
            "best": {"metric": self.best_metric, "value": progress.best, "step": progress.best_step},
            "last_row": read_csv(self.output / "training.csv")[-1],
        }


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


def stop_if_not_finite(step: BaseStep, recent: Iterable[tuple[int, list[str]]], output: Path, samples: str) -> None:
    """Looks at the device, and ends a run that cannot go on.

    Args:
        recent: (number, names of the samples) of the last steps of this process, the newest last.
        output: where a file lists the samples of the step that failed.
        samples: what they are called.

    Raises:
        FloatingPointError: naming the step, and the file.
    """
    scaler, failed = step.scaler, step.failure()
    if failed is None and not (scaler.is_enabled() and scaler.get_scale() < 1):
        return
    names = dict(recent)
    number = list(names)[-1] if failed is None else failed
    dump = output / f"not-finite-step-{number:08d}-process-{step.accelerator.process_index}.json"
    with atomic_file(dump) as temporary:
        temporary.write_text(json.dumps({"step": number, samples: names.get(number, [])}, indent=1) + "\n")
    what = "loss or gradient is not finite" if failed is not None else "gradients overflow fp16 at every scale"
    raise FloatingPointError(
        f"{what} at step {number}, which was not taken; its {samples} are listed in {dump}. The run can go on from "
        f"its last checkpoint with a lower optimizer.learning_rate or another engine.mixed_precision (--allow-change)"
    )


TERMINATED = 143  # 128 + SIGTERM, as a shell would say


def call(
    kind: type[Run[Any]],
    read: Callable[[str, list[str]], Any],
    description: str | None,
    arguments: list[str] | None,
) -> None:
    """Reads the command line and carries out what it asks for.

    Args:
        kind: of the run.
        read: makes its recipe of a file and overrides.
        description: for `--help`.
        arguments: `None`: those of the process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe, a YAML file")
    parser.add_argument(
        "--allow-change", nargs="+", default=[], metavar="NAME", help="fields in which a resumed run may differ"
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="short for report.push_to_hub=REPO")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a value of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of each file of each checkpoint
    transformers_logging.disable_progress_bar()  # one for each model that is saved
    # accelerate names it to DDP whatever it is
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    published_in = [f"report.push_to_hub={parsed.push_to_hub}"] if parsed.push_to_hub else []
    run = kind(read(parsed.config, [*parsed.overrides, *published_in]), allow_change=parsed.allow_change)
    try:
        final = run.train()
        run.accelerator.print(final)
        if run.recipe.report.push_to_hub and run.accelerator.is_main_process:
            push_final(final, run.recipe.report)  # the others have ended: none waits for an upload
    except Terminated:
        run.accelerator.print(f"stopped by SIGTERM at step {run.progress.step}; the same command goes on from there")
        sys.exit(TERMINATED)
