"""A video and words ⇒ ClipFeatures, for extraction to store, and for generation to condition on without shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoints.parts import build
from ..clip import FEATURES, MAX_OBJECTS, ClipFeatures, ClipSpec
from ..media.guarded import Media
from ..media.picture_reader import Fit, Squeeze
from ..media.video import CHUNK_FRAMES
from ..runtime.errors import InputError
from .base import Encoder, Extractor, FrameExtractor, Grounder, Grounding
from .batches import ClipUnderWork, Extracted, FrameBatches

STRIP_FRAMES = 12
_STRIP_HEIGHT, _STRIP_WIDTHS = 96, (8, 960)  # pixels; pictures longer or thinner are squeezed


@dataclass
class Extractors:
    """The extractors of a dataset or of a trained model.

    Args:
        grounder: finds objects in frames.
        encoder: embeds frames, words and captions.
        frames_at_once: frames in one call of an extractor, unless one of them takes whole clips.
        features: extractors of further features per frame.

    Raises:
        InputError: one is no extractor of its kind, or a further feature has no row in the table of features.
    """

    grounder: Grounder
    encoder: Encoder
    frames_at_once: int = CHUNK_FRAMES
    features: Sequence[FrameExtractor] = ()

    def __post_init__(self) -> None:
        kinds = (("grounder", Grounder), ("encoder", Encoder), *((f"features.{n}", FrameExtractor) for n in self.names))
        for (role, kind), part in zip(kinds, self.parts):
            if not isinstance(part, kind):
                raise InputError(f"{role} is a {type(part).__name__}, expected a {kind.__name__}: its class has to be "
                                 f"derived from {kind.__module__}.{kind.__name__}")
        for name in self.names:
            if name not in FEATURES:
                raise InputError(f"the feature {name!r} has no row in the table of features (vta_sam/clip.py); "
                                 "register_feature(…) in the module of its extractor adds one")
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise InputError(f"features: {repeated[0]!r} has two extractors; leave one out")

    @property
    def parts(self) -> tuple[Extractor, ...]:
        """The grounder, the encoder, and the extractors of further features in their order."""
        return self.grounder, self.encoder, *self.features

    @property
    def names(self) -> list[str]:
        """Names of the further features."""
        return [getattr(extractor, "name", type(extractor).__name__) for extractor in self.features]

    @property
    def by_role(self) -> dict[str, Extractor]:
        """{"grounder": …, "encoder": …, name of a further feature: its extractor}."""
        return dict(zip(("grounder", "encoder", *self.names), self.parts))

    @property
    def dims(self) -> dict[str, int]:
        """{"<name>_dim": length of the last axis} of the further features, for a conditioner's ``from_data``.

        Raises:
            InputError: the row leaves the length open, and the extractor does not state it.
        """
        found: dict[str, int] = {}
        for extractor in self.features:
            row = FEATURES[extractor.name]
            last = row.axes[-1] if isinstance(row.axes[-1], int) else extractor.dim
            if last is not None:
                found[row.dim or f"{extractor.name}_dim"] = last
            elif row.axes[-1] not in ("T", "K", "L"):
                raise InputError(f"the extractor {type(extractor).__name__} has no dim, the length of the axis "
                                 f"{row.axes[-1]!r} of {extractor.name!r}; state it")
        return found

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The resizing of pictures for each of :attr:`parts`."""
        return tuple(part.fit for part in self.parts)

    @property
    def chunk_frames(self) -> int | None:
        """Frames in a chunk; None: all of a clip's frames, where one of the extractors takes whole clips."""
        return None if any(part.whole_clips for part in self.parts) else self.frames_at_once

    def for_clip(self, video: str | os.PathLike, fps: float, start_s: float = 0.0) -> "Extractors":
        """The extractors of one clip.

        Args:
            video: file of the clip.
            fps: frame rate of the frames that the extractors will get.
            start_s: start of the clip in the file, in seconds.
        """
        grounder, encoder, *features = (part.for_clip(video, start_s=start_s, fps=fps) for part in self.parts)
        return Extractors(grounder, encoder, self.frames_at_once, features)

    def batches(self) -> FrameBatches:
        """Batches of frames for these extractors, of one or several clips."""
        return FrameBatches(self.grounder, self.encoder)

    def under_work(self, objects: Sequence[list[str]]) -> ClipUnderWork:
        """A clip for such batches, with these extractors; objects: lists of words, for one grounding each."""
        return ClipUnderWork(self.grounder, self.encoder, self.features, objects)

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where the grounder or the encoder can't read these objects."""
        self.grounder.check_words(objects)
        self.encoder.check_words(objects)

    @property
    def finds_objects(self) -> bool:
        """False where the model reads no objects, so that naming some is of no use."""
        return self.grounder.finds_objects

    @property
    def reads_pictures(self) -> bool:
        """False where the model reads the caption alone."""
        return bool(self.encoder.frame_dim or self.finds_objects or self.features)

    @property
    def known_words(self) -> tuple[str, ...]:
        """The grounder's vocabulary; () where it takes any word."""
        return tuple(self.grounder.known_words)


