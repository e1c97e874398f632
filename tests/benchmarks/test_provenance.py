import subprocess
from pathlib import Path

import pytest

from benchmarks import provenance


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
