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
from lgq_hf.cli.main import main
from lgq_hf.hub import Publication, check_name, check_publishable, prepare, push
from lgq_hf.hub.publishable import HERE
from tests.hub_server import READ_TOKEN, Hub, turn_to
from tests.lgq_hf.publishing import pipeline_folder, tokenizer_folder


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
    assert repository.commits == [sorted(publication.files)] and repository.messages[0].startswith("Upload tiny by")
    assert first.url == f"{hub.url}/org/lgq/commit/{repository.sha()}" and first.changed and first.foreign == []
    # on a branch, main and the tag stay
    second = push(other, "org/lgq", revision="trial", tag="v2", message="Another seed")
    assert repository.sha("main") == repository.sha("v1") == first.commit
    assert repository.sha("trial") == repository.sha("v2") == second.commit
    assert repository.states[1:] == [contents(publication), contents(other)]
    assert repository.messages[1] == "Another seed"
    # what is there already makes no commit
    again = push(other, "org/lgq", revision="trial")
    assert (again.commit, again.changed) == (second.commit, False) and len(repository.commits) == 2


def test_what_the_repository_holds_besides_stays_and_the_card_names_the_repository(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "tiny")
    card = tmp_path / "tiny" / "README.md"
    card.write_text(f"{card.read_text()}\nmodel = LGQTokenizer.{HERE}\n")
    prepare("org/lgq", private=True)
    hub.repositories["org/lgq"].add({"notes.md": b"by hand", ".gitattributes": b""})
    assert push(check_publishable(tmp_path / "tiny"), "org/lgq").foreign == ["notes.md"]
    repository = hub.repositories["org/lgq"]
    assert repository.files["notes.md"] == b"by hand" and repository.private
    assert repository.files["README.md"].decode() == card.read_text().replace('"."', '"org/lgq"') != card.read_text()


def test_what_is_refused_before_anything_is_sent(hub: Hub, publication: Publication) -> None:
    push(publication, "org/lgq", tag="v1")
    done = len(hub.requests)
    for at in ({"tag": "v1"}, {"revision": "v1"}, {"revision": "trial", "tag": "trial"}, {"tag": "main"}):
        with pytest.raises(ValueError, match=f"org/lgq: tag {at.get('tag')!r} must be new"):
            push(publication, "org/lgq", **at)
    with pytest.raises(ValueError, match="org/lgq exists and is public"):
        push(publication, "org/lgq", private=True)
    hub.refused = "license: mit"
    with pytest.raises(OSError, match="cannot prepare org/lgq"):
        push(publication, "org/lgq")
    assert not any("preupload" in request or "/commit/" in request for request in hub.requests[done:])


