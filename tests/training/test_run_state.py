"""What a run leaves in its folder and finds again, also where it was killed while writing."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.training import save_in_a_loop
from tests.training.steps import forget_processes
from training.output import Progress, check_recipe, keep_recipe, newest_checkpoint, run_on_main, save_checkpoint

ROOT = Path(__file__).parents[2]


class Counter:
    """A part of a run that changes from step to step."""

    def __init__(self) -> None:
        self.value = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@pytest.fixture
def accelerator() -> Accelerator:
    forget_processes()
    return Accelerator(cpu=True)


def test_the_newest_checkpoint_goes_by_number(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, 0)
    assert newest_checkpoint(tmp_path / "nowhere") == (None, 0)
    for name in ("checkpoint-00000900", "checkpoint-00001000", "checkpoint-20", ".checkpoint-00002000.tmp"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-best", "checkpoint-00003000.old", ".checkpoint-00004000.old", "old-checkpoint-5000"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-00001000", 1000)
    (tmp_path / "checkpoint-123456789").mkdir()
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-123456789", 123456789)


def test_the_newest_checkpoints_are_kept(accelerator: Accelerator, tmp_path: Path) -> None:
    model = accelerator.prepare(nn.Linear(2, 1))
    (tmp_path / "best").mkdir()
    for step in (5, 10, 15, 20):
        with torch.no_grad():
            model.weight.fill_(step)
        assert save_checkpoint(accelerator, tmp_path, step, keep=2) == tmp_path / f"checkpoint-{step:08d}"
    names = ["best", "checkpoint-00000015", "checkpoint-00000020"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    accelerator.load_state(str(tmp_path / "checkpoint-00000015"))
    assert (model.weight == 15).all()
    save_checkpoint(accelerator, tmp_path, 20, keep=1)  # replaces what is there
    accelerator.load_state(str(tmp_path / "checkpoint-00000020"))
    assert (model.weight == 15).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-00000020"]


def test_a_checkpoint_that_fails_leaves_the_one_before(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator.prepare(nn.Linear(2, 1))
    save_checkpoint(accelerator, tmp_path, 1, keep=1)

    def fail(folder: str) -> None:
        (Path(folder) / "half").write_text("x")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "save_state", fail)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(accelerator, tmp_path, 2, keep=1)
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-00000001", 1)
    save_checkpoint(accelerator, tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000002"]
    assert not (tmp_path / "checkpoint-00000002" / "half").exists()


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    """One process that is forked again and again, killed at a random moment of its saving; steps are used again."""
    command = [sys.executable, str(Path(save_in_a_loop.__file__)), str(tmp_path)]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    rng = random.Random(0)
    reached, half_written = [], 0
    try:
        for _ in range(25):
            server.stdin.write(f"{rng.uniform(0.0, 0.12)}\n")
            server.stdin.flush()
            step, temporaries = (int(number) for number in server.stdout.readline().split())
            reached.append(step)
            half_written += temporaries > 0
        server.stdin.close()
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
    assert reached == sorted(reached) and reached[-1] > 10
    assert half_written > 3  # the kill fell into the saving


@pytest.mark.parametrize("best", [None, 21.5])
def test_progress_through_a_checkpoint(accelerator: Accelerator, tmp_path: Path, best: float | None) -> None:
    counter = Counter()
    progress = Progress({"counter": counter}, step=7, seconds=1.25, best=best, best_step=None if best is None else 6)
    counter.value = torch.tensor(3.0)
    accelerator.register_for_checkpointing(progress)
    folder = save_checkpoint(accelerator, tmp_path, 7, keep=1)
    forget_processes()
    other, fresh = Accelerator(cpu=True), Counter()
    resumed = Progress({"counter": fresh})
    other.register_for_checkpointing(resumed)
    other.load_state(str(folder))
    assert (resumed.step, resumed.seconds, resumed.best) == (7, 1.25, best)
    assert resumed.best_step == progress.best_step and fresh.value == 3


FIELDS: dict[str, Any] = {
    "output_dir": "a",
    "max_steps": 5,
    "optimizer.learning_rate": 1e-4,
    "data.area": [0.5, 1.0],
    "model": {"codebook_size": 8},
}


def test_the_same_recipe_goes_on(tmp_path: Path) -> None:
    keep_recipe(tmp_path, FIELDS)
    check_recipe(tmp_path, FIELDS | {"output_dir": "moved"}, resuming=True)
    check_recipe(tmp_path, FIELDS | {"data.area": (0.5, 1.0)}, resuming=True)
    check_recipe(tmp_path / "without", FIELDS, resuming=True)
    keep_recipe(tmp_path / "without", FIELDS)
    assert (tmp_path / "without" / "recipe.json").exists()


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    keep_recipe(tmp_path, FIELDS)
    changed = FIELDS | {"max_steps": 6, "model": {"codebook_size": 16}}
    message = (
        r"was started with another recipe: max_steps was 5, is 6; model was \{'codebook_size': 8\}, is "
        r"\{'codebook_size': 16\}\. .* by --allow-change max_steps model$"
    )
    with pytest.raises(ValueError, match=message):
        check_recipe(tmp_path, changed, resuming=True)
    with pytest.raises(ValueError, match="another recipe: model was .* by --allow-change model$"):
        check_recipe(tmp_path, changed, resuming=True, allowed=["max_steps"])
    check_recipe(tmp_path, changed, resuming=True, allowed=["max_steps", "model"])
    check_recipe(tmp_path, FIELDS, resuming=True)  # looking changes nothing
    check_recipe(tmp_path, changed, resuming=False)  # a new run may be another
    keep_recipe(tmp_path, changed)
    check_recipe(tmp_path, changed, resuming=True)  # what was allowed once is the run's recipe now


def test_a_field_that_came_or_went_differs(tmp_path: Path) -> None:
    keep_recipe(tmp_path, FIELDS)
    with pytest.raises(ValueError, match="another recipe: seed was None, is 1"):
        check_recipe(tmp_path, FIELDS | {"seed": 1}, resuming=True)


def test_only_fields_can_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--allow-change: no field \['lr'\] in a recipe; there are \['data.area', "):
        check_recipe(tmp_path, FIELDS, resuming=True, allowed=["lr", "max_steps"])


def test_the_error_of_the_main_process(accelerator: Accelerator) -> None:
    done = []
    run_on_main(accelerator, lambda: done.append(1))
    assert done == [1]

    def fail() -> None:
        raise ValueError("the run in x was started with another recipe")

    with pytest.raises(ValueError, match="the run in x was started with another recipe"):
        run_on_main(accelerator, fail)
