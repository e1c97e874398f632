"""Which checkpoints a visitor may name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lgq_hf.checkpoint import Checkpoint, load_checkpoint
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


def test_a_public_server_downloads_what_is_public_and_not_too_large(
    first: Checkpoint, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(first, local=False)
    sizes: dict[str, int | None] = {"model.safetensors": 1000, "pytorch_model.bin": 10**12}
    asked: list[dict[str, Any]] = []

    def model_info(api: Any, name: str, **_: Any) -> Any:
        files = [SimpleNamespace(rfilename=path, size=size) for path, size in sizes.items()]
        return SimpleNamespace(sha="c0ffee", siblings=files)

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(model_folder)

    monkeypatch.setattr(named.HfApi, "model_info", model_info)
    monkeypatch.setattr(named, "snapshot_download", snapshot_download)
    assert models.named("org/name").fingerprint == load_checkpoint(str(model_folder), "cpu").fingerprint
    (options,) = asked
    assert (options["name"], options["revision"], options["token"]) == ("org/name", "c0ffee", False)
    assert options["allow_patterns"] == ["*.json", "*.safetensors"]  # no code, no pickles

    sizes["model.safetensors"] = 3 * 10**9
    with pytest.raises(ValueError, match="^the model 'org/large' has 3.0 GB of weights, expected at most 2 GB$"):
        models.named("org/large")
    del sizes["model.safetensors"]
    with pytest.raises(ValueError, match="^the model 'org/pickle' has no weights in safetensors, which alone are"):
        models.named("org/pickle")
    assert len(asked) == 1

    def broken(name: str, **_: Any) -> str:
        raise OSError("connection lost")

    sizes["model.safetensors"] = 1
    monkeypatch.setattr(named, "snapshot_download", broken)
    with pytest.raises(ValueError, match="^the model 'org/lost' could not be downloaded: connection lost$"):
        models.named("org/lost")


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
