"""The folder of shards while it is being made: its config, its finished shards, and recovery from a kill.

A shard's tar is renamed into place whole, after the list of its failures; from then on the shard is done. A shard whose
failed clips are tried again is renamed to ``<shard>.tar.before``: it is no longer done, and its records are used again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ...runtime.files import write_text
from ..manifests.manifest import Slice
from ..shards.records import read_members, write_records
from ..shards.schema import DatasetInfo, ShardInfo, decode_record

STATE_FILE = "extraction.json"
_LOCK_FILE = ".extraction.lock"
_STALE_S = 60.0  # a file is written in seconds: a temporary file older than this belongs to a killed worker

Record = dict[str, bytes]  # members by suffix


class ShardFolder:
    """``out``: shards of one manifest and one config, made by any number of workers.

    Args:
        path: of the folder.
        info: dataset.json, without its splits.
        config: every setting that changes a record; its hash is in ``info``.
        all_slices: the slices of all workers.
    """

    def __init__(self, path: Path, info: DatasetInfo, config: dict[str, Any], all_slices: list[Slice]) -> None:
        self.path, self.info, self.config, self.all_slices = path, info, config, all_slices
        self._kept: dict[str, dict[str, Record]] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Claim the folder for this manifest and config.

        Raises:
            InputError: the folder was begun with others, or there is no space left on the disk.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._swept():
                self._claim()
                yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"there is no space left for {self.path} ({error.strerror}); the shards that are there "
                             "are whole: make room, and the same command goes on from them") from error

    def todo(self, mine: list[Slice], retry_failed: bool) -> list[Slice]:
        """The slices of ``mine`` that have no shard yet; with retry_failed also those whose shard lists failures."""
        for part in mine:
            if self._is_done(part):
                self._before(part).unlink(missing_ok=True)  # its successor is in place
                if retry_failed and failures(self.path / part.failed_name):
                    (self.path / "dataset.json").unlink(missing_ok=True)
                    os.replace(self.path / part.name, self._before(part))
        return [part for part in mine if not self._is_done(part)]

    def kept(self, part: Slice) -> dict[str, Record]:
        """Records by id of a shard that was set aside; none where it is damaged: its clips are extracted again then."""
        if part.name not in self._kept:
            records: dict[str, Record] = {}
            try:
                if self._before(part).exists():
                    for key, members in read_members(self._before(part)):
                        records[decode_record(key, members).key] = members
            except InputError:
                records = {}
            self._kept[part.name] = records
        return self._kept[part.name]

    def commit(self, part: Slice, records: list[tuple[str, Record]], failed: list[dict[str, str]]) -> None:
        """Write the list of failures, then the shard.

        Args:
            part: the slice.
            records: ids and members.
            failed: entries {id, path, reason}.
        """
        lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in failed)
        write_text(self.path / part.failed_name, lines, sync=True)
        write_records(self.path / part.name, records)
        self._before(part).unlink(missing_ok=True)
        self._kept.pop(part.name, None)

    def finish(self) -> DatasetInfo:
        """The dataset as it is by now; with all shards dataset.json is written.

        Raises:
            InputError: no clip could be read.
        """
        splits: dict[str, list[ShardInfo]] = {}
        for part in filter(self._is_done, self.all_slices):
            failed = len(failures(self.path / part.failed_name))
            splits.setdefault(part.split, []).append(ShardInfo(part.name, len(part.rows) - failed, failed))
        info = replace(self.info, splits=splits)
        shards = [shard for found in splits.values() for shard in found]
        if len(shards) < len(self.all_slices):
            return info
        if not any(shard.records for shard in shards):
            first = failures(self.path / self.all_slices[0].failed_name)[0]
            for shard in shards:  # they hold nothing; the next run shall try again
                (self.path / shard.name).unlink(missing_ok=True)
            raise InputError(f"none of the {sum(s.failed for s in shards)} clips could be read. The first reason: "
                             f"{first['reason']}")
        info.write(self.path)
        return info

    def _is_done(self, part: Slice) -> bool:
        return (self.path / part.name).exists()

    def _before(self, part: Slice) -> Path:
        return self.path / f"{part.name}.before"

    def _claim(self) -> None:
        """Write manifest and config down before the first shard. Raises InputError where others are written there."""
        path = self.path / STATE_FILE
        ours = {"manifest_hash": self.info.manifest_hash, "config": self.config}
        if not path.exists():
            if next(self.path.glob("*.tar"), None) is not None:
                raise InputError(f"{self.path} holds tars but no {STATE_FILE}: they were not made by this program; "
                                 "choose another out=")
            write_text(path, json.dumps(ours, indent=1, sort_keys=True) + "\n", sync=True)
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))  # another worker may have been faster
        except (OSError, ValueError) as error:
            raise InputError(f"{path} can't be read ({error}); choose another out=, or delete the folder") from error
        if not isinstance(theirs, dict) or not isinstance(theirs.get("config"), dict):
            raise InputError(f"{path} doesn't hold what extraction writes; choose another out=, or delete the folder")
        if theirs.get("manifest_hash") != ours["manifest_hash"]:
            raise InputError(f"{self.path} was begun with another manifest; choose another out=, or delete the folder")
        then, now = theirs["config"], json.loads(json.dumps(self.config))
        changed = [f"{name} {then.get(name)} then, {now.get(name)} now" for name in sorted({*then, *now})
                   if then.get(name) != now.get(name)]
        if changed:
            raise InputError(f"{self.path} was begun with another config ({'; '.join(changed)}); choose another out=, "
                             "or delete the folder")

    @contextmanager
    def _swept(self) -> Iterator[None]:
        """Remove the temporary files of killed workers, unless another worker is running; hold a shared lock inside. On
        file systems without locks the files stay."""
        with open(self.path / _LOCK_FILE, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in self.path.glob(".*.partial*"):
                    if time.time() - left.stat().st_mtime > _STALE_S:
                        left.unlink(missing_ok=True)
            except OSError:
                pass
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
            except OSError:
                pass
            yield


def failures(path: str | os.PathLike) -> list[dict[str, str]]:
    """The entries {id, path, reason} of a ``<shard>.failed.jsonl``. Raises InputError where it can't be read."""
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and its tar, and extract again") from error
