"""A Hub on this machine: what `huggingface_hub` needs to make repositories of models and datasets, fill and read them.

    with serve("org/model", "datasets/org/name") as hub: ...    # hub.url is the endpoint

A repository is named as in the Hub's addresses, a dataset with "datasets/" in front. Every file is "regular", so that
it arrives within the commit; there is one branch, main, and every commit stays readable.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

_REPOSITORY = r"((?:datasets/)?[^/]+/[^/]+)"


class Repository:
    """Commits of main, the first of which is empty."""

    def __init__(self, name: str) -> None:
        self.name, self.states = name, [dict[str, bytes]()]
        self.commits: list[list[str]] = []  # paths of each

    @property
    def files(self) -> dict[str, bytes]:
        """The newest files by path."""
        return self.states[-1]

    @property
    def sha(self) -> str:
        """The newest commit."""
        return self._sha(len(self.states) - 1)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of main or of a commit; `None` for a revision that is neither."""
        for number, files in reversed(list(enumerate(self.states))):
            if revision in ("main", self._sha(number)):
                return self._sha(number), files
        return None

    def add(self, files: dict[str, bytes], deleted: set[str]) -> None:
        """One commit."""
        self.states.append({path: content for path, content in {**self.files, **files}.items() if path not in deleted})
        self.commits.append(sorted(files.keys() | deleted))

    def _sha(self, number: int) -> str:
        return hashlib.sha1(f"{self.name}{number}".encode()).hexdigest()


def entries_of(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Files and folders by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            found[folder] = {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest()}
        found[path] = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    return found


class Hub(ThreadingHTTPServer):
    """Repositories by name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {name: Repository(name) for name in names}
        self.lock = threading.Lock()


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

    def _missing(self, code: str, commit: str | None = None) -> None:
        self._send(404, {"error": code}, {"X-Error-Code": code, **({"X-Repo-Commit": commit} if commit else {})})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        url = urlparse(self.path)
        path = unquote(url.path)
        if match := re.fullmatch(rf"/{_REPOSITORY}/resolve/([^/]+)/(.+)", path):
            name, what, revision, place = match[1], "resolve", match[2], match[3]
        elif match := re.fullmatch(rf"/api/(?:models/)?{_REPOSITORY}(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            name, what, revision, place = match[1], match[2], match[3] or "main", match[4] or ""
        else:
            return self._missing("EntryNotFound")
        if name not in self.server.repositories:
            return self._missing("RepoNotFound")
        found = self.server.repositories[name].at(revision)
        if found is None:
            return self._missing("RevisionNotFound")
        sha, files = found
        if what == "resolve":
            return self._file(sha, files.get(place))
        if what == "tree":
            deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._tree(files, place, deep)
        siblings = [{"rfilename": file} for file in files]
        info = {"id": name.removeprefix("datasets/"), "sha": sha, "siblings": siblings, "private": False, "tags": []}
        self._send(200, {**info, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    do_HEAD = do_GET

    def _tree(self, files: dict[str, bytes], folder: str, deep: bool) -> None:
        entries = entries_of(files)
        if folder and folder not in entries:
            return self._missing("EntryNotFound")
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(prefix) and path != folder]
        self._send(200, [entry for entry in inside if deep or "/" not in entry["path"][len(prefix) :]])

    def _file(self, sha: str, content: bytes | None) -> None:
        if content is None:
            return self._missing("EntryNotFound", sha)
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self._send(206, content[start:stop], headers)
        self._send(200, content, headers)

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        match = re.fullmatch(rf"/api/(?:models/)?{_REPOSITORY}/(paths-info|preupload|commit)/([^/]+)", path)
        if match is None:
            return self._missing("EntryNotFound")
        repository, what = self.server.repositories.get(match[1]), match[2]
        if repository is None:
            return self._missing("RepoNotFound")
        found = repository.at(match[3])
        if found is None:
            return self._missing("RevisionNotFound")
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            entries = entries_of(found[1])
            return self._send(200, [entries[one] for one in asked if one in entries])
        if what == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self._send(200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]})
        self._commit(repository, body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{asked['organization']}/{asked['name']}"
        with self.server.lock:
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, Repository(name))
        self._send(409 if known else 200, {"url": f"{self.server.url}/{name}"})

    def _commit(self, repository: Repository, body: bytes) -> None:
        added, deleted = {}, set()
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                added[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                deleted.add(entry["value"]["path"])
            elif entry["key"] != "header":
                return self._send(400, {"error": f"{entry['key']}: this Hub does not take it"})
        with self.server.lock:
            repository.add(added, deleted)
            sha = repository.sha
        url = f"{self.server.url}/{repository.name}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


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
