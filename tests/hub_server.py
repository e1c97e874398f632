"""A Hub on this machine: what `huggingface_hub` needs to make repositories of models and datasets, fill and read them.

    with serve("org/model", "datasets/org/name") as hub: ...    # hub.url is the endpoint

A repository is named as in the Hub's addresses, a dataset with "datasets/" in front. Whoever writes must send `TOKEN`.
Files travel within the commit.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash

TOKEN, READ_TOKEN = "hf_test", "hf_read"
_REPOSITORY = r"/(?:api/)?(?:models/)?(?P<name>(?:datasets/)?[^/]+/[^/]+)"


class Repository:
    """Commits, the first of which is empty; each is a whole set of files, and stays readable.

    Attributes:
        private: what the Hub says of it.
        states: files by path, of each commit.
        commits: paths that each commit after the first touched.
        messages: of these commits.
        branches, tags: numbers of commits by name.
    """

    def __init__(self, name: str, *, private: bool = False) -> None:
        self.name, self.private = name, private
        self.states = [dict[str, bytes]()]
        self.commits: list[list[str]] = []
        self.messages: list[str] = []
        self.branches, self.tags = {"main": 0}, dict[str, int]()

    @property
    def files(self) -> dict[str, bytes]:
        """The newest files of main by path."""
        return self.states[self.branches["main"]]

    def sha(self, revision: str | int = "main") -> str:
        """Hash of a commit, by its number, or the newest of a branch or tag."""
        number = revision if isinstance(revision, int) else (self.branches | self.tags)[revision]
        return hashlib.sha1(f"{self.name}{number}".encode()).hexdigest()

    def number(self, revision: str) -> int | None:
        """Of the commit that a branch, a tag or a hash names."""
        shas = {self.sha(number): number for number in range(len(self.states))}
        return (self.branches | self.tags | shas).get(revision)

    def add(self, files: dict[str, bytes], *, branch: str = "main", message: str = "") -> None:
        """One commit."""
        self.states.append(self.states[self.branches[branch]] | files)
        self.branches[branch] = len(self.states) - 1
        self.commits.append(sorted(files))
        self.messages.append(message)


class Hub(ThreadingHTTPServer):
    """Repositories by name.

    Attributes:
        faults: what befalls the next commits, in turn: "error" (status 500), "moved" (somebody else's commit comes
            first), "garbled" (the first file arrives with another byte).
        refused: a text that a card must not have.
        requests: method and path of each, in their order.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {name: Repository(name) for name in names}
        self.faults: list[str] = []
        self.refused: str | None = None
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal."""

    def _send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, {"error": code}, {"X-Error-Code": code, **(headers or {})})

    def _refuse_writing(self) -> bool:
        """Whether the token may not write, which is answered."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token != TOKEN:
            self._send(403 if token == READ_TOKEN else 401, {"error": "a token that may write is needed"})
        return token != TOKEN

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        what = r"resolve|revision|tree|refs|auth-check"
        match = re.fullmatch(rf"{_REPOSITORY}(?:/({what})(?:/([^/]+))?(?:/(.+))?)?", urlparse(self.path).path)
        repository = self.server.repositories.get(match["name"]) if match else None
        if match is None or repository is None:
            return self._missing("RepoNotFound")
        asked, revision, place = match[2], unquote(match[3] or "main"), unquote(match[4] or "")
        if asked == "auth-check":
            return None if self._refuse_writing() else self._send(200)
        if asked == "refs":
            kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
            refs = {
                kind: [
                    {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": repository.sha(at)}
                    for name, at in known.items()
                ]
                for kind, (folder, known) in kinds.items()
            }
            return self._send(200, {**refs, "converts": []})
        number = repository.number(revision)
        if number is None:
            return self._missing("RevisionNotFound")
        files, sha = repository.states[number], repository.sha(number)
        if asked == "resolve":
            return self._file(files.get(place), sha)
        if asked == "tree":
            return self._tree(files, place)
        info = {"id": match["name"].removeprefix("datasets/"), "sha": sha, "private": repository.private}
        siblings = [{"rfilename": file} for file in files]
        return self._send(200, {**info, "siblings": siblings, "tags": [], "gated": False, "downloads": 0, "likes": 0})

    do_HEAD = do_GET

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        entries = _entries(files)
        if folder and folder not in entries:
            return self._missing("EntryNotFound")
        deep = parse_qs(urlparse(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(prefix) and path != folder]
        self._send(200, [entry for entry in inside if deep or "/" not in entry["path"][len(prefix) :]])

    def _file(self, content: bytes | None, sha: str) -> None:
        if content is None:
            return self._missing("EntryNotFound", {"X-Repo-Commit": sha})
        headers = {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": sha}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self._send(206, content[start:stop], headers)
        self._send(200, content, headers)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        path, body = urlparse(self.path).path, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            wrong = self.server.refused is not None and self.server.refused in json.loads(body)["content"]
            return self._send(400 if wrong else 200, {"errors": [], "warnings": []})
        match = re.fullmatch(rf"{_REPOSITORY}/(paths-info|preupload|commit|branch|tag)/([^/]+)", path)
        repository = self.server.repositories.get(match["name"]) if match else None
        if match and repository and match[2] == "paths-info":
            files = repository.states[repository.number(unquote(match[3])) or 0]
            asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            entries = _entries(files)
            return self._send(200, [entries[one] for one in asked if one in entries])
        if self._refuse_writing():
            return None
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match is None or repository is None:
            return self._missing("RepoNotFound")
        what, name = match[2], unquote(match[3])
        if what == "commit":
            return self._commit(repository, name, body)
        if what == "preupload":
            files = repository.states[repository.branches[name]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            paths = [one["path"] for one in json.loads(body)["files"]]
            known = {path: git_hash(files[path]) for path in paths if path in files}
            return self._send(200, {"files": [{"path": path, **regular, "oid": known.get(path)} for path in paths]})
        asked = json.loads(body)
        known, name, start = (
            (repository.tags, asked["tag"], name)
            if what == "tag"
            else (repository.branches, name, asked.get("startingPoint", "main"))
        )
        if name not in known:
            known[name] = repository.number(start) or 0
        self._send(200)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, Repository(name, private=private))
        self._send(409 if known else 200, {"url": f"{self.server.url}/{name}"})

    def _commit(self, repository: Repository, branch: str, body: bytes) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "error":
            return self._send(500, {"error": "out of order"})
        if fault == "moved":
            repository.add({"other.md": b"of somebody else"}, branch=branch)
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repository.sha(branch)):
            return self._send(412, {"error": f"{branch} has moved on"})
        sent = [line["value"] for line in lines if line["key"] != "header"]
        files = {one["path"]: base64.b64decode(one["content"]) for one in sent}
        if fault == "garbled":
            files[min(files)] += b"?"
        repository.add(files, branch=branch, message=header["summary"])
        sha = repository.sha(branch)
        url = f"{self.server.url}/{repository.name}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _entries(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Files and the folders that they lie in, by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        parts = path.split("/")
        for folder in ("/".join(parts[:depth]) for depth in range(1, len(parts))):
            found[folder] = {"type": "directory", "path": folder, "oid": git_hash(folder.encode())}
        found[path] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    return found


@contextmanager
def serve(*names: str) -> Iterator[Hub]:
    """A running Hub with empty repositories of these names."""
    hub = Hub(names)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def turn_to(hub: Hub, home: Path, patch: pytest.MonkeyPatch, *, token: str | None = TOKEN) -> None:
    """Uploads of this process go to `hub`, with this token or with none.

    Downloads have the address built in when the client is imported, and take a process of their own.
    """
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)
