"""Checkpoints of the page: the one it was started with, and those that a visitor names."""

import ipaddress
import re
import threading
from collections import OrderedDict
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from lgq_hf.checkpoint import Checkpoint, load_checkpoint

MOST_MODEL_BYTES = 2 * 10**9  # of the weights that a visitor may make a public server download
_KEPT = 2  # named checkpoints that stay loaded
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILES = ("*.json", "*.safetensors")


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
            neither folders of the server nor what only its owner's access token opens.
        device: as of `load_checkpoint`, for named ones.
    """

    def __init__(
        self, first: Checkpoint, second: Checkpoint | None = None, *, local: bool, device: str = "cpu"
    ) -> None:
        self.first, self.second, self.local, self.device = first, second, local, device
        self._named: OrderedDict[str, Checkpoint] = OrderedDict()
        self._lock = threading.Lock()

    def named(self, text: str, *, again: bool = False) -> Checkpoint:
        """The checkpoint that a visitor typed the name of; those used last stay loaded.

        Args:
            text: "org/name", or a folder where the server is `local`. Nothing that it holds is run.
            again: load it anew, because a folder may have changed.

        Raises:
            ValueError: another text, or a checkpoint that cannot be loaded or is not public; in one line.
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
            folder = " or a folder on this machine" if self.local else ""
            raise ValueError(f"expected a repository of the Hub such as org/name{folder}, got {name[:200]!r}")
        # of a public server a folder of that name must not be read, so what was downloaded is loaded by its own path
        return load_checkpoint(name if self.local else str(_download_public(name)), self.device)


def _download_public(name: str) -> Path:
    """The folder of a repository's newest files, asked for as somebody who is not logged in.

    Raises:
        ValueError: it is not there or not public, has no weights or too many, or the Hub is out of reach.
    """
    try:
        info = HfApi(token=False).model_info(name, files_metadata=True, timeout=20)
    except Exception as error:  # of the client's several libraries, which share no class
        raise ValueError(f"the Hub shows no public model {name!r}: {_first_line(error)}") from error
    weights = [file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")]
    if not weights:
        raise ValueError(f"the model {name!r} has no weights in safetensors, which alone are loaded")
    if sum(weights) > MOST_MODEL_BYTES:
        size, most = sum(weights) / 1e9, MOST_MODEL_BYTES / 1e9
        raise ValueError(f"the model {name!r} has {size:.1f} GB of weights, expected at most {most:.0f} GB")
    try:
        folder = snapshot_download(
            name, revision=info.sha, token=False, allow_patterns=list(_FILES), ignore_patterns=["*/*"]
        )
    except Exception as error:  # as above
        raise ValueError(f"the model {name!r} could not be downloaded: {_first_line(error)}") from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = ["MOST_MODEL_BYTES", "Models", "is_loopback"]
