"""Publishing to the Hub of the tests and back. Uploads run here, downloads in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import save_file

from lgq_hf import LGQModel
from lgq_hf.hub.publishable import Publication, check_publishable
from lgq_hf.hub.publishable_card import HERE
from lgq_hf.hub.push import check_name, check_ref, prepare, push
from tests.hub_client import turn_to
from tests.hub_server import READ_TOKEN, Hub
from tests.lgq_hf.publishing import pipeline_folder, tokenizer_folder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture(scope="module")
def publication(folder: Path) -> Publication:
    return check_publishable(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    return check_publishable(tokenizer_folder(tmp_path_factory.mktemp("published") / "other", seed=1))


def contents(publication: Publication) -> dict[str, bytes]:
    return {path: (publication.folder / path).read_bytes() for path in publication.files}


def test_a_folder_becomes_one_commit_with_a_tag(hub: Hub, publication: Publication, other: Publication) -> None:
    first = push(publication, "org/lgq", tag="v1")
    repository = hub.repositories["org/lgq"]
    assert repository.files == contents(publication) and not repository.private
    assert repository.commits == [sorted(publication.files)] and repository.messages[0].startswith(
        "Upload tiny by lgq"
    )
    assert first.url == f"{hub.url}/org/lgq/commit/{repository.sha}" and first.changed and first.foreign == []
    assert len(repository.large) == 1  # the weights went by LFS
    assert repository.tags == {"v1": 1}
    # on a branch, main and the tag stay
    second = push(other, "org/lgq", revision="trial", tag="v2", message="Another seed")
    assert repository.at("main") == repository.at("v1") == (first.commit, contents(publication))
    assert repository.at("trial") == repository.at("v2") == (second.commit, contents(other))
    assert repository.messages[1] == "Another seed"
    # what is there already makes no commit
    again = push(other, "org/lgq", revision="trial")
    assert (again.commit, again.changed) == (second.commit, False) and len(repository.commits) == 2


def test_what_the_repository_holds_besides_stays_and_is_named(hub: Hub, publication: Publication) -> None:
    prepare("org/lgq")
    hub.repositories["org/lgq"].add({"notes.md": b"by hand", ".gitattributes": b""}, set())
    assert push(publication, "org/lgq").foreign == ["notes.md"]
    assert hub.repositories["org/lgq"].files["notes.md"] == b"by hand"


def test_the_card_that_is_sent_names_the_repository(hub: Hub, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "tiny")
    card = tmp_path / "tiny" / "README.md"
    card.write_text(f"{card.read_text()}\nmodel = LGQTokenizer.{HERE}\n")
    publication = check_publishable(tmp_path / "tiny")
    for name in ("org/one", "org/two"):  # what arrived is compared with what was sent
        push(publication, name)
        sent = hub.repositories[name].files["README.md"].decode()
        assert sent == card.read_text().replace(HERE, f'from_pretrained("{name}")') and HERE not in sent
    assert HERE in card.read_text()


def test_a_pipeline(hub: Hub, tmp_path: Path) -> None:
    publication = check_publishable(pipeline_folder(tmp_path / "masked", "masked"))
    push(publication, "org/pipe", private=True)
    repository = hub.repositories["org/pipe"]
    assert repository.files == contents(publication) and repository.private and len(repository.commits) == 1
    assert {"model_index.json", "vqvae/modeling_lgq.py", "transformer/model.safetensors"} <= repository.files.keys()
    assert len(repository.large) == 2


def test_what_is_refused_before_anything_is_sent(hub: Hub, publication: Publication) -> None:
    push(publication, "org/lgq", tag="v1")
    done = len(hub.requests)
    with pytest.raises(
        ValueError, match=f"org/lgq has a tag 'v1' already, at commit {hub.repositories['org/lgq'].sha[:10]}"
    ):
        push(publication, "org/lgq", tag="v1")
    with pytest.raises(ValueError, match="revision 'v1' of org/lgq is a tag: expected the name of a branch"):
        push(publication, "org/lgq", revision="v1")
    with pytest.raises(ValueError, match="org/lgq exists and is public: make it private in its settings"):
        push(publication, "org/lgq", private=True)
    with pytest.raises(
        ValueError, match="'trial' is a branch of org/lgq, and a tag must be told from it: take another"
    ):
        push(publication, "org/lgq", revision="trial", tag="trial")
    with pytest.raises(ValueError, match="'main' is a branch of org/lgq"):
        push(publication, "org/lgq", revision="trial", tag="main")
    hub.refused.append("license: mit")
    with pytest.raises(ValueError, match=r"the Hub refuses the metadata of README.md: .*license: mit"):
        push(publication, "org/new")
    assert not any("preupload" in request or "commit/" in request for request in hub.requests[done:])
    assert hub.repositories.keys() == {"org/lgq"}


@pytest.mark.parametrize("name", ["lgq", "a/b/c", "org/", "org/a b", "org/a--b"])
def test_names_that_no_repository_has(name: str) -> None:
    with pytest.raises(ValueError, match="expected a repository as ORG/NAME, got"):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "v 1",
        "v1.",
        "-v1",
        "a..b",
        "a//b",
        "v1/",
        "v1^",
        "a:b",
        "x.lock",
        "HEAD",
        "refs/pr/1",
        "0a" * 20,
        "v1\n",
    ],
)
def test_names_that_no_branch_or_tag_has(hub: Hub, publication: Publication, name: str) -> None:
    for kind, how in (("branch", {"revision": name}), ("tag", {"tag": name})):
        with pytest.raises(ValueError, match="expected the name of a") as caught:
            push(publication, "org/lgq", **how)
        told = (
            f"expected the name of a {kind}, of letters, digits and _, joined by . - + or / (no commit, nothing below"
        )
        assert str(caught.value) == f"{told} refs/), got {name!r}: take another, such as v1, or leave it out"
    assert hub.requests == []


@pytest.mark.parametrize("name", ["v1", "v1.0-rc.1", "trial/two", "2026_11", "a--b", "v1+cpu", "0a" * 19, None])
def test_names_that_branches_and_tags_have(name: str | None) -> None:
    check_ref("tag", name)


def test_a_tag_that_fails_leaves_the_upload_and_says_how_to_set_it(
    hub: Hub, publication: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no answer\nof sense.")

    monkeypatch.setattr(HfApi, "create_tag", fails)
    with pytest.raises(OSError, match="its tag 'v1' was not set") as caught:
        push(publication, "org/lgq", tag="v1")
    repository = hub.repositories["org/lgq"]
    assert repository.files == contents(publication) and repository.tags == {}
    assert str(caught.value) == (
        f"commit {repository.sha} of org/lgq was made and is what was sent, but its tag 'v1' was not set. To set it: "
        f"hf repos tag create org/lgq v1 --revision {repository.sha}. The reason: no answer of sense"
    )


def test_tokens(hub: Hub, publication: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_to(hub, tmp_path, monkeypatch, token=None)
    for ask in (lambda: prepare("org/lgq"), lambda: push(publication, "org/lgq")):
        with pytest.raises(
            ValueError, match="needs a token .*/settings/tokens, then give it to `hf auth login` or set"
        ):
            ask()
    for token in ("hf_SECRÉT", "hf_SEC RET"):
        turn_to(hub, tmp_path, monkeypatch, token=token)
        with pytest.raises(
            ValueError, match="the token of the Hub holds a character .*copy it anew from http"
        ) as caught:
            prepare("org/lgq")
        assert "SEC" not in str(caught.value)
    turn_to(hub, tmp_path, monkeypatch, token=None)
    (tmp_path / "token").write_bytes("hf_SECRÉT".encode("latin-1"))
    with pytest.raises(OSError, match="cannot read the token of the Hub: 'utf-8' codec") as unread:
        prepare("org/lgq")
    assert "SEC" not in str(unread.value)
    (tmp_path / "token").unlink()
    assert hub.requests == []
    turn_to(hub, tmp_path, monkeypatch, token="hf_wrong")
    with pytest.raises(
        ValueError, match="cannot write to org/lgq: .*The Hub does not know this token: `hf auth login`"
    ):
        prepare("org/lgq")
    turn_to(hub, tmp_path, monkeypatch)
    prepare("org/lgq", private=True)
    turn_to(hub, tmp_path, monkeypatch, token=READ_TOKEN)
    for name in ("org/lgq", "org/new"):
        with pytest.raises(ValueError, match=f"cannot write to {name}: .*This token may not write there"):
            prepare(name)
    assert hub.repositories.keys() == {"org/lgq"}


def test_errors_of_the_client_come_in_our_words(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def garbled(*_: object, **__: object) -> None:
        raise ValueError("Expecting value: line 1")  # as JSON has it of a page that a proxy sends

    monkeypatch.setattr(HfApi, "model_info", garbled)
    with pytest.raises(OSError, match="^cannot write to org/lgq: Expecting value: line 1$"):
        prepare("org/lgq")


def test_no_network(publication: Publication, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="cannot ask the Hub whether it takes the card: .*offline mode is enabled"):
        push(publication, "org/lgq")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot write to org/lgq: .*refused"):
        prepare("org/lgq")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)

    def go_away(*_: object, **options: object) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        raise RuntimeError("gone in the middle.")

    monkeypatch.setattr(HfApi, "create_commit", go_away)
    message = "the upload to org/lgq failed: gone in the middle. The Hub cannot be asked what it holds now; give the"
    with pytest.raises(OSError, match=message):
        push(publication, "org/lgq")


def test_an_upload_that_breaks_leaves_the_old_revision_and_can_be_repeated(
    hub: Hub, publication: Publication, other: Publication
) -> None:
    first = push(publication, "org/lgq")
    repository = hub.repositories["org/lgq"]
    before = f"Its branch main is as it was, at commit {first.commit[:10]}; give the command again"
    hub.faults = ["cut", "error"]
    for reason in ("isconnected|closed|reset|roken", "500"):
        with pytest.raises(OSError, match=f"the upload to org/lgq failed: .*({reason}).*{before}"):
            push(other, "org/lgq")
        assert repository.files == contents(publication) and len(repository.commits) == 1
    assert push(other, "org/lgq").changed and repository.files == contents(other)
    # the answer is lost, but not the commit
    hub.faults = ["lost"]
    with pytest.raises(
        OSError, match="stands at another commit now, .*this one, whose answer was lost; give the command"
    ):
        push(publication, "org/lgq")
    assert not push(publication, "org/lgq").changed and repository.files == contents(publication)
    assert len(repository.commits) == 3


def test_what_arrived_is_compared(hub: Hub, publication: Publication) -> None:
    hub.faults = ["garbled"]
    one, two, three = list(publication.files)[:3]
    size = publication.files[two]
    wrong = f"{one} has another hash, .{{10}}; {two} has {size - 1:,} bytes instead of {size:,}; {three} is missing"
    with pytest.raises(
        OSError, match=f"^commit .{{40}} of org/lgq is not what was sent: {wrong}. Push again, and do not use this"
    ):
        push(publication, "org/lgq", tag="v1")
    repository = hub.repositories["org/lgq"]
    assert repository.tags == {} and repository.files != contents(publication)
    assert push(publication, "org/lgq", tag="v1").changed and repository.files == contents(publication)


def test_a_branch_that_somebody_else_moves_is_not_written_over(hub: Hub, publication: Publication) -> None:
    hub.faults = ["moved"]
    with pytest.raises(OSError, match="main has moved on .*stands at another commit now, .*that of somebody else"):
        push(publication, "org/lgq")
    assert hub.repositories["org/lgq"].files == {"other.md": b"of somebody else"}


# What readers do. argv: the folder with what is expected.
_WITHOUT_THE_PACKAGE = """
import importlib.abc, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lgq_hf":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, NotInstalled())
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

