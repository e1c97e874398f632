"""Checkpoints of the page: the one it was started with, and those that a visitor names."""

import copy
import ipaddress
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint

from .limits import FILES, MOST_BYTES, MOST_JSON_BYTES, check_affordable

_KEPT = 2  # named checkpoints that stay loaded
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may be anyone's
        return False


class Models:
    """The checkpoints of one server; sessions share them, since nothing changes them.

    Args:
        first: the one that pictures are tokenized with.
        second: the one that they are compared with from the beginning, if any.
        local: only this machine reaches the server. If not, visitors may name public repositories of the Hub alone:
            neither folders of the server nor what only its owner's access token opens; and they see no paths.
        device: as of `load_checkpoint`, for named ones.
    """

    def __init__(
        self, first: Checkpoint, second: Checkpoint | None = None, *, local: bool, device: str = "cpu"
    ) -> None:
        self.first = first if local else _without_path(first)
        self.second = second if local or second is None else _without_path(second)
        self.local, self.device = local, device
        self._named: OrderedDict[str, Checkpoint] = OrderedDict()
        self._lock = threading.Lock()

    def named(self, text: str, *, again: bool = False) -> Checkpoint:
        """The checkpoint that a visitor typed the name of; those used last stay loaded.

        Args:
            text: "org/name", or a folder where the server is `local`. Nothing that it holds is run.
            again: load it anew, because a folder may have changed.

        Raises:
            ValueError: another text, or a checkpoint that cannot be loaded, is not public or (of a public server) not
                affordable; in one line.
            Exception: others that loading can raise, such as ImportError and MemoryError.
        """
        name = text.strip()
        if self.second is not None and name == self.second.name:
            return self.second
        with self._lock:
            loaded = None if again else self._named.get(name)
        if loaded is None:  # without the lock: a download must not keep those waiting whose model is here
            loaded = self._load(name)
        with self._lock:
            self._named[name] = loaded
            self._named.move_to_end(name)
            while len(self._named) > _KEPT:
                self._named.popitem(last=False)
        return loaded

    def _load(self, name: str) -> Checkpoint:
        if self.local and name and Path(name).expanduser().is_dir():
            return load_checkpoint(str(Path(name).expanduser()), self.device)
        if not _REPOSITORY.fullmatch(name):
            other = " or a folder on this machine" if self.local else ""
            raise ValueError(f"expected a repository of the Hub such as org/name{other}, got {name[:200]!r}")
        if self.local:
            return load_checkpoint(name, self.device)
        folder = _download_public(name)
        try:
            check_affordable(folder)
        except ValueError as error:
            raise ValueError(f"the model {name!r} is refused: {error}") from error
        try:  # by its own path: a folder that is called as the repository must not be read
            loaded = load_checkpoint(str(folder), self.device)
        except ValueError as error:
            raise ValueError(_without_cache(str(error).replace(str(folder), name))) from error
        loaded.name = name
        return loaded


def _without_path(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, called by the last part of its folder's path; as it is where its name is no folder."""
    if not Path(checkpoint.name).is_dir():
        return checkpoint
    shown = copy.copy(checkpoint)
    shown.name = Path(os.path.abspath(checkpoint.name)).name
    return shown


def _without_cache(text: str) -> str:
    """A message without the place of the Hub's cache on this machine."""
    cache = Path(constants.HF_HUB_CACHE)
    return text.replace(str(cache), "...").replace(str(cache.resolve()), "...")


def _download_public(name: str) -> Path:
    """The folder of a repository's newest files, asked for as somebody who is not logged in.

    Raises:
        ValueError: it is not there or not public, lacks a file or has too large ones, or the Hub is out of reach.
    """
    try:
        info = HfApi(token=False).model_info(name, files_metadata=True, timeout=20)
    except Exception as error:  # of the client's several libraries, which share no class
        raise ValueError(f"the Hub shows no public model {name!r}: {_first_line(error)}") from error
    _check_sizes(name, {file.rfilename: file.size for file in info.siblings or () if file.rfilename in FILES})
    try:
        return Path(snapshot_download(name, revision=info.sha, token=False, allow_patterns=list(FILES)))
    except Exception as error:  # as above
        raise ValueError(f"the model {name!r} could not be downloaded: {_first_line(error)}") from error


def _check_sizes(name: str, sizes: dict[str, int | None]) -> None:
    """Refuses (`ValueError`) files, by name and bytes, that are not those of a model, or too large."""
    if missing := [file for file in FILES if sizes.get(file) is None]:
        raise ValueError(f"the model {name!r} has no {' and no '.join(missing)}: expected {', '.join(FILES)}")
    for file, size in sizes.items():
        if file.endswith(".json") and (size or 0) > MOST_JSON_BYTES:
            raise ValueError(f"the model {name!r} has {size:,} bytes in {file}, expected at most {MOST_JSON_BYTES:,}")
    if (total := sum(size or 0 for size in sizes.values())) > MOST_BYTES:
        raise ValueError(f"the model {name!r} has {total / 1e9:.1f} GB, expected at most {MOST_BYTES / 1e9:.0f} GB")


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return _without_cache(line)


__all__ = ["Models", "is_loopback"]
