"""The folder of shards during extraction: its config, its finished shards, and recovery from a kill.

A shard is done once its tar is renamed into place, after the list of its failures. A shard whose failed clips are tried
again is renamed to ``<shard>.tar.before``. It is then no longer done, and the new shard takes over its records.
Processes that write to one folder claim each shard before they begin it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...runtime.errors import EndOfRun, InputError
from ...runtime.files import claimed, printable, sweep_claims, write_fault, write_text
from ...runtime.work_plan import Deed, Item, counted
from ..manifests.manifest import Slice
from ..shards.records import read_members, write_records
from ..shards.schema import DatasetInfo, ShardInfo, decode_record, read_dataset

STATE_FILE = "extraction.json"
_LOCK_FILE = ".extraction.lock"
_STALE_S = 60.0  # a file is written in seconds: a temporary file older than this belongs to a killed worker
_REASONS, _CLIPS = 5, 3  # that are shown, of failures; clips of each

Record = dict[str, bytes]  # members by suffix


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
        if not held.enter_context(claimed(path)):
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

    def commit(self, part: Slice, records: list[tuple[str, Record]], failed: list[dict[str, str]]) -> None:
        """Write the list of failures, and then the shard.

        Args:
            part: the slice.
            records: pairs of id and members.
            failed: entries {id, path, reason}.
        """
        lines = "".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n" for entry in failed)
        write_text(self.path / part.failed_name, lines, sync=True)
        write_records(self.path / part.name, records)
        self._aside(part).unlink(missing_ok=True)
        self._earlier.pop(part.name, None)
        self._held.pop(part.name, ExitStack()).close()

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
            write_text(self.path / STATE_FILE, json.dumps(ours, indent=1, sort_keys=True) + "\n", sync=True)
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
    """The entries {id, path, reason} of a ``<shard>.failed.jsonl``. Raises InputError where it can't be read."""
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and its tar, and extract again") from error


def summary(info: DatasetInfo, out: Path) -> Group:
    """A table of shards, records and failures of each split, and the most frequent reasons of failures with the first
    clips that they befell, to be printed.

    Args:
        info: the dataset.
        out: its folder.
    """
    table = Table("split", "shards", "records", "failed", title=Text(printable(out)))
    clips: dict[str, list[str]] = {}
    for split, shards in sorted(info.splits.items()):
        failed = sum(shard.failed for shard in shards)
        table.add_row(split, str(len(shards)), str(sum(shard.records for shard in shards)), str(failed))
        for shard in shards:
            if shard.failed:
                for entry in failures(out / f"{Path(shard.name).stem}.failed.jsonl"):
                    # without the file's name, so that the same reasons count together
                    reason = re.sub(rf"[^\s'\"]*{re.escape(entry['path'])}", "…", entry["reason"])
                    clips.setdefault(reason, []).append(entry["id"])
    frequent = sorted(clips.items(), key=lambda item: -len(item[1]))[:_REASONS]
    lines = [Text(printable(f"{len(ids)} clips: {reason} ({', '.join(ids[:_CLIPS])}{', …' * (len(ids) > _CLIPS)})"))
             for reason, ids in frequent]
    if clips:
        lines.append(Text(printable(f"All that failed, with their reasons: {out / '*.failed.jsonl'}; retry_failed=true "
                                    "tries them again.")))
    if not (out / "dataset.json").exists():
        lines.append(Text("Other workers' shards are missing still; dataset.json is written with the last of them."))
    return Group(table, *lines)
