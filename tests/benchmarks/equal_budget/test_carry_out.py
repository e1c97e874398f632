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
    differences,
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


def test_a_field_that_a_recipe_did_not_have_yet_is_at_its_default(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_process", Processes())
    carry_out([_run()], place, 1)
    path = place / "tune-lgq-0" / "result.json"
    result = json.loads(path.read_text())
    del result["recipe"]["engine"]["compile"], result["recipe"]["model"]["distance"]
    path.write_text(json.dumps(result))
    assert finished_result(_run(), place) == result


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


def test_another_error_of_a_run_is_no_result(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(arguments: list[str]) -> None:
        raise ValueError("no such data")

    monkeypatch.setattr(worker.train_tokenizer, "main", break_down)
    module.prepare(_run(), place)
    with pytest.raises(ValueError, match="no such data"):
        worker.main([str(place / "tune-lgq-0")])
    assert read_result(_run(), place) is None


def test_the_start_of_a_seed_is_made_once_and_differs_between_seeds(place: Path) -> None:
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        make_start(SCALE, place, seed)
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (LGQModel.from_pretrained(place / f"start-seed{seed}") for seed in (0, 1))
    assert one.quantizer.centers.shape[0] == 2  # so that no run takes over a codebook
    weights = [model.encoder.stem.weight for model in (one, other)]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)


def test_a_start_of_another_architecture_is_refused(place: Path) -> None:
    make_start(SCALE, place, 0)
    config = json.loads((place / "start-seed0" / "config.json").read_text())
    (place / "start-seed0" / "config.json").write_text(json.dumps({**config, "base_channels": 16}))
    with pytest.raises(
        ValueError, match="start-seed0 is of another architecture, it differs in base_channels: remove"
    ):
        make_start(SCALE, place, 0)


def test_two_processes_are_not_at_one_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.prepare(_run(), place)
    folder = str(place / "tune-lgq-0")

    def train(arguments: list[str]) -> None:
        with pytest.raises(RuntimeError, match="another process is at the run in .*tune-lgq-0: let it end"):
            worker.main([folder])
        raise FloatingPointError("stop")

    monkeypatch.setattr(worker.train_tokenizer, "main", train)
    assert worker.main([folder]) == 0


def test_differences_are_named() -> None:
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(before, now) == ["a.c was 2, is 4", "d was 3, is None", "e was None, is 5"]


def test_a_curve_is_thinned_from_its_end(tmp_path: Path) -> None:
    rows = "".join(f"{step},{1 / step}\n" for step in range(1, 131))
    (tmp_path / "training.csv").write_text("step,loss\n" + rows)
    curve = worker.curve(tmp_path)
    assert curve["step"] == [float(step) for step in range(1, 131, 3)] and curve["loss"][-1] == 0.0076923
