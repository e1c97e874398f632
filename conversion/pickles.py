"""Pickles of torch.save, looked through before torch reads them: nothing in them runs, and none asks for memory."""

import io
import mmap
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from conversion.plan import CheckpointError

MAX_PICKLE = 64 * 2**20  # of the pickle itself, without the tensors: one byte can become an object of a hundred
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this number, pickled


class Inert:
    """Stands in for a foreign object: takes whatever a pickle gives it, and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *args: object) -> "Inert":
        """Forgets the arguments; `__init__` is left to `object`, which then takes any."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Dictionary:
    """Stands in for a kind of dictionary: the unpickler fills plain ones only."""

    def __new__(cls, *args: object) -> Any:
        return {}


def _names(modules: str, classes: str) -> list[str]:
    return [f"{module}.{name}" for module in modules.split() for name in classes.split()]


_INERT = [
    "argparse.Namespace",
    "typing.Any",
    *_names("pathlib pathlib._local", "PosixPath WindowsPath PurePosixPath PureWindowsPath"),
    *_names("pytorch_lightning.callbacks lightning.pytorch.callbacks", "model_checkpoint.ModelCheckpoint"),
    *_names("pytorch_lightning.callbacks lightning.pytorch.callbacks", "early_stopping.EarlyStopping"),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *_names("omegaconf.base", "ContainerMetadata Metadata"),
    *_names("omegaconf.nodes", "AnyNode BooleanNode BytesNode FloatNode IntegerNode PathNode StringNode"),
    *_names("numpy.core.multiarray numpy._core.multiarray", "scalar _reconstruct"),
    *_names("numpy", "dtype ndarray"),
    *_names("builtins", "bool bytes dict float int list str tuple"),  # types that OmegaConf notes; bytes() is b""
]
_DICTIONARIES = [
    "collections.defaultdict",
    *_names("pytorch_lightning.utilities.parsing lightning.pytorch.utilities.parsing", "AttributeDict"),
    *_names("lightning_fabric.utilities.data lightning.fabric.utilities.data", "AttributeDict"),
]
# a class each, because Lightning's old files have such classes as keys
_STAND_INS: dict[str, type] = {
    **{name: type(name.rpartition(".")[2], (Inert,), {"__slots__": ()}) for name in _INERT},
    **dict.fromkeys(_DICTIONARIES, _Dictionary),
}
_ITEM_SIZES = {
    **dict.fromkeys(_names("torch", "BoolStorage ByteStorage CharStorage"), 1),
    **dict.fromkeys(_names("torch", "ShortStorage HalfStorage BFloat16Storage"), 2),
    **dict.fromkeys(_names("torch", "IntStorage FloatStorage"), 4),
    **dict.fromkeys(_names("torch", "LongStorage DoubleStorage ComplexFloatStorage"), 8),
    "torch.ComplexDoubleStorage": 16,
}
_REBUILD = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
# what torch allows and a checkpoint needs; torch's own list is longer: a bytearray may ask for any size
_PLAIN = {
    *_REBUILD,
    *_ITEM_SIZES,
    "torch._utils._rebuild_parameter",
    *_names("torch", "Size device"),
    *_names("collections", "Counter OrderedDict"),
    *_names("builtins", "complex set"),
    "_codecs.encode",
}
_DTYPE = re.compile(r"torch\.(bool|(b?float|u?int|complex)\d+)")
_PYTHON_2 = {"__builtin__.long": "builtins.int", "__builtin__.unicode": "builtins.str"}
_CONSTANTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Made:
    """What a call of a global or an instruction for an empty container gives."""

    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    numbers: int

    @property
    def size(self) -> int:
        return self.numbers * _ITEM_SIZES[self.kind]


