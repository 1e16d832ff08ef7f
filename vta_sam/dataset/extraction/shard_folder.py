"""The folder of shards during extraction: its config, its finished shards, and recovery from a kill.

A shard is done once its tar is renamed into place, after the list of its failures. A shard whose failed clips are tried
again is renamed to ``<shard>.tar.before``. It is then no longer done, and the new shard takes over its records.
Processes that write to one folder claim each shard before they begin it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...runtime.errors import EndOfRun, InputError, is_out_of_memory, passing_fault
from ...runtime.files import claimed, printable, reason_of, sweep_claims, write_fault, write_new, write_text
from ...runtime.work_plan import Deed, Item, counted
from ..manifests.manifest import Row, Slice
from ..shards.records import read_members, write_records
from ..shards.schema import DatasetInfo, ShardInfo, decode_record, read_dataset
from ..shards.storage import Storage

STATE_FILE = "extraction.json"
_LOCK_FILE = ".extraction.lock"
_STALE_S = 60.0  # a file is written in seconds: a temporary file older than this belongs to a killed worker
_REASONS, _CLIPS = 5, 3  # that are shown, of failures; clips of each
_MANY = 8  # clips of a shard by which most of them can tell of a fault of the machine
_LONGEST_REASON, _LONGEST_TRACEBACK = 500, 20_000  # characters, of an unexpected error

Record = dict[str, bytes]  # members by suffix


class ClipFault(InputError):
    """An error that no clip should cause, which may be the program's, the machine's or a device's.

    Args:
        reason: the sentence that is listed.
        kind: "fault", or "memory" where a device or the machine had too little.
        traceback: of the error.
    """

    def __init__(self, reason: str, kind: str, traceback: str) -> None:
        super().__init__(reason)
        self.kind, self.traceback = kind, traceback


def failure_of(error: Exception, path: str) -> InputError:
    """The error that is listed for a clip of which another one, just caught, prevents a record.

    Args:
        error: of any kind. Its tracebacks are dropped, since their frames hold the clip's batches in memory.
        path: of the video.
    """
    told = printable("".join(traceback.format_exception(error)))[-_LONGEST_TRACEBACK:]
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__, chained = None, chained.__cause__ or chained.__context__
    failure: InputError
    if is_out_of_memory(error):
        failure = ClipFault(reason_of(error, path), "memory", told)
    elif isinstance(error, (OSError, UnicodeError)):
        failure = InputError(reason_of(error, path))
    else:
        lines = str(error).strip().split("\n")
        words = f"unexpected {type(error).__name__}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))}"
        failure = ClipFault(printable(f"{path}: {words[:_LONGEST_REASON]}"), "fault", told)
    failure.__cause__ = error
    return failure


def entry_of(row: Row, error: InputError) -> dict[str, str]:
    """A failed clip's entry of the list: {id, path, reason}, and {kind, traceback} of a :class:`ClipFault`."""
    entry = {"id": row.id, "path": row.path, "reason": str(error)}
    return entry | ({"kind": error.kind, "traceback": error.traceback} if isinstance(error, ClipFault) else {})


