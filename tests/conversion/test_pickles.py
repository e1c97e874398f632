"""Pickles that want to run something, or memory: refused before torch reads them."""

import argparse
import codecs
import collections
import copy
import os
import pathlib
import pickle
import re
import struct
import sys
import typing
import warnings
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
    name
    for name in pickles._STAND_INS
    if re.match(r"(pytorch_)?lightning|omegaconf|pathlib\._local|numpy\.core", name)
    for name in pickles._STAND_INS
    if re.match(r"(pytorch_)?lightning|omegaconf|pathlib\._local|numpy\.core", name)
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


def test_stand_ins_survive_states_of_every_kind(file: Path) -> None:
    name = "pytorch_lightning.callbacks.early_stopping.EarlyStopping"
    for state in ({"a": 1}, (None, {"a": 1}), ({"a": 1}, {"b": 2}), [1], 7, "text", ({"__class__": "x"}, None)):
        with pytest.MonkeyPatch.context() as patch:
            made = fake(patch, name, object, __getstate__=lambda self, state=state: state)
            torch.save({"a": made()}, file)
        assert is_inert(read_weights([file])["a"])
    with pytest.MonkeyPatch.context() as patch:
        slotted = fake(patch, name, object, __slots__=("a",))()
        slotted.a = 1
        torch.save({"a": slotted}, file)
    assert is_inert(read_weights([file])["a"])


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
        refused(file, "builtins.print")
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
    refused(file, r"builtins\.eval, (posix|nt)\.getcwd")
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
    torch.save(WEIGHTS, file, pickle_protocol=4)
    with warnings.catch_warnings(action="error"):
        refused(file, "instruction")


def test_torchscript_is_refused(file: Path) -> None:
    write_zip(file, pickle_of({}), {"constants.pkl": b"x"})
    refused(file, "TorchScript program")


# ---- files that want memory


def test_zip_bomb(file: Path) -> None:
    pickled = pickle_of({"a": torch.empty(2**20)})
    write_zip(file, pickled, compression=zipfile.ZIP_DEFLATED)
    zeros = bytes(2**24)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("archive/data/0", "w") as record:
            for _ in range(64):
                record.write(zeros)
    assert file.stat().st_size < 2**21
    refused(file, "compressed")


def test_bomb_in_the_pickle(file: Path) -> None:
    write_zip(file, b"\x80\x02" + b"}" * 10**7 + b".", compression=zipfile.ZIP_DEFLATED)
    refused(file, "compressed")


