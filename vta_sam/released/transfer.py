"""One answer of a server to "the file from this byte on", and what is wrong with it."""

from __future__ import annotations

import errno
import re
import shutil
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import NewConnectionError, ProtocolError, ReadTimeoutError

from ..patience import PASSING_STATUSES
from .part import Part
from .registry import ReleasedFile, readable
from .verify import Progress

_BLOCK_BYTES = 1 << 16


class Unreachable(Exception):
    """No connection comes about: no network, no such name, a proxy that refuses."""


class Refused(Exception):
    """What the server says or sends can't become the file, and won't in a minute."""


class Broken(Exception):
    """The answer ended early; asking again may help."""


class _Session(requests.Session):
    """Redirects are followed, but none away from https."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is not None:
            _check_scheme(urljoin(resp.url, target))
        return target


class Line:
    """A connection to servers. The environment's proxies and certificates apply (HTTPS_PROXY, REQUESTS_CA_BUNDLE)."""

    WORTHWHILE_BYTES = 1 << 20  # an attempt that brought as much was not in vain

    def __init__(self, connect_s: float, read_s: float):
        self._session = _Session()
        self._timeout = (connect_s, read_s)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def transfer(self, file: ReleasedFile, part: Part, progress: Progress | None = None) -> None:
        """Make ``part`` whole, from where it ends if the server can and still has that version, else from the start.

        Returns when all bytes have come; raises Unreachable, Refused or Broken, and what has come stays.
        """
        offset, version = part.size, part.version(file.url)
        if version is None or (not version and file.sha256 is None):
            offset = 0  # nothing would tell a mixture of two versions
        if file.size_bytes is not None and offset >= file.size_bytes:
            if offset == file.size_bytes:
                return
            offset = 0
        # bytes are counted as they lie on the server's disk
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        _check_scheme(file.url)
        try:
            with self._session.get(file.url, headers=headers, stream=True, timeout=self._timeout) as answer:
                self._receive(answer, file, part, offset, version, progress)
        except requests.RequestException as error:
            raise _classify(error) from None

    def _receive(self, answer: requests.Response, file: ReleasedFile, part: Part, offset: int, version: str | None,
                 progress: Progress | None) -> None:
        total = _check(answer, file, part, offset, version)
        if answer.status_code == 200:
            offset = 0
        free = shutil.disk_usage(part.path.parent).free + part.size
        if total > free:
            raise OSError(errno.ENOSPC, f"{readable(total)} don't fit into {readable(free)}")
        done = offset
        with part.go_on() if offset else part.begin(file.url, _version(answer)) as out:
            for block in answer.iter_content(_BLOCK_BYTES):
                done += len(block)
                if done > total:
                    break
                out.write(block)
                if progress is not None:
                    progress(done, total)
        if done > total:
            part.remove()
            raise Refused(f"sends more than the {total} bytes that the file has; nothing of it was kept")
        if done < total:
            raise Broken(f"ended after {done} of {total} bytes")


def _check(answer: requests.Response, file: ReleasedFile, part: Part, offset: int, version: str | None) -> int:
    """An answer's head ⇒ the bytes that the whole file has; Refused or Broken if it doesn't answer the question."""
    code, stretch = answer.status_code, _range(answer)
    if code in PASSING_STATUSES:
        raise Broken(f"answered {code} {answer.reason}")
    if code == 416 or (code == 206 and not _continues(answer, file, offset, version)):
        part.remove()
        raise Broken("has another version than the one that was begun")
    if code not in (200, 206):
        raise Refused(f"answered {code} {answer.reason}")
    if answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise Refused("sent a web page in place of the file (a login, or a page of a proxy?)")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(f"sent the file packed ({answer.headers['Content-Encoding']}), though it was asked not to")
    length = answer.headers.get("Content-Length", "")
    if code == 206 and stretch is not None:
        total: int | None = stretch[1]
    else:
        total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else file.size_bytes
    if total is None:
        raise Refused("doesn't say how long the file is, and that isn't known here either")
    if file.size_bytes not in (None, total):
        raise Refused(f"offers {total} bytes, but the released file has {file.size_bytes}; nothing was written")
    return total


def _continues(answer: requests.Response, file: ReleasedFile, offset: int, version: str | None) -> bool:
    """Does a partial answer start where we are, in a file of the same version and size?"""
    stretch = _range(answer)
    return (stretch is not None and stretch[0] == offset > 0 and file.size_bytes in (None, stretch[1])
            and (not version or not _version(answer) or version == _version(answer)))


def _range(answer: requests.Response) -> tuple[int, int] | None:
    """Content-Range: bytes 100-199/200 ⇒ (100, 200)."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", answer.headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[2])) if found else None


def _version(answer: requests.Response) -> str:
    """What If-Range may name: a strong ETag, else the date of the last change, else nothing."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check_scheme(url: str) -> None:
    place = urlsplit(url)
    if place.scheme != "https" and not (place.scheme == "http" and place.hostname in ("localhost", "127.0.0.1")):
        raise Refused(f"leads to {url}, which is not https")


def _classify(error: requests.RequestException) -> Exception:
    """Did a connection come about at all? Of what requests wraps, the innermost reason is the one to tell."""
    inner = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    words = re.sub(r"^\w*Connection\w*\(.*?\): ", "", str(inner)) or type(error).__name__
    host = urlsplit(str(error.request.url)).hostname if error.request is not None else "the server"
    never = (requests.exceptions.ProxyError, requests.exceptions.InvalidProxyURL,
             requests.exceptions.ConnectTimeout, requests.exceptions.SSLError)
    if isinstance(error, never) or isinstance(inner, NewConnectionError):
        return Unreachable(f"{host} can't be reached ({words})")
    if isinstance(error, requests.exceptions.ReadTimeout) or isinstance(inner, ReadTimeoutError):
        return Broken("nothing came for too long")
    return Broken("the line broke" if isinstance(inner, ProtocolError) else words)
