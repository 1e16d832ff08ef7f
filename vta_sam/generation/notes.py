"""Sentences about what a user may not have expected of a sound."""

from __future__ import annotations

from ..clip import ClipFeatures, ClipSpec
from ..features import Words


def notes_on(words: Words, features: ClipFeatures, spec: ClipSpec, looks: bool) -> list[str]:
    """What a user may not have expected of the words or the video ⇒ sentences. looks: does the model look
    for objects?"""
    notes = []
    if looks and words.caption and not words.objects:
        notes.append("the caption names no object that could be looked for; the sound follows the pictures alone")
    if words.dropped:
        notes.append(f"the caption has {len(words.objects) + words.dropped} nouns; the first {len(words.objects)} are "
                     f"used and {words.dropped} left out")
    unknown = [word for word, row in zip(features.objects, features.object_embedding) if not row.any()]
    if unknown:
        notes.append(f"the model's encoder doesn't know {', '.join(unknown)}; nothing is heard of it")
    if features.duration_s < spec.duration_s / 4:
        notes.append(f"the video lasts {features.duration_s:.2f} s, the model was trained on {spec.duration_s:g} s")
    return notes