def test_long_pickles(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_PICKLE", 1000)
    for options in ({}, LEGACY):
        torch.save({"a": list(range(2000))}, file, **options)
        refused(file, "longer than 1000")
    monkeypatch.setattr(pickles, "_Walk", None)  # a zip file says it beforehand
    torch.save({"a": list(range(2000))}, file)
    refused(file, "longer than 1000")


def test_overlapping_entries(file: Path) -> None:
    write_zip(file, pickle_of({}), {"data/0": bytes(10_000)})
    with zipfile.ZipFile(file, "a") as archive:
        entry = archive.getinfo("archive/data/0")
        for index in range(1, 200):
            other = copy.copy(entry)
            other.filename = f"archive/data/{index}"
            archive.filelist.append(other)
        archive.writestr("archive/end", "")
    refused(file, "overlap")


def test_encrypted_entries(file: Path) -> None:
    torch.save(WEIGHTS, file)
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(raw)
    refused(file, "encrypted")


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/DATA.PKL"])
def test_entries_of_the_same_name(file: Path, name: str) -> None:
    write_zip(file, pickle_of({"a": 1}))
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr(name, pickle_of({"a": 2}))
    refused(file, "same name")


def declare(raw: bytes, numbers: int) -> bytes:
    """The same file, whose storage of 77 numbers says that it has more."""
    assert raw.count(b"K\x4d") == 2  # in the storage and in the tensor's shape
    start = raw.index(b"K\x4d")
    return raw[:start] + pickle.dumps(numbers, 2)[2:-1] + raw[start + 2 :]


@pytest.mark.parametrize("numbers", [78, 2**24, 2**31 - 1, 2**40, 2**70])
def test_storages_that_are_not_there(file: Path, numbers: int) -> None:
    content = {"a": torch.ones(77)}
    torch.save(content, file, **LEGACY)
    file.write_bytes(declare(file.read_bytes(), numbers))
    refused(file, f"declares {4 * numbers + 8} bytes of tensors and has 316")
    write_zip(file, declare(pickle_of(content), numbers), {"data/0": bytes(308)})
    refused(file, f"declares {4 * numbers} bytes of storage")
    write_zip(file, pickle_of(content))
    refused(file, "declares 308 bytes of storage '0' and does not have them")
    write_zip(file, pickle_of(content), {"data/0": bytes(308)})
    assert read_weights([file])["a"].shape == (77,)


def test_storages_declared_twice(file: Path) -> None:
    pickled = pickle_of({"a": torch.ones(77), "b": torch.ones(78)})
    write_zip(file, pickled.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000"), {"data/0": bytes(400)})
    refused(file, "declares storage '0' twice")


@pytest.mark.parametrize("numbers", [b"J\xff\xff\xff\xffN", b"G" + bytes(8) + b"N", b"K\x4d(h\x00K\x00K\x01t"])
def test_storages_of_another_form(file: Path, numbers: bytes) -> None:
    torch.save({"a": torch.ones(77)}, file, **LEGACY)
    raw = file.read_bytes()
    assert raw.count(b"K\x4dN") == 1
    file.write_bytes(raw.replace(b"K\x4dN", numbers))
    refused(file, "declares a storage in a way")


def test_legacy_storage_of_another_size_in_the_data(file: Path) -> None:
    torch.save({"a": torch.ones(77)}, file, **LEGACY)
    raw = bytearray(file.read_bytes())
    assert struct.unpack("<q", raw[-316:-308]) == (77,)
    raw[-316:-308] = struct.pack("<q", 2**40)
    file.write_bytes(raw)
    refused(file, "damaged")


def test_legacy_storages_that_nobody_fills(file: Path) -> None:
    torch.save({"a": torch.ones(77)}, file, **LEGACY)
    raw = file.read_bytes()
    tail = raw.rindex(b"\x80\x02]")  # the list of keys
    file.write_bytes(raw[:tail] + pickle.dumps([], 2) + bytes(400))
    refused(file, "does not match")


def rebuilt(*arguments: object) -> bytes:
    """A pickle that makes a tensor of a storage of 77 numbers with these arguments."""
    raw = pickle_of({"a": torch.ones(77)})
    start, end = raw.index(b"QK\x00") + 1, raw.index(b"\x89")
    return raw[:start] + b"".join(pickle.dumps(value, 2)[2:-1] for value in arguments) + raw[end:]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (77,), (1,)),
        (0, (2**33,), (1,)),
        (0, (78,), (1,)),
        (0, (2, 77), (1, 1)),
        (77, (1,), (1,)),
        (5, (2,), (-1,)),
        (-1, (1,), (1,)),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_beyond_their_storage(file: Path, legacy: bool, offset: int, size: tuple, stride: tuple) -> None:
    write_rebuilt(file, legacy, offset, size, stride)
    refused(file, "reaches beyond its storage")


def test_tensors_within_their_storage(file: Path) -> None:
    for legacy in (False, True):
        for arguments in [(7, (70,), (1,)), (0, (7, 11), (1, 7)), (76, (5,), (0,)), (0, (0, 9), (9, 1))]:
            write_rebuilt(file, legacy, *arguments)
            assert read_weights([file])["a"].shape == arguments[1]


def write_rebuilt(path: Path, legacy: bool, *arguments: object) -> None:
    if not legacy:
        write_zip(path, rebuilt(*arguments), {"data/0": bytes(308)})
        return
    torch.save({"a": torch.ones(77)}, path, **LEGACY)
    raw = path.read_bytes()
    start, end = raw.index(b"QK\x00") + 1, raw.index(b"\x89")
    path.write_bytes(raw[:start] + b"".join(pickle.dumps(value, 2)[2:-1] for value in arguments) + raw[end:])


def test_tensors_changed_after_they_were_made(file: Path) -> None:
    pickled = pickle_of({"a": torch.ones(77)})
    assert pickled.endswith(b"s.")
    state = pickle.dumps((1, (2**33,)), 2)[2:-1]
    write_zip(file, pickled[:-2] + state + b"bs.", {"data/0": bytes(308)})
    refused(file, "changes an object after making it")


def test_calls_that_multiply_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": Call(bytearray, 2**40)}, file)
    refused(file, r"builtins\.bytearray")
    text = "c_codecs\nencode\n"
    doubled = b"\x80\x02}X\x01\x00\x00\x00a" + text.encode() * 30 + b"X\x01\x00\x00\x00b"
    write_zip(file, doubled + b"X\x03\x00\x00\x00hex\x86R" * 30 + b"s.")
    refused(file, "encodes text otherwise")
    torch.save({"a": Call(codecs.encode, "x", "utf-32")}, file)
    refused(file, "encodes text otherwise")
    monkeypatch.setattr(pickles, "MAX_PICKLE", 3000)
    shared = "x" * 1000
    torch.save({"a": [Call(codecs.encode, shared, "latin1") for _ in range(4)]}, file)
    refused(file, "more bytes than it has")