expected = load_file(sys.argv[1] + "/expected.safetensors")
for at, name in (({}, "main"), ({"revision": "v2"}, "v2")):
    model = AutoModel.from_pretrained("org/lgq-16k", trust_remote_code=True, **at)
    assert type(model).__module__.startswith("transformers_modules.") and type(model).__name__ == "LGQModel"
    assert model.encode(expected["pixels"]).image_tokens.equal(expected[name]), name
assert AutoImageProcessor.from_pretrained("org/lgq-16k", trust_remote_code=True).pad_to_multiple_of == 8
assert "lgq_hf" not in sys.modules
"""

_WITH_THE_PACKAGE = """
import contextlib, io, os, sys
from pathlib import Path
from huggingface_hub import hf_hub_download
from lgq_hf import LGQTokenizer
from lgq_hf.checkpoint.loading import find_checkpoint
from lgq_hf.cli.main import main
from lgq_hf.generation import load_pipeline
from safetensors.torch import load_file

expected = load_file(sys.argv[1] + "/expected.safetensors")

def same(repository, name, **at):
    model = LGQTokenizer.from_pretrained(repository, **at)
    assert model.encode(expected["pixels"]).image_tokens.equal(expected[name]), name

def info(repository):
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        return main(["info", repository]), error.getvalue()

