"""What a run leaves in its output folder: checkpoints, its recipe, rows of its log, and how it finds them again."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lgq_hf.files import atomic_file, atomic_folder, temporary_name

_FIELDS = ("source_size", "step", "pictures", "seconds", "best", "best_step")
# fields that may differ when a run goes on: the folder may have been moved, and where the result goes changes nothing
_FREE = frozenset({"output_dir", "report.license", "report.push_to_hub", "report.hub_private"})
_RECIPE = "recipe.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclasses.dataclass
class Progress:
    """How far a run is: steps done, samples they took, seconds they cost, the best validation and when it was.

    `pictures` counts samples: pictures, or rows of tokens. `source_size` is how many there are to train on, 0 for a
    stream. `parts` are the other things that change from step to step, by name; each has `state_dict` and
    `load_state_dict`.
    """

    parts: dict[str, Any]
    source_size: int = 0
    step: int = 0
    pictures: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """All of it, for the checkpoint."""
        own = {name: getattr(self, name) for name in _FIELDS}
        return {**own, "parts": {name: part.state_dict() for name, part in self.parts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        for name in _FIELDS:
            setattr(self, name, state[name])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])


def newest_checkpoint(output: Path) -> tuple[Path | None, int]:
    """The newest complete checkpoint of a run and its step; `(None, 0)` for a new run."""
    found = _checkpoints(output)
    return found[-1] if found else (None, 0)


def shared_checkpoint(accelerator: Accelerator, output: Path) -> Path | None:
    """The newest checkpoint as the main process sees it.

    Raises:
        FileNotFoundError: on every process, where one of them does not see it.
    """
    name: list[str | None] = [None]
    if accelerator.is_main_process:
        path, _ = newest_checkpoint(output)
        name = [None if path is None else path.name]
    broadcast_object_list(name)
    if name[0] is None:
        return None
    path = output / name[0]
    seen = accelerator.reduce(torch.tensor(float(path.is_dir()), device=accelerator.device), reduction="sum")
    if seen < accelerator.num_processes:
        raise FileNotFoundError(
            f"not every process sees {path}: output_dir must lie on a disk that all machines share"
        )
    return path


def _checkpoints(output: Path) -> list[tuple[Path, int]]:
    """Complete checkpoints and their steps, oldest first."""
    found = [
        (path, int(match[1]))
        for path in output.glob("*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, key=lambda pair: pair[1])


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, keep: int) -> Path:
    """Writes `checkpoint-<step>` as a whole or not at all, and removes all but the newest `keep`."""
    target = output / f"checkpoint-{step:08d}"
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(atomic_folder(target))
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary_name(target)))  # every process adds its random state
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for folder, _ in _checkpoints(output)[:-keep]:
            shutil.rmtree(folder)
    return target


def check_recipe(output: Path, fields: dict[str, Any], *, resuming: bool, allowed: Sequence[str] = ()) -> None:
    """Refuses to resume checkpoints with another recipe than [`keep_recipe`] left beside them; changes nothing.

    Args:
        fields: the recipe's values by dotted name; the place of the output and what is said of its publication may
            differ.
        allowed: names that may differ.

    Raises:
        ValueError: naming the fields that differ and both values, or names in `allowed` that no field has.
    """
    path = output / _RECIPE
    fields = json.loads(json.dumps(fields))  # as they are read back
    if unknown := sorted(set(allowed) - set(fields)):
        raise ValueError(f"--allow-change: no field {unknown} in a recipe; there are {sorted(fields)}")
    if resuming and path.exists():
        before = json.loads(path.read_text())
        differ = [name for name in fields | before if fields.get(name) != before.get(name)]
        if refused := sorted(set(differ) - _FREE - {*allowed}):
            changes = "; ".join(f"{name} was {before.get(name)!r}, is {fields.get(name)!r}" for name in refused)
            raise ValueError(
                f"the run in {output} was started with another recipe: {changes}. Give another output_dir, or go on "
                f"with the changed recipe by --allow-change {' '.join(refused)}"
            )


def keep_recipe(output: Path, fields: dict[str, Any]) -> None:
    """Writes the recipe's values beside the checkpoints that are made by it, for [`check_recipe`]."""
    with atomic_file(output / _RECIPE) as temporary:
        temporary.write_text(json.dumps(fields, indent=1) + "\n")


def run_on_main(accelerator: Accelerator, work: Callable[[], Any]) -> None:
    """Runs `work` on the main process; where it fails, every process ends with an error (none waits for ever).

    Raises:
        Exception: what `work` raised; on the other processes a `RuntimeError` that says so.
    """
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as error:  # raised below, on every process
            failure = error
    told = [None if failure is None else repr(failure)]
    broadcast_object_list(told)
    if failure is not None:
        raise failure
    if told[0] is not None:
        raise RuntimeError(f"the main process failed: {told[0]}")


_PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio"}


