"""A video and words ⇒ ClipFeatures, without shards: what generation conditions on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .clip import MAX_OBJECTS, ClipFeatures, ClipSpec
from .encoders.base import Encoder
from .errors import InputError
from .fit import Squeeze
from .grounding.base import Grounder, Grounding
from .muxing import picture_duration_s
from .video import probe, stream_frames

STRIP_FRAMES = 12
_STRIP_HEIGHT = 96  # pixels
_CHUNK_FRAMES = 64


@dataclass
class Extractors:
    """Who looks: the grounder and the encoder that a model was trained with."""

    grounder: Grounder
    encoder: Encoder

    @property
    def per_clip(self) -> bool:
        """Does one of them want to be told the video, and given all of its frames at once (as an oracle does)?"""
        return hasattr(self.grounder, "for_clip") or hasattr(self.encoder, "for_clip")

    def for_clip(self, video: str | os.PathLike, fps: float) -> "Extractors":
        """Those of this very video."""
        def own(part: Any) -> Any:
            return part.for_clip(video, fps=fps) if hasattr(part, "for_clip") else part

        return Extractors(own(self.grounder), own(self.encoder))

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


def features_of(video: str | os.PathLike, words: Sequence[Words], extractors: Extractors, spec: ClipSpec,
                ) -> tuple[list[ClipFeatures], np.ndarray]:
    """Look at a whole video once ⇒ (its features for each of ``words``, a strip of up to 12 pictures (n, h, w, 3)).

    Several Words share the pictures: a prompt and what it should not be. Frames are read in chunks of 64 and only their
    features kept. The waveform is silence exactly as long as the pictures, which is what gives the record its length.
    """
    duration_s = picture_duration_s(video)
    samples = spec.samples_of(duration_s)
    if samples < 1:
        raise InputError(f"{video}: its pictures last {duration_s:g} s; there is nothing to put sound under")
    chunk_frames = spec.frames_of(duration_s) if extractors.per_clip else _CHUNK_FRAMES
    extractors = extractors.for_clip(video, spec.fps)
    embedding, groundings, strip = _look(video, words, extractors, spec, duration_s, chunk_frames)
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
    return records, strip


def _look(video: str | os.PathLike, words: Sequence[Words], extractors: Extractors, spec: ClipSpec,
          duration_s: float, chunk_frames: int) -> tuple[np.ndarray, list[Grounding], np.ndarray]:
    """⇒ frame embeddings (T, Dv), one Grounding per Words, the strip."""
    grounder, encoder = extractors.grounder, extractors.encoder
    info = probe(video)
    strip_fit = Squeeze(_STRIP_HEIGHT, max(8, round(_STRIP_HEIGHT * info.width / info.height)))
    fits = (grounder.fit, encoder.fit, strip_fit)
    total = spec.frames_of(duration_s)
    wanted = set(np.linspace(0, total - 1, min(STRIP_FRAMES, total)).round().astype(int))
    embeddings: list[np.ndarray] = []
    parts: list[list[Grounding]] = [[] for _ in words]
    strip: list[np.ndarray] = []
    seen = 0
    for to_ground, to_encode, pictures in stream_frames(video, duration_s=duration_s, fps=spec.fps, fits=fits,
                                                        chunk_frames=chunk_frames):
        embeddings.append(encoder.encode_frames(to_encode))
        for said, grounded in zip(words, parts):
            grounded.append(grounder.ground(to_ground, said.objects))
        strip += [pictures[i].copy() for i in range(len(pictures)) if seen + i in wanted]
        seen += len(pictures)
    return np.concatenate(embeddings), [Grounding.concatenate(p) for p in parts], np.stack(strip)
