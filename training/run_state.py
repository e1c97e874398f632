"""What a run leaves in its output folder, and how it finds it again after it was killed."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

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
