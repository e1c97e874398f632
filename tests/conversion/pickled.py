"""Files that claim to be checkpoints, for the tests of reading them."""

import io
import re
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conversion.plan import CheckpointError
from conversion.read import Inert, read_weights

LEGACY = {"_use_new_zipfile_serialization": False}
WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(3)}


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_weights([path])
    named, _, rest = str(caught.value).partition("' ")
    assert named == f"'{path}" and re.search(reason, rest), caught.value  # the path has the test's name in it


def pickle_of(content: object) -> bytes:
    """The pickle that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def write_zip(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, compression: int = 0) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, content in (records or {}).items():
            archive.writestr(f"archive/{name}", content)


def fake(patch: pytest.MonkeyPatch, name: str, *bases: type, **members: object) -> type:
    """A class that pickles write as `name`, until the patch is undone."""
    module, _, attribute = name.rpartition(".")
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        parent = ".".join(parts[:length])
        if parent not in sys.modules:
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
    made = type(attribute, bases, {"__module__": module, **members})
    patch.setattr(sys.modules[module], attribute, made, raising=False)
    return made


def is_inert(value: object) -> bool:
    return isinstance(value, Inert) and not hasattr(value, "__dict__")


def is_inert_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Inert)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call
