"""Frames of clips ⇒ features, batch by batch. Frames of several clips go through a network together.

An extractor that states ``batch_frames`` gets batches of that many frames of one size, in the order in which they came,
whichever clips they belong to. While it computes a batch, the next one is made ready. Which frames share a batch
depends on the clips alone, never on time, so that the same clips give the same bytes.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..runtime.errors import cuda_in_use, is_out_of_memory
from .base import Encoder, Extractor, FrameExtractor, Grounder, Grounding

_AHEAD = 2  # batches that a device has been given and whose results aren't fetched: one that it computes, and the next


class Extracted(NamedTuple):
    """The extractors' results for the T frames of a clip.

    Attributes:
        frame_embedding: (T, Dv).
        groundings: one for each list of objects.
        features: {name: (T, …)} of further features.
    """

    frame_embedding: np.ndarray
    groundings: list[Grounding]
    features: dict[str, np.ndarray]


@dataclass(eq=False)
class ClipUnderWork:
    """A clip whose frames are on their way through the extractors.

    Args:
        grounder: of this clip, see :meth:`.base.Extractor.for_clip`.
        encoder: likewise.
        features: extractors of further features, likewise.
        objects: lists of words, for one grounding each.

    Attributes:
        error: what prevents its features; None: nothing so far.
        frames: that were read.
    """

    grounder: Grounder
    encoder: Encoder
    features: Sequence[FrameExtractor]
    objects: Sequence[list[str]]
    error: Exception | None = None
    frames: int = 0
    ended: bool = False
    waiting: int = 0  # parts of it that are in batches
    looked_at: list[int] = field(default_factory=list)  # frames that the grounder gets
    passed_over: np.ndarray | None = None  # the last frame (1, H, W, 3), where the grounder has not got it
    vectors: dict[int, np.ndarray] = field(default_factory=dict)  # by their first frame
    further: dict[str, list[np.ndarray]] = field(default_factory=dict)
    before: dict[str, np.ndarray] = field(default_factory=dict)  # frames that an extractor looks back at
    most: dict[int, int] = field(default_factory=dict)  # {id of an extractor: frames that it has memory for}

    def __post_init__(self) -> None:
        self.groundings: list[dict[int, Grounding]] = [{} for _ in self.objects]

    @property
    def is_done(self) -> bool:
        """Whether there is an error, or nothing of it is in a batch any more."""
        return self.error is not None or self.ended and not self.waiting

    def raise_error(self) -> None:
        """Raise what prevents its features, if anything does."""
        if self.error is not None:
            raise self.error

    def extracted(self) -> Extracted:
        """The features of a clip that is done. Raises what prevents them."""
        self.raise_error()
        assert self.is_done, "flush() first"
        groundings = [Grounding.concatenate(_in_order(parts)).between(self.looked_at, self.frames)
                      for parts in self.groundings]
        return Extracted(np.concatenate(_in_order(self.vectors)), groundings,
                         {name: np.concatenate(arrays) for name, arrays in self.further.items()})


def _in_order(parts: dict[int, Any]) -> list[Any]:
    return [parts[first] for first in sorted(parts)]


@dataclass(frozen=True, eq=False)
class _Part:
    """Frames of one clip for one extractor. results: where the values go, under the first frame's number."""

    clip: ClipUnderWork
    results: dict[int, Any]
    first: int
    frames: np.ndarray
    words: list[str]

    def split(self, count: int) -> tuple[_Part, _Part]:
        """The first ``count`` frames, and the others."""
        self.clip.waiting += 1
        return (_Part(self.clip, self.results, self.first, self.frames[:count], self.words),
                _Part(self.clip, self.results, self.first + count, self.frames[count:], self.words))


Launched = Callable[[], list[Any]]  # waits for the values of each part


class _Lane:
    """The parts that wait for one extractor, by the size of their pictures.

    Args:
        extractor: of all clips; clips with one of their own pass it by.
        launch: begins to compute a batch.
    """

    def __init__(self, extractor: Extractor, launch: Callable[[list[_Part]], Launched]) -> None:
        self.extractor, self.launch = extractor, launch
        self.parts: dict[tuple[int, ...], deque[_Part]] = {}

    def put(self, part: _Part) -> Iterator[list[_Part]]:
        """Let a part wait ⇒ the batches that are full."""
        size = part.frames.shape[1:]
        part.clip.waiting += 1
        self.parts.setdefault(size, deque()).append(part)
        while sum(len(waiting.frames) for waiting in self.parts[size]) >= (self.extractor.batch_frames or 1):
            yield self._take(size)

    def rest(self) -> Iterator[list[_Part]]:
        """All that waits, batch by batch."""
        for size in list(self.parts):
            while self.parts[size]:
                yield self._take(size)
        self.parts.clear()

    def _take(self, size: tuple[int, ...]) -> list[_Part]:
        batch, room = list[_Part](), self.extractor.batch_frames or 1
        while room and self.parts[size]:
            part = self.parts[size].popleft()
            if len(part.frames) > room:
                part, rest = part.split(room)
                self.parts[size].appendleft(rest)
            batch.append(part)
            room -= len(part.frames)
        return batch


