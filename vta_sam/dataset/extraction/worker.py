"""A worker of an extraction: clips ⇒ records ⇒ shards, while the extractors never wait for either.

Four things go on at once. Processes decode the next clips. The main thread puts their frames into batches and launches
them (perception/batches.py). A device computes. A thread finds the nouns of the next shard's captions, encodes finished
records, and writes shards.
"""

from __future__ import annotations

import errno
import itertools
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...clip import ClipFeatures, MelSpec
from ...media.decode_pool import DecodePool
from ...media.decoding import ClipRequest
from ...media.video import ClipStream
from ...perception.batches import ClipUnderWork, FrameBatches
from ...perception.features import Extractors, Texts, Words, record_of, words_of
from ...runtime.errors import EndOfRun, InputError, device_is_lost, is_readable, passing_fault
from ...runtime.files import RetryPolicy, printable, write_fault
from ...runtime.work_plan import Deed
from ..manifests.manifest import Row, Slice
from ..shards.schema import encode_record
from .shard_folder import ClipFault, Record, ShardFolder, ShardTask, entry_of, failure_of

_UNDER_WORK = 32  # clips that may wait for their record
Progress = Callable[[int, int, int], None]  # clips done, clips in all, clips failed in this run


@dataclass(frozen=True)
class Limits:
    """What ends a run.

    Args:
        most_faults: unexpected faults of so many clips in a row.
        commit_mostly_failed: write a shard although more than half of its clips failed.
        retry: of a video that can't be read for a reason that lies with the machine or a file server.
    """

    most_faults: int
    commit_mostly_failed: bool
    retry: RetryPolicy


@dataclass(eq=False)
class Reading:
    """A clip that is being read.

    Args:
        row: of the manifest.
        words: its caption and objects.
        texts: their embeddings.
        clip: the decoder's stream.
        frames: its frames, on their way through the extractors.
    """

    row: Row
    words: Words
    texts: Texts
    clip: ClipStream
    frames: ClipUnderWork


class ClipExtractor:
    """Makes the record of a clip.

    Args:
        videos: folder of the videos.
        extractors: of the features.
        fps: frame rate of the features.
        sample_rate_hz: of the stored sound.
        sound: which of a video's sounds, as of :class:`~.extract.Extraction`.
    """

    def __init__(self, videos: Path, extractors: Extractors, fps: float,
                 sample_rate_hz: int = MelSpec().sample_rate_hz, sound: str | None = None):
        self.videos, self.extractors, self.sample_rate_hz, self.sound = videos, extractors, sample_rate_hz, sound
        self.fps = float(fps)  # 4 and 4.0 are the same record

    def request(self, row: Row) -> ClipRequest:
        """The request to decode a row's clip."""
        return ClipRequest(
            path=str(self.videos / row.path), fps=self.fps, start_s=row.start_s, duration_s=row.duration_s,
            fits=self.extractors.fits, sample_rate_hz=self.sample_rate_hz, chunk_frames=self.extractors.chunk_frames,
            sound=self.sound)

    def words(self, row: Row) -> Words | InputError:
        """The words of a row, or why it has none."""
        try:
            return words_of(row.caption, row.objects or None, self.extractors.known_words)
        except Exception as error:
            return self.failure(row, error)

    def begin(self, row: Row, words: Words | InputError, clip: ClipStream, batches: FrameBatches) -> Reading:
        """Read a clip and give its frames to the extractors. What prevents that is kept in :attr:`Reading.frames`.

        Args:
            row: of the manifest.
            words: as of :meth:`words`.
            clip: the decoder's stream of the clip.
            batches: that its frames go into.

        Raises:
            InputError: the clip has no words, or an extractor refuses them.
        """
        if isinstance(words, InputError):
            raise words
        extractors = self.extractors.for_clip(self.videos / row.path, self.fps, row.start_s)
        extractors.check_words(words.objects)
        if words.language is not None:  # the same sentence for all clips, so that it is printed once
            warnings.warn(f"some captions seem to be in {words.language}: none of their words is looked for; a column "
                          "objects in the manifest names what sounds")
        frames = extractors.under_work([words.objects])
        reading = Reading(row, words, Texts.of(words, extractors.encoder), clip, frames)
        try:
            for chunk in clip:
                batches.add(frames, chunk)
                if frames.error is not None:
                    return reading
        except Exception as error:
            frames.error = error
        else:
            batches.end(frames)
        return reading

    def features(self, reading: Reading) -> ClipFeatures:
        """The features of a clip whose frames are done.

        Raises:
            InputError: the clip can't be read, an extractor refuses it, or a feature has another shape than its row in
                the table of features.
        """
        row, words, clip = reading.row, reading.words, reading.clip
        extracted = reading.frames.extracted()
        assert clip.waveform is not None  # request() includes it
        return record_of(
            extracted, words, extracted.groundings[0], reading.texts, key=row.id, caption=row.caption, fps=self.fps,
            waveform=clip.waveform, sample_rate_hz=self.sample_rate_hz, label=row.label, source=row.path,
            start_s=row.start_s, duration_s=clip.duration_s, dropped=words.dropped)

    def record(self, row: Row, words: Words | InputError, clip: ClipStream) -> Record | InputError:
        """The members of one clip's record, or the error that prevents one: a :class:`ClipFault`, unless it is one that
        a clip may have. Arguments as of :meth:`begin`."""
        batches = self.extractors.batches()
        try:
            reading = self.begin(row, words, clip, batches)
            batches.flush()
            features = self.features(reading)
        except Exception as error:
            return self.failure(row, error)
        return self.encoded(row, features)

    def encoded(self, row: Row, features: ClipFeatures) -> Record | InputError:
        """The members of a record of these features, or the error that prevents one."""
        try:
            return encode_record(features)
        except Exception as error:
            return self.failure(row, error)

    @staticmethod
    def failure(row: Row, error: Exception) -> InputError:
        """The error that is listed for a clip, of one just caught. One that ends the run is raised again."""
        if isinstance(error, EndOfRun) or write_fault(error) is not None:
            raise error
        return error if isinstance(error, InputError) else failure_of(error, row.path)


