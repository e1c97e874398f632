import subprocess
from pathlib import Path

import pytest

from lgq_hf import provenance


@pytest.fixture(autouse=True)
def _no_stated_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LGQ_COMMIT", raising=False)


def test_changes_that_are_not_committed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    for name in ("lgq_hf", "benchmarks", "training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("a = 1\n")
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "benchmarks" / "code.py"))
    commit = provenance.provenance()["commit"]
    assert len(commit) == 40
    (tmp_path / "benchmarks" / "results").mkdir()
    (tmp_path / "benchmarks" / "results" / "numbers.json").write_text("{}")  # a result is no code
    assert provenance.provenance()["commit"] == commit
    (tmp_path / "lgq_hf" / "code.py").write_text("a = 2\n")
    assert provenance.provenance()["commit"] == f"{commit}+changes"


def test_copy_without_history_states_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "benchmarks" / "code.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RuntimeError, match="LGQ_COMMIT"):
        provenance.provenance()
    monkeypatch.setenv("LGQ_COMMIT", "0123456")
    assert provenance.provenance()["commit"] == "0123456"
