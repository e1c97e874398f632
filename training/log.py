"""What a run tells while it goes: CSV files always, a tracker if one is asked for, a progress bar, warnings."""

import contextlib
import csv
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lgq_hf.files import atomic_file

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
        raise ModuleNotFoundError(f"report.tracker={name} needs its package: pip install 'lgq_hf[{name}]'")


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
