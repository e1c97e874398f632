"""Runs that publish what they end with, to the Hub of the tests."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError

from lgq_hf.cli.main import main as lgq
from lgq_hf.hub.publishable import STATE_PICTURES
from tests.hub_server import Hub, turn_to
from tests.training.steps import forget_processes
from training.output import read_csv
from training.recipe import recipe_from
from training.train_generator import main as train_generator
from training.train_tokenizer import main as train_tokenizer

PUBLISHED = ["report.push_to_hub=org/name", "report.license=mit"]


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


@pytest.fixture
def words(recipe: Path) -> list[str]:
    """Arguments of a run of one step."""
    return ["--config", str(recipe), "max_steps=1", "discriminator.weight=0", "validation.every=1"]


def test_a_tokenizer_is_published_as_it_stands(
    words: list[str], tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer([*words, *PUBLISHED, "report.hub_private=true"])
    repository, final = hub.repositories["org/name"], tmp_path / "run" / "final"
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"{hub.url}/org/name/commit/{repository.sha()}"
    assert "warning: README.md does not state the licence of the training pictures" in err
    files = {path.name: path.read_bytes() for path in final.iterdir()}
    assert repository.files == files and repository.private and repository.messages == ["Upload run"]
    assert {"README.md", "model.safetensors", "modeling_lgq.py", "recipe.yaml", "results.json"} <= files.keys()
    card = ModelCard.load(final / "README.md")
    assert card.data.license == "mit" and 'LGQTokenizer.from_pretrained("org/name")' in card.text
    assert f"These weights: mit. {STATE_PICTURES}" in card.text
    # who does it again does not publish in the same place
    report = yaml.safe_load((final / "recipe.yaml").read_text())["report"]
    assert (report["push_to_hub"], report["hub_private"], report["license"]) == (None, False, "mit")


def test_a_generator_is_published(generator_recipe: Callable[..., Path], tmp_path: Path, hub: Hub) -> None:
    train_generator(["--config", str(generator_recipe("autoregressive", max_steps=1)), *PUBLISHED])
    repository, final = hub.repositories["org/name"], tmp_path / "run" / "final"
    assert {"model_index.json", "samples.png", "results.json", "vqvae/modeling_lgq.py"} <= repository.files.keys()
    assert 'LGQAutoregressivePipeline.from_pretrained("org/name")' in (final / "README.md").read_text()
    assert ModelCard.load(final / "README.md").data.license == "mit" and len(repository.commits) == 1


def test_a_push_that_fails_loses_nothing(
    words: list[str], tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = ["error", "error"]
    with pytest.raises(SystemExit) as stopped:
        train_tokenizer([*words, *PUBLISHED])
    out, err = capsys.readouterr()
    repository, final = hub.repositories["org/name"], tmp_path / "run" / "final"
    assert stopped.value.code == 1 and str(final) in out and repository.files == {}
    assert f"the run is finished and stands in {final}, but it was not published: the upload to org/name failed" in err
    command = shlex.split(err.rpartition("To publish it: ")[2])
    assert command == ["lgq", "push", str(final), "org/name"] and (final / "model.safetensors").is_file()
    # the run itself may be given again, which trains no more; with another place to publish in
    forget_processes()
    rows = read_csv(tmp_path / "run" / "training.csv")
    with pytest.raises(SystemExit):
        train_tokenizer([*words, "--push_to_hub", "org/other", "report.license=mit", "report.hub_private=true"])
    assert shlex.split(capsys.readouterr().err.rpartition("To publish it: ")[2])[3:] == ["org/other", "--private"]
    assert read_csv(tmp_path / "run" / "training.csv") == rows
    # a command that can be given again is no long run: it asks for the licence of the pictures
    assert lgq(command[1:]) == 2 and repository.files == {}
    assert "README.md does not state the licence" in capsys.readouterr().err
    card = final / "README.md"
    card.write_text(card.read_text().replace(STATE_PICTURES, "Pictures: public domain."))
    assert lgq(command[1:]) == 0 and "model.safetensors" in repository.files


def test_a_run_that_was_not_published_is_by_the_command(
    words: list[str], tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer([*words, "report.license=mit"])
    final = tmp_path / "run" / "final"
    assert lgq(["push", str(final), "org/name", "--dry-run"]) == 2
    assert f"the card in '{final}' is not finished" in capsys.readouterr().err
    card = final / "README.md"
    card.write_text(card.read_text().replace(STATE_PICTURES, "Pictures: public domain."))
    assert lgq(["push", str(final), "org/name"]) == 0
    sent = hub.repositories["org/name"].files["README.md"].decode()
    assert sent.count('.from_pretrained("org/name")') == 2 and 'from_pretrained(".")' not in sent


def test_what_is_missing_shows_before_the_first_step(
    words: list[str], tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_to(hub, tmp_path, monkeypatch, token=None)
    with pytest.raises(ValueError, match="publishing org/name needs a token .*hf auth login"):
        train_tokenizer([*words, *PUBLISHED])
    assert not (tmp_path / "run" / "training.csv").exists() and hub.requests == []
    turn_to(hub, tmp_path, monkeypatch, token="hf_read")
    with pytest.raises(OSError, match="cannot write to org/name: .*403"):
        train_tokenizer([*words, *PUBLISHED])
    assert not (tmp_path / "run" / "training.csv").exists() and not hub.repositories
    with pytest.raises(StrictDataclassError, match="needs report.license, the licence of the weights, such as mit"):
        train_tokenizer([*words, "--push_to_hub", "org/name"])


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"push_to_hub": "org/name"}, "report.push_to_hub=org/name needs report.license"),
        ({"push_to_hub": "name", "license": "mit"}, "expected a repository as ORG/NAME, got 'name'"),
        (
            {"license": "The MIT licence"},
            "report.license must be an identifier of the Hub's that names a licence, such as mit",
        ),
        ({"license": "other"}, r"such as mit \(not other\), got 'other'"),
        ({"hub_private": True}, "report.hub_private=true is for report.push_to_hub, which is not set"),
    ],
)
def test_recipes_that_could_not_be_published(report: dict[str, Any], message: str) -> None:
    values = {"output_dir": "run", "max_steps": 1, "batch_size": 4, "image_size": 32, "report": report}
    with pytest.raises(StrictDataclassError, match=message):
        recipe_from(values)
