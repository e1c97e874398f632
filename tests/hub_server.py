"""A Hub of dataset repositories on this machine: what `huggingface_hub` needs to write files and read them.

    with serve(["org/name"]) as hub: ...    # hub.url is the endpoint; hub.files["org/name"] the files by path

Every file is "regular", so that it arrives within the commit; there is one branch, main.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse


class Hub(ThreadingHTTPServer):
    """Files and commits of each repository."""

    def __init__(self, repositories: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, dict[str, bytes]] = {name: {} for name in repositories}
        self.commits: dict[str, list[list[str]]] = {name: [] for name in repositories}  # paths of each
        self.lock = threading.Lock()

    def sha(self, name: str) -> str:
        """The newest commit."""
        return hashlib.sha1(f"{name}{len(self.commits[name])}".encode()).hexdigest()

    def entries(self, name: str) -> dict[str, dict[str, Any]]:
        """Files and folders by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, content in self.files[name].items():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                found[folder] = {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest()}
            oid = hashlib.sha1(content).hexdigest()
            found[path] = {"type": "file", "path": path, "size": len(content), "oid": oid}
        return found


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

    def _missing(self, code: str) -> None:
        self._send(404, {"error": code}, {"X-Error-Code": code})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        url = urlparse(self.path)
        path = unquote(url.path)
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[3])
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        if match is None:
            return self._missing("EntryNotFound")
        name, what, folder = match[1], match[2], match[4] or ""
        if name not in self.server.files:
            return self._missing("RepoNotFound")
        if what == "tree":
            deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._tree(name, folder, deep)
        siblings = [{"rfilename": file} for file in self.server.files[name]]
        info = {"id": name, "sha": self.server.sha(name), "siblings": siblings, "private": False, "tags": []}
        self._send(200, {**info, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    do_HEAD = do_GET

    def _tree(self, name: str, folder: str, deep: bool) -> None:
        entries = self.server.entries(name)
        if folder and folder not in entries:
            return self._missing("EntryNotFound")
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(prefix) and path != folder]
        self._send(200, [entry for entry in inside if deep or "/" not in entry["path"][len(prefix) :]])

    def _file(self, name: str, path: str) -> None:
        if name not in self.server.files:
            return self._missing("RepoNotFound")
        content = self.server.files[name].get(path)
        if content is None:
            return self._missing("EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.server.sha(name)}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self._send(206, content[start:stop], headers)
        self._send(200, content, headers)

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(paths-info|preupload|commit)/([^/]+)", path)
        if match is None:
            return self._missing("EntryNotFound")
        name, what = match[1], match[2]
        if name not in self.server.files:
            return self._missing("RepoNotFound")
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            entries = self.server.entries(name)
            return self._send(200, [entries[one] for one in asked if one in entries])
        if what == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self._send(200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]})
        added = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                added[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        with self.server.lock:
            self.server.files[name] |= added
            self.server.commits[name].append(sorted(added))
        url = f"{self.server.url}/datasets/{name}/commit/{self.server.sha(name)}"
        self._send(200, {"success": True, "commitOid": self.server.sha(name), "commitUrl": url, "hookOutput": ""})


@contextmanager
def serve(repositories: Sequence[str]) -> Iterator[Hub]:
    """A running Hub with empty dataset repositories."""
    hub = Hub(repositories)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
