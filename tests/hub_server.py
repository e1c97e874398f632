"""A Hub on this machine: what `huggingface_hub` needs to make repositories of models and datasets, fill and read them.

    with serve("org/model", "datasets/org/name") as hub: ...    # hub.url is the endpoint

A repository is named as in the Hub's addresses, a dataset with "datasets/" in front. Whoever writes, or reads what is
private, must send `TOKEN`. Files travel within the commit; with `lfs=True` weights go by LFS, for clients that are
told HF_HUB_DISABLE_XET=1. What can go wrong is asked for by `Hub.faults` and `Hub.damage`.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from tests.hub_repository import Repository, git_sha1, sha256

TOKEN, READ_TOKEN = "hf_test", "hf_read"
_REPOSITORY = r"((?:datasets/)?[^/]+/[^/]+)"


class Hub(ThreadingHTTPServer):
    """Repositories by name.

    Attributes:
        large: files that came by LFS, by sha256.
        faults: what befalls the next commits, in turn: "cut" (the connection is closed in the middle of the request),
            "error" (status 500 when all of it has come), "lost" (it is made, and the connection closed without an
            answer), "garbled" (of its first three files one is kept with another byte, one without its end, one not at
            all), "moved" (somebody else's commit comes first), "" (nothing); after the last one nothing does.
        damage: what befalls the next download of a file, by "repository/path": "flip" (a byte is another) or "cut"
            (the end is missing).
        refused: texts that a card must not have in its metadata.
        requests: method and path of each, in their order.
    """

    def __init__(self, names: tuple[str, ...], *, lfs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {name: Repository(name) for name in names}
        self.lfs, self.large = lfs, dict[str, bytes]()
        self.faults: list[str] = []
        self.damage: dict[str, str] = {}
        self.refused: list[str] = []
        self.requests: list[str] = []
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

    def _missing(self, code: str, commit: str | None = None, *, status: int = 404) -> None:
        self._send(status, {"error": code}, {"X-Error-Code": code, **({"X-Repo-Commit": commit} if commit else {})})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _may_write(self) -> bool:
        """Whether it may; where not, this is answered."""
        if self._token() == TOKEN:
            return True
        known = self._token() == READ_TOKEN
        self._send(403 if known else 401, {"error": "you need a token that may write" if known else "who are you?"})
        return False

    def _found(self, name: str) -> Repository | None:
        """The repository; `None` where there is none for this client, which is answered."""
        repository = self.server.repositories.get(name)
        hidden = repository is not None and repository.private and self._token() not in (TOKEN, READ_TOKEN)
        if repository is None or hidden:
            self._missing("RepoNotFound", status=404 if self._token() in (TOKEN, READ_TOKEN) else 401)
            return None
        return repository

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        url = urlparse(self.path)
        if match := re.fullmatch(rf"/{_REPOSITORY}/resolve/([^/]+)/(.+)", url.path):
            name, what, revision, place = match[1], "resolve", unquote(match[2]), unquote(match[3])
        elif match := re.fullmatch(rf"/api/(?:models/)?{_REPOSITORY}/(refs|auth-check/write)", url.path):
            name, what, revision, place = match[1], match[2], "main", ""
        elif match := re.fullmatch(
            rf"/api/(?:models/)?{_REPOSITORY}(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", url.path
        ):
            name, what, revision, place = match[1], match[2], unquote(match[3] or "main"), unquote(match[4] or "")
        else:
            return self._missing("EntryNotFound")
        repository = self._found(name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self._missing("RevisionNotFound")
        sha, files = found
        if what == "resolve":
            return self._file(repository, sha, files, place)
        if what == "auth-check/write":
            return self._send(200) if self._may_write() else None
        if what == "refs":
            return self._send(200, repository.refs())
        if what == "tree":
            deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._tree(repository.entries(files), place, deep)
        siblings = [{"rfilename": file} for file in files]
        info = {"id": name.removeprefix("datasets/"), "sha": sha, "siblings": siblings, "private": repository.private}
        return self._send(200, {**info, "tags": [], "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    do_HEAD = do_GET

    def _tree(self, entries: dict[str, dict[str, Any]], folder: str, deep: bool) -> None:
        if folder and folder not in entries:
            return self._missing("EntryNotFound")
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(prefix) and path != folder]
        self._send(200, [entry for entry in inside if deep or "/" not in entry["path"][len(prefix) :]])

    def _file(self, repository: Repository, sha: str, files: dict[str, bytes], path: str) -> None:
        content = files.get(path)
        if content is None:
            return self._missing("EntryNotFound", sha)
        etag = repository.etag(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha}
        if etag in repository.large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self._send(206, content[start:stop], headers)
        place = f"{repository.name}/{path}"
        damage = self.server.damage.pop(place, None) if self.command == "GET" else None
        if damage == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif damage == "cut":
            content = content[:-100]
        self._send(200, content, headers)

    def do_PUT(self) -> None:
        """A file of LFS."""
        self.server.requests.append(f"PUT {self.path}")
        body = self._body()
        if self.path != f"/lfs/{sha256(body)}":
            return self._send(400, {"error": "these bytes have another sha256"})
        self.server.large[sha256(body)] = body
        self._send(200)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        path = urlparse(self.path).path
        match = re.fullmatch(rf"/api/(?:models/)?{_REPOSITORY}/(paths-info|preupload|commit|branch|tag)/([^/]+)", path)
        if match and match[2] == "commit" and self.server.faults and self.server.faults[0] == "cut":
            self.server.faults.pop(0)
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            return None
        body = self._body()
        if path == "/api/validate-yaml":
            wrong = [text for text in self.server.refused if text in json.loads(body)["content"]]
            return self._send(
                400 if wrong else 200, {"errors": [{"message": f"no: {wrong}"}] * bool(wrong), "warnings": []}
            )
        if match and match[2] == "paths-info":
            return self._paths_info(match[1], unquote(match[3]), body)
        if not self._may_write():
            return None
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if lfs := re.fullmatch(rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", path):
            return self._batch(lfs[1], json.loads(body)["objects"])
        if match is None:
            return self._missing("EntryNotFound")
        repository, what, name = self._found(match[1]), match[2], unquote(match[3])
        if repository is None:
            return None
        with self.server.lock:
            if what == "branch":
                start = repository.number_of(json.loads(body).get("startingPoint", "main"))
                return self._name(repository.branches, name, start)
            if what == "tag":
                return self._name(repository.tags, json.loads(body)["tag"], repository.number_of(name))
            if name not in repository.branches:
                return self._missing("RevisionNotFound")
            if what == "preupload":
                return self._preupload(repository.at(name)[1], json.loads(body)["files"])  # type: ignore[index]
            self._commit(repository, name, body)

    def _paths_info(self, name: str, revision: str, body: bytes) -> None:
        repository = self._found(name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self._missing("RevisionNotFound")
        asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
        entries = repository.entries(found[1])
        return self._send(200, [entries[one] for one in asked if one in entries])

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        with self.server.lock:
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, Repository(name, private=private))
        self._send(409 if known else 200, {"url": f"{self.server.url}/{name}"})

    def _name(self, known: dict[str, int], name: str, number: int | None) -> None:
        """Makes a branch or tag."""
        if number is None:
            return self._missing("RevisionNotFound")
        if name in known:
            return self._send(409, {"error": f"{name} exists already"})
        known[name] = number
        self._send(200)

    def _preupload(self, files: dict[str, bytes], asked: list[dict[str, Any]]) -> None:
        answers = []
        for path in (one["path"] for one in asked):
            large = self.server.lfs and path.endswith(".safetensors")
            oid = None if path not in files else sha256(files[path]) if large else git_sha1(files[path])
            answers.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._send(200, {"files": answers})

    def _batch(self, name: str, objects: list[dict[str, Any]]) -> None:
        """Where files of LFS go; those that are there go nowhere."""
        if self._found(name) is None:
            return
        for one in objects:
            if one["oid"] not in self.server.large:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, branch: str, body: bytes) -> None:
        added, deleted, large, message = dict[str, bytes](), set(), set(), ""
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "moved":
            repository.add({"other.md": b"of somebody else"}, set(), branch=branch)
        head = repository.sha_of(repository.branches[branch])
        for line in body.decode().splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    return self._send(412, {"error": f"{branch} has moved on to {head}"})
            elif key == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.server.large:
                added[value["path"]] = self.server.large[value["oid"]]
                large.add(value["oid"])
            elif key == "deletedFile":
                deleted.add(value["path"])
            else:
                return self._send(400, {"error": f"{key}: this Hub does not take it"})
        if fault == "error":
            return self._send(500, {"error": "out of order"})
        if fault == "garbled":
            one, two, three = sorted(added)[:3]
            added |= {one: added[one][:-1] + b"?", two: added[two][:-1]}
            del added[three]
        repository.large |= large
        sha = repository.add(added, deleted, branch=branch, message=message)
        if fault == "lost":
            self.close_connection = True
            return None
        url = f"{self.server.url}/{repository.name}/commit/{sha}"
        return self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


@contextmanager
def serve(*names: str, lfs: bool = False) -> Iterator[Hub]:
    """A running Hub with empty repositories of these names."""
    hub = Hub(names, lfs=lfs)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
