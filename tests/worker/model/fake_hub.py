"""A hub on loopback that serves the folders beneath one: the few routes that a download needs."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "acme/gated"


class FakeHub(ThreadingHTTPServer):
    """Repositories are `shelf`/OWNER/NAME; what was asked for is in `asked`."""

    def __init__(self, shelf: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.shelf = shelf
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _answer(self) -> None:
        parts = [part for part in urlsplit(self.path).path.split("/") if part]
        self.server.asked.append(f"{self.command} {self.path}")
        is_api = parts[:2] == ["api", "models"]
        owner, name, route, *rest = parts[2:] if is_api else parts
        repository = self.server.shelf / owner / name
        if f"{owner}/{name}" == GATED:
            self._send(b"", status=403, headers={"X-Error-Code": "GatedRepo"})
        elif not repository.is_dir():
            self._send(b"", status=404, headers={"X-Error-Code": "RepoNotFound"})
        elif route == "revision":
            self._send_json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []})
        elif route == "tree":
            self._send_json([_entry(path, repository) for path in sorted(repository.rglob("*")) if path.is_file()])
        else:
            content = (repository / "/".join(rest[1:])).read_bytes()
            self._send(content, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(content)}"'})

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _send(self, content: bytes, *, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _entry(path: Path, repository: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {
        "type": "file",
        "path": path.relative_to(repository).as_posix(),
        "size": len(content),
        "oid": _digest(content),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