def hash_of(config: dict[str, Any]) -> str:
    """The SHA-256 of an extraction's config, as dataset.json has it."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def config_of(storage: Storage) -> dict[str, Any] | None:
    """The config of the extraction that a dataset's folder was begun with; None where that isn't known."""
    try:
        config = json.loads(storage.read_text(STATE_FILE))["config"]
    except (OSError, InputError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


@dataclass(frozen=True)
class ShardTask:
    """What a plan says of one shard. seen_ns: when its tar was written, if there was one."""

    part: Slice
    item: Item
    seen_ns: int | None = None


class ShardFolder:
    """A folder of shards of one manifest and one config, made by any number of workers.

    Args:
        path: of the folder.
        info: content of dataset.json, without its splits.
        config: all settings that change a record; its hash is in ``info``.
        all_slices: the slices of all workers.
    """

    def __init__(self, path: Path, info: DatasetInfo, config: dict[str, Any], all_slices: list[Slice]) -> None:
        self.path, self.info, self.config, self.all_slices = path, info, config, all_slices
        self._earlier: dict[str, dict[str, Record]] = {}
        self._held: dict[str, ExitStack] = {}  # claims, by shard

    @contextmanager
    def begun(self) -> Iterator[None]:
        """A context in which the folder belongs to this manifest and config.

        Raises:
            InputError: the folder was begun with others.
            EndOfRun: there is no space left on the disk, or the folder can't be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._claim()
                yield
        except OSError as error:
            if fault := passing_fault(error):
                raise EndOfRun(f"out={self.path}: {fault.strerror}; see whether its disk or file server is there. The "
                               "finished shards are whole, and the same command goes on from them") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise EndOfRun(f"there is no space left for {self.path} ({error.strerror}); the shards that are there "
                               "are whole: make room, and the same command goes on from them") from error
            sentence = write_fault(error, self.path)
            if sentence is None:
                raise
            raise EndOfRun(sentence) from error
        finally:
            for held in self._held.values():
                held.close()
            self._held.clear()

    def judge(self, part: Slice, retry_failed: bool) -> ShardTask:
        """What is to be done for a shard; nothing is written.

        Args:
            part: its slice.
            retry_failed: make shards again whose list of failures isn't empty.
        """
        if not self._is_done(part):
            if self._aside(part).exists():
                return ShardTask(part, Item(part.name, Deed.GO_ON, "its failed clips are being tried again"))
            return ShardTask(part, Item(part.name, Deed.MAKE, counted(len(part.rows), "clip")))
        seen_ns = (self.path / part.name).stat().st_mtime_ns
        failed = len(failures(self.path / part.failed_name)) if retry_failed else 0
        if failed:
            detail = f"{counted(failed, 'clip')} of it failed, and will be tried again"
            return ShardTask(part, Item(part.name, Deed.MAKE_AGAIN, detail), seen_ns)
        return ShardTask(part, Item(part.name, Deed.KEEP), seen_ns)

    def take(self, task: ShardTask) -> bool | None:
        """Claim a shard and begin it as planned ⇒ True; False where another process is at it, None where one has
        finished it since."""
        held, path = ExitStack(), self.path / task.part.name
        if not held.enter_context(claimed(path, repeatable=True)):
            held.close()
            return False
        if path.exists() and path.stat().st_mtime_ns != task.seen_ns:
            held.close()
            return None
        self._held[task.part.name] = held
        if task.item.deed is Deed.MAKE_AGAIN and path.exists():
            (self.path / "dataset.json").unlink(missing_ok=True)
            os.replace(path, self._aside(task.part))
        return True

    def keep(self, task: ShardTask) -> None:
        """Remove what was set aside for a shard that is in place."""
        self._aside(task.part).unlink(missing_ok=True)

    def earlier_records(self, part: Slice) -> dict[str, Record]:
        """{id: record} of a shard that was set aside.

        It is empty for a damaged shard, whose clips are then extracted again.
        """
        if part.name not in self._earlier:
            records: dict[str, Record] = {}
            try:
                if self._aside(part).exists():
                    for key, members in read_members(self._aside(part)):
                        records[decode_record(key, members).key] = members
            except InputError:
                records = {}
            self._earlier[part.name] = records
        return self._earlier[part.name]

    def commit(self, part: Slice, records: list[tuple[str, Record]], failed: list[dict[str, str]],
               mostly_failed: bool = False) -> None:
        """Write the list of failures, and then the shard, in whatever thread; then :meth:`release` it.

        Args:
            part: the slice.
            records: pairs of id and members.
            failed: entries of :func:`entry_of`.
            mostly_failed: also where more than half of the clips failed, of a slice of at least 8.

        Raises:
            EndOfRun: more than half failed, and more than the shard lacked before it was set aside. Nothing is written.
        """
        clips = len(part.rows)
        if clips >= _MANY and 2 * len(failed) > max(clips, 2 * self._failed_before(part)) and not mostly_failed:
            reasons = "; ".join(f"{len(ids)} × {reason}" for reason, ids in _frequent(failed)[:_CLIPS])
            raise EndOfRun(f"{part.name} was not written, since {len(failed)} of its {clips} clips failed: "
                           f"{printable(reasons)}. Where that is the machine's fault, mend it, and the same command "
                           "goes on; where it is the videos', commit_mostly_failed=true writes such shards")
        lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in failed)
        write_text(self.path / part.failed_name, lines, sync=True)
        write_records(self.path / part.name, records)
        self._aside(part).unlink(missing_ok=True)
        self._earlier.pop(part.name, None)

    def release(self, part: Slice) -> None:
        """Give up the claim on a shard that was committed, in the thread that took it."""
        self._held.pop(part.name, ExitStack()).close()

    def _failed_before(self, part: Slice) -> int:
        """Number of failures of a shard that was set aside; 0 for another, whose list a kill may have left."""
        try:
            return len(failures(self.path / part.failed_name)) if self._aside(part).exists() else 0
        except InputError:
            return 0

    def finish(self) -> DatasetInfo:
        """The dataset as it is now. dataset.json is written if all shards are done.

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
            for shard in shards:  # all are empty; without them the next run tries the clips again
                (self.path / shard.name).unlink(missing_ok=True)
            raise InputError(f"none of the {sum(s.failed for s in shards)} clips could be read. The first reason: "
                             f"{first['reason']}")
        before = self._dataset_before(info)
        if before is None:
            info.write(self.path)
        return before or info

    @property
    def is_described(self) -> bool:
        """Whether dataset.json is there, and says all that this release knows of what makes the records."""
        try:
            splits = read_dataset(self.path).splits
        except InputError:
            return False
        return self._dataset_before(replace(self.info, splits=splits)) is not None

    def _dataset_before(self, info: DatasetInfo) -> DatasetInfo | None:
        """dataset.json as it is, where it says the same of all records: a later release of this program makes no other
        dataset of finished shards. None: it has to be written."""
        try:
            before = read_dataset(self.path)
        except InputError:
            return None
        return before if replace(before, code_version=info.code_version) == info else None

    def _is_done(self, part: Slice) -> bool:
        return (self.path / part.name).exists()

    def _aside(self, part: Slice) -> Path:
        return self.path / f"{part.name}.before"

    def require_same(self) -> bool:
        """Whether the folder was begun, with this manifest and config. Raises InputError where it was with others."""
        path = self.path / STATE_FILE
        ours = {"manifest_hash": self.info.manifest_hash, "config": self.config}
        if not path.exists():
            if next(self.path.glob("*.tar"), None) is not None:
                raise InputError(f"{self.path} holds tars but no {STATE_FILE}: they were not made by this program; "
                                 "choose another out=")
            return False
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
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
        return True

    def _claim(self) -> None:
        """Write manifest and config to extraction.json, or compare them. Raises InputError where they differ."""
        if not self.require_same():
            ours = {"manifest_hash": self.info.manifest_hash, "config": self.config}
            write_new(self.path / STATE_FILE, json.dumps(ours, indent=1, sort_keys=True) + "\n")
            self.require_same()  # another worker may have been faster

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A context with a shared lock on the folder, before which temporary files and claims of killed workers are
        removed.

        Temporary files stay while another worker is running, and on file systems without locks.
        """
        sweep_claims(self.path)
        with open(self.path / _LOCK_FILE, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for temporary in self.path.glob(".*.partial*"):
                    if time.time() - temporary.stat().st_mtime > _STALE_S:
                        temporary.unlink(missing_ok=True)
            except OSError:
                pass
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
            except OSError:
                pass
            yield


def failures(path: str | os.PathLike) -> list[dict[str, str]]:
    """The entries of a ``<shard>.failed.jsonl``, see :func:`entry_of`. Raises InputError where it can't be read."""
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and its tar, and extract again") from error


def _frequent(entries: Iterable[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """(reason, ids of its clips), the most frequent first. The file's name is left out, so that the same reasons count
    together."""
    clips: dict[str, list[str]] = {}
    for entry in entries:
        reason = re.sub(rf"[^\s'\"]*{re.escape(entry['path'])}", "…", entry["reason"])
        clips.setdefault(reason, []).append(entry["id"])
    return sorted(clips.items(), key=lambda item: -len(item[1]))


def summary(info: DatasetInfo, out: Path) -> Group:
    """A table of shards, records and failures of each split, and the most frequent reasons of failures with the first
    clips that they befell, to be printed.

    Args:
        info: the dataset.
        out: its folder.
    """
    table = Table("split", "shards", "records", "failed", title=Text(printable(out)))
    entries: list[dict[str, str]] = []
    for split, shards in sorted(info.splits.items()):
        failed = sum(shard.failed for shard in shards)
        table.add_row(split, str(len(shards)), str(sum(shard.records for shard in shards)), str(failed))
        for shard in shards:
            if shard.failed:
                entries += failures(out / f"{Path(shard.name).stem}.failed.jsonl")
    lines = [Text(printable(f"{len(ids)} clips: {reason} ({', '.join(ids[:_CLIPS])}{', …' * (len(ids) > _CLIPS)})"))
             for reason, ids in _frequent(entries)[:_REASONS]]
    if entries:
        lines.append(Text(printable(f"All that failed, with their reasons: {out / '*.failed.jsonl'}; retry_failed=true "
                                    "tries them again.")))
    if faults := sum("kind" in entry for entry in entries):
        lines.append(Text(f"{faults} of them had an unexpected fault, whose traceback stands there."))
    if not (out / "dataset.json").exists():
        lines.append(Text("Other workers' shards are missing still; dataset.json is written with the last of them."))
    return Group(table, *lines)