@pytest.mark.parametrize("name", ["lgq", "a/b/c", "org/", "org/a b"])
def test_names_that_no_repository_has(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        check_name(name)


def test_tokens_and_the_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_to(hub, tmp_path, monkeypatch, token=None)
    with pytest.raises(ValueError, match="org/lgq needs a token"):
        prepare("org/lgq")
    assert hub.requests == []
    for token in ("hf_wrong", READ_TOKEN):
        turn_to(hub, tmp_path, monkeypatch, token=token)
        with pytest.raises(OSError, match="cannot write to org/lgq: .*40[13]"):
            prepare("org/lgq")
    assert not hub.repositories
    turn_to(hub, tmp_path, monkeypatch)
    prepare("org/lgq")
    turn_to(hub, tmp_path, monkeypatch, token=READ_TOKEN)
    with pytest.raises(OSError, match="cannot write to org/lgq"):  # which is there
        prepare("org/lgq")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot write to org/lgq: .*refused"):
        prepare("org/lgq")


def test_an_upload_that_breaks_leaves_the_old_revision_and_can_be_repeated(
    hub: Hub, publication: Publication, other: Publication
) -> None:
    push(publication, "org/lgq")
    repository = hub.repositories["org/lgq"]
    hub.faults = ["error"]
    with pytest.raises(OSError, match="the upload to org/lgq failed: .*500"):
        push(other, "org/lgq")
    assert repository.files == contents(publication) and len(repository.commits) == 1
    hub.faults = ["moved"]  # what somebody else committed meanwhile is not written over
    with pytest.raises(OSError, match="the upload to org/lgq failed: .*main has moved on"):
        push(other, "org/lgq")
    assert repository.files == {**contents(publication), "other.md": b"of somebody else"}
    assert push(other, "org/lgq").changed and repository.files == {**contents(other), "other.md": b"of somebody else"}


def test_what_arrived_is_compared_before_it_gets_a_tag(hub: Hub, publication: Publication) -> None:
    hub.faults = ["garbled"]
    with pytest.raises(OSError, match=f"org/lgq is not what was sent \\({min(publication.files)}\\)"):
        push(publication, "org/lgq", tag="v1")
    assert hub.repositories["org/lgq"].tags == {}


def test_a_tag_that_fails_leaves_the_upload(
    hub: Hub, publication: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no answer\nof sense")

    monkeypatch.setattr(HfApi, "create_tag", fails)
    with pytest.raises(OSError, match="its tag 'v1' was not set: no answer of sense"):
        push(publication, "org/lgq", tag="v1")
    assert hub.repositories["org/lgq"].files == contents(publication)


def test_the_command(hub: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(folder, tmp_path / "tiny")
    (folder / "optimizer.bin").write_bytes(b"pickle")
    words = ["push", str(folder), "org/lgq", "--private", "--revision", "trial", "--message", "First", "--tag", "v1"]
    assert main([*words, "--dry-run"]) == 0
    *listed, total, left_out, last = capsys.readouterr().out.splitlines()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "optimizer.bin"}
    assert {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listed} == sizes
    assert total == f"{sum(sizes.values()):,}  {len(sizes)} files" and left_out == "left out: optimizer.bin"
    assert "org/lgq" in last and hub.requests == []
    assert main(words) == 0
    repository = hub.repositories["org/lgq"]
    commit = repository.sha(1)
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/org/lgq/commit/{commit} (tag v1)"
    assert repository.private and repository.messages == ["First"]
    assert (repository.branches, repository.tags) == ({"main": 0, "trial": 1}, {"v1": 1})
    assert repository.states[1].keys() == sizes.keys()
    repository.states[1]["notes.md"] = b"by hand"
    assert main(words[:-2]) == 0
    foreign, nothing, url = capsys.readouterr().out.splitlines()[-3:]
    assert foreign.endswith("notes.md") and nothing.startswith("nothing was new") and url.endswith(commit)
    (folder / "README.md").unlink()
    assert main(words) == 2 and capsys.readouterr().err.startswith("lgq: no card in ")


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
import os, sys
from lgq_hf import LGQTokenizer
from lgq_hf.checkpoint import find_checkpoint
from lgq_hf.cli.main import main
from lgq_hf.generation import load_pipeline
from safetensors.torch import load_file

expected = load_file(sys.argv[1] + "/expected.safetensors")

def same(repository, name, **at):
    model = LGQTokenizer.from_pretrained(repository, **at)
    assert model.encode(expected["pixels"]).image_tokens.equal(expected[name]), name

same("org/lgq-16k", "main")
same("org/lgq-16k", "main", revision="v1")
same("org/lgq-16k", "v2", revision="trial")
assert main(["info", "org/lgq-16k"]) == 0
assert find_checkpoint("org/lgq-16k", "v1").revision == find_checkpoint("org/lgq-16k").revision
assert load_pipeline("org/pipe").grid == (8, 8)

# written from here, by the client's own settings
os.environ["HF_TOKEN"] = "hf_test"
assert main(["push", sys.argv[1] + "/tiny", "org/again"]) == 0
same("org/again", "main")
"""


def read(script: str, folder: Path, *flags: str, **settings: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    ran = subprocess.run(
        [sys.executable, *flags, "-c", script, str(folder)],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", **settings},
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
    push(check_publishable(pipeline_folder(tmp_path / "pipe", "masked")), "org/pipe")
    one, two = ({"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / name)} for name in ("one", "two"))
    read(_WITHOUT_THE_PACKAGE, tmp_path, "-I", **one)
    read(_WITH_THE_PACKAGE, tmp_path, **two, PYTHONPATH=str(Path(__file__).parents[3]))
    hub.shutdown()
    hub.server_close()  # the cache is all there is
    read(_WITHOUT_THE_PACKAGE, tmp_path, "-I", **one, HF_HUB_OFFLINE="1")


_WRITE_PIPELINES = """
import sys, torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from tests.lgq_hf.generation.pipelines import small_pipeline

expected = {}
for kind in ("masked", "autoregressive"):
    pipe = small_pipeline(kind, id2label={0: "cats"})
    pipe.push_to_hub(f"org/{kind}")
    expected[kind] = pipe("cats", generator=torch.Generator().manual_seed(0)).image_tokens
save_file(expected, sys.argv[1] + "/expected.safetensors", {"first": HfApi().model_info("org/masked").sha})
pipe = small_pipeline("masked")
with torch.no_grad():
    pipe.transformer.tokens.bias[5] = 50.0  # every token is 5
pipe.push_to_hub("org/masked")
"""

_READ_PIPELINES = """
import sys, torch
from lgq_hf import LGQTokenizer
from lgq_hf.generation import LGQAutoregressivePipeline, LGQMaskedPipeline, load_pipeline
from safetensors import safe_open

with safe_open(sys.argv[1] + "/expected.safetensors", "pt") as file:
    expected, first = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["first"]
for kind, cls in (("masked", LGQMaskedPipeline), ("autoregressive", LGQAutoregressivePipeline)):
    for load in (cls.from_pretrained, load_pipeline):
        pipe = load(f"org/{kind}", revision=first if kind == "masked" else "main")
        assert type(pipe) is cls
        assert torch.equal(pipe("cats", generator=torch.Generator().manual_seed(0)).image_tokens, expected[kind])
assert (load_pipeline("org/masked")(None).image_tokens == 5).all()  # the newest commit
model = LGQTokenizer.from_pretrained("org/masked", subfolder="vqvae")
assert torch.equal(model.quantizer.centers, pipe.vqvae.quantizer.centers)
"""


@pytest.mark.slow
def test_pipelines_are_pushed_and_loaded_back_also_from_the_cache_alone(hub: Hub, tmp_path: Path) -> None:
    here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[3])}
    read(_WRITE_PIPELINES, tmp_path, **here, HF_TOKEN="hf_test")
    read(_READ_PIPELINES, tmp_path, **here)
    hub.shutdown()
    hub.server_close()
    read(_READ_PIPELINES, tmp_path, **here, HF_HUB_OFFLINE="1")
