"""Pickles of torch.save, read by torch with `weights_only=True`; classes of other programs get inert stand-ins."""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conversion.plan import CheckpointError

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
_REFUSED = re.compile(r"GLOBAL (\S+)")


def load(file: Path) -> Any:
    """What a file of torch.save holds; tensors are views of the mapped file (of torch before 1.6: copies).

    Raises:
        CheckpointError: where it names a class or function that is neither torch's nor one of the stand-ins.
    """
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    if zipped:
        _check_zip(file)
    with _stand_ins():
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:
            if (named := _REFUSED.search(str(error))) is None:
                raise
            name = named[1].rstrip(",.")
            raise CheckpointError(
                f"loading it would import and run {name}, so it is no plain checkpoint; where you trust it, load it "
                "with its own code and save the state dict as safetensors"
            ) from None


def _check_zip(file: Path) -> None:
    """That its entries are stored plainly: torch would map compressed ones as if they were numbers."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    names = {Path(entry.filename).name for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError("it is a TorchScript program, not a checkpoint; save its state dict as safetensors")
    if "data.pkl" not in names:
        raise CheckpointError("it is a zip archive without data.pkl, so torch.save did not write it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError("its zip archive is compressed, which torch.save never does; unpack and store it again")


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Within it, torch reads what stands in for other programs' classes, and no class of anybody's."""
    others = torch.serialization.get_safe_globals()  # what other libraries allowed does not count here
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


__all__ = ["LEGACY", "Inert", "load"]
