"""Pictures that cannot be read: listed, counted, and borne up to a share."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_ALWAYS_BORNE = 10
_SHOWN = 3


class BrokenPictures:
    """Counts the different broken pictures that one process met, and lists each once, in a file and in the log.

    Args:
        path: file that `{"name", "reason"}` is appended to, one row of JSON for each picture; the processes of a run
            may share it, and then a picture that several of them met stands there several times.
        max_share: in [0, 1]; more broken pictures than that share of all, and than ten, are an error.
        size: pictures there are; 0 where nobody knows (a stream): then those seen so far count.
    """

    def __init__(self, path: str | Path, max_share: float, size: int = 0) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share: expected a share in [0, 1], got {max_share}")
        self.path, self.max_share, self.size = Path(path), max_share, size
        self.reasons: dict[str, str] = {}
        self.seen = 0
        if self.path.exists():
            written = self.path.read_bytes()
            os.truncate(self.path, written.rfind(b"\n") + 1)  # a row that a kill cut short is written again

    def add(self, broken: Sequence[tuple[str, str]], seen: int) -> None:
        """Notes (name, reason) of the broken pictures of a batch of `seen` samples.

        Raises:
            ValueError: too many are broken by now.
        """
        self.seen += seen
        new = {name: reason for name, reason in broken if name not in self.reasons}
        if not new:
            return
        self.reasons |= new
        known = self.listed()  # by another process, or before this run was resumed
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                "".join(
                    json.dumps({"name": name, "reason": reason}) + "\n"
                    for name, reason in new.items()
                    if name not in known
                )
            )
        for name, reason in new.items():
            _log.warning("%s cannot be read: %s", name, reason)
        if len(self.reasons) > max(_ALWAYS_BORNE, self.max_share * max(self.seen, self.size)):
            last = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[-_SHOWN:])
            raise ValueError(
                f"{len(self.reasons)} broken pictures among {self.seen} samples: at most a share of {self.max_share} "
                f"is borne, and {_ALWAYS_BORNE} always. The last: {last}. All are listed in {self.path}: remove or "
                "repair them, or raise the share"
            )

    def listed(self) -> set[str]:
        """Names of all pictures that any process of the run, or of its beginnings, found broken."""
        if not self.path.exists():
            return set()
        return {json.loads(line)["name"] for line in self.path.read_text(encoding="utf-8").splitlines()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed process needs: {"seen": samples so far, "reasons": {name: reason}}."""
        return {"seen": self.seen, "reasons": dict(self.reasons)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`; pictures in it are not listed again."""
        self.seen, self.reasons = state["seen"], dict(state["reasons"])
