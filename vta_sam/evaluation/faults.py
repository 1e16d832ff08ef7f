"""Faults of known strength in true sounds, by which a metric is itself measured: late, hurried, missing, wrong, dull.

Both sides of a pair are the inner window of a clip: what a shift moves in at one edge is the clip's own sound, so that
no silence gives it away. Both go through the same carrier, so that a sound in step is not the true file itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.signal
from scipy.ndimage import uniform_filter1d

from ..embedded.scene_sounds import render_sound
from ..embedded.timeline import CLASSES, Scene, class_of
from ..media.audio import fit_length
from ..mel import SAMPLE_RATE_HZ
from ..runtime.errors import InputError

VERSION = 1  # to be raised when a fault gives other sounds, so that none made before is kept
MARGIN_S = 0.52  # at either edge; more than the longest shift, and whole pictures at 25 a second
LONGEST_S = 11.4  # of a clip: a longer one, played at 1.1 of its speed, would end inside the window
IN_STEP = "in step"
_FADE = 80  # samples, 5 ms: of a cut between two stretches of sound
_BEFORE_S = 0.02  # an event's stretch begins so much before its onset
_EVENT_S = 0.6  # the longest stretch that counts as one event
_APART_S = 0.15  # of an added event from every other
_QUIET = 0.1  # share of a clip, the quietest, that is its background


@dataclass(frozen=True)
class Original:
    """A clip before its faults.

    Args:
        id: of the clip.
        number: among the clips; the even ones are shifted late, the odd ones early.
        sound: (samples,) mono 16 kHz, margins included.
        onsets_s: of its events, sorted: the scene's, or else detected.
        scene: of an embedded clip.
        other: (samples,) another clip's sound; None: there is no other.
    """

    id: str
    number: int
    sound: np.ndarray
    onsets_s: np.ndarray
    scene: Scene | None = None
    other: np.ndarray | None = None

    @property
    def window(self) -> slice:
        """The samples between the margins."""
        margin = round(MARGIN_S * SAMPLE_RATE_HZ)
        return slice(margin, len(self.sound) - margin)

    @property
    def inner_onsets(self) -> np.ndarray:
        """Indices of the onsets that lie in the window, 0.1 s and more from its edges."""
        start_s, end_s = self.window.start / SAMPLE_RATE_HZ + 0.1, self.window.stop / SAMPLE_RATE_HZ - 0.1
        return np.flatnonzero((self.onsets_s > start_s) & (self.onsets_s < end_s))


Apply = Callable[[Original, float, np.random.Generator], np.ndarray | None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        name: in files, and of its folders.
        title: for readers.
        strengths: from the faintest on; of one that is not ordered in any order.
        unit: of the strengths.
        apply: (clip, strength, random numbers) ⇒ the window of the faulty sound, or None where the clip can't have it.
        shown: the strength that a table shows.
        ordered: whether a greater strength is worse.
        names: of the strengths, where numbers say nothing.
    """

    name: str
    title: str
    strengths: tuple[float, ...]
    unit: str
    apply: Apply
    shown: float
    ordered: bool = True
    names: tuple[str, ...] = ()

    def strength_name(self, strength: float) -> str:
        """⇒ a strength in words, such as "50 ms"."""
        if self.names:
            return self.names[self.strengths.index(strength)]
        return f"{strength:g} {self.unit}".strip()

    def system(self, strength: float) -> str:
        """⇒ the name of the sounds with this fault, of their folder too."""
        return f"{self.name} {self.strength_name(strength)}"


def faulty(original: Original, fault: Fault, strength: float, seed: int) -> np.ndarray | None:
    """⇒ the window (samples,) of a clip with a fault, or None where the clip can't have it. All strengths of a fault
    draw the same numbers, so that a stronger one is the fainter one and more."""
    keys = [seed, *(zlib.crc32(text.encode()) for text in (original.id, fault.name))]
    sound = fault.apply(original, strength, np.random.default_rng(keys))
    return None if sound is None else sound.astype(np.float32)


def in_step(original: Original) -> np.ndarray:
    """⇒ the window of the clip's sound as it is."""
    return original.sound[original.window]


