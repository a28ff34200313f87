"""A Hugging Face hub on this machine, as much of its protocol as a push and a download take."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_this_test"
READ_ONLY = "hf_that_may_not_write"


class Hub(ThreadingHTTPServer):
    """Repositories as branch -> path -> content; only large files (safetensors) go by LFS, as on the hub."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool | None] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def local_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        content = self._body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            return self._answer(401, {"error": "Invalid username or password."})
        if token == READ_ONLY:
            return self._answer(403, {"error": "You don't have the rights to create a model."})
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {"main": {}})
            hub.private.setdefault(repo, {"private": True, "public": False}.get(asked.get("visibility")))
            return self._answer(409 if known else 200, {"url": f"{hub.endpoint}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            hub.repos[found[1]].setdefault(found[2], dict(hub.repos[found[1]]["main"]))
            return self._answer(200, {})
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": _mode(n), "shouldIgnore": False} for n in names]
            return self._answer(200, {"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{each['oid']}", "header": {}}}}
                for each in wanted
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(hub.repos[found[1]][found[2]], body)
            return self._answer(
                200, {"commitUrl": f"{hub.endpoint}/{found[1]}/commit/{'c' * 40}", "commitOid": "c" * 40}
            )
        return self._answer(404, {"error": path})

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = re.match(r"(?:/api/models)?/([^/]+/[^/]+)", path)
        if known is None or known[1] not in self.server.repos:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self._branch(found[1], found[2])
            tree = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()]
            return self._answer(200, tree)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            names = [{"rfilename": name} for name in self._branch(found[1], found[2] or "main")]
            return self._answer(200, {"id": found[1], "sha": "c" * 40, "siblings": names, "private": False, "tags": []})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self._branch(found[1], found[2]).get(found[3])
            commit = {"X-Repo-Commit": "c" * 40}
            if content is None:
                return self._answer(404, {}, {**commit, "X-Error-Code": "EntryNotFound"})
            return self._answer(200, content, {**commit, "ETag": f'"{_oid(content)}"'})
        return self._answer(404, {"error": path})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _branch(self, repo: str, revision: str) -> dict[str, bytes]:
        branches = self.server.repos[repo]
        return branches["main" if revision == "c" * 40 else revision]


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
