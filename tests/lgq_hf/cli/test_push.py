"""`lgq push`; as a process of its own it is in tests/lgq_hf/test_hub.py."""

from pathlib import Path

import pytest

from lgq_hf.cli.main import main
from lgq_hf.hub.publishable_card import HERE, STATE_PICTURES
from tests.hub_client import turn_to
from tests.hub_server import Hub
from tests.lgq_hf.publishing import tokenizer_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tokenizer_folder(tmp_path / "tiny")
    (folder / "optimizer.bin").write_bytes(b"pickle")
    return folder


def test_a_dry_run_lists_and_sends_nothing(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn_to(hub, tmp_path, monkeypatch, token=None)
    (folder / "README.md").write_text(f"{(folder / 'README.md').read_text()}\nLGQTokenizer.{HERE}\n")
    assert main(["push", str(folder), "org/lgq", "--dry-run", "--tag", "v1"]) == 0
    out, err = capsys.readouterr()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "optimizer.bin"}
    *listed, total, left_out, note, last = out.splitlines()
    assert {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listed} == sizes
    assert total == f"{sum(sizes.values()):,}  {len(sizes)} files"
    assert left_out == "left out: optimizer.bin (a pickle, which can run code when it is loaded)"
    assert note.startswith(f"note: README.md goes with the repository's name where it says {HERE}")
    assert last == "dry run: nothing was sent to org/lgq" and err == "" and hub.requests == []


def test_options_and_the_address_of_the_commit(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["push", str(folder), "org/lgq", "--private", "--revision", "trial", "--message", "First"]
    assert main([*words, "--tag", "v1"]) == 0
    repository = hub.repositories["org/lgq"]
    commit = repository.sha_of(1)
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/org/lgq/commit/{commit} (tag v1)"
    assert repository.private and repository.messages == ["First"]
    assert (repository.branches, repository.tags) == ({"main": 0, "trial": 1}, {"v1": 1})
    assert "optimizer.bin" not in repository.states[1]
    repository.states[1]["notes.md"] = b"by hand"
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "the repository also holds, from before: notes.md",
        "nothing was new: the Hub had all of it",
        f"{hub.url}/org/lgq/commit/{commit}",
    ]


def test_what_fails_is_said_with_its_status(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = ["error"]
    assert main(["push", str(folder), "org/lgq"]) == 2
    assert "lgq: the upload to org/lgq failed: " in capsys.readouterr().err
    assert main(["push", str(folder), "lgq"]) == 2
    assert capsys.readouterr().err.startswith("lgq: expected a repository as ORG/NAME, got 'lgq'")
    for option, kind in (("--tag", "tag"), ("--revision", "branch")):  # before the folder is looked at
        assert main(["push", str(folder / "gone"), "org/lgq", option, "", "--dry-run"]) == 2
        assert capsys.readouterr().err.startswith(f"lgq: expected the name of a {kind}, ")
    turn_to(hub, tmp_path, monkeypatch, token=None)
    assert main(["push", str(folder), "org/lgq"]) == 2
    assert "hf auth login" in capsys.readouterr().err
    card = folder / "README.md"
    card.write_text(f"{card.read_text()}\n{STATE_PICTURES}\n")
    assert main(["push", str(folder), "org/lgq", "--dry-run"]) == 2
    assert f"is not finished: README.md still says '{STATE_PICTURES}': write there" in capsys.readouterr().err
    card.unlink()
    assert main(["push", str(folder), "org/lgq", "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lgq: no card in ")