class CsvLog:
    """A CSV file with one row per logged step and a column for each name; what a row lacks stays empty.

    Opening it drops the rows after `step`, which a resumed run writes anew, and one that was cut short.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows = [row for row in self._read() if int(row["step"]) <= step]
        self._rewrite()

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a row that a kill cut short has no end
        return list(csv.DictReader(whole.splitlines()))

    def _rewrite(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_file(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            if names:
                writer.writeheader()
            writer.writerows(self.rows)
        self.names = names

    def write(self, row: dict[str, float | int]) -> None:
        """Appends a row; a name that no row had before becomes a new column."""
        texts = {name: repr(value) for name, value in row.items()}
        self.rows.append(texts)
        if set(texts) <= set(self.names):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.names, restval="", lineterminator="\n").writerow(texts)
        else:
            self._rewrite()


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a log as numbers, without what is empty."""
    with path.open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def check_tracker(name: str) -> None:
    """Refuses a tracker whose package is missing.

    Raises:
        ModuleNotFoundError: naming the extra that installs it.
    """
    if name != "none" and importlib.util.find_spec(_PACKAGES[name]) is None:
        raise ModuleNotFoundError(
            f"report.tracker={name} needs its package: pip install '.[{name}]' in a checkout of lgq_hf"
        )


class Clock:
    """Where the time of a window of steps went; `samples` is what steps are made of."""

    def __init__(self, samples: str = "pictures") -> None:
        self.samples = samples
        self.start()

    def start(self) -> None:
        """Begins a window."""
        self.begin, self.waited = time.perf_counter(), 0.0

    def wait(self, seconds: float) -> None:
        """Notes time that was spent waiting for samples."""
        self.waited += seconds

    def read(self, steps: int, count: int) -> dict[str, float]:
        """Seconds a step, samples a second if there were `count`, and the share of the time spent waiting for them."""
        elapsed = max(time.perf_counter() - self.begin, 1e-9)
        return {
            "step_seconds": elapsed / max(steps, 1),
            f"{self.samples}_per_second": count / elapsed,
            "data_share": self.waited / elapsed,
        }


class RunLog:
    """All that is told by the main process; on the others every method does nothing.

    Until `close`, lines of `logging` stand above the progress bar too. `postfix` makes what the bar shows of a row.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        step: int,
        max_steps: int,
        fields: dict[str, Any],
        *,
        postfix: Callable[[dict[str, float]], dict[str, str]],
    ) -> None:
        self.accelerator, self.postfix = accelerator, postfix
        self.active = accelerator.is_main_process
        if self.active:
            self.training = CsvLog(output / "training.csv", step)
            self.validation = CsvLog(output / "validation.csv", step)
        plain = {
            name: value if isinstance(value, (int, float, str, bool)) else str(value) for name, value in fields.items()
        }
        # a resumed run goes on in its own curves, where a tracker can do that
        settings: dict[str, dict[str, Any]] = {"trackio": {"name": output.resolve().name}}
        if step:
            settings["trackio"]["resume"] = "allow"
            settings["tensorboard"] = {"purge_step": step + 1}  # hides what was logged after the checkpoint
        accelerator.init_trackers(fields["report.project"], config=plain, init_kwargs=settings)
        # trackers print when they start, so the bar comes after them
        self.bar = tqdm(total=max_steps, initial=step, disable=not self.active, unit="step", dynamic_ncols=True)
        self.above_the_bar = contextlib.ExitStack()
        if self.active:
            self.above_the_bar.enter_context(logging_redirect_tqdm(tqdm_class=tqdm))

    def step(self) -> None:
        """Moves the bar by one step."""
        self.bar.update()

    def train(self, step: int, row: dict[str, float]) -> None:
        """Writes a row of training."""
        if self.active:
            self.training.write({"step": step, **row})
            self.bar.set_postfix(self.postfix(row))
        self.accelerator.log(row, step=step)

    def validate(self, step: int, row: dict[str, float], sheet: Image.Image | None, folder: Path) -> None:
        """Writes a row of validation, and its sheet to `samples/`."""
        if self.active:
            self.validation.write({"step": step, **row})
            self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
            if sheet is not None:
                with atomic_file(folder / "samples" / f"step-{step:08d}.png") as temporary:
                    sheet.save(temporary)
        self.accelerator.log({f"validation/{name}": value for name, value in row.items()}, step=step)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.active:
            self.bar.write(text)

    def close(self) -> None:
        """Ends the bar and the tracker."""
        self.above_the_bar.close()
        self.bar.close()
        self.accelerator.end_training()


def usage_warning(codes_used: int, tokens: int, codebook_size: int) -> str | None:
    """Advice where fewer than a tenth of the codes that the window's tokens could have used were used, or `None`."""
    possible = min(tokens, codebook_size)
    if codes_used >= 0.1 * possible:
        return None
    bits = math.log2(max(codes_used, 1))
    return (
        f"the codebook is collapsing: {tokens} tokens used {codes_used} of {codebook_size} codes ({bits:.1f} bits). "
        "What helps, in this order: a code_dim of 8 to 32 (model.code_dim), a larger quantizer.init_pictures, a lower "
        "learning rate with more optimizer.warmup_steps, a slower temperature (quantizer.temperature_steps), more "
        "model.lambda_usage; see docs/training.md"
    )