same("org/lgq-16k", "main")
same("org/lgq-16k", "main", revision="v1")
same("org/lgq-16k", "v2", revision="v2")
same("org/lgq-16k", "v2", revision="trial")
# private: for the token alone
status, error = info("org/hidden")
assert status == 2 and "cannot load the model 'org/hidden'" in error and "hf auth login" in error, error
same("org/hidden", "main", token="hf_test")

# written from here, by the client's own settings
os.environ["HF_TOKEN"] = "hf_test"
assert main(["push", sys.argv[1] + "/tiny", "org/again"]) == 0
del os.environ["HF_TOKEN"]
same("org/again", "main")

# a byte is another: the client does not see it, the commands do
path = Path(hf_hub_download("org/flipped", "model.safetensors"))
assert path.read_bytes() != Path(sys.argv[1], "tiny", "model.safetensors").read_bytes()
status, error = info("org/flipped")
assert status == 2 and "model.safetensors was damaged on its way from the Hub" in error, error
try:
    find_checkpoint("org/flipped")
    raise AssertionError("taken")
except ValueError as caught:
    assert "was damaged on its way from the Hub" in str(caught)
place = error.partition("Delete ")[2].partition(" and load")[0]
assert Path(place).is_file()
Path(place).unlink()
assert info("org/flipped") == (0, "")

