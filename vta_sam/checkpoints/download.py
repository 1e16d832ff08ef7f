"""One released file: fetched, resumed where it broke off, checked, and put under its name when it is whole.

A file of the Hugging Face hub comes by ``hf_hub_download``, so that HF_ENDPOINT, HF_HOME (its cache and its token),
HF_TOKEN and HF_HUB_OFFLINE apply. Every other address is asked here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Iterator
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import NewConnectionError, ProtocolError, ReadTimeoutError

from ..runtime.errors import InputError
from ..runtime.files import RETRIED_STATUSES, RetryPolicy, exclusive, write_text
from .registry import HubFile, Progress, ReleasedFile, fault, readable


@dataclass(frozen=True)
class Part:
    """``.name.part`` beside the file to come, and ``.name.part.json`` with the address and the version it is of."""

    path: Path

    @classmethod
    def beside(cls, path: Path) -> Part:
        return cls(path.with_name(f".{path.name}.part"))

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self, url: str) -> str | None:
        """The version that ``url`` gave it (an ETag or a date); "" if it gave none; None if this is not of ``url``."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(note, dict) or note.get("url") != url or not isinstance(note.get("version"), str):
            return None
        return note["version"]

    def begin(self, url: str, version: str) -> BinaryIO:
        """An empty file to write to, noted as ``version`` of ``url``."""
        self.remove()  # before the note, so that a kill in between can't leave old bytes under a new note
        write_text(self._note, json.dumps({"url": url, "version": version}))
        return open(self.path, "wb")

    def go_on(self) -> BinaryIO:
        """The file, to write on at its end."""
        return open(self.path, "ab")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        """Take the name of the whole file, at once, with its bytes on the disk."""
        with open(self.path, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(self.path, path)
        self._note.unlink(missing_ok=True)


_PIECE_BYTES = 1 << 16
_WORTHWHILE_BYTES = 1 << 20  # an attempt that brought as much was not in vain


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


def transfer(file: ReleasedFile, part: Part, retry: RetryPolicy, progress: Progress | None = None) -> None:
    """Make ``part`` whole, from where it ends if the server can and still has that version, else from the start.

    The environment's proxies and certificates apply (HTTPS_PROXY, REQUESTS_CA_BUNDLE). Returns when all bytes have
    come; raises Unreachable, Refused or Broken, and what has come stays.
    """
    offset, version = part.size, part.version(file.url)
    if version is None or (not version and file.sha256 is None):
        offset = 0  # nothing would tell a mixture of two versions
    if offset and offset == file.size_bytes:
        return
    offset = offset if file.size_bytes is None or offset < file.size_bytes else 0
    # bytes are counted as they lie on the server's disk
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if version:
            headers["If-Range"] = version
    _check_scheme(file.url)
    timeout = (retry.connect_s, retry.read_s)
    try:
        with _Session() as session, session.get(file.url, headers=headers, stream=True, timeout=timeout) as answer:
            _receive(answer, file, part, offset, version, progress)
    except requests.RequestException as error:
        raise _classify(error) from None


def _receive(answer: requests.Response, file: ReleasedFile, part: Part, offset: int, version: str | None,
             progress: Progress | None) -> None:
    total = _check(answer, file, part, offset, version)
    if answer.status_code == 200:
        offset = 0
    _check_space(total - part.size, part.path.parent)
    done = offset
    with part.go_on() if offset else part.begin(file.url, _version(answer)) as out:
        for block in answer.iter_content(_PIECE_BYTES):
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
    if code in RETRIED_STATUSES:
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


def _check_space(size_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise OSError(errno.ENOSPC, f"{readable(size_bytes)} don't fit into {readable(free)}")


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


@dataclass(frozen=True)
class HubTransfer:
    """One file of the hub on its way into ``folder``, where what has come stays until the file is whole."""

    file: HubFile
    folder: Path
    part: Part

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return sum(path.stat().st_size for path in self.folder.rglob("*.incomplete"))

    def transfer(self, released: ReleasedFile, progress: Progress | None = None) -> None:
        """Make ``part`` whole: a copy from the hub's own cache where it is there and right, else a download.

        Raises Unreachable, Refused or Broken, and what has come stays.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        file = self.file
        cached = try_to_load_from_cache(file.repository, file.path, revision=file.revision)
        if isinstance(cached, str) and fault(Path(cached), released) is None:
            shutil.copyfile(cached, self.part.path)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_space((released.size_bytes or 0) - self.size, self.folder)
        with self._reported(released, progress):
            try:
                # no cache, since what it holds was wrong; the endpoint anew, since the library read it when imported
                found = hf_hub_download(file.repository, file.path, revision=file.revision, local_dir=self.folder,
                                        cache_dir=self.folder / "no_cache",
                                        endpoint=os.environ.get("HF_ENDPOINT") or None)
            except (requests.RequestException, OSError, RuntimeError) as error:
                if not self.size:
                    shutil.rmtree(self.folder)
                raise self._in_kind(error) from None
        os.replace(found, self.part.path)
        shutil.rmtree(self.folder)

    @contextmanager
    def _reported(self, released: ReleasedFile, progress: Progress | None) -> Iterator[None]:
        """The size twice a second to ``progress``, in place of the library's own bar."""
        from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

        names, done = ("huggingface_hub.http_get", "huggingface_hub.xet_get"), threading.Event()

        def watch() -> None:
            while progress is not None and released.size_bytes is not None and not done.wait(0.5):
                progress(self.size, released.size_bytes)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        for name in names:
            disable_progress_bars(name)
        try:
            yield
        finally:
            done.set()
            watcher.join()
            for name in names:
                enable_progress_bars(name)

    def _in_kind(self, error: Exception) -> Exception:
        """An error of the library ⇒ Unreachable, Refused or Broken; an error of the disk as it is."""
        from huggingface_hub.errors import (
            FileMetadataError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled,
            RepositoryNotFoundError
        )

        page = f"https://huggingface.co/{self.file.repository}"
        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if isinstance(error, OfflineModeIsEnabled):
            return Unreachable("HF_HUB_OFFLINE is set, and the hub's cache doesn't hold it")
        if isinstance(error, GatedRepoError):
            return Refused(f"is gated; accept its terms at {page} and set HF_TOKEN to a token of yours")
        if isinstance(error, RepositoryNotFoundError):
            return Refused(f"is refused to this computer; {page} is gone, or wants a token in HF_TOKEN")
        if isinstance(error, FileMetadataError):
            return Refused("is answered by something that is not the hub (HF_ENDPOINT, or a proxy?)")
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            answer = f"answered {error.response.status_code} {error.response.reason}"
            return (Broken if error.response.status_code in RETRIED_STATUSES else Refused)(answer)
        if isinstance(error, requests.RequestException):
            return _classify(error)
        if isinstance(error, OSError) and error.errno is not None:
            return error
        return Broken((str(error).strip().splitlines() or [type(error).__name__])[0])


def fetch_file(
    file: ReleasedFile,
    folder: Path,
    again: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda words: None,
    retry: RetryPolicy = RetryPolicy(),
) -> bool:
    """Bring ``file`` to its place below ``folder`` ⇒ True if it was fetched, False if it lay there and was right.

    ``again`` replaces a file that is wrong, or one of which nobody can tell. ``progress`` hears of bytes, ``say`` of
    waiting and of further attempts. InputError: the network, the server, the disk, or the checksum, in one sentence.
    """
    path = folder / file.path
    with _in_words(path, file):
        if _lies_there(path, file, again):
            return False  # before the lock: the folder may be one that we can only read
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path, lambda: say(f"{path.name}: another process is fetching it; waiting")):
            if _lies_there(path, file, again):
                return False  # by now
            part = Part.beside(path)
            if file.hub is not None:
                hub = HubTransfer(file.hub, path.with_name(f".{path.name}.hub"), part)
                _bring(file, path, lambda: hub.size, lambda: hub.transfer(file, progress), say, retry)
            else:
                _bring(file, path, lambda: part.size, lambda: transfer(file, part, retry, progress), say, retry)
            wrong = fault(part.path, file)
            if wrong is not None:
                part.remove()
                raise InputError(f"what {file.url} sent is not {path.name}: {wrong}; it was deleted. Something between "
                                 "here and there may change files, or the file there was replaced")
            part.become(path)
    return True


def _lies_there(path: Path, file: ReleasedFile, again: bool) -> bool:
    """Is there nothing to fetch? InputError if what lies there is wrong and is not to be replaced."""
    if not path.exists():
        return False
    wrong = fault(path, file)
    if wrong is not None and not again:
        raise InputError(f"{path} is not what was released: {wrong}; --again fetches it anew, or move it away")
    return wrong is None and not (again and file.sha256 is None)


def _bring(file: ReleasedFile, path: Path, size: Callable[[], int], transfer: Callable[[], None],
           say: Callable[[str], None], retry: RetryPolicy) -> None:
    """Call ``transfer`` until it returns, or until several attempts in a row brought next to nothing of ``size``."""
    in_vain = 0
    while True:
        before = size()
        try:
            return transfer()
        except Unreachable as error:
            raise InputError(f"{path.name} can't be fetched: {error}; where there is internet, fetch {file.url} "
                             f"and put it at {path.resolve()}") from None
        except Refused as error:
            raise InputError(f"{file.url} {error}; if you have {path.name} from elsewhere, put it at {path.resolve()}"
                             ) from None
        except Broken as error:
            in_vain = 0 if size() - before >= _WORTHWHILE_BYTES else in_vain + 1
            if in_vain >= retry.attempts:
                raise InputError(f"{file.url} did not come through, {in_vain} times in a row ({error}); "
                                 f"{size()} bytes of it are kept, and the same command goes on from there") from None
            pause_s = retry.pause_s(in_vain)
            say(f"{path.name}: {error}; going on in {pause_s:g} s")
            time.sleep(pause_s)


@contextmanager
def _in_words(path: Path, file: ReleasedFile) -> Iterator[None]:
    """What the disk refuses ⇒ a sentence."""
    try:
        yield
    except BrokenPipeError:
        raise  # the terminal's, when `say` or `progress` write to it
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"the disk of {path.parent} is full: {path.name} takes {readable(file.size_bytes)}; make "
                             "room or name another --folder, and the same command goes on with what has come") from None
        raise InputError(f"{error.filename or path} can't be read or written ({error.strerror or error}); --folder "
                         "names another place") from None
