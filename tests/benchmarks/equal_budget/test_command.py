import json
from pathlib import Path

import pytest

from benchmarks.equal_budget.__main__ import main
from benchmarks.equal_budget.scales import SCALES
from tests.benchmarks.equal_budget.test_crops import make_corpus


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--work", str(tmp_path)]
    assert main(["quick", "compare", "--only", "fsq", *at]) == 1
    assert "fsq is not tuned yet" in capsys.readouterr().err
    assert main(["quick", "tune", *at]) == 1
    assert "cut them by the stage 'crops'" in capsys.readouterr().err
    assert main(["quick", "collect", *at]) == 1
    assert "no run in " in capsys.readouterr().err
    assert main(["quick", "page", *at, "--results", str(tmp_path)]) == 1
    assert "run the stage 'collect' first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["quick", "tune", "--jobs", "0", *at])


@pytest.mark.slow
def test_two_methods_from_pictures_to_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 4, "validation": 2, "test": 2})
    at = ["--work", str(tmp_path / "work"), "--corpus", str(corpus), "--results", str(tmp_path)]
    assert main(["quick", "crops", *at]) == 0
    only = ["--only", "tune-lgq-3", "tune-fsq-0"]
    assert main(["quick", "tune", "--jobs", "2", *only, *at]) == 0
    place = tmp_path / "work" / "quick"
    assert sorted(path.name for path in (place / "tune-fsq-0").iterdir() if path.is_dir()) == ["final"]
    before = (place / "tune-fsq-0" / "result.json").stat().st_mtime_ns
    assert main(["quick", "tune", *only, *at]) == 0 and main(["quick", "collect", *at]) == 0
    assert (place / "tune-fsq-0" / "result.json").stat().st_mtime_ns == before
    file = tmp_path / "equal_budget_quick.json"
    assert str(tmp_path) not in file.read_text()
    content = json.loads(file.read_text())
    assert [run["name"] for run in content["runs"]] == ["tune-lgq-3", "tune-fsq-0"]
    for run in content["runs"]:
        assert run["metrics"]["psnr"] > 0 and run["peak_mib"] > 100 and run["seconds"] > 0
        assert len(run["curve"]["step"].split()) == SCALES["quick"].tuning_steps
        assert run["overrides"]["model.codebook_size"] == 16
    assert content["runs"][0]["parameters"]["quantizer"] == 16 * 8 and content["methods"]["fsq"]["chosen"] is None