def build_features(recipes: Mapping[str, Any] | None) -> list[FrameExtractor]:
    """The extractors of further features.

    Args:
        recipes: {name of the feature: recipe of its extractor}.

    Raises:
        InputError: an extractor is of another feature than its name says.
    """
    extractors = [build(recipe) for recipe in (recipes or {}).values()]
    for name, extractor in zip(recipes or {}, extractors):
        feature = getattr(extractor, "name", None)
        if feature != name:
            kind = type(extractor).__name__
            raise InputError(f"features.{name} names {kind}, which extracts {feature!r}; write it as features.{feature}"
                             if feature else
                             f"features.{name} names {kind}, which is no extractor of a feature per frame")
    return extractors


@dataclass
class Words:
    """A user's words about a video.

    Attributes:
        caption: may be empty.
        objects: words to ground, at most 8.
        dropped: number of the caption's nouns beyond the first 8.
        negated: things that the caption says are not there.
        language: of a caption that is not in English, in which no noun was looked for; else None.
    """

    caption: str
    objects: list[str]
    dropped: int = 0
    negated: tuple[str, ...] = ()
    language: str | None = None


def words_of(caption: str | None, objects: Sequence[str] | None, vocabulary: Sequence[str] = ()) -> Words:
    """The caption and the objects of a clip.

    Args:
        caption: None or "" for none.
        objects: words; None: the caption's nouns.
        vocabulary: compounds that are kept whole, such as "racing car".

    Raises:
        InputError: more than 8 objects are named.
    """
    caption = (caption or "").strip()
    if objects is not None:
        named = list(dict.fromkeys(word.strip().lower() for word in objects if word.strip()))
        if len(named) > MAX_OBJECTS:
            raise InputError(f"objects: {len(named)} are named, at most {MAX_OBJECTS} can be; leave some out")
        return Words(caption or ", ".join(named), named)
    if not caption:
        return Words("", [])
    from .captions import nouns

    found = nouns(caption, limit=MAX_OBJECTS, vocabulary=vocabulary)
    return Words(caption, list(found.words), found.dropped, found.negated, found.language)


class Texts(NamedTuple):
    """The embeddings of a clip's words: (K, De) of its objects, and (L, Dc) of its caption's tokens."""

    objects: np.ndarray
    caption: np.ndarray

    @classmethod
    def of(cls, words: Words, encoder: Encoder) -> Texts:
        """Those that an encoder gives."""
        return cls(encoder.encode_objects(words.objects), encoder.encode_caption(words.caption))


def record_of(extracted: Extracted, words: Words, grounding: Grounding, texts: Texts, **more: Any) -> ClipFeatures:
    """The clip's features, with the embeddings of its words.

    Args:
        extracted: of the clip's frames.
        words: objects and caption.
        grounding: of these objects.
        texts: of these words.
        more: the other fields of ClipFeatures; ``caption``, if the record's caption is not the embedded one.
    """
    return ClipFeatures(
        objects=words.objects, frame_embedding=extracted.frame_embedding, probs=grounding.probs,
        boxes=grounding.boxes, areas=grounding.areas, mask_embedding=grounding.mask_embedding,
        object_embedding=texts.objects, caption_tokens=texts.caption, **extracted.features,
        **{"caption": words.caption, **more})