def _moved(original: Original, late_s: float) -> np.ndarray:
    """⇒ (samples,) the whole sound, later by so much; at the edges its outermost samples stand still."""
    places = np.arange(len(original.sound)) - round(late_s * SAMPLE_RATE_HZ)
    return original.sound[places.clip(0, len(original.sound) - 1)]


def _shift(original: Original, ms: float, rng: np.random.Generator) -> np.ndarray:
    sign = 1 if original.number % 2 == 0 else -1
    return _moved(original, sign * ms / 1000)[original.window]


def _jitter(original: Original, ms: float, rng: np.random.Generator) -> np.ndarray | None:
    """Each stretch from just before an onset to just before the next is late or early by so much."""
    onsets_s = original.onsets_s
    if not len(original.inner_onsets):
        return None
    gaps_s = np.diff(onsets_s, prepend=0.0)
    starts = ((onsets_s - np.minimum(ms / 1000 + _BEFORE_S, gaps_s / 2)) * SAMPLE_RATE_HZ).astype(int)
    late = rng.integers(2, size=len(onsets_s) + 1).astype(float)
    share = late[np.searchsorted(starts, np.arange(len(original.sound)), side="right")]
    share = uniform_filter1d(share, _FADE, mode="nearest")
    moved = share * _moved(original, ms / 1000) + (1 - share) * _moved(original, -ms / 1000)
    return moved[original.window]


def _speed(original: Original, rate: float, rng: np.random.Generator) -> np.ndarray:
    """About the clip's middle, by librosa's phase vocoder: the pitch stays."""
    from ..runtime.librosa_import import librosa

    # windows of 32 ms: librosa's 128 ms at this rate would smear an event's beginning over 60 ms
    stretched = librosa.effects.time_stretch(original.sound, rate=rate, n_fft=512)
    length = original.window.stop - original.window.start
    start = (len(stretched) - length) // 2
    return fit_length(stretched[max(0, start):], length)


def _stretch(original: Original, index: int) -> slice:
    """⇒ the samples of an event: from just before its onset to just before the next, or 0.6 s."""
    onset_s = original.onsets_s[index]
    following = original.onsets_s[index + 1] if index + 1 < len(original.onsets_s) else np.inf
    end_s = min(following, onset_s + _EVENT_S) - _BEFORE_S
    return slice(max(0, round((onset_s - _BEFORE_S) * SAMPLE_RATE_HZ)),
                 min(len(original.sound), round(end_s * SAMPLE_RATE_HZ)))


def _faded(length: int) -> np.ndarray:
    """⇒ (length,) 1 with slopes of 5 ms at both ends."""
    ramp = np.arange(1, length + 1) / _FADE
    return np.minimum(1, np.minimum(ramp, ramp[::-1]))


def _removed(original: Original, count: float, rng: np.random.Generator) -> np.ndarray | None:
    """Events turned down to the level of the clip's background."""
    chosen = rng.permutation(original.inner_onsets)[:int(count)]
    if len(original.inner_onsets) <= count:
        return None
    size = round(0.05 * SAMPLE_RATE_HZ)
    level = np.sqrt(uniform_filter1d(np.square(original.sound, dtype=np.float64), size, mode="nearest").clip(0))
    background = float(np.quantile(level, _QUIET))
    quieter, sound = np.minimum(1.0, background / np.maximum(level, 1e-9)), original.sound.copy()
    for index in chosen:  # moment by moment, so that an event's decay is not turned down below the background
        place = _stretch(original, index)
        sound[place] *= 1 - (1 - quieter[place]) * _faded(place.stop - place.start)
    return sound[original.window]


def _added(original: Original, count: float, rng: np.random.Generator) -> np.ndarray | None:
    """Events of the clip a second time, 0.15 s and more from every onset."""
    if not len(original.inner_onsets):
        return None
    sound, taken, window = original.sound.copy(), list(original.onsets_s), original.window
    free_s = rng.uniform(window.start / SAMPLE_RATE_HZ + 0.1, window.stop / SAMPLE_RATE_HZ - 0.2, 400)
    for index in rng.choice(original.inner_onsets, 3)[:int(count)]:
        place_s = next((float(t) for t in free_s if np.abs(np.array(taken) - t).min() >= _APART_S), None)
        if place_s is None:
            return None
        taken.append(place_s)
        event = original.sound[_stretch(original, index)]
        start = round((place_s - _BEFORE_S) * SAMPLE_RATE_HZ)
        event = event[:max(0, len(sound) - start)]
        sound[start:start + len(event)] += event * _faded(len(event))
    return sound[window]


