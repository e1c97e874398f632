"""What a run tells: CSV files, trackers, the progress bar, advice."""

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.steps import forget_processes
from training.output import Clock, CsvLog, RunLog, check_tracker, read_csv, usage_warning

ROOT = Path(__file__).parents[2]
ROW = {"loss": 0.1, "codebook_usage": 0.5, "pictures_per_second": 3.0}


def _postfix(row: dict[str, float]) -> dict[str, str]:
    return {"loss": f"{row['loss']:.4g}", "pictures/s": f"{row['pictures_per_second']:.3g}"}


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


def test_numbers_come_back_bit_by_bit(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv", 0)
    rows: list[dict[str, float | int]] = [
        {"step": 1, "loss": 0.1 + 0.2, "rate": 1e-300},
        {"step": 2, "loss": math.pi * 1e17, "rate": 5e-324},
        {"step": 3, "loss": float("inf"), "rate": -0.0},
    ]
    for row in rows:
        log.write(row)
    assert read_csv(tmp_path / "log.csv") == rows
    assert math.copysign(1, read_csv(tmp_path / "log.csv")[2]["rate"]) == -1
    log.write({"step": 4, "loss": float("nan"), "rate": 0})
    assert math.isnan(read_csv(tmp_path / "log.csv")[3]["loss"])


def test_a_column_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    log.write({"step": 1, "loss": 1.5})
    inode = path.stat().st_ino
    log.write({"step": 2, "loss": 1.25})
    assert path.stat().st_ino == inode  # appended
    log.write({"step": 3, "loss": 1.0, "gan": 0.5})
    assert path.stat().st_ino != inode  # replaced as a whole
    log.write({"step": 4, "gan": 0.25})
    assert path.read_text() == "step,loss,gan\n1,1.5,\n2,1.25,\n3,1.0,0.5\n4,,0.25\n"
    assert read_csv(path)[3] == {"step": 4, "gan": 0.25}
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_a_column_that_cannot_be_added_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    log.write({"step": 1, "loss": 1.5})

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("csv.DictWriter.writerows", fail)
    with pytest.raises(OSError, match="disk full"):
        log.write({"step": 2, "gan": 0.5})
    assert path.read_text() == "step,loss\n1,1.5\n"


@pytest.mark.parametrize("rest", ["", "8,0.1", "8", "8,0.125,3"])
def test_a_log_forgets_what_is_done_again_and_what_was_cut_short(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,gan\n2,5.5,\n4,9.0,1.0\n6,0.25,2.0\n" + rest)
    log = CsvLog(path, 4)
    assert path.read_text() == "step,loss,gan\n2,5.5,\n4,9.0,1.0\n"
    log.write({"step": 6, "loss": 0.5})
    assert read_csv(path) == [
        {"step": 2, "loss": 5.5},
        {"step": 4, "loss": 9.0, "gan": 1.0},
        {"step": 6, "loss": 0.5},
    ]


@pytest.mark.parametrize("text", [None, "", "step,lo", "step,loss\n", "step,loss\n2,3.0\n"])
def test_a_log_without_rows_begins_anew(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "log.csv"
    if text is not None:
        path.write_text(text)
    log = CsvLog(path, 0)
    assert read_csv(path) == []
    log.write({"step": 1, "gan": 2.0})
    assert read_csv(path) == [{"step": 1, "gan": 2.0}]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_tracker("none")
    with pytest.raises(ModuleNotFoundError, match=rf"report.tracker={name} .* pip install '\.\[{name}\]'"):
        check_tracker(name)


def _log(tracker: str | None, folder: Path, step: int, end: int) -> None:
    """Logs steps `step + 1` to `end`, and a validation at the last one."""
    forget_processes()
    accelerator = Accelerator(cpu=True, log_with=tracker, project_dir=str(folder))
    fields = {"report.project": "lgq", "start_from": None, "data.area": [0.5, 1], "optimizer.learning_rate": 1e-4}
    log = RunLog(accelerator, folder, step, 8, fields, postfix=_postfix)
    for number in range(step + 1, end + 1):
        log.step()
        log.train(number, {**ROW, "loss": number + 0.125})
    log.validate(end, {"psnr": 20.25 + end}, Image.new("RGB", (4, 4)), folder)
    log.close()


def test_tensorboard(tmp_path: Path) -> None:
    _log("tensorboard", tmp_path, 0, 3)
    time.sleep(1.1)  # event files are ordered by seconds
    _log("tensorboard", tmp_path, 2, 4)  # as if it was killed after step 3, with a checkpoint of step 2
    events = EventAccumulator(str(tmp_path / "lgq"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(n, n + 0.125) for n in (1, 2, 3, 4)]
    assert [(event.step, event.value) for event in events.Scalars("validation/psnr")] == [(4, 24.25)]
    recorded = [path.read_text() for path in tmp_path.rglob("hparams.yml")]
    assert len(recorded) == 2 and "optimizer.learning_rate: 0.0001" in recorded[0]
    assert [row["loss"] for row in read_csv(tmp_path / "training.csv")] == [1.125, 2.125, 3.125, 4.125]


_TRACKIO = """
import sys
from pathlib import Path
from tests.training.test_log import _log
_log("trackio", Path(sys.argv[1]), 0, 3)
_log("trackio", Path(sys.argv[1]), 3, 4)
"""


def test_trackio(tmp_path: Path) -> None:
    home, output = tmp_path / "home", tmp_path / "flowers"
    home.mkdir()
    output.mkdir()
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(home), "HF_HOME": str(home / "hf")}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", _TRACKIO, str(output)], env=environment, check=True, timeout=120)
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "lgq.db")) as database:
        rows = database.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
        configs = [json.loads(text) for (text,) in database.execute("select config from configs")]
    values = [(step, json.loads(metrics)) for _, _, step, metrics in rows]
    assert [(s, v["loss"]) for s, v in values if "loss" in v] == [(1, 1.125), (2, 2.125), (3, 3.125), (4, 4.125)]
    assert [(s, v) for s, v in values if "loss" not in v] == [(s, {"validation/psnr": 20.25 + s}) for s in (3, 4)]
    assert {name for _, name, _, _ in rows} == {"flowers"} and len({run for run, _, _, _ in rows}) == 1  # it goes on
    assert configs[0]["optimizer.learning_rate"] == 1e-4 and configs[0]["data.area"] == "[0.5, 1]"
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_run_without_a_tracker(tmp_path: Path) -> None:
    _log(None, tmp_path, 0, 2)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"training.csv", "validation.csv", "samples/step-00000002.png"}
    assert read_csv(tmp_path / "validation.csv") == [{"step": 2, "psnr": 22.25}]
    assert Image.open(tmp_path / "samples" / "step-00000002.png").size == (4, 4)