def extract_features(chunks: Iterable[Sequence[np.ndarray]], extractors: Extractors, objects: Sequence[list[str]],
                     ) -> Extracted:
    """The features of one clip's frames, which are read once, chunk by chunk.

    A batch that an extractor has too little memory for is halved. The error is raised where a frame alone is too much.

    Args:
        chunks: arrays of pictures in the order of ``extractors.fits``; further arrays are not used.
        extractors: of this clip, see :meth:`Extractors.for_clip`.
        objects: lists of words, for one grounding each.
    """
    batches, clip = extractors.batches(), extractors.under_work(objects)
    for chunk in chunks:
        batches.add(clip, chunk)
        clip.raise_error()
    batches.end(clip)
    batches.flush()
    return clip.extracted()


def caption_features(caption: str, extractors: Extractors, spec: ClipSpec) -> ClipFeatures:
    """The features of a caption without a video, for models that read the caption alone.

    Args:
        caption: the text.
        extractors: those that the model was trained with.
        spec: of the model's clips; it gives the length.
    """
    extracted = Extracted(np.zeros((spec.frames, extractors.encoder.frame_dim), np.float32), [], {})
    words = Words(caption, [])
    return record_of(
        extracted, words, Grounding.empty(spec.frames), Texts.of(words, extractors.encoder), key="caption",
        fps=spec.fps, waveform=np.zeros(spec.samples, np.float32), sample_rate_hz=spec.sample_rate_hz,
        duration_s=spec.duration_s).validate()


def features_of(video: str | os.PathLike, words: Sequence[Words], extractors: Extractors, spec: ClipSpec,
                media: Media | None = None) -> tuple[list[ClipFeatures], np.ndarray]:
    """The features of a whole video for each of ``words``, and a strip of up to 12 of its pictures (n, h, w, 3).

    The video is read once, in chunks. Only their features stay in memory. The waveform of a record is silence of the
    pictures' length, from which the record takes its length.

    Args:
        video: file with pictures; sound is not read.
        words: of a prompt, or of a prompt and a negative prompt, which share the pictures.
        extractors: those that the model was trained with.
        spec: frame rate and sample rate.
        media: reads the video; None: this process, without limits.

    Raises:
        InputError: the video can't be read, has no pictures, or the words have too many tokens.
    """
    for prompt in words:
        extractors.check_words(prompt.objects)
    video, media = Path(video), media or Media()
    duration_s = media.picture_duration_s(video)
    samples = spec.samples_of(duration_s)
    if samples < 1:
        raise InputError(f"{video}: its pictures last {duration_s:g} s; there is nothing to put sound under")
    info = media.probe(video)
    width = min(_STRIP_WIDTHS[1], max(_STRIP_WIDTHS[0], round(_STRIP_HEIGHT * info.width / info.height)))
    stream = media.stream(video, duration_s, spec.fps, (*extractors.fits, Squeeze(_STRIP_HEIGHT, width)),
                          extractors.chunk_frames)
    strip = _Strip(stream, spec.frames_of(duration_s))
    extractors = extractors.for_clip(video, spec.fps)
    extracted = extract_features(strip, extractors, [prompt.objects for prompt in words])
    records = [record_of(
        extracted, prompt, grounding, Texts.of(prompt, extractors.encoder), key=video.stem, fps=spec.fps,
        waveform=np.zeros(samples, np.float32), sample_rate_hz=spec.sample_rate_hz, source=video.name,
        duration_s=duration_s,
    ).validate() for prompt, grounding in zip(words, extracted.groundings)]
    return records, np.stack(strip.pictures)


class _Strip:
    """Iterator over the chunks of a clip that copies up to 12 pictures of their last array, at even distances.

    Args:
        chunks: lists of arrays of pictures.
        frames: number of frames in the clip.
    """

    def __init__(self, chunks: Iterable[list[np.ndarray]], frames: int):
        self.chunks, self.pictures = chunks, list[np.ndarray]()
        self.wanted = set(np.linspace(0, frames - 1, min(STRIP_FRAMES, frames)).round().astype(int))

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        start = 0
        for chunk in self.chunks:
            self.pictures += [picture.copy() for i, picture in enumerate(chunk[-1], start) if i in self.wanted]
            start += len(chunk[-1])
            yield chunk