def _exchanged(original: Original, share: float, rng: np.random.Generator) -> np.ndarray | None:
    """Right time, wrong thing. Of a scene one object, or all of several, sound as other words of their kind; of any
    other clip, another clip's sound gets this one's envelope."""
    if original.scene is None:
        return None if share < 1 or original.other is None else _enveloped(original)
    named = [i for i, thing in enumerate(original.scene.things) if thing.named]
    if share == 1 and len(named) == 1:
        return None  # the same as one object's
    exchanged = set(rng.permutation(named)[:1] if share < 1 else named)
    things, used = list(original.scene.things), {thing.word for thing in original.scene.things}
    for i in rng.permutation(named):
        kind = class_of(things[i].word).kind
        words = [word for word, row in CLASSES.items() if row.kind == kind and word not in used]
        word = str(rng.choice(words))  # drawn for all, so that both strengths draw alike
        if i in exchanged:
            things[i] = replace(things[i], word=word)
            used.add(word)
    return render_sound(replace(original.scene, things=things))[original.window]


def _enveloped(original: Original) -> np.ndarray:
    assert original.other is not None
    length = len(original.sound)
    other = np.resize(original.other, length).astype(np.float64)
    size = round(0.01 * SAMPLE_RATE_HZ)
    own, theirs = (np.sqrt(uniform_filter1d(np.square(sound, dtype=np.float64), size).clip(0))
                   for sound in (original.sound, other))
    return (other * own / np.maximum(theirs, 0.01 * max(float(theirs.max()), 1e-6)))[original.window]


def _low_passed(original: Original, hz: float, rng: np.random.Generator) -> np.ndarray:
    sections = scipy.signal.butter(8, hz, fs=SAMPLE_RATE_HZ, output="sos")
    return scipy.signal.sosfiltfilt(sections, original.sound)[original.window]


def _noisy(original: Original, strength: float, rng: np.random.Generator) -> np.ndarray:
    """White noise, at this level against the sound's."""
    noise = rng.standard_normal(len(original.sound))
    level = np.sqrt(np.mean(np.square(original.sound, dtype=np.float64))) * 10 ** (strength / 20)
    return (original.sound + level * noise)[original.window]


FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in (
    Fault("shift", "shifted, half of the clips each way", (20, 50, 100, 200, 500), "ms", _shift, 50),
    Fault("jitter", "each event shifted by itself, late or early", (50, 100, 200), "ms", _jitter, 100),
    Fault("speed", "time-stretched about the middle by a phase vocoder, at one pitch", (0.9, 1.1), "", _speed, 1.1,
          ordered=False, names=("0.9", "1.1")),
    Fault("removed", "events turned down to the background", (1, 2), "", _removed, 1, names=("1", "2")),
    Fault("added", "events copied to elsewhere in the clip", (1, 2), "", _added, 1, names=("1", "2")),
    Fault("exchanged", "right time, wrong thing", (0.5, 1), "", _exchanged, 0.5, names=("one", "all")),
    Fault("low-passed", "low-passed", (-4000, -2000, -1000), "", lambda clip, hz, rng: _low_passed(clip, -hz, rng),
          -2000, names=("4 kHz", "2 kHz", "1 kHz")),
    Fault("noisy", "white noise, signal over noise", (-20, -10, 0), "", _noisy, -10, names=("20 dB", "10 dB", "0 dB")),
)}


def chosen_faults(names: Sequence[str]) -> list[Fault]:
    """⇒ the faults of these names, in the table's order; [] names all.

    Raises:
        InputError: there is no such fault.
    """
    unknown = sorted(set(names) - set(FAULTS))
    if unknown:
        raise InputError(f"faults={','.join(names)}: there is no fault {', '.join(unknown)}; there are "
                         f"{', '.join(FAULTS)}")
    return [fault for name, fault in FAULTS.items() if not names or name in names]
