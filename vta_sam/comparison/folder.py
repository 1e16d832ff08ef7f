"""The page's folder: what in it is its own, and how a new page takes the place of an old one."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from ..atomic import write_text
from ..errors import InputError

MARKER = "comparison.json"
OWN = ("assets", "media", "pages", "index.html")  # index.html last: while it is missing, there is no page
NEIGHBOURS = ("results",)  # the evaluation's tables, which others write beside the page
_NEW, _OLD = ".new", ".old"


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """An empty folder to write a page into; when the block ends, it takes the place of the page in ``out``, of which
    nothing stays. If the block raises, the old page stays whole.

    InputError: ``out`` is a file, can't be written to, or holds other things and no page.
    """
    _claim(out)
    new, old = out / _NEW, out / _OLD
    try:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield new
        for name in reversed(OWN):
            if (out / name).exists() or (out / name).is_symlink():
                (out / name).rename(old / name)
        for name in OWN:
            (new / name).rename(out / name)
    except OSError as error:
        raise InputError(f"out={out}: the page can't be written ({error.strerror or error})") from error
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def _claim(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MARKER).is_file():
            foreign = sorted(path.name for path in out.iterdir() if path.name not in (*NEIGHBOURS, _NEW, _OLD))
            if foreign:
                raise InputError(f"out={out} holds {', '.join(foreign[:3])}{' …' * (len(foreign) > 3)} and no "
                                 f"comparison page ({MARKER} is missing); name a new or empty folder")
            write_text(out / MARKER, json.dumps({"page": "vta_sam.comparison", "format": 1}) + "\n")
    except FileExistsError as error:
        raise InputError(f"out={out} is a file; name a folder") from error
    except OSError as error:
        raise InputError(f"out={out} can't be written to ({error.strerror}); name another folder") from error
