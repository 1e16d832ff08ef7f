"""A server of weights that breaks off, lies and hangs as it is told, and fixtures that point the table at it."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Iterator

import pytest

from vta_sam.checkpoints import registry
from vta_sam.checkpoints.download import fetch_file
from vta_sam.checkpoints.registry import Entry, ReleasedFile
from vta_sam.runtime.files import RetryPolicy

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "data_prep" / "weights.py"
HASTE = RetryPolicy(connect_s=5.0, read_s=0.5, attempts=3, wait_s=0.01)
DATA = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        shelf = self.server.shelf
        shelf.asked.append(dict(self.headers))
        manner = shelf.manners.popleft() if shelf.manners else serve
        manner(self, shelf)

    def do_HEAD(self):
        """As the hub does, whose answers name the commit; ``heads`` are other answers to the next ones."""
        shelf = self.server.shelf
        shelf.asked.append({"path": self.path, **dict(self.headers)})
        code, headers = shelf.heads.popleft() if shelf.heads else (200, {"X_Repo_Commit": "c" * 40})
        self.begin(code, ETag=shelf.etag, Content_Length=len(shelf.data), **headers)

    def do_CONNECT(self):
        self.send_error(403, "Forbidden by the proxy")

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Shelf:
    """A server of one file; ``manners`` are how it answers the next requests, after them it behaves."""

    def __init__(self, server: ThreadingHTTPServer):
        self.data, self.etag = DATA, '"first"'
        self.asked: list[dict[str, str]] = []
        self.heard_out = False
        self.manners: deque[Callable[[Handler, Shelf], None]] = deque()
        self.heads: deque[tuple[int, dict[str, str]]] = deque()
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    def file(self, **changes: object) -> ReleasedFile:
        right = ReleasedFile("net/model.bin", f"{self.address}/model.bin", len(DATA), hashlib.sha256(DATA).hexdigest())
        return dataclasses.replace(right, **changes)

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]


def serve(handler: Handler, shelf: Shelf, broken_after: int | None = None, heeds_if_range: bool = True) -> None:
    """As a good server does; or it breaks off after so many bytes of the body."""
    begin = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    if heeds_if_range and handler.headers.get("If-Range", shelf.etag) != shelf.etag:
        begin = 0
    body, size = shelf.data[begin:], len(shelf.data)
    if begin:
        handler.begin(206, Content_Length=len(body), ETag=shelf.etag, Content_Range=f"bytes {begin}-{size - 1}/{size}")
    else:
        handler.begin(200, Content_Length=size, ETag=shelf.etag)
    handler.wfile.write(body[:broken_after])


def breaks_off(after: int) -> Callable[[Handler, Shelf], None]:
    return lambda handler, shelf: serve(handler, shelf, broken_after=after)


def ignores_range(handler: Handler, shelf: Shelf) -> None:
    handler.begin(200, Content_Length=len(shelf.data), ETag=shelf.etag)
    handler.wfile.write(shelf.data)


def hangs(handler: Handler, shelf: Shelf) -> None:
    handler.begin(200, Content_Length=len(shelf.data), ETag=shelf.etag)
    handler.wfile.write(shelf.data[:200_000])
    handler.wfile.flush()
    threading.Event().wait(3)


def answers(code: int, **headers: object) -> Callable[[Handler, Shelf], None]:
    def manner(handler: Handler, shelf: Shelf) -> None:
        handler.begin(code, **{"Content_Length": 5, **headers})
        handler.wfile.write(b"sorry")

    return manner


@pytest.fixture
def shelf(monkeypatch) -> Iterator[Shelf]:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.shelf = Shelf(server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.shelf
    server.shutdown()
    server.server_close()


def fetch(file: ReleasedFile, folder: Path, **options) -> bool:
    return fetch_file(file, folder, retry=options.pop("retry", HASTE), **options)


def lying(folder: Path) -> set[str]:
    """The files of a folder, without the empty ones that processes lock."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


# the table


@pytest.fixture
def small(monkeypatch, shelf) -> Shelf:
    """A table of two small entries: one file, and a folder of two."""
    two = (ReleasedFile("pair/a.json", f"{shelf.address}/a.json", 4), ReleasedFile("pair/b.bin", f"{shelf.address}/b"))
    entries = (Entry("one", "The one", "tests", "MIT", "https://example.org/one", (shelf.file(),)),
               Entry("pair", "The pair", "tests", "MIT", "https://example.org/pair", two))
    monkeypatch.setattr(registry, "ENTRIES", {entry.name: entry for entry in entries})
    monkeypatch.setattr(registry, "GROUPS", {"both": ("one", "pair")})
    return shelf
