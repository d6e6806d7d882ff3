"""A Hugging Face Hub on this machine, as far as its clients ask; large files lie on another origin, as on the real one.

Faults are switched on one by one: `hub.faults["head"] = 503`. Everything that is asked is in `hub.log`.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"
LARGE = (".safetensors", ".bin", ".ckpt", ".pth", ".parquet")
"""How the files end that the Hub keeps by Git LFS."""
SLOW = 3.0
"""Seconds of the fault `slow`; far more than the tests wait."""
_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|paths-info)/([^/]+)(?:/(.+))?)?"
)
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Request(NamedTuple):
    """What was asked: of which origin, how, and with which token."""

    origin: str
    method: str
    path: str
    token: str | None


@dataclass
class Repository:
    """Files by commit, and where its branches stand."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        commit = hashlib.sha1(f"{branch} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = dict(files), commit
        return commit


@dataclass
class FakeHub:
    """What is on the Hub, what goes wrong, what was asked, and what was proposed."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    proposals: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    endpoint: str = ""
    cdn: str = ""

    def add(self, name: str, files: Mapping[str, bytes], **more: Any) -> str:
        """Put a repository there (`datasets/org/name` for data); its commit."""
        repository = self.repositories.setdefault(name, Repository(**more))
        return repository.commit(files)

    def asked(self, *methods: str) -> list[str]:
        return [request.path for request in self.log if request.method in methods or not methods]


def listed(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub's trees list it."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = path.endswith(LARGE)
    lfs = {"oid": (sha := hashlib.sha256(content).hexdigest()), "sha256": sha, "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": blob, "blobId": blob} | (
        {"lfs": lfs} if large else {}
    )


class _Handler(BaseHTTPRequestHandler):
    """Answers for one of the origins."""

    hub: FakeHub
    origin: str
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.log.append(Request(self.origin, self.command, unquote(self.path), token))
        path = urlsplit(self.path).path
        if self.origin == "cdn":
            self._send(200, self.hub.blobs[path.strip("/")], fault=self.hub.faults.get("get"))
        elif (found := _API.fullmatch(path)) is not None:
            self._api(found, token, body)
        elif (found := _FILE.fullmatch(path)) is not None:
            self._file(found, token)
        else:
            self._json({} if path == "/api/validate-yaml" else {"error": "no such page"})

    def _repository(self, kind: str, name: str, token: str | None) -> Repository | None:
        """The repository, unless a stranger may not know of it."""
        found = self.hub.repositories.get(("datasets/" if kind == "datasets" else "") + name)
        if found is None or (found.private and token != TOKEN):
            self._send(401 if token is None else 404, b"", **{"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b"", **{"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repository.commits[commit]

    def _api(self, found: re.Match[str], token: str | None, body: bytes) -> None:
        kind, name, what, revision, below = map(_plain, found.groups())
        repository = self._repository(kind, name, token)
        if repository is None:
            return
        if what in ("preupload", "commit"):
            self._propose(what, name, token, body)
            return
        at = self._files(repository, revision or "main")
        if at is None:
            return
        commit, files = at
        rows = [listed(path, content) for path, content in sorted(files.items())]
        if what == "tree":
            self._json(_level(rows, below, recursive="recursive=true" in self.path.lower()))
        elif what == "paths-info":
            asked = re.findall(r"paths=([^&]+)", unquote(body.decode()))
            self._json([row for row in rows if row["path"] in asked])
        else:
            info = {"id": name, "sha": commit, "siblings": rows, "private": repository.private, "tags": []}
            self._json({**info, "gated": "manual" if repository.gated else False}, fault=self.hub.faults.get("info"))

    def _propose(self, what: str, name: str, token: str | None, body: bytes) -> None:
        if token != TOKEN:
            self._send(403, b"", **{"X-Error-Message": "no right to write"})
        elif what == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                each["value"]["path"]: base64.b64decode(each["value"]["content"])
                for each in lines
                if each["key"] == "file"
            }
            self.hub.proposals.append(
                {"repository": name, "query": urlsplit(self.path).query, "files": files, **lines[0]["value"]}
            )
            page, commit = f"{self.hub.endpoint}/{name}", "1" * 40
            pull_request = f"{page}/discussions/1"
            self._json({"commitUrl": f"{page}/commit/{commit}", "commitOid": commit, "pullRequestUrl": pull_request})

    def _file(self, found: re.Match[str], token: str | None) -> None:
        kind, name, revision, path = map(_plain, found.groups())
        repository = self._repository(kind, name, token)
        at = self._files(repository, revision) if repository is not None else None
        if repository is None or at is None:
            return
        commit, files = at
        fault = self.hub.faults.get("head" if self.command == "HEAD" else "get")
        headers = {"X-Repo-Commit": commit}
        if repository.gated and token != TOKEN:
            self._send(401 if token is None else 403, b"", **{"X-Error-Code": "GatedRepo"})
        elif path not in files:
            self._send(404, b"", **headers, **{"X-Error-Code": "EntryNotFound"})
        else:
            row = listed(path, files[path])
            if "lfs" in row:
                sha = row["lfs"]["sha256"]
                self.hub.blobs[sha] = files[path]
                headers |= {
                    "X-Linked-Etag": f'"{sha}"',
                    "X-Linked-Size": str(row["size"]),
                    "Location": f"{self.hub.cdn}/{sha}",
                }
                self._send(302, b"", fault=fault, **headers)
            else:
                self._send(200, files[path], fault=fault, **headers, ETag=f'"{row["oid"]}"')

    def _json(self, content: Any, fault: Any = None) -> None:
        self._send(200, json.dumps(content).encode(), fault=fault, **{"Content-Type": "application/json"})

    def _write(self, content: bytes, fault: Any) -> None:
        self.wfile.write(content)
        if fault == "stall":
            time.sleep(SLOW)

    def _send(self, status: int, content: bytes, *, fault: Any = None, **headers: str) -> None:
        """Answer, with what goes wrong: a status, `slow`, `stall`, `wrong bytes`, `short`, or `without HEADER...`."""
        if isinstance(fault, int):
            status, content, headers = fault, b"", {}
        elif fault == "slow":
            time.sleep(SLOW)
        elif fault == "short":
            content = content[: len(content) // 2]
        elif fault == "wrong bytes":
            content = bytes(byte ^ 1 for byte in content[:64]) + content[64:]
        elif isinstance(fault, str) and fault.startswith("without "):
            headers = {key: value for key, value in headers.items() if key not in fault.split()}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is not None and status == 200:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            status, content = 206, content[start : end + 1]
        try:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self._write(content if fault != "stall" else content[: len(content) // 2 * (status == 200)], fault)
        except OSError:  # whoever asked has left
            self.close_connection = True


def _plain(part: str | None) -> str:
    return unquote(part or "")


def _level(rows: list[dict[str, Any]], below: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The files under a folder; unless all are wanted, those of its sub-folders stand as folders."""
    inside = [row for row in rows if not below or row["path"].startswith(f"{below}/")]
    if recursive:
        return inside
    depth = len(below) + 1 if below else 0
    folders = sorted(
        {row["path"][:depth] + row["path"][depth:].split("/")[0] for row in inside if "/" in row["path"][depth:]}
    )
    files = [row for row in inside if "/" not in row["path"][depth:]]
    return files + [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in folders]


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Run both origins."""
    hub = FakeHub()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "origin": origin}))
        for origin in ("hub", "cdn")
    ]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