class FrameBatches:
    """Frames of clips, put together into batches of the extractors.

    :meth:`add` the chunks of a clip, :meth:`end` it, then the next clip; a clip's features are there when it
    :attr:`~ClipUnderWork.is_done`, at the latest after :meth:`flush`. An error of an extractor is kept in the clip that
    it belongs to. A batch of several clips that fails is tried again clip by clip, so that the others don't suffer.

    Args:
        grounder: of all clips; one that a clip has for itself is called for it alone.
        encoder: likewise.
    """

    def __init__(self, grounder: Grounder, encoder: Encoder) -> None:
        self._grounding = _Lane(grounder, partial(_launch_grounding, grounder))
        self._encoding = _Lane(encoder, partial(_launch_encoding, encoder))
        self._launched: deque[tuple[_Lane, list[_Part], Launched]] = deque()

    def add(self, clip: ClipUnderWork, chunk: Sequence[np.ndarray]) -> None:
        """Give the extractors the next pictures of a clip, one array for each, in the order of ``extractors.fits``."""
        if clip.error is not None:
            return
        to_ground, to_encode, *others = chunk
        first = clip.frames
        clip.frames += len(to_encode)
        self._put(self._encoding, clip.encoder, _Part(clip, clip.vectors, first, to_encode, []))
        every = 1 if clip.grounder.whole_clips else clip.grounder.every
        chosen = range(-first % every, len(to_ground), every)
        self._ground(clip, to_ground[chosen.start::every], [first + index for index in chosen])
        if every > 1:  # a copy, so that the chunk isn't held
            clip.passed_over = None if clip.frames - 1 in clip.looked_at[-1:] else to_ground[-1:].copy()
        for extractor, pictures in zip(clip.features, others):
            if clip.error is None:
                clip.error = _error_of(lambda: clip.further.setdefault(extractor.name, []).extend(
                    _halved(clip, extractor, pictures, partial(_extract, clip, extractor))))

    def end(self, clip: ClipUnderWork) -> None:
        """Say that a clip has no more pictures."""
        if clip.error is None and clip.passed_over is not None:
            self._ground(clip, clip.passed_over, [clip.frames - 1])
        clip.passed_over, clip.ended = None, True

    def flush(self) -> None:
        """Compute all that waits, so that every clip that was ended is done."""
        for lane in (self._encoding, self._grounding):
            for batch in lane.rest():
                self._launch(lane, batch)
        while self._launched:
            self._fetch()

    def _ground(self, clip: ClipUnderWork, frames: np.ndarray, numbers: list[int]) -> None:
        first = len(clip.looked_at)
        clip.looked_at += numbers
        for words, results in zip(clip.objects, clip.groundings):
            if len(frames):
                self._put(self._grounding, clip.grounder, _Part(clip, results, first, frames, words))

    def _put(self, lane: _Lane, extractor: Extractor, part: _Part) -> None:
        """A part into its lane; one of a clip's own extractor, or of one that states no batches, is computed here."""
        clip = part.clip
        if clip.error is not None:
            return
        shared = extractor is lane.extractor and extractor.batch_frames and not extractor.whole_clips
        if shared and (part.words or lane is self._encoding):
            for batch in lane.put(part):
                self._launch(lane, batch)
        else:
            one: Any = extractor
            compute = one.encode_frames if lane is self._encoding else lambda frames: one.ground(frames, part.words)
            clip.error = _error_of(lambda: part.results.update(_numbered(
                part.first, _halved(clip, extractor, part.frames, compute))))

    def _launch(self, lane: _Lane, batch: list[_Part]) -> None:
        """Begin to compute a batch, and fetch the results of earlier ones."""
        batch = [part for part in batch if part.clip.error is None]
        if not batch:
            return
        launched: list[Launched] = []
        error = _error_of(lambda: launched.append(lane.launch(batch)))
        if error is not None:
            short = is_out_of_memory(error)
            if self._is_kept(error, batch, short):
                return
            del error  # with its traceback, which holds the batch in memory
            return self._again(lane, batch, short)
        self._launched.append((lane, batch, launched[0]))
        while len(self._launched) > _AHEAD:
            self._fetch()

    def _fetch(self) -> None:
        """Wait for the oldest batch, and give its values to their clips."""
        lane, batch, values_of = self._launched.popleft()
        values: list[Any] = []
        error = _error_of(lambda: values.extend(values_of()))
        if error is not None:
            short = is_out_of_memory(error)
            if self._is_kept(error, batch, short):
                return
            del error, values_of
            return self._again(lane, batch, short)
        for part, value in zip(batch, values, strict=True):
            part.results[part.first] = value
            part.clip.waiting -= 1

    @staticmethod
    def _is_kept(error: Exception, batch: list[_Part], short: bool) -> bool:
        """Whether an error is final: of one frame, or no lack of memory, and of one clip, which keeps it then."""
        clips = {id(part.clip) for part in batch}
        if len(clips) > 1 or short and sum(len(part.frames) for part in batch) > 1:
            return False
        batch[0].clip.error = error
        return True

    def _again(self, lane: _Lane, batch: list[_Part], short: bool) -> None:
        """A batch that failed, in two halves where memory was short, or else clip by clip."""
        if short:
            _hand_back_memory(lane.extractor)
            half = sum(len(part.frames) for part in batch) // 2
            parts, halves = deque(batch), (list[_Part](), list[_Part]())
            while parts:
                part, room = parts.popleft(), half - sum(len(taken.frames) for taken in halves[0])
                if 0 < room < len(part.frames):
                    part, rest = part.split(room)
                    parts.appendleft(rest)
                halves[room <= 0].append(part)
            again = list(halves)
        else:
            again = [[part for part in batch if part.clip is clip] for clip in dict.fromkeys(p.clip for p in batch)]
        for smaller in again:
            self._launch(lane, smaller)
            while self._launched:  # one after the other: memory is short, or a fault has to be told from others'
                self._fetch()


