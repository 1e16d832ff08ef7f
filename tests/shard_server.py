"""A server of a dataset's folder that fails, truncates and lies as it is told."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from weights_server import Handler, answers

from vta_sam.runtime.files import RetryPolicy

HASTE = RetryPolicy(connect_s=5.0, read_s=2.0, attempts=3, wait_s=0.01)
Manner = Callable[[Handler, "FolderShelf"], None]


class FolderShelf:
    """Files of ``folder``; ``manners`` are how it answers the next requests for tars, after them it behaves."""

    def __init__(self, server: ThreadingHTTPServer, folder: Path, scheme: str):
        self.folder = folder
        self.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/data"
        self.asked: list[str] = []
        self.manners: deque[Manner] = deque()

    def tars(self) -> list[str]:
        return [name for name in self.asked if name.endswith(".tar")]


class FolderHandler(Handler):
    def do_GET(self):
        shelf = self.server.shelf
        shelf.asked.append(self.name)
        manner = shelf.manners.popleft() if shelf.manners and self.name.endswith(".tar") else serve
        manner(self, shelf)

    @property
    def name(self) -> str:
        return unquote(self.path).removeprefix("/data/")


def serve(handler: FolderHandler, shelf: FolderShelf, body: Callable[[bytes], bytes] = lambda data: data,
          promised: int | None = None) -> None:
    """A file's bytes, or what ``body`` makes of them; promised: the length that is claimed."""
    path = shelf.folder / handler.name
    if not path.is_file():
        return answers(404)(handler, shelf)
    data = body(path.read_bytes())
    handler.begin(200, Content_Length=len(data) if promised is None else promised)
    handler.wfile.write(data)
    return None


def breaks_off(handler: FolderHandler, shelf: FolderShelf) -> None:
    """The line breaks before the promised bytes have come."""
    serve(handler, shelf, lambda data: data[:3000], promised=(shelf.folder / handler.name).stat().st_size)


def cuts(handler: FolderHandler, shelf: FolderShelf) -> None:
    """A part that claims to be all: only the tar itself can tell."""
    serve(handler, shelf, lambda data: data[:len(data) // 1024 * 512])


def garbles(handler: FolderHandler, shelf: FolderShelf) -> None:
    """A whole tar with damage inside."""
    serve(handler, shelf, lambda data: damaged(data))


def damaged(tar: bytes) -> bytes:
    """A tar of the same length and with its end mark, whose first sound is no flac."""
    assert b"fLaC" in tar
    return tar.replace(b"fLaC", b"cALf", 1)


@contextmanager
def serving(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[FolderShelf]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FolderHandler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    server.shelf = FolderShelf(server, folder, "http" if tls is None else "https")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.shelf
    finally:
        server.shutdown()
        server.server_close()