@dataclass(eq=False)
class _Shard:
    """A shard whose clips are under work."""

    part: Slice
    records: list[tuple[str, Record]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


@dataclass(eq=False)
class _Clip:
    """A clip on its way into its shard: it is read, or its record is being encoded, or is there."""

    shard: _Shard
    row: Row
    words: Words | InputError
    reading: Reading | None = None
    record: Future[Record | InputError] | None = None

    def is_there(self, record: Record | InputError) -> None:
        self.reading, self.record = None, Future()
        self.record.set_result(record)


class ShardMaker:
    """Makes shards, and counts clips and failures. It is a context, which ends its thread.

    Args:
        extractor: makes records.
        pool: decodes.
        folder: of the shards.
        limits: what ends the run.
        tasks: all of this worker's, for the counts.
        progress: called at the start and after each clip.
    """

    def __init__(self, extractor: ClipExtractor, pool: DecodePool, folder: ShardFolder, limits: Limits,
                 tasks: Sequence[ShardTask], progress: Progress | None) -> None:
        self.extractor, self.pool, self.folder, self.limits = extractor, pool, folder, limits
        self.progress, self.failed, self.faults, self.told = progress, 0, 0, False  # faults: since a clip was extracted
        self.clips = sum(len(task.part.rows) for task in tasks)
        self.done = sum(len(task.part.rows) for task in tasks if task.item.deed is Deed.KEEP)
        self.batches = extractor.extractors.batches()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="records")
        self.words: dict[str, Future[list[Words | InputError]]] = {}  # of a shard's clips
        self.under_work: deque[_Clip] = deque()
        self.commits: deque[tuple[Slice, Future[None]]] = deque()
        self._tell()

    def __enter__(self) -> ShardMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(wait=True)  # what has been given to it is written: no finished shard is lost

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.done, self.clips, self.failed)

    def make(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Make the shards of these tasks ⇒ those that another process is at."""
        elsewhere: list[ShardTask] = []
        ahead, parts = itertools.tee(self._taken(tasks, elsewhere))  # clips are decoded before their turn
        decoded = self.pool.map(self.extractor.request(row) for part in ahead for row in part.rows
                                if row.id not in self.folder.earlier_records(part))
        for part in parts:
            shard, words = _Shard(part), self.words.pop(part.name).result()
            self._prepare_texts(words)
            for row, said in zip(part.rows, words, strict=True):
                clip = _Clip(shard, row, said)
                self.under_work.append(clip)
                earlier = self.folder.earlier_records(part).get(row.id)
                if earlier is not None:
                    clip.is_there(earlier)
                else:
                    self._read(clip, next(decoded))
                self._go_on(_UNDER_WORK)
            self.batches.flush()  # a shard's batches are its own, so that its bytes are
        self._go_on(0)
        self._commit(0)
        return elsewhere

    def _taken(self, tasks: Sequence[ShardTask], elsewhere: list[ShardTask]) -> Iterator[Slice]:
        for task in tasks:
            taken = self.folder.take(task)
            if taken:
                self.words[task.part.name] = self.thread.submit(self._words_of, task.part)
                yield task.part
            elif taken is None:
                self.done += len(task.part.rows)
                self._tell()
            else:
                elsewhere.append(task)
                if not self.told:
                    warnings.warn(f"another process is at {task.part.name} in {self.folder.path}; this one makes what "
                                  "that one hasn't begun")
                    self.told = True

    def _words_of(self, part: Slice) -> list[Words | InputError]:
        return [self.extractor.words(row) for row in part.rows]

    def _prepare_texts(self, words: Sequence[Words | InputError]) -> None:
        said = [each for each in words if isinstance(each, Words)]
        objects = dict.fromkeys(word for each in said for word in each.objects)
        with suppress(Exception):  # each clip asks for its own again, and has the error then
            self.extractor.extractors.encoder.prepare_texts(list(objects), [each.caption for each in said])

    def _read(self, clip: _Clip, stream: ClipStream) -> None:
        try:
            clip.reading = self.extractor.begin(clip.row, clip.words, stream, self.batches)
        except Exception as error:
            self._fail(clip, self.extractor.failure(clip.row, error))

    def _go_on(self, most: int) -> None:
        """Encode what the extractors are done with, and put records into their shards, in order.

        Args:
            most: clips that may be under work afterwards; the thread is waited for where there are more.
        """
        for clip in list(self.under_work):
            if clip.reading is not None and clip.reading.frames.is_done:
                self._encode(clip, clip.reading)
        while self.under_work and (record := self.under_work[0].record) is not None and (
                record.done() or len(self.under_work) > most):
            self._add(self.under_work.popleft(), record.result())

    def _encode(self, clip: _Clip, reading: Reading) -> None:
        clip.reading = None
        try:
            features = self.extractor.features(reading)
        except Exception as error:
            self._fail(clip, self.extractor.failure(clip.row, error))
        else:
            clip.record = self.thread.submit(self.extractor.encoded, clip.row, features)

    def _fail(self, clip: _Clip, failure: InputError) -> None:
        """A clip's failure; the clip is read again while its file server, say, is at fault.

        Raises:
            EndOfRun: the machine or a file server is at fault, not the clip.
        """
        path, retry = self.extractor.videos / clip.row.path, self.limits.retry
        record: Record | InputError = failure
        for attempt in itertools.count(1):
            fault = passing_fault(record, path, self.extractor.videos) if isinstance(record, InputError) else None
            if fault is None:
                break
            readable = fault.errno in (errno.EIO, errno.ENOENT, errno.ENOTDIR) and is_readable(fault.filename or path)
            if readable and fault.errno == errno.EIO and attempt > 1:  # FFmpeg says that of some that are cut off
                break
            if attempt == 1:
                self._finish_before(clip)
            if attempt >= retry.attempts:
                raise EndOfRun(
                    f"{printable(path)} can't be read, in {attempt} attempts: {fault.strerror}; see whether the disk "
                    "or file server of the videos is there, and the same command goes on. A file that alone can't be "
                    "read is listed as failed once it was moved away")
            if not readable:
                time.sleep(retry.pause_s(attempt))
            record = self.extractor.record(clip.row, clip.words, self.pool.again(self.extractor.request(clip.row)))
        clip.is_there(record)

    def _finish_before(self, clip: _Clip) -> None:
        """Write what is complete without this clip, since the run may end with it."""
        self.batches.flush()
        for earlier in itertools.takewhile(lambda other: other is not clip, list(self.under_work)):
            if earlier.reading is not None:
                self._encode(earlier, earlier.reading)
        while self.under_work and self.under_work[0] is not clip:
            record = self.under_work[0].record
            if record is None:  # it is being read again itself
                return
            self._add(self.under_work.popleft(), record.result())
        self._commit(0)

    def _add(self, clip: _Clip, record: Record | InputError) -> None:
        """A record, or a failure, into its shard; the last one commits the shard."""
        self._count_faults(clip.row, record)
        shard = clip.shard
        if isinstance(record, InputError):
            shard.failed.append(entry_of(clip.row, record))
        else:
            shard.records.append((clip.row.id, record))
        self.done, self.failed = self.done + 1, self.failed + isinstance(record, InputError)
        if len(shard.records) + len(shard.failed) == len(shard.part.rows):
            self.commits.append((shard.part, self.thread.submit(
                self.folder.commit, shard.part, shard.records, shard.failed, self.limits.commit_mostly_failed)))
        self._commit(1)
        self._tell()

    def _commit(self, most: int) -> None:
        """Give up the claims of shards that are written; the thread is waited for where more than ``most`` are not."""
        while self.commits and (self.commits[0][1].done() or len(self.commits) > most):
            part, written = self.commits.popleft()
            written.result()
            self.folder.release(part)

    def _count_faults(self, row: Row, record: Record | InputError) -> None:
        """Raise EndOfRun where the faults seem to be the machine's. Clips that can't be read say nothing about it."""
        if not isinstance(record, InputError):
            self.faults = 0
        if not isinstance(record, ClipFault):
            return
        self.faults += 1
        lost = device_is_lost()
        if lost or self.faults >= self.limits.most_faults:
            warnings.warn(f"traceback of the last fault, of {printable(row.id)}:\n{record.traceback}")
            what = "the GPU is lost to this process" if lost else (
                f"{self.faults} clips in a row had such faults; where the machine is sound, most_faults= allows more")
            raise EndOfRun(f"clip {printable(row.id)!r}: {record}; {what}. The finished shards are whole, and the same "
                           "command goes on from them; a clip that alone is at fault is listed as failed once its "
                           "video was moved away")
