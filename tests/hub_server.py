"""A small Hugging Face hub on loopback: the few addresses that `huggingface_hub` asks to fetch a repository.

Example:
    with HubServer() as hub:
        commit = hub.publish("org/base", Path("base"))
        run([...], env=hub.environment(tmp_path / "cache"))
        assert hub.asked("GET", "model.safetensors") == 1
"""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)$")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")
TOKEN = "hf_of_the_tests"
BLOCK_BYTES = 2**16


class HubServer:
    """Repositories by name, each with revisions of files."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}  # by repository and commit
        self.revisions: dict[tuple[str, str], str] = {}  # commits by repository and branch or tag
        self.private: set[str] = set()  # need the token; without it they look as if they were not there
        self.gated: set[str] = set()  # nobody may read them yet
        self.requests: list[tuple[str, str]] = []
        self.stopped_at: str | None = None  # a file of which half is sent, and then no more
        self.is_stopped, self.goes_on = threading.Event(), threading.Event()
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()

    def publish(self, repo: str, source: Path | dict[str, bytes], revision: str = "main") -> str:
        """Let `revision` be the files of a directory, or those given; returns the commit."""
        if isinstance(source, Path):
            source = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
        listed = "".join(f"{name} {hashlib.sha1(content).hexdigest()}\n" for name, content in sorted(source.items()))
        commit = hashlib.sha1(f"{repo}\n{listed}".encode()).hexdigest()
        self.files[repo, commit] = dict(source)
        self.revisions[repo, revision] = commit
        return commit

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables of a process that asks this hub, with its cache in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {**kept, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **more}

    def connect(self, patch: pytest.MonkeyPatch, home: Path, *, offline: bool = False, endpoint: str = "") -> None:
        """Let this process ask the hub, as if it had been started with `environment`, which the client reads once."""
        use(patch, endpoint or self.endpoint, home, offline=offline)

    def asked(self, method: str, ending: str = "") -> int:
        """How many requests of this method were for paths that end so."""
        return sum(m == method and path.endswith(ending) for m, path in self.requests)


def use(patch: Any, endpoint: str, home: Path, *, offline: bool = False) -> None:
    """What `HubServer.connect` does."""
    from huggingface_hub import constants

    from slmkit import hub

    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    patch.setattr(hub, "_fetched", {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server_of, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        found = API.match(path) or FILE.match(path)
        if found is None:
            return self._error(404, "RepoNotFound")
        repo, revision = found["repo"], found["revision"]
        known = {name for name, _ in hub.files}
        if repo in hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "RepoNotFound")
        if repo not in known:
            return self._error(404, "RepoNotFound")
        if repo in hub.gated and FILE.match(path):
            return self._error(403, "GatedRepo")
        commit = hub.revisions.get((repo, revision), revision)
        files = hub.files.get((repo, commit))
        if files is None:
            return self._error(404, "RevisionNotFound")
        if FILE.match(path) is None:
            return self._json(_about(repo, commit, files) if found["what"] == "revision" else _tree(files))
        if found["file"] not in files:
            return self._error(404, "EntryNotFound")
        return self._file(found["file"], files[found["file"]], commit)

    def _file(self, name: str, content: bytes, commit: str) -> None:
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if start else 200, len(content) - start, headers)
        if self.command == "HEAD":
            return
        hub = self.server_of
        for place in range(start, len(content), BLOCK_BYTES):
            if name == hub.stopped_at and place >= len(content) // 2:
                hub.is_stopped.set()
                hub.goes_on.wait()
            try:
                self.wfile.write(content[place : place + BLOCK_BYTES])
                self.wfile.flush()
            except OSError:  # who asked is gone
                return

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self._head(200, len(content), {"Content-Type": "application/json"})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str) -> None:
        self._head(status, 0, {"X-Error-Code": code, "X-Error-Message": code})

    def _head(self, status: int, size: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _about(repo: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    siblings = [{"rfilename": name, "size": len(content), "blobId": _oid(content)} for name, content in files.items()]
    return {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()]