# the end is missing: the client sees it
status, error = info("org/cut")
assert status == 2 and "Consistency check failed: file should be of size" in error, error
assert info("org/cut") == (0, "")

try:
    load_pipeline("org/pipe")
    raise AssertionError("taken")
except ValueError as caught:
    assert "model.safetensors was damaged on its way from the Hub" in str(caught), caught
"""


def read(script: str, folder: Path, *flags: str, **settings: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    ran = subprocess.run(
        [sys.executable, *flags, "-c", script, str(folder)],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]


@pytest.mark.slow
def test_the_round_trip(hub: Hub, folder: Path, publication: Publication, other: Publication, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "tiny")
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = {
        name: LGQModel.from_pretrained(one.folder).eval().encode(pixels).image_tokens
        for name, one in (("main", publication), ("v2", other))
    }
    assert not tokens["main"].equal(tokens["v2"])
    save_file({"pixels": pixels, **tokens}, tmp_path / "expected.safetensors")
    push(publication, "org/lgq-16k", tag="v1")
    push(other, "org/lgq-16k", revision="trial", tag="v2")
    for name in ("hidden", "flipped", "cut"):
        push(publication, f"org/{name}", private=name == "hidden")
    push(check_publishable(pipeline_folder(tmp_path / "pipe", "masked")), "org/pipe")
    hub.damage = {"org/flipped/model.safetensors": "flip", "org/cut/model.safetensors": "cut"}
    hub.damage["org/pipe/transformer/model.safetensors"] = "flip"
    one, two = ({"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / name)} for name in ("one", "two"))
    read(_WITHOUT_THE_PACKAGE, tmp_path, "-I", **one)
    read(_WITH_THE_PACKAGE, tmp_path, **two)
    assert hub.damage == {}
    hub.shutdown()
    hub.server_close()  # the cache is all there is
    read(_WITHOUT_THE_PACKAGE, tmp_path, "-I", **one, HF_HUB_OFFLINE="1")
