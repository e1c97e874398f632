"""Whether files that came from the Hub are what the Hub holds: by the hashes that its cache names them by."""

import hashlib
import os
import re
from pathlib import Path

from lgq_hf.files import file_sha256

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATTERNS = ("*.json", "*.safetensors")


def digest_like(path: Path, expected: str) -> str:
    """The hash of a file, in hex, of the kind that the Hub tells of it.

    Args:
        path: the file.
        expected: of 64 digits: sha256, by which LFS and Xet know a file; or of 40: sha1 as git computes it.
    """
    if len(expected) == 64:
        return file_sha256(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while part := opened.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def check_downloaded(folder: Path) -> None:
    """Compares configurations and weights of a snapshot in the Hub's cache with the hashes that the Hub gave them.

    huggingface_hub compares the sizes of what it downloads over HTTP, and no more. Its cache keeps a file under the
    hash that the Hub told, and a snapshot links to it; so what is compared needs no network. Files of other folders,
    and of caches on systems without links, have no such name: nothing is compared there.

    Args:
        folder: of the snapshot; its subfolders belong to it.

    Raises:
        ValueError: a file is another than the Hub's.
    """
    if folder.parent.name != "snapshots":
        return
    for path in sorted(path for pattern in _PATTERNS for path in folder.rglob(pattern)):
        if not path.is_symlink():
            continue
        blob = path.parent / os.readlink(path)  # one step: behind it may stand a file that repositories share
        if blob.parent.name != "blobs" or not _HASH.fullmatch(blob.name):
            continue
        found = digest_like(path, blob.name)
        if found != blob.name:
            raise ValueError(
                f"{path.name} was damaged on its way from the Hub, or on this disk: its hash is {found[:12]}, the "
                f"Hub's is {blob.name[:12]}. Delete {blob.resolve()} and load again"
            )


__all__ = ["check_downloaded", "digest_like"]
