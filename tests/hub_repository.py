"""A repository of the Hub of the tests: commits, branches, tags, and files by the hashes that the Hub gives them."""

import hashlib
from typing import Any


def git_sha1(content: bytes) -> str:
    """What git and the Hub call a file by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    """What LFS calls a file by."""
    return hashlib.sha256(content).hexdigest()


class Repository:
    """Commits, the first of which is empty; each is a whole set of files, and stays readable.

    Attributes:
        private: whether it is there only for those who have the token.
        states: files by path, of each commit.
        commits: paths that each commit after the first touched.
        messages: of these commits.
        branches, tags: numbers of commits by name.
        large: sha256 of files that came by LFS.
    """

    def __init__(self, name: str, *, private: bool = False) -> None:
        self.name, self.private = name, private
        self.states = [dict[str, bytes]()]
        self.commits: list[list[str]] = []
        self.messages: list[str] = []
        self.branches, self.tags = {"main": 0}, dict[str, int]()
        self.large: set[str] = set()

    @property
    def files(self) -> dict[str, bytes]:
        """The newest files of main by path."""
        return self.states[self.branches["main"]]

    @property
    def sha(self) -> str:
        """The newest commit of main."""
        return self.sha_of(self.branches["main"])

    def number_of(self, revision: str) -> int | None:
        """Of the commit that a branch, a tag or a hash names; `None` for a revision that is none of them."""
        shas = {self.sha_of(number): number for number in range(len(self.states))}
        return (self.branches | self.tags | shas).get(revision)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files; `None` as `number_of`."""
        number = self.number_of(revision)
        return None if number is None else (self.sha_of(number), self.states[number])

    def add(self, files: dict[str, bytes], deleted: set[str], *, branch: str = "main", message: str = "") -> str:
        """One commit; returns its hash."""
        kept = self.states[self.branches[branch]] | files
        self.states.append({path: content for path, content in kept.items() if path not in deleted})
        self.branches[branch] = len(self.states) - 1
        self.commits.append(sorted(files.keys() | deleted))
        self.messages.append(message)
        return self.sha_of(self.branches[branch])

    def sha_of(self, number: int) -> str:
        """Hash of a commit."""
        return hashlib.sha1(f"{self.name}{number}".encode()).hexdigest()

    def refs(self) -> dict[str, list[dict[str, str]]]:
        """Branches and tags as the Hub tells them."""
        kinds = {"branches": ("heads", self.branches), "tags": ("tags", self.tags)}
        told = {
            kind: [
                {"name": name, "ref": f"refs/{place}/{name}", "targetCommit": self.sha_of(number)}
                for name, number in known.items()
            ]
            for kind, (place, known) in kinds.items()
        }
        return {**told, "converts": []}

    def etag(self, content: bytes) -> str:
        """What a download of it is called by."""
        return digest if (digest := sha256(content)) in self.large else git_sha1(content)

    def entries(self, files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
        """Files and the folders that they lie in, by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                found[folder] = {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest()}
            found[path] = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if sha256(content) in self.large:
                found[path]["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return found
