"""What has come of a file so far, and of which version of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..atomic import write_text


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