def _launch_grounding(grounder: Grounder, batch: list[_Part]) -> Launched:
    return grounder.launch([(part.frames, part.words) for part in batch])


def _launch_encoding(encoder: Encoder, batch: list[_Part]) -> Launched:
    frames = batch[0].frames if len(batch) == 1 else np.concatenate([part.frames for part in batch])
    vectors = encoder.launch(frames)
    ends = np.cumsum([len(part.frames) for part in batch])[:-1]
    return lambda: np.split(vectors(), ends)


def _error_of(work: Callable[[], Any]) -> Exception | None:
    """What a piece of work raises; None: nothing."""
    try:
        work()
    except Exception as error:
        return error
    return None


def _extract(clip: ClipUnderWork, extractor: FrameExtractor, pictures: np.ndarray) -> np.ndarray:
    """A further feature of these pictures, of which the extractor gets those before, too."""
    earlier = clip.before.get(extractor.name, pictures[:0])
    joined = np.concatenate((earlier, pictures)) if len(earlier) else pictures
    found = extractor.extract(joined)[len(earlier):]
    clip.before[extractor.name] = joined[len(joined) - min(len(joined), extractor.context_frames):].copy()
    return found


def _halved(clip: ClipUnderWork, extractor: Extractor, frames: np.ndarray, compute: Callable[[np.ndarray], Any],
            ) -> list[Any]:
    """``compute`` of all frames at once, or of half as many each time that memory is short, down to one; one that takes
    whole clips gets all of the frames or none. What it raises is raised, unless fewer frames may fit."""
    found: list[Any] = []
    at = 0
    while not found or at < len(frames):
        count = min(clip.most.get(id(extractor), sys.maxsize), len(frames) - at)
        try:
            found.append(compute(frames[at:at + count]))
            at += count
            continue
        except Exception as error:
            if count < 2 or extractor.whole_clips or not is_out_of_memory(error):
                raise
        clip.most[id(extractor)] = count // 2  # after the handler, whose traceback would hold the batch in memory
        _hand_back_memory(extractor)
    return found


def _numbered(first: int, values: list[Any]) -> dict[int, Any]:
    """{number of its first frame: value}."""
    numbered: dict[int, Any] = {}
    for value in values:
        numbered[first] = value
        first += len(value.probs if isinstance(value, Grounding) else value)
    return numbered


def _hand_back_memory(extractor: Extractor) -> None:
    """Give up what torch keeps of a device's memory for later tensors, and say why."""
    if cuda := cuda_in_use():
        cuda.empty_cache()
    warnings.warn(f"{type(extractor).__name__} is out of memory: where that happens, a clip's frames are halved until "
                  "they fit; fewer at once from the start (batch_frames of the extractor, chunk_frames) spare the "
                  "attempts")  # the same sentence for all clips: it is printed once
