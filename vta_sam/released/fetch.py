"""Fetch one released file: resumed where it broke off, checked, and under its name only when it is whole and right.

Beside the file called ``name`` lie, while it is under way, ``.name.part`` (what has come so far), ``.name.part.json``
(of which version) and ``.name.lock``. A ``.part`` outlives a broken line, a kill and a full disk; the next call goes on
from its end, if the server still has the version that it was begun with (RFC 9110, If-Range).
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from ..errors import InputError
from ..file_lock import alone
from ..patience import Patience
from .part import Part
from .registry import ReleasedFile, readable
from .transfer import Broken, Line, Refused, Unreachable
from .verify import Progress, fault


def fetch_file(
    file: ReleasedFile,
    folder: Path,
    again: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda words: None,
    patience: Patience = Patience(),
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
        with alone(path, lambda: say(f"{path.name}: another process is fetching it; waiting")):
            if _lies_there(path, file, again):
                return False  # by now
            part = Part.beside(path)
            _bring(file, part, path, progress, say, patience)
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


def _bring(file: ReleasedFile, part: Part, path: Path, progress: Progress | None, say: Callable[[str], None],
           patience: Patience) -> None:
    """Ask until ``part`` is whole, or until several attempts in a row brought next to nothing."""
    in_vain = 0
    with Line(patience.connect_s, patience.read_s) as line:
        while True:
            before = part.size
            try:
                return line.transfer(file, part, progress)
            except Unreachable as error:
                raise InputError(f"{path.name} can't be fetched: {error}; where there is internet, fetch {file.url} "
                                 f"and put it at {path.resolve()}") from None
            except Refused as error:
                raise InputError(f"{file.url} {error}; if you have {path.name} from elsewhere, put it at "
                                 f"{path.resolve()}") from None
            except Broken as error:
                in_vain = 0 if part.size - before >= Line.WORTHWHILE_BYTES else in_vain + 1
                if in_vain >= patience.attempts:
                    raise InputError(f"{file.url} did not come through, {in_vain} times in a row ({error}); "
                                     f"{part.size} bytes of it are kept, and the same command goes on from there"
                                     ) from None
                pause_s = patience.pause_s(in_vain)
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
