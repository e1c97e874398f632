"""Pickles: other programs' objects become inert, and what wants to run something is refused."""

import argparse
import collections
import os
import pathlib
import pickle
import re
import struct
import sys
import typing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from conversion import pickles
from conversion.read import read_weights
from tests.conversion.pickled import (
    LEGACY,
    WEIGHTS,
    Call,
    fake,
    is_inert,
    is_inert_class,
    pickle_of,
    refused,
    write_zip,
)

FAKED = [
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "omegaconf.listconfig.ListConfig",
    "numpy.core.multiarray.scalar",
    "lightning_fabric.utilities.data.AttributeDict",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


# ---- objects of other libraries


@pytest.mark.parametrize("name", FAKED)
def test_stand_ins_survive_every_way_of_pickling(name: str, file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if pickles._STAND_INS[name] is pickles._Dictionary:
            container = fake(patch, name, dict)
            values = {"new": container(lr=0.1), "empty": container()}
        else:
            simple = fake(patch, name, object)
            stateful = simple()
            stateful.__dict__ = {"items": 1, 2: WEIGHTS}
            values = {
                "class": simple,
                "reduced": Call(simple, 1, ("x", [2]), {}),
                "dictionary": stateful,
                "keys": {simple: 1, simple(): 2, (simple,): 3},
                "list": [simple(), simple],
            }
        torch.save(values, file)
        assert name.rpartition(".")[0].encode() in pickle_of(values)
    assert "omegaconf" not in sys.modules and "pytorch_lightning" not in sys.modules
    content = read_weights([file])
    if pickles._STAND_INS[name] is pickles._Dictionary:
        assert content == {"new": {"lr": 0.1}, "empty": {}} and type(content["new"]) is dict
        return
    assert is_inert_class(content["class"]) and is_inert(content["reduced"]) and is_inert(content["dictionary"])
    first, second, third = content["keys"]
    assert first is content["class"] and is_inert(second) and third == (first,)
    assert is_inert(content["list"][0]) and content["list"][1] is first


def test_two_callbacks_are_two_keys(file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        names = ["model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping"]
        classes = [fake(patch, f"pytorch_lightning.callbacks.{name}", object) for name in names]
        torch.save({"callbacks": {classes[0]: {"best": 1}, classes[1]: {"wait": 2}}}, file)
    assert list(read_weights([file])["callbacks"].values()) == [{"best": 1}, {"wait": 2}]


def test_objects_of_the_standard_library_and_numpy(file: Path) -> None:
    stored = {
        "namespace": argparse.Namespace(lr=1, nested=argparse.Namespace()),
        "path": pathlib.Path("a/b"),
        "pure": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b")],
        "any": typing.Any,
        "types": [int, str, float, bool, list, dict, tuple, bytes],
        "empty": b"",
        "default": collections.defaultdict(dict, {"a": {}}),
        "numpy": [np.float64(1.5), np.int32(3), np.arange(3), np.dtype("f4")],
    }
    torch.save(stored, file)
    content = read_weights([file])
    assert content["default"] == {"a": {}}
    objects = [content["namespace"], content["path"], *content["pure"], content["empty"], *content["numpy"]]
    assert all(is_inert(value) for value in objects)
    assert all(is_inert_class(value) for value in [content["any"], *content["types"]])


def test_omegaconf_containers_as_lightning_stores_them(file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        config, sequence = (
            fake(patch, f"omegaconf.{n}", object) for n in ("dictconfig.DictConfig", "listconfig.ListConfig")
        )
        metadata, node = (
            fake(patch, "omegaconf.base.ContainerMetadata", object),
            fake(patch, "omegaconf.nodes.AnyNode"),
        )
        about, number, root, several = metadata(), node(), config(), sequence()
        about.__dict__ = {"ref_type": typing.Any, "object_type": dict, "resolver_cache": collections.defaultdict(dict)}
        number.__dict__ = {"_metadata": about, "_parent": root, "_val": 3}
        several.__dict__ = {"_content": [number], "_parent": root, "_metadata": about}
        root.__dict__ = {"_content": {"a": number, "b": several}, "_parent": None, "_metadata": about}
        torch.save({"hyper_parameters": {"ddconfig": root}, "state_dict": WEIGHTS}, file)
    content = read_weights([file])
    assert is_inert(content["hyper_parameters"]["ddconfig"]) and content["state_dict"].keys() == WEIGHTS.keys()


def test_what_others_allowed_does_not_count_and_stays(file: Path) -> None:
    torch.save({"a": pathlib.PurePath("a"), "b": Call(print, "ran")}, file)
    with torch.serialization.safe_globals([print, (pathlib.PurePosixPath, "pathlib.PurePosixPath")]):
        before = set(torch.serialization.get_safe_globals())
        refused(file, "run print|builtins.print")
        torch.save({"a": pathlib.PurePosixPath("a")}, file)
        assert is_inert(read_weights([file])["a"])
        assert set(torch.serialization.get_safe_globals()) == before


# ---- files that want to run something


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_os_system_does_not_run(file: Path, tmp_path: Path, options: dict) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": WEIGHTS, "x": Call(os.system, f"echo > '{marker}'")}, file, **options)
    refused(file, r"(posix|nt)\.system")
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # the file was a real one


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_nested_eval_does_not_run(file: Path, tmp_path: Path, options: dict) -> None:
    marker = tmp_path / "ran"
    content = {"a": [{"b": (1, Call(eval, f"open({str(marker)!r}, 'w').close()"))}], "c": Call(os.getcwd)}
    torch.save(content, file, **options)
    refused(file, r"run (builtins\.)?eval")
    assert not marker.exists()


def test_code_behind_allowed_names_does_not_run(file: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoiled = fake(patch, "omegaconf.nodes.AnyNode", object)
        torch.save({"a": spoiled()}, file)
    (tmp_path / "omegaconf").mkdir()
    (tmp_path / "omegaconf" / "__init__.py").write_text("raise SystemExit")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert is_inert(read_weights([file])["a"])
    assert "omegaconf" not in sys.modules


def test_unknown_classes_are_named(file: Path) -> None:
    torch.save({"logger": WEIGHTS, "hook": Call}, file)
    refused(file, rf"{re.escape(Call.__module__)}\.Call.*no plain checkpoint")


def test_other_pickles(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": Call(os.getcwd)}))
    refused(file, "pickle that torch.save did not write")


def test_torchscript_is_refused(file: Path) -> None:
    write_zip(file, pickle_of({}), {"constants.pkl": b"x"})
    refused(file, "TorchScript program")


def test_compressed_archives_are_refused(file: Path) -> None:
    write_zip(file, pickle_of({"a": torch.ones(4)}), {"data/0": bytes(16)}, zipfile.ZIP_DEFLATED)
    refused(file, "compressed")


def test_storages_that_are_not_there(file: Path) -> None:
    write_zip(file, pickle_of({"a": torch.ones(77)}))
    refused(file, "damaged")
    torch.save({"a": torch.ones(77)}, file, **LEGACY)
    raw = bytearray(file.read_bytes())
    assert struct.unpack("<q", raw[-316:-308]) == (77,)
    raw[-316:-308] = struct.pack("<q", 2**40)
    file.write_bytes(raw)
    refused(file, "damaged")
