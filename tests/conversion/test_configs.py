"""Configurations beside a checkpoint: which are found, how they are read, and that nothing in them runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversion.configs import find_configs as find_configs_of
from conversion.plan import CheckpointError

Write = Callable[..., Path]
YAML = "model:\n  target: taming.models.vqgan.VQModel\n"


def find_configs(weights: Path, given: Path | None = None) -> dict[str, Any]:
    """Of both kinds, or of the kind that a name stands for."""
    kinds = ("yaml", "json") if given is None else ("json",) if given.suffix == ".json" else ("yaml",)
    return {name: config for kind in kinds for name, config in find_configs_of(weights, given, kind).items()}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("folder/name", text)` below the test's folder."""

    def make(name: str, text: str = YAML) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return make


def test_nothing_beside_is_no_configuration(tmp_path: Path) -> None:
    assert find_configs(tmp_path / "last.ckpt") == {}


@pytest.mark.parametrize("name", ["model.yaml", "config.yaml", "last.yaml", "anything.yaml", "anything.yml"])
def test_a_yaml_beside_the_weights(name: str, write: Write, tmp_path: Path) -> None:
    write(name)
    assert find_configs(tmp_path / "last.ckpt") == {"yaml": {"model": {"target": "taming.models.vqgan.VQModel"}}}


@pytest.mark.parametrize("name", ["2021-04-23T18-11-19-project.yaml", "model.yaml", "last.yaml"])
def test_a_yaml_in_configs_beside_checkpoints(name: str, write: Write, tmp_path: Path) -> None:
    write(f"logs/configs/{name}", "a: 1")
    assert find_configs(tmp_path / "logs/checkpoints/last.ckpt") == {"yaml": {"a": 1}}
    assert find_configs(tmp_path / "logs/weights/last.ckpt") == {}


@pytest.mark.parametrize("usual", ["model.yaml", "config.yaml", "last.yaml", "run-project.yaml"])
def test_of_several_yamls_the_usual_name_is_taken(usual: str, write: Write, tmp_path: Path) -> None:
    for other in ("a.yaml", "lightning.yaml", "run-lightning.yml"):
        write(other, "b: 2")
    write(usual, "a: 1")
    assert find_configs(tmp_path / "last.ckpt") == {"yaml": {"a": 1}}


@pytest.mark.parametrize(
    "names", [("a.yaml", "b.yml"), ("config.yaml", "model.yaml"), ("a-project.yaml", "b-project.yaml", "c.yaml")]
)
def test_several_yamls_of_which_none_stands_out_are_named(
    names: tuple[str, ...], write: Write, tmp_path: Path
) -> None:
    for name in names:
        write(name)
    with pytest.raises(CheckpointError, match=rf"several YAML files beside last\.ckpt: {', '.join(names)}\. .*--no-c"):
        find_configs(tmp_path / "last.ckpt")


@pytest.mark.parametrize("kind", ["_class_name", "model_type", "architectures"])
def test_a_json_of_a_known_kind(kind: str, write: Write, tmp_path: Path) -> None:
    write("config.json", json.dumps({kind: "VQModel"}))
    assert find_configs(tmp_path / "model.bin") == {"json": {kind: "VQModel"}}


def test_another_json_is_left_alone(write: Write, tmp_path: Path) -> None:
    write("config.json", json.dumps({"source": "somebody's notes", "architecture": {}}))
    write("vqvae.json", json.dumps({"_class_name": "VQModel"}))
    assert find_configs(tmp_path / "model.bin") == {}


def test_both_kinds_together(write: Write, tmp_path: Path) -> None:
    write("config.json", json.dumps({"_class_name": "VQModel"}))
    write("config.yaml", "a: 1")
    assert find_configs(tmp_path / "model.bin").keys() == {"json", "yaml"}


@pytest.mark.parametrize(("name", "kind"), [("mine.json", "json"), ("mine.yaml", "yaml"), ("mine.txt", "yaml")])
def test_a_named_file_is_the_only_one(name: str, kind: str, write: Write, tmp_path: Path) -> None:
    write("model.yaml", "beside: 1")
    write("config.json", json.dumps({"_class_name": "beside"}))
    given = write(f"elsewhere/{name}", json.dumps({"a": 1}))
    assert find_configs(tmp_path / "last.ckpt", given) == {kind: {"a": 1}}


def test_a_named_file_that_is_not_there(write: Write, tmp_path: Path) -> None:
    write("model.yaml")
    for missing in (tmp_path / "mine.yaml", tmp_path):
        with pytest.raises(CheckpointError, match=r"--config .*: no such file"):
            find_configs(tmp_path / "last.ckpt", missing)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.yaml", "a: [1", r"model\.yaml cannot be read as YAML: "),
        ("model.yaml", "a: 1\n---\nb: 2", r"model\.yaml cannot be read as YAML: .*single document"),
        ("config.json", "{'a': 1}", r"config\.json cannot be read as JSON: "),
        ("config.json", "[" * 100_000, r"config\.json cannot be read as JSON: "),
        ("model.yaml", "[" * 5_000, r"model\.yaml cannot be read as YAML: "),
        ("model.yaml", "- 1\n- 2", r"expected .*model\.yaml to hold names and values, got list"),
        ("model.yaml", "", r"expected .*model\.yaml to hold names and values, got NoneType"),
        ("config.json", "3", r"expected .*config\.json to hold names and values, got int"),
    ],
    ids=["yaml", "two_yamls", "json", "deep_json", "deep_yaml", "list", "empty", "number"],
)
def test_broken_files_are_refused(name: str, text: str, said: str, write: Write, tmp_path: Path) -> None:
    write(name, text)
    with pytest.raises(CheckpointError, match=f"(?s){said}"):
        find_configs(tmp_path / "last.ckpt")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(CheckpointError, match="cannot be read as YAML"):
        find_configs(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system",
        "!!python/object/apply:pathlib.Path.touch",
        "!!python/object/new:os.system",
        "!!python/name:os.system",
    ],
)
def test_a_yaml_that_calls_something_does_not_run(tag: str, write: Write, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    value = "" if "name" in tag else f' ["{proof}"]' if "touch" in tag else f" [\"touch '{proof}'\"]"
    write("model.yaml", f"{YAML}  params: {tag}{value}\n")
    with pytest.raises(CheckpointError, match=r"(?s)model\.yaml cannot be read as YAML: .*could not determine a cons"):
        find_configs(tmp_path / "last.ckpt")
    assert not proof.exists()


def test_files_of_another_kind_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{")
    (tmp_path / "b.yaml").write_text("[")
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert find_configs_of(tmp_path / "model.bin", None, "json") == {"json": {"model_type": "x"}}
    (tmp_path / "config.json").write_text("[1]")
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).rename(tmp_path / f".{name}")
    (tmp_path / "model.yaml").write_text("a: 1")
    assert find_configs_of(tmp_path / "model.bin", None, "yaml") == {"yaml": {"a": 1}}
    with pytest.raises(CheckpointError, match=r"--config .*the format of this checkpoint reads JSON"):
        find_configs_of(tmp_path / "model.bin", tmp_path / "model.yaml", "json")
