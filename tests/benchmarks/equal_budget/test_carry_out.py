import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.equal_budget import carry_out as module
from benchmarks.equal_budget import worker
from benchmarks.equal_budget.carry_out import (
    Interrupted,
    carry_out,
    finished_result,
    make_start,
    read_result,
)
from benchmarks.equal_budget.runs import TUNE, Run, changed
from benchmarks.equal_budget.scales import SCALES
from lgq_hf import LGQModel

SCALE = SCALES["quick"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "manifest.json").write_text('{"settings": {}}')
    return tmp_path


def _run(setting: int = 0, method: str = "lgq") -> Run:
    return Run(SCALE, TUNE, method, setting, SCALE.codes, 100)


class Processes:
    """Stands in for the processes: writes a result that holds the task, unless told otherwise."""

    def __init__(self, **outcomes: Any) -> None:
        self.outcomes, self.begun = outcomes, []  # type: ignore[var-annotated]

    def __call__(self, folder: Path, threads: int) -> str | None:
        self.begun.append((folder.name, threads))
        outcome = self.outcomes.get(folder.name.replace("-", "_"), {"metrics": {"psnr": 20.0}})
        if isinstance(outcome, str):
            return outcome
        task = json.loads((folder / "task.json").read_text())
        (folder / "result.json").write_text(json.dumps({**task, **outcome}))
        return None


def test_a_finished_run_is_not_done_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    monkeypatch.setattr(module, "_process", processes)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    assert finished_result(_run(0), place) is None
    assert carry_out([_run(0)], place, 1) == [] and finished_result(_run(0), place) is not None
    assert carry_out([_run(0), _run(1)], place, 2) == []
    assert processes.begun == [("tune-lgq-0", 8), ("tune-lgq-1", 4)]
    result = read_result(_run(1), place)
    assert result is not None and result["chosen"] == {"model.straight_through": "soft", "model.lambda_usage": 0.05}
    assert str(place) not in (place / "tune-lgq-1" / "result.json").read_text()


def test_a_result_of_another_recipe_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    monkeypatch.setattr(module, "_process", processes)
    carry_out([_run()], place, 1)
    path = place / "tune-lgq-0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(
        json.dumps(changed(result, {"recipe.optimizer": {**result["recipe"]["optimizer"], "learning_rate": 1.0}}))
    )
    with pytest.raises(ValueError, match=r"another run than would be made now: optimizer\.learning_rate was 1\.0, is"):
        carry_out([_run()], place, 1)
    path.write_text(json.dumps({**result, "crops": "others"}))
    with pytest.raises(ValueError, match="the crops are others. Remove that folder"):
        carry_out([_run()], place, 1)
    path.write_text(json.dumps({**result, "recipe": {**result["recipe"], "hue": 1}}))
    with pytest.raises(ValueError, match=r"its recipe is of another version .*hue"):
        carry_out([_run()], place, 1)
    assert len(processes.begun) == 1


def test_what_failed_is_told_and_what_ended_without_a_result_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(tune_lgq_0={"failed": "not finite"}, tune_lgq_1="status -9; log.txt ends with: Killed")
    monkeypatch.setattr(module, "_process", processes)
    with pytest.raises(Interrupted, match="without a result:\ntune-lgq-1: status -9; log.txt ends with: Killed"):
        carry_out([_run(0), _run(1), _run(2)], place, 1)
    assert len(processes.begun) == 3
    del processes.outcomes["tune_lgq_1"]
    assert carry_out([_run(0), _run(1), _run(2)], place, 1) == ["tune-lgq-0"]
    assert [name for name, _ in processes.begun[3:]] == ["tune-lgq-1"]


def test_a_run_that_diverges_is_recorded_as_failed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(arguments: list[str]) -> None:
        raise FloatingPointError("loss is not finite at step 3, which was not taken; its pictures are listed in /a/b")

    monkeypatch.setattr(worker.train_tokenizer, "main", diverge)
    make_start(SCALE, place, 100)
    module.prepare(_run(), place)
    assert worker.main([str(place / "tune-lgq-0")]) == 0
    result = read_result(_run(), place)
    assert result is not None and result["failed"] == "loss is not finite at step 3, which was not taken"
    assert result["commit"] and "metrics" not in result and finished_result(_run(), place) == result


def test_the_start_of_a_seed_is_made_once_and_differs_between_seeds(place: Path) -> None:
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        make_start(SCALE, place, seed)
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (LGQModel.from_pretrained(place / f"start-seed{seed}") for seed in (0, 1))
    assert one.quantizer.centers.shape[0] == 2  # so that no run takes over a codebook
    weights = [model.encoder.stem.weight for model in (one, other)]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)
