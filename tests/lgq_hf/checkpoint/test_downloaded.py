"""Hashes as the Hub's, and snapshots in its cache. What is really downloaded is looked at in test_hub.py."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from lgq_hf.checkpoint.downloaded import check_downloaded, digest_like


def test_hashes_are_those_of_git_and_of_lfs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"some bytes" * 200_000)
    command = ["git", "hash-object", "--no-filters", str(path)]
    git = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert digest_like(path, "0" * 40) == git
    assert digest_like(path, "0" * 64) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("digits", [40, 64])
def test_a_snapshot(tmp_path: Path, digits: int) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"{}")
    blob = tmp_path / "blobs" / digest_like(content, "0" * digits)
    blob.parent.mkdir()
    blob.write_bytes(b"{}")
    inside = tmp_path / "snapshots" / "commit" / "part"
    inside.mkdir(parents=True)
    (inside / "config.json").symlink_to(Path("../../../blobs") / blob.name)
    (inside / "own.json").write_text("no link")
    check_downloaded(inside.parent)
    blob.write_bytes(b"[]")
    with pytest.raises(
        ValueError, match=f"config.json was damaged .* the Hub's is {blob.name[:12]}. Delete {blob} and"
    ):
        check_downloaded(inside.parent)


def test_links_elsewhere_have_no_hash(tmp_path: Path) -> None:
    inside = tmp_path / "snapshots" / "commit"
    inside.mkdir(parents=True)
    for folder, name in (("blobs", "model"), ("store", "0" * 64)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{}")
        (inside / f"{folder}.json").symlink_to(tmp_path / folder / name)
    check_downloaded(inside)
