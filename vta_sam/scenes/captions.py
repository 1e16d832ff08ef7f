"""A caption for the named things of a scene: exactly their words, and no other noun."""

from __future__ import annotations

import numpy as np

from .classes import CLASSES

ONE = ("{0}", "{0} again and again", "{0} now and then")
TWO = ("{0} while {1}", "{0} and {1}", "as {0}, {1}")
THREE = ("{0}, {1} and {2}", "{0} while {1} and {2}", "{0} and {1} while {2}")


def caption_of(words: list[str], rng: np.random.Generator) -> str:
    """One to three words of the ten ⇒ a sentence such as "a dog barks while a canary sings"."""
    parts = [f"{CLASSES[w].phrase} {rng.choice(CLASSES[w].verbs)}" for w in words]
    form = str(rng.choice((ONE, TWO, THREE)[len(parts) - 1]))
    return form.format(*parts)
