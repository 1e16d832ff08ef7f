"""Synthesis of the ten things' sounds. Each class has a synthesiser of one event of a given length.

A thing's seed gives it a timbre of its own. No recording is used: bodies are sums of partials and decaying modes,
voices are harmonics through formants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .timeline import DURATION_S, IMPULSE, Scene, Thing, class_of

SAMPLE_RATE_HZ = 16_000
SAMPLES = round(DURATION_S * SAMPLE_RATE_HZ)
LEVEL_DBFS = (-20.0, -13.0)  # RMS of an object over its events, before the mix is kept below full scale
LOWEST_DBFS, HIGHEST_DBFS = -30.0, -12.0
PEAK = 0.92  # of a mix; leaves room for the codec's overshoot
ECHO_S = 0.06  # the latest reflection of the room comes this long after the sound

# (times_s, length_s, thing_rng, event_rng) ⇒ samples (n,) at any level. times_s (n,): times since the event's onset.
# length_s: length of the event. thing_rng: draws the same traits at each event of a thing. event_rng: draws anew.
Synthesiser = Callable[[np.ndarray, float, np.random.Generator, np.random.Generator], np.ndarray]


def render_sound(scene: Scene) -> np.ndarray:
    """The mono sound of a scene ⇒ (81920,) float32, |x| <= 0.92, digital silence away from events."""
    mix = np.sum([thing_sound(t) for t in scene.things if t.named], axis=0)
    mix = _echo(mix, np.random.default_rng(scene.backdrop_seed))
    return (mix * min(1.0, PEAK / max(float(np.abs(mix).max()), 1e-9))).astype(np.float32)


def thing_sound(thing: Thing) -> np.ndarray:
    """All events of one thing at its level, before the room ⇒ (81920,) float64."""
    sound_class = class_of(thing.word)
    rng = np.random.default_rng([thing.seed, 1])
    traits_seed = rng.integers(2**31)  # one for all events, so that they have the same timbre
    level_dbfs = rng.uniform(*LEVEL_DBFS)
    out, during = np.zeros(SAMPLES), np.zeros(SAMPLES, bool)
    for event in thing.events:
        start, stop = round(event.onset_s * SAMPLE_RATE_HZ), round(event.end_s * SAMPLE_RATE_HZ)
        time_s = np.arange(stop - start) / SAMPLE_RATE_HZ
        sound = SYNTHESISERS[sound_class.word](
            time_s, (stop - start) / SAMPLE_RATE_HZ, np.random.default_rng(traits_seed), rng)
        attack_s = 0.002 if sound_class.kind == IMPULSE else 0.03
        sound = sound * np.clip(time_s / attack_s, 0, 1) * np.clip((time_s[-1] - time_s) / 0.012, 0, 1)
        sound *= 10 ** (rng.uniform(-1.5, 1.5) / 20) / max(np.sqrt(np.mean(sound**2)), 1e-9)
        out[start:stop] += sound
        during[start:stop] = True
    level = np.sqrt(np.mean(out[during] ** 2)) if during.any() else 1.0
    out *= 10 ** (level_dbfs / 20) / level
    return out * min(1.0, 0.8 / max(float(np.abs(out).max()), 1e-9))


def _echo(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sound with three early reflections, each 20 dB and more below it ⇒ an array of the same shape."""
    out = sound.copy()
    for delay in rng.integers(round(0.008 * SAMPLE_RATE_HZ), round(ECHO_S * SAMPLE_RATE_HZ), 3):
        out[delay:] += rng.uniform(-0.1, 0.1) * sound[:-delay]
    return out


