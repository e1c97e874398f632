"""Which checkpoints a visitor may name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.demo import named
from lgq_hf.demo.named import Models, is_loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.fixture
def first(tiny: Callable[..., Checkpoint]) -> Checkpoint:
    return tiny("sq_l2")


def test_a_local_server_loads_folders(first: Checkpoint, model_folder: Path, other_model_folder: Path) -> None:
    models = Models(first, local=True)
    loaded = models.named(f"  {model_folder} ")
    assert loaded.fingerprint == load_checkpoint(str(model_folder), "cpu").fingerprint
    assert models.named(str(model_folder)) is loaded
    assert models.named(str(model_folder), again=True) is not loaded
    models.named(str(other_model_folder))
    assert len(models._named) == 2


def test_few_stay_loaded(first: Checkpoint, model_folder: Path, tmp_path: Path) -> None:
    models = Models(first, local=True)
    names = [str(shutil.copytree(model_folder, tmp_path / name)) for name in "abc"]
    loaded = [models.named(name) for name in names]
    assert list(models._named) == names[1:]
    assert models.named(names[2]) is loaded[2] and models.named(names[0]) is not loaded[0]


def test_a_public_server_reads_no_folder(
    first: Checkpoint, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(first, local=False)
    message = "^expected a repository of the Hub such as org/name, got "
    for text in (str(model_folder), "../tiny", ".", "~/models", "", "a/b/c", "org/na me", "-x/y", "org/n\nm"):
        with pytest.raises(ValueError, match=message):
            models.named(text)
    # a folder of the form org/name is not read either: the Hub is asked, as somebody who is not logged in
    shutil.copytree(model_folder, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    def model_info(api: Any, name: str, **_: Any) -> Any:
        asked.append((api.token, name))
        raise OSError("404 no such repository\nand more")

    monkeypatch.setattr(named.HfApi, "model_info", model_info)
    with pytest.raises(ValueError, match="^the Hub shows no public model 'org/name': 404 no such repository$"):
        models.named("org/name")
    assert asked == [(False, "org/name")]
    assert Models(first, local=True).named("org/name").name == "org/name"  # where the visitor owns the machine


SIZES = {"config.json": 900, "preprocessor_config.json": 500, "model.safetensors": 1000}


@pytest.fixture
def a_hub(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Hub where each name is a repository: what its files' sizes are, where they lie, and what is asked of it."""
    hub = SimpleNamespace(sizes=dict[str, int | None](SIZES), folder=model_folder, asked=list[dict[str, Any]]())

    def model_info(api: Any, name: str, **_: Any) -> Any:
        files = [SimpleNamespace(rfilename=path, size=size) for path, size in hub.sizes.items()]
        return SimpleNamespace(sha="c0ffee", siblings=files)

    def snapshot_download(name: str, **options: Any) -> str:
        hub.asked.append({"name": name, **options})
        if isinstance(hub.folder, Exception):
            raise hub.folder
        return str(hub.folder)

    monkeypatch.setattr(named.HfApi, "model_info", model_info)
    monkeypatch.setattr(named, "snapshot_download", snapshot_download)
    return hub


def test_a_public_server_downloads_what_is_loaded_and_no_more(
    first: Checkpoint, model_folder: Path, a_hub: SimpleNamespace
) -> None:
    a_hub.sizes |= {"pytorch_model.bin": 10**12, "notes/config.json": 10**12, "adapter_config.json": 10**12}
    loaded = Models(first, local=False).named("org/name")
    assert loaded.fingerprint == load_checkpoint(str(model_folder), "cpu").fingerprint and loaded.name == "org/name"
    (options,) = a_hub.asked
    assert (options["name"], options["revision"], options["token"]) == ("org/name", "c0ffee", False)
    # no code, no pickles, no adapters, and no index, which could name files elsewhere
    assert options["allow_patterns"] == ["config.json", "preprocessor_config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model.safetensors": 3 * 10**9}, "has 3.0 GB, expected at most 2 GB"),
        ({"model.safetensors": 2 * 10**9}, "has 2.0 GB, expected at most 2 GB"),  # the other files count
        ({"config.json": 10**11}, "has 100,000,000,000 bytes in config.json, expected at most 1,000,000"),
        (
            {"preprocessor_config.json": 10**6 + 1},
            "has 1,000,001 bytes in preprocessor_config.json, expected at most 1,000,000",
        ),
        (
            {"model.safetensors": None},
            "has no model.safetensors: expected config.json, preprocessor_config.json, model.safetensors",
        ),
    ],
)
def test_a_public_server_downloads_no_large_file(
    first: Checkpoint, a_hub: SimpleNamespace, sizes: dict[str, int | None], message: str
) -> None:
    a_hub.sizes |= sizes
    with pytest.raises(ValueError, match=f"^the model 'org/large' {re.escape(message)}$"):
        Models(first, local=False).named("org/large")
    assert a_hub.asked == []


def test_a_public_server_makes_no_model_that_is_larger_than_its_files(
    first: Checkpoint, model_folder: Path, a_hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_hub.folder = Path(shutil.copytree(model_folder, tmp_path / "large"))
    config = json.loads((a_hub.folder / "config.json").read_text())
    (a_hub.folder / "config.json").write_text(json.dumps(config | {"codebook_size": 2**33}))
    monkeypatch.setattr(named, "load_checkpoint", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="^the model 'org/large' is refused: the model of its config.json has 1"):
        Models(first, local=False).named("org/large")


def test_a_public_server_shows_no_paths(
    first: Checkpoint, model_folder: Path, a_hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named.constants, "HF_HUB_CACHE", str(tmp_path))
    models = Models(first, local=False)
    a_hub.folder = OSError(28, "No space left on device", str(tmp_path / "blobs"))
    message = "the model 'org/lost' could not be downloaded: [Errno 28] No space left on device: '.../blobs'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        models.named("org/lost")

    a_hub.folder = Path(shutil.copytree(model_folder, tmp_path / "models--org--cut" / "snapshots" / "c0ffee"))
    (a_hub.folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="^cannot load the model 'org/cut': ") as raised:
        models.named("org/cut")
    assert str(tmp_path) not in str(raised.value)

    def damaged(place: str, _: str) -> None:
        raise ValueError(f"cannot load the model {place!r}: delete {tmp_path / 'models--org--cut' / 'blobs' / 'ab'}")

    (a_hub.folder / "preprocessor_config.json").write_text("{}")
    monkeypatch.setattr(named, "load_checkpoint", damaged)
    with pytest.raises(ValueError, match="^cannot load the model 'org/cut': delete .../models--org--cut/blobs/ab$"):
        models.named("org/cut")


def test_a_public_server_calls_folders_by_their_names(model_folder: Path, other_model_folder: Path) -> None:
    first, second = (load_checkpoint(str(folder), "cpu") for folder in (model_folder, other_model_folder))
    models = Models(first, second, local=False)
    assert models.second is not None and (models.first.name, models.second.name) == ("tiny", "other")
    assert models.named("other") is models.second and models.first.model is first.model
    local = Models(first, second, local=True)
    assert (local.first, local.second) == (first, second) and first.name == str(model_folder)


def test_what_the_owner_named_needs_no_permission(first: Checkpoint, tiny: Callable[..., Checkpoint]) -> None:
    second = tiny("vq_ema")
    assert Models(first, second, local=False).named("vq_ema") is second


def test_a_folder_without_a_model_is_told(first: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no config.json"):
        Models(first, local=True).named(str(tmp_path))
    with pytest.raises(
        ValueError, match="^expected a repository of the Hub such as org/name or a folder on this mach"
    ):
        Models(first, local=True).named("no such thing")