def test_lines_stand_above_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    console = logging.StreamHandler(terminal)
    console.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [console])
    log = RunLog(Accelerator(cpu=True), tmp_path, 5, 10, {"report.project": "lgq"}, postfix=_postfix)
    log.step()
    log.train(6, ROW)
    logging.getLogger("training.data").warning("a.png cannot be read: no picture")
    log.validate(6, {"psnr": 20.25, "ssim": 0.5}, None, tmp_path)
    log.close()
    assert root.handlers == [console]
    shown = [re.split(r"\r", line)[-1].rstrip() for line in terminal.getvalue().split("\n")]  # what a terminal leaves
    assert shown[:2] == ["WARNING training.data: a.png cannot be read: no picture", "step 6: psnr 20.25, ssim 0.5"]
    assert re.match(r" 60%\|.*\| 6/10 \[.*step/s, loss=0.1, pictures/s=3\]", shown[2]) and len(shown) == 4


def test_other_processes_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    handlers = list(logging.getLogger().handlers)
    log = RunLog(accelerator, tmp_path, 0, 10, {"report.project": "lgq"}, postfix=_postfix)
    log.step()
    log.train(1, ROW)
    log.validate(1, {"psnr": 20.0}, None, tmp_path)
    log.say("hello")
    assert logging.getLogger().handlers == handlers
    log.close()
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("used", "tokens", "size", "warns"),
    [
        (99, 10_000, 1000, True),
        (100, 10_000, 1000, False),
        (5, 64, 4096, True),
        (7, 64, 4096, False),
        (1, 5, 8, False),
    ],
)
def test_advice_where_the_codebook_collapses(used: int, tokens: int, size: int, warns: bool) -> None:
    found = usage_warning(used, tokens, size)
    assert (found is not None) == warns
    if found is not None:
        bits = f"{math.log2(used):.1f} bits"
        assert f"{tokens} tokens used {used} of {size} codes ({bits})" in found
        names = ("model.code_dim", "quantizer.init_pictures", "optimizer.warmup_steps", "temperature_steps")
        places = [found.index(name) for name in (*names, "model.lambda_usage")]
        assert places == sorted(places)


def test_where_the_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("training.output.time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] += 8
    clock.wait(1.0)
    clock.wait(1.0)
    assert clock.read(4, 32) == {"step_seconds": 2.0, "pictures_per_second": 4.0, "data_share": 0.25}
    clock.start()
    now[0] += 2
    assert clock.read(1, 8) == {"step_seconds": 2.0, "pictures_per_second": 4.0, "data_share": 0.0}
    rows = Clock("rows")
    now[0] += 2
    assert rows.read(1, 8)["rows_per_second"] == 4.0