class _Walk:
    """Follows a pickle's instructions without doing them: what it names, and the storages that it declares."""

    def __init__(self, stream: BinaryIO | mmap.mmap) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.refused: set[str] = set()
        self.storages: dict[str, _Storage] = {}
        self.encoded = 0
        start = stream.tell()
        for instruction, argument, position in pickletools.genops(stream):  # type: ignore[arg-type]
            if (position or 0) - start > MAX_PICKLE:
                raise CheckpointError(f"its pickle is longer than {MAX_PICKLE} bytes, which no state dict needs")
            self._step(instruction.name, argument)
        if self.refused:
            raise CheckpointError(
                f"loading it would import and run {', '.join(sorted(self.refused)[:10])}, so it is no plain "
                "checkpoint; where you trust it, load it with its own code and save the state dict as safetensors"
            )

    def _step(self, instruction: str, argument: Any) -> None:
        stack = self.stack
        if instruction in _CONSTANTS:
            stack.append(argument)
        elif instruction in _VALUES:
            stack.append(_VALUES[instruction])
        elif instruction in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif instruction in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif instruction == "EMPTY_LIST":
            stack.append([])
        elif instruction in ("EMPTY_DICT", "EMPTY_SET"):
            stack.append(_Made("a container"))
        elif instruction == "MARK":
            stack.append(_MARK)
        elif instruction == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif instruction in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(instruction[-1]))))
        elif instruction in ("APPEND", "APPENDS"):
            items = self._pop(1) if instruction == "APPEND" else self._pop_to_mark()
            stack[-1].extend(items)  # torch extends lists only, too
        elif instruction == "SETITEM":
            self._pop(2)
        elif instruction == "SETITEMS":
            self._pop_to_mark()
        elif instruction == "GLOBAL":
            stack.append(self._global(argument.replace(" ", ".")))
        elif instruction in ("REDUCE", "NEWOBJ"):
            stack.append(self._call(*self._pop(2)))
        elif instruction == "BUILD":
            self._build(*self._pop(2))
        elif instruction == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif instruction not in ("PROTO", "STOP"):
            raise CheckpointError(f"its pickle has the instruction {instruction}, which torch.save does not write")

    def _pop(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise CheckpointError("its pickle takes more than it gave: it is damaged")
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        start = len(self.stack)
        while self.stack[start - 1] is not _MARK:
            start -= 1  # past the first item it becomes an IndexError, below
        items = self.stack[start:]
        del self.stack[start - 1 :]
        return items

    def _global(self, name: str) -> _Global:
        name = _PYTHON_2.get(name, name.replace("__builtin__.", "builtins."))
        if name not in _PLAIN and name not in _STAND_INS and _DTYPE.fullmatch(name) is None:
            self.refused.add(name)
        return _Global(name)

    def _call(self, function: Any, arguments: Any) -> _Made:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise CheckpointError("its pickle calls what it did not name")
        if function.name in _REBUILD:
            _check_tensor(*arguments[:4])
        if function.name == "_codecs.encode":  # bytes; other codecs make a text longer, one call after the other
            text, codec = arguments
            if not isinstance(text, str) or codec != "latin1":
                raise CheckpointError("its pickle encodes text otherwise than pickles encode bytes")
            self.encoded += len(text)
            if self.encoded > MAX_PICKLE:
                raise CheckpointError("its pickle makes more bytes than it has")
        return _Made(function.name)

    def _build(self, target: Any, state: Any) -> None:
        # a tensor's state would be a new storage and shape
        known = isinstance(target, _Made) and target.name not in _REBUILD
        if not known or target.name == "torch._utils._rebuild_parameter":
            raise CheckpointError("its pickle changes an object after making it in a way that torch.save does not")
        self.stack.append(target)

    def _storage(self, identity: Any) -> _Storage:
        try:
            word, kind, key, _, count, *view = identity
            valid = word == "storage" and isinstance(kind, _Global) and kind.name in _ITEM_SIZES
            valid = valid and isinstance(key, str) and type(count) is int and count >= 0
            valid = valid and view in ([], [None])
        except (TypeError, ValueError):  # no tuple, or none of this length
            valid = False
        if not valid:
            raise CheckpointError("its pickle declares a storage in a way that torch.save does not")
        storage = _Storage(kind.name, count)
        if self.storages.setdefault(key, storage) != storage:
            raise CheckpointError(f"its pickle declares storage {key!r:.50} twice and differently")
        return storage


def _check_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> None:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or any(type(n) is not int for n in numbers):
        raise CheckpointError("its pickle makes a tensor in a way that torch.save does not")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(numbers) < 0 or (0 not in size and last >= storage.numbers):
        raise CheckpointError("it declares a tensor that reaches beyond its storage")


def check_zip(file: Path) -> None:
    """That a zip file is as torch.save writes it, so that reading it takes no more memory than its own size."""
    with zipfile.ZipFile(file) as archive:
        entries, comment = archive.infolist(), archive.comment
    sizes = {entry.filename: entry.file_size for entry in entries}
    if comment or len({name.lower() for name in sizes}) < len(entries):  # parsers differ in which of two they take
        raise CheckpointError("two entries of its zip archive have the same name, or it has a comment")
    if any(entry.flag_bits & 1 for entry in entries):
        raise CheckpointError("its zip archive is encrypted")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise CheckpointError(
            "its zip archive is compressed, so it could unpack to any size; torch.save never does that"
        )
    if sum(sizes.values()) > file.stat().st_size:
        raise CheckpointError(f"its zip entries overlap: they claim {sum(sizes.values())} bytes")
    folder = entries[0].filename.partition("/")[0] if entries else ""
    if f"{folder}/constants.pkl" in sizes:
        raise CheckpointError("it is a TorchScript program, not a checkpoint; save its state dict as safetensors")
    if f"{folder}/data.pkl" not in sizes:
        raise CheckpointError("it is a zip archive without data.pkl, so torch.save did not write it")
    pickled = next(entry for entry in entries if entry.filename == f"{folder}/data.pkl")
    if pickled.file_size > MAX_PICKLE:
        raise CheckpointError(f"its pickle is longer than {MAX_PICKLE} bytes, which no state dict needs")
    with file.open("rb") as stream:  # not through zipfile: torch can be told to write no checksums
        stream.seek(pickled.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", stream.read(30))
        stream.seek(name_length + extra_length, os.SEEK_CUR)
        walk = _Walk(io.BytesIO(stream.read(pickled.file_size)))
    for key, storage in walk.storages.items():
        if sizes.get(f"{folder}/data/{key}", -1) < storage.size:
            raise CheckpointError(f"it declares {storage.size} bytes of storage {key!r:.50} and does not have them")


def check_legacy(file: Path) -> None:
    """That the storages which a file of torch before 1.6 declares are there: torch allocates before it looks."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walks = [_Walk(content) for _ in range(5)]  # a magic number, the version, the system, the object, the keys
        left = len(content) - content.tell()
    storages, keys = walks[3].storages, walks[4].stack[-1]
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise CheckpointError("its list of storages does not match its tensors: it is damaged")
    declared = sum(storage.size + 8 for storage in storages.values())
    if declared > left:
        raise CheckpointError(f"it declares {declared} bytes of tensors and has {left}: it is truncated or damaged")


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, torch reads what stands in for other programs' classes, and no class of anybody's."""
    others = torch.serialization.get_safe_globals()  # what other libraries allowed does not count here
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


__all__ = ["LEGACY", "Inert", "check_legacy", "check_zip", "stand_ins"]
