"""A small Hugging Face hub on 127.0.0.1, for huggingface_hub's own client."""

import base64
import contextlib
import hashlib
import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Contents of the hub, and the requests it received.

    Attributes:
        endpoint: Value of HF_ENDPOINT.
        repos: Folders with the files of repositories, by id.
        gated: Ids of repositories that need an accepted access request.
        private: Ids of private repositories; they are served to everybody.
        read_only: Ids of repositories that nobody may write.
        created: Folder in which repositories are created.
        no_commits: Whether commits fail, after the large files were uploaded.
        commits: Message and changed files of each commit, in order.
        blobs: Large files that were uploaded, by SHA-256; visible only after a commit.
        broken: Status of every response; None to respond normally.
        silent: If set, requests are accepted but not answered until the event.
        requests: Method and path of each request, in order.
    """

    endpoint: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    created: Path | None = None
    no_commits: bool = False
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    broken: int | None = None
    silent: threading.Event | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)

    def fetched(self) -> set[str]:
        """Files whose content was requested, as `OWNER/NAME/FILE`."""
        paths = [path for method, path in self.requests if method == "GET" and "/resolve/" in path]
        parts = [path.strip("/").split("/") for path in paths]
        return {"/".join([*p[:2], *p[4:]]) for p in parts}

    def environ(self, cache: Path) -> dict[str, str]:
        """Environment of a process that uses this hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        hub: Hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        lines = self.body().splitlines()
        if hub.broken is not None:
            return self.send(hub.broken)
        content = json.loads(lines[0])
        if path == "/api/validate-yaml":
            has_metadata = content["content"].startswith("---\n")
            return self.send_json({"errors": [], "warnings": []}, 200 if has_metadata else 400)
        if path == "/api/repos/create":
            repo = f"{content['organization']}/{content['name']}"
            if repo in hub.read_only:
                return self.send(403)
            known = repo in hub.repos
            if not known:
                hub.repos[repo] = hub.created / repo
                hub.repos[repo].mkdir(parents=True)
                if content.get("private") or content.get("visibility") == "private":
                    hub.private.add(repo)
            return self.send_json({"url": f"{hub.endpoint}/{repo}"}, 409 if known else 200)
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **{key: one[key] for key in ("oid", "size")},
                    "actions": {"upload": {"href": f"{hub.endpoint}/blobs/{one['oid']}"}},
                }
                for one in content["objects"]
            ]
            return self.send_json({"transfer": "basic", "objects": objects})
        owner, name, action = path.removeprefix("/api/models/").split("/")[:3]
        if action == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in content["files"]
            ]
            return self.send_json({"files": files})
        if hub.no_commits:
            return self.send(500)
        files = {}
        for line in map(json.loads, lines[1:]):
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            files[value["path"]] = (
                hub.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
            )
        for file, written in files.items():
            target = hub.repos[f"{owner}/{name}"] / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(written)
        hub.commits.append((content["value"]["summary"], sorted(files)))
        url = f"{hub.endpoint}/{owner}/{name}/commit/{COMMIT}"
        return self.send_json({"success": True, "commitUrl": url, "commitOid": COMMIT})

    def do_PUT(self) -> None:
        hub: Hub = self.server.hub
        hub.requests.append((self.command, self.path))
        content = self.body()
        oid = hashlib.sha256(content).hexdigest()
        if self.path != f"/blobs/{oid}":
            return self.send(400)
        hub.blobs[oid] = content
        return self.send(200)

    def body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        content = b""
        while size := int(self.rfile.readline(), 16):  # sent in chunks
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send_json(self, content, status=200) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self) -> None:
        hub: Hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        if hub.silent is not None:
            hub.silent.wait(60)
        if hub.broken is not None:
            return self.send(hub.broken)
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        repo = f"{owner}/{name}"
        if repo not in hub.repos:
            return self.send(401, code="RepoNotFound")  # as for a private one
        folder = hub.repos[repo]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            return self.send(404, code="RevisionNotFound")
        if is_api:
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            names = [p.relative_to(folder).as_posix() for p in files]
            if rest[:1] == ["tree"]:
                pairs = zip(names, files, strict=True)
                content = [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": digest(p)}
                    for n, p in pairs
                ]
            else:
                content = {
                    "id": repo,
                    "sha": COMMIT,
                    "siblings": [{"rfilename": n} for n in names],
                    "gated": "manual" if repo in hub.gated else False,
                    "private": repo in hub.private,
                }
            return self.send_json(content)
        if repo in hub.gated:
            return self.send(401, code="GatedRepo")
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return self.send(404, code="EntryNotFound")
        headers = {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT}
        headers["X-Linked-Size"] = str(file.stat().st_size)
        return self.send(200, file.read_bytes(), headers)

    def send(self, status, content=b"", headers=None, code=None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **(headers or {})}
        if code is not None:
            headers["X-Error-Code"] = code
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def digest(path: Path) -> str:
    """The git blob hash, which the client compares."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.hub
    finally:
        if server.hub.silent is not None:
            server.hub.silent.set()
        server.shutdown()
        server.server_close()


def use_environ(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """Apply an environment to huggingface_hub, which reads it only when imported."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    importlib.reload(constants)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """An empty hub and an empty cache, used in this process."""
    with running_hub() as served:
        use_environ(monkeypatch, served.environ(tmp_path / "hub cache"))
        yield served
    monkeypatch.undo()
    importlib.reload(constants)