def _partials(phase: np.ndarray, f0_hz: np.ndarray | float, amplitudes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sum of harmonics of a phase in radians, up to 7.6 kHz ⇒ (samples,). amplitudes: (n,) or (n, samples)."""
    keep = numbers * np.max(f0_hz) < 7600
    waves = np.sin(numbers[keep, None] * phase[None, :])
    amplitudes = amplitudes[keep]
    return np.sum(waves * (amplitudes if amplitudes.ndim == 2 else amplitudes[:, None]), axis=0)


def _phase(f_hz: np.ndarray) -> np.ndarray:
    """Phase in radians of a frequency over time ⇒ (samples,)."""
    return 2 * np.pi * np.cumsum(f_hz) / SAMPLE_RATE_HZ


def _formants(frequencies_hz: np.ndarray, centres_hz: list[float], widths_hz: list[float]) -> np.ndarray:
    """Gain at each frequency of a vocal tract with resonances at ``centres_hz``."""
    gains = [np.exp(-0.5 * ((frequencies_hz - c) / w) ** 2) for c, w in zip(centres_hz, widths_hz)]
    return 0.02 + np.sum(gains, axis=0)


def _band_noise(n: int, low_hz: float, high_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power between two frequencies ⇒ (n,)."""
    size = max(n, 64)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    noise = np.fft.irfft(spectrum * ((frequencies > low_hz) & (frequencies < high_hz)), size)[:n]
    return noise / max(float(noise.std()), 1e-9)


def _modes(time_s: np.ndarray, frequencies_hz: np.ndarray, decays_s: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Sound of a struck body, a sum of decaying sines ⇒ (samples,)."""
    waves = np.exp(-time_s / decays_s[:, None]) * np.sin(2 * np.pi * frequencies_hz[:, None] * time_s)
    return amplitudes @ waves


def _racing_car(t, length_s, thing_rng, event_rng):
    """Dense harmonics of an engine, passing by: pitch falls and level peaks around the middle (Doppler)."""
    base, speed = thing_rng.uniform(75, 130), thing_rng.uniform(0.10, 0.22)
    x = (t / length_s - event_rng.uniform(0.4, 0.6)) * thing_rng.uniform(6, 10)
    f0 = base * (1 - speed * np.tanh(x)) * (1 + 0.06 * np.sin(np.pi * t / length_s))
    numbers = np.arange(1, 40)
    formants_hz = [thing_rng.uniform(250, 450), thing_rng.uniform(900, 1500)]
    gains = _formants(numbers * base, formants_hz, [260, 500]) / numbers**0.3
    gains *= thing_rng.uniform(0.5, 1.0, len(numbers))
    rough = 1 + 0.35 * np.sin(_phase(f0) / 2)
    engine = _partials(_phase(f0), f0, gains, numbers) * rough
    tyres = _band_noise(len(t), 150, 900, event_rng) * 0.25 * engine.std()
    return (engine + tyres) * (0.45 + 0.55 / (1 + (x / 1.6) ** 2))


def _popcorn(t, length_s, thing_rng, event_rng):
    """A dry pop: two or three strongly damped modes of the kernel and the click of the shell."""
    centre = thing_rng.uniform(1000, 1700) * event_rng.uniform(0.8, 1.25)
    body = _modes(t, centre * np.array([1, 1.62, 2.7]), np.array([0.012, 0.008, 0.005]), np.array([1.0, 0.6, 0.4]))
    click = _band_noise(len(t), 1500, 7000, event_rng) * np.exp(-t / 0.004)
    return body + 0.5 * click


def _pigeon(t, length_s, thing_rng, event_rng):
    """A low, nearly pure coo that rises and falls, rolled at about 25 Hz."""
    x = t / length_s
    f0 = thing_rng.uniform(330, 480) * (0.88 + 0.2 * np.sin(np.pi * x) + 0.03 * event_rng.standard_normal())
    phase = _phase(f0)
    roll = 1 - thing_rng.uniform(0.35, 0.6) * (0.5 + 0.5 * np.sin(2 * np.pi * thing_rng.uniform(20, 28) * t))
    return _partials(phase, f0, np.array([1.0, 0.22, 0.05]), np.arange(1, 4)) * roll * np.sin(np.pi * x) ** 0.4


def _dog(t, length_s, thing_rng, event_rng):
    """A bark: the pitch jumps up and falls, wide formants, breath in it."""
    x = t / length_s
    base = thing_rng.uniform(230, 420) * event_rng.uniform(0.94, 1.06)
    f0 = base * (1 + 0.45 * np.sin(np.pi * np.minimum(1, 0.25 + x)) - 0.25 * x)
    numbers = np.arange(1, 16)
    formants_hz = [thing_rng.uniform(600, 850), thing_rng.uniform(1300, 1800)]
    gains = _formants(numbers * base, formants_hz, [220, 320]) / numbers**0.35
    voice = _partials(_phase(f0), f0, gains, numbers)
    breath = _band_noise(len(t), 400, 3200, event_rng) * 0.45 * voice.std()
    return (voice + breath) * np.exp(-2.2 * x) * (1 + 1.5 * np.exp(-t / 0.01))


def _canary(t, length_s, thing_rng, event_rng):
    """A trill: sweeps of a pure tone between 3 and 6.5 kHz, 12 to 22 a second."""
    rate, centre = thing_rng.uniform(12, 22), thing_rng.uniform(3600, 5000) * event_rng.uniform(0.93, 1.07)
    depth = thing_rng.uniform(0.12, 0.25)
    saw = 2 * ((t * rate) % 1.0) - 1
    f = centre * (1 + depth * (saw if thing_rng.random() < 0.5 else -saw) + 0.08 * np.sin(2 * np.pi * 1.5 * t))
    notes = np.sin(np.pi * ((t * rate) % 1.0)) ** 0.5
    return np.sin(_phase(f)) * (0.25 + 0.75 * notes)


def _badminton(t, length_s, thing_rng, event_rng):
    """Strings and frame of a racket struck by a shuttle: inharmonic modes that ring for a tenth of a second."""
    ratios = np.array([1, 2.32, 3.9, 5.63])
    decays = np.array([0.045, 0.032, 0.02, 0.012]) * thing_rng.uniform(0.8, 1.3)
    amplitudes = np.array([1.0, 0.8, 0.7, 0.5]) * thing_rng.uniform(0.6, 1, 4)
    strings = _modes(t, thing_rng.uniform(480, 640) * ratios, decays, amplitudes)
    thud = np.sin(2 * np.pi * thing_rng.uniform(120, 180) * t) * np.exp(-t / 0.02)
    return strings + 0.8 * thud + 0.5 * _band_noise(len(t), 2500, 7500, event_rng) * np.exp(-t / 0.006)


def _chicken(t, length_s, thing_rng, event_rng):
    """A cluck: a nasal, falling pitch with two narrow high formants."""
    x = t / length_s
    base = thing_rng.uniform(520, 760) * event_rng.uniform(0.92, 1.1)
    f0 = base * (1.12 - 0.4 * x)
    numbers = np.arange(1, 13)
    gains = _formants(numbers * base, [thing_rng.uniform(1300, 1700), thing_rng.uniform(3000, 3700)], [280, 350])
    return _partials(_phase(f0), f0, gains, numbers) * (np.exp(-3.0 * x) + 0.3 * np.sin(np.pi * x))


def _harpsichord(t, length_s, thing_rng, event_rng):
    """A plucked string: many harmonics, the higher the shorter; notes of a minor pentatonic scale."""
    steps = (0, 3, 5, 7, 10, 12, 15)
    f0 = thing_rng.uniform(196, 330) * 2 ** (event_rng.choice(steps) / 12)
    numbers = np.arange(1, 30)
    pluck = np.abs(np.sin(np.pi * numbers * thing_rng.uniform(0.09, 0.16))) / numbers**0.75
    keep = numbers * f0 < 7600
    decays = 0.5 / (1 + 0.12 * numbers[keep])
    return _modes(t, numbers[keep] * f0 * np.sqrt(1 + 1e-4 * numbers[keep] ** 2), decays, pluck[keep])


def _clarinet(t, length_s, thing_rng, event_rng):
    """A reed on a cylinder: odd harmonics, a slow vibrato, notes of a major scale."""
    f0_hz = thing_rng.uniform(220, 330) * 2 ** (event_rng.choice((0, 2, 4, 5, 7, 9, 12)) / 12)
    f0 = f0_hz * (1 + 0.006 * np.sin(2 * np.pi * 5 * t) * np.clip(t / 0.3, 0, 1))
    numbers = np.arange(1, 20)
    gains = np.where(numbers % 2 == 1, 1.0, 0.06) / numbers ** thing_rng.uniform(0.7, 1.0)
    breath = _band_noise(len(t), 800, 4000, event_rng) * 0.01
    return _partials(_phase(f0), f0, gains, numbers) * (0.85 + 0.15 * np.sin(np.pi * t / length_s)) + breath


def _ferret(t, length_s, thing_rng, event_rng):
    """A dook: a short, soft chirp upwards with few harmonics."""
    x = t / length_s
    f0 = thing_rng.uniform(620, 900) * event_rng.uniform(0.93, 1.07) * (0.75 + 0.75 * x**0.8)
    voice = _partials(_phase(f0), f0, np.array([1.0, 0.35, 0.08]), np.arange(1, 4))
    return voice * (np.sin(np.pi * np.minimum(1, 0.3 + 0.7 * x)))


SYNTHESISERS: dict[str, Synthesiser] = {
    "racing car": _racing_car,
    "popcorn": _popcorn,
    "pigeon": _pigeon,
    "dog": _dog,
    "canary": _canary,
    "badminton": _badminton,
    "chicken": _chicken,
    "harpsichord": _harpsichord,
    "clarinet": _clarinet,
    "ferret": _ferret,
}
