"""The ten sounding things of the embedded world, and the silent ones that look like them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# MERGED-DOC """A caption for the named things of a scene: exactly their words, and no other noun."""


@dataclass(frozen=True)
class SoundingClass:
    """What the timeline must know of a class.

    phrase and verbs: how captions speak of it. kind: see ``truth.Event``. event_s: range of an event's length in
    seconds. gap_s: for impulses the range from onset to onset inside a bout, for sustained sounds the silence between
    two of a bout. aspect: width over height of its canvas. look_alike: the silent thing that resembles it.
    """

    word: str
    phrase: str
    verbs: tuple[str, ...]
    kind: str
    event_s: tuple[float, float]
    gap_s: tuple[float, float]
    aspect: float
    look_alike: str


IMPULSE, SUSTAINED = "impulse", "sustained"

CLASSES = {
    c.word: c
    for c in (
        SoundingClass("racing car", "a racing car", ("drives past", "roars by", "revs its engine"),
                      SUSTAINED, (0.60, 1.60), (0.40, 0.60), 1.7, "van"),
        SoundingClass("popcorn", "popcorn", ("pops", "is popping", "bursts open"),
                      IMPULSE, (0.05, 0.08), (0.22, 0.42), 0.8, "flowerpot"),
        SoundingClass("pigeon", "a pigeon", ("coos", "is cooing", "coos softly"),
                      SUSTAINED, (0.45, 0.80), (0.06, 0.16), 1.1, "parrot"),
        SoundingClass("dog", "a dog", ("barks", "is barking", "barks loudly"),
                      IMPULSE, (0.14, 0.20), (0.26, 0.55), 1.15, "cat"),
        SoundingClass("canary", "a canary", ("sings", "is singing", "trills"),
                      SUSTAINED, (0.40, 1.10), (0.06, 0.14), 0.9, "hummingbird"),
        SoundingClass("badminton", "badminton", ("is played", "is being played", "is going on"),
                      IMPULSE, (0.10, 0.16), (0.34, 0.70), 0.95, "umbrella"),
        SoundingClass("chicken", "a chicken", ("clucks", "is clucking", "cackles"),
                      IMPULSE, (0.09, 0.15), (0.23, 0.45), 1.0, "duck"),
        SoundingClass("harpsichord", "a harpsichord", ("is played", "plays", "sounds"),
                      IMPULSE, (0.35, 0.60), (0.22, 0.50), 1.25, "table"),
        SoundingClass("clarinet", "a clarinet", ("plays", "is played", "sounds"),
                      SUSTAINED, (0.40, 1.20), (0.05, 0.12), 1.1, "saxophone"),
        SoundingClass("ferret", "a ferret", ("dooks", "is dooking", "chuckles"),
                      IMPULSE, (0.07, 0.11), (0.22, 0.34), 1.45, "squirrel"),
    )
}
WORDS = tuple(CLASSES)
LOOK_ALIKES = {c.look_alike: c.word for c in CLASSES.values()}


def class_of(word: str) -> SoundingClass:
    """The class of a word, or the one that a look-alike resembles (whose canvas and gestures it shares)."""
    return CLASSES[LOOK_ALIKES.get(word, word)]


ONE = ("{0}", "{0} again and again", "{0} now and then")
TWO = ("{0} while {1}", "{0} and {1}", "as {0}, {1}")
THREE = ("{0}, {1} and {2}", "{0} while {1} and {2}", "{0} and {1} while {2}")


def caption_of(words: list[str], rng: np.random.Generator) -> str:
    """One to three words of the ten ⇒ a sentence such as "a dog barks while a canary sings"."""
    parts = [f"{CLASSES[w].phrase} {rng.choice(CLASSES[w].verbs)}" for w in words]
    form = str(rng.choice((ONE, TWO, THREE)[len(parts) - 1]))
    return form.format(*parts)
