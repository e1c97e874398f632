"""What a run leaves in its output folder, and how it finds it again after it was killed."""

import contextlib
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lgq_hf.files import atomic_file, atomic_folder, temporary_name

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def newest_checkpoint(output: Path) -> tuple[Path | None, int]:
    """The newest complete checkpoint of a run and its step; `(None, 0)` for a new run."""
    found = [(int(match[1]), path) for path in output.glob("*") if (match := _CHECKPOINT.fullmatch(path.name))]
    step, path = max(found, default=(0, None))
    return path, step


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, keep: int) -> None:
    """Writes `checkpoint-<step>` as a whole or not at all, and removes all but the newest `keep`."""
    target = output / f"checkpoint-{step:08d}"
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(atomic_folder(target))
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary_name(target)))  # every process adds its random state
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for folder in sorted(path for path in output.glob("*") if _CHECKPOINT.fullmatch(path.name))[:-keep]:
            shutil.rmtree(folder)


def check_recipe(output: Path, recipe: Any, *, resuming: bool) -> None:
    """Keeps the recipe beside its checkpoints, and refuses to resume them with another one.

    Raises:
        ValueError: naming the fields that differ.
    """
    path = output / "recipe.json"
    fields = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if resuming and path.exists():
        before = json.loads(path.read_text())
        if differ := sorted(name for name in fields | before if fields.get(name) != before.get(name)):
            raise ValueError(
                f"the run in {output} was started with other values of {differ}: give another output_dir, or delete "
                f"{path} to go on with the changed recipe"
            )
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(fields, indent=1) + "\n")


def stop_unless_finite(accelerator: Accelerator, values: dict[str, Tensor | float], step: int) -> None:
    """Ends the run on every process where one of them has a loss or gradient norm that is not finite.

    Raises:
        FloatingPointError: with the values of this process.
    """
    loss, norm = float(values["loss"]), float(values["grad_norm"])
    finite = torch.tensor(float(math.isfinite(loss) and math.isfinite(norm)), device=accelerator.device)
    if accelerator.reduce(finite, reduction="sum") < accelerator.num_processes:
        raise FloatingPointError(
            f"loss is {loss} and gradient norm {norm} at step {step}: nothing was saved since the last checkpoint"
        )


class Log:
    """`log.jsonl`: one row per logged step. Opening it drops rows after `step`, and one that was cut short."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # the row that a kill cut short is written again
                rows.append(json.loads(line))
        rows = [row for row in rows if row["step"] <= step]
        self.seconds_before = rows[-1]["seconds"] if rows else 0.0
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(self, row: dict[str, Any], seconds: float) -> None:
        """Appends a row; `seconds` since this process began are added to those of the processes before it."""
        with self.path.open("a") as file:
            file.write(json.dumps({**row, "seconds": round(self.seconds_before + seconds, 2)}) + "\n")
