"""A video and words ⇒ ClipFeatures, without shards: what generation conditions on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..clip import MAX_OBJECTS, ClipFeatures, ClipSpec
from ..media.muxing import picture_duration_s
from ..media.picture_reader import Fit, Squeeze
from ..media.video import CHUNK_FRAMES, probe, stream_clip
from ..runtime.errors import InputError
from .base import Encoder, Grounder, Grounding

STRIP_FRAMES = 12
_STRIP_HEIGHT = 96  # pixels


@dataclass
class Extractors:
    """Who looks: the grounder and the encoder that a model was trained with, or that make shards.

    frames_at_once: how many frames they are given at once, unless one of them wants all of a clip's.
    """

    grounder: Grounder
    encoder: Encoder
    frames_at_once: int = CHUNK_FRAMES

    @property
    def fits(self) -> tuple[Fit, Fit]:
        """How pictures are brought to size for the grounder, and for the encoder."""
        return self.grounder.fit, self.encoder.fit

    @property
    def chunk_frames(self) -> int | None:
        """The size of a chunk; None ⇒ all frames, where one of them is another for each clip and tells frames apart by
        their number alone (as an oracle does)."""
        per_clip = hasattr(self.grounder, "for_clip") or hasattr(self.encoder, "for_clip")
        return None if per_clip else self.frames_at_once

    def for_clip(self, video: str | os.PathLike, fps: float, start_s: float = 0.0) -> "Extractors":
        """Those of a clip that starts ``start_s`` into this very video."""
        def own(part: Any) -> Any:
            return part.for_clip(video, start_s=start_s, fps=fps) if hasattr(part, "for_clip") else part

        return Extractors(own(self.grounder), own(self.encoder), self.frames_at_once)

    @property
    def looks_for_objects(self) -> bool:
        """False where the model reads no objects, so that naming some is of no use."""
        return getattr(self.grounder, "looks", True)

    @property
    def known_words(self) -> tuple[str, ...]:
        """The grounder's vocabulary; () where it takes any word."""
        return tuple(getattr(self.grounder, "known_words", ()))


@dataclass
class Words:
    """What a user says about a video: a caption (may be empty), the objects to look for, and how many nouns of the
    caption were left out because there are at most 8."""

    caption: str
    objects: list[str]
    dropped: int = 0


def words_of(caption: str | None, objects: Sequence[str] | None, vocabulary: Sequence[str] = ()) -> Words:
    """Caption, and objects or None (⇒ the caption's nouns) ⇒ Words. More than 8 objects named: InputError.

    vocabulary: words of several parts that stay whole, such as "racing car".
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
    return Words(caption, list(found.words), found.dropped)


def look(chunks: Iterable[Sequence[np.ndarray]], extractors: Extractors, objects: Sequence[list[str]],
         ) -> tuple[np.ndarray, list[Grounding]]:
    """Look at a clip once, chunk by chunk ⇒ its frame embeddings (T, Dv), and a Grounding for each list of ``objects``.

    Each chunk holds the pictures of ``extractors.fits``, in that order; more arrays behind them are passed over.
    """
    embeddings: list[np.ndarray] = []
    parts: list[list[Grounding]] = [[] for _ in objects]
    for to_ground, to_encode, *_ in chunks:
        embeddings.append(extractors.encoder.encode_frames(to_encode))
        for words, grounded in zip(objects, parts):
            grounded.append(extractors.grounder.ground(to_ground, words))
    return np.concatenate(embeddings), [Grounding.concatenate(part) for part in parts]


def caption_features(caption: str, extractors: Extractors, spec: ClipSpec) -> ClipFeatures:
    """A caption without a video ⇒ features of the model's clip length, for models that read nothing else."""
    nothing = Grounding.empty(spec.frames)
    return ClipFeatures(
        key="caption", caption=caption, objects=[], fps=spec.fps, waveform=np.zeros(spec.samples, np.float32),
        frame_embedding=np.zeros((spec.frames, extractors.encoder.frame_dim), np.float32), probs=nothing.probs,
        boxes=nothing.boxes, areas=nothing.areas, object_embedding=extractors.encoder.encode_objects([]),
        caption_tokens=extractors.encoder.encode_caption(caption), sample_rate_hz=spec.sample_rate_hz,
        duration_s=spec.duration_s,
    ).validate()


def features_of(video: str | os.PathLike, words: Sequence[Words], extractors: Extractors, spec: ClipSpec,
                ) -> tuple[list[ClipFeatures], np.ndarray]:
    """Look at a whole video once ⇒ (its features for each of ``words``, a strip of up to 12 pictures (n, h, w, 3)).

    Several Words share the pictures: a prompt and what it should not be. Frames are read in chunks and only their
    features kept. The waveform is silence exactly as long as the pictures, which is what gives the record its length.
    """
    duration_s = picture_duration_s(video)
    samples = spec.samples_of(duration_s)
    if samples < 1:
        raise InputError(f"{video}: its pictures last {duration_s:g} s; there is nothing to put sound under")
    info = probe(video)
    strip_fit = Squeeze(_STRIP_HEIGHT, max(8, round(_STRIP_HEIGHT * info.width / info.height)))
    stream = stream_clip(video, duration_s=duration_s, fps=spec.fps, fits=(*extractors.fits, strip_fit),
                         want_audio=False, chunk_frames=extractors.chunk_frames)
    strip = _Strip(stream, spec.frames_of(duration_s))
    extractors = extractors.for_clip(video, spec.fps)
    embedding, groundings = look(strip, extractors, [said.objects for said in words])
    records = []
    for said, grounding in zip(words, groundings):
        record = ClipFeatures(
            key=Path(video).stem, caption=said.caption, objects=said.objects, fps=spec.fps,
            waveform=np.zeros(samples, np.float32), frame_embedding=embedding, probs=grounding.probs,
            boxes=grounding.boxes, areas=grounding.areas,
            object_embedding=extractors.encoder.encode_objects(said.objects),
            caption_tokens=extractors.encoder.encode_caption(said.caption), sample_rate_hz=spec.sample_rate_hz,
            source=Path(video).name, duration_s=duration_s, mask_embedding=grounding.mask_embedding,
        )
        records.append(record.validate())
    return records, np.stack(strip.pictures)


class _Strip:
    """Passes on chunks of a clip of ``frames`` frames, and keeps up to 12 of their last array's pictures, spread
    evenly."""

    def __init__(self, chunks: Iterable[list[np.ndarray]], frames: int):
        self.chunks, self.pictures = chunks, list[np.ndarray]()
        self.wanted = set(np.linspace(0, frames - 1, min(STRIP_FRAMES, frames)).round().astype(int))

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        seen = 0
        for chunk in self.chunks:
            self.pictures += [picture.copy() for i, picture in enumerate(chunk[-1], seen) if i in self.wanted]
            seen += len(chunk[-1])
            yield chunk
