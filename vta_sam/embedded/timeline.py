"""A scene as a pure function of (version, seed, split, index): its things, their positions and events, its caption."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from .truth import SCENES_VERSION, WORDS, Event


@dataclass(frozen=True)
class SoundingClass:
    """The timeline's table row of a class.

    Attributes:
        word: its name.
        phrase: its name in captions, with an article.
        verbs: its verbs in captions.
        kind: see :class:`~.truth.Event`.
        event_s: range of an event's length in seconds.
        gap_s: for impulses the range from onset to onset inside a bout, for sustained sounds the range of the silence
            between two of a bout, in seconds.
        aspect: width over height of its canvas.
        look_alike: the silent thing that resembles it.
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
LOOK_ALIKES = {c.look_alike: c.word for c in CLASSES.values()}


def class_of(word: str) -> SoundingClass:
    """The class of a word. A look-alike has the class that it resembles, whose canvas and gestures it shares."""
    return CLASSES[LOOK_ALIKES.get(word, word)]


ONE = ("{0}", "{0} again and again", "{0} now and then")
TWO = ("{0} while {1}", "{0} and {1}", "as {0}, {1}")
THREE = ("{0}, {1} and {2}", "{0} while {1} and {2}", "{0} and {1} while {2}")


def caption_of(words: list[str], rng: np.random.Generator) -> str:
    """One to three words of the ten ⇒ a sentence such as "a dog barks while a canary sings"."""
    parts = [f"{CLASSES[w].phrase} {rng.choice(CLASSES[w].verbs)}" for w in words]
    form = str(rng.choice((ONE, TWO, THREE)[len(parts) - 1]))
    return form.format(*parts)


WIDTH_PX, HEIGHT_PX = 128, 96
FPS, FRAMES = 25.0, 128
DURATION_S = FRAMES / FPS

COUNT_PROBABILITIES = (0.45, 0.33, 0.22)  # one, two, three named objects
LOOK_ALIKE_PROBABILITY = 0.42
MARGIN_PX = 5  # least distance of a thing at home from the edge: more than the camera's largest shake
BOUT_S, PAUSE_S = (0.4, 1.6), (0.4, 1.5)
SETTLE_S = 0.08  # a thing is silent this long after it has come in and before it leaves
LEAST_IMPULSES, LEAST_SUSTAINED_S = 3, 1.2


@dataclass(frozen=True)
class Visit:
    """One visit of a thing to the picture.

    Attributes:
        start_s: start of the visit.
        end_s: end of the visit.
        enter_s: length of sliding in.
        leave_s: length of sliding out.
        home: centre in px at the start, once the thing is in; it moves slowly to ``home_end``.
        home_end: centre in px at the end, before the thing leaves.
        enter_from: offset in px that sliding in begins with.
        leave_to: offset in px that sliding out ends with.
    """

    start_s: float
    end_s: float
    enter_s: float
    leave_s: float
    home: tuple[float, float] = (0.0, 0.0)
    home_end: tuple[float, float] = (0.0, 0.0)
    enter_from: tuple[float, float] = (0.0, 0.0)
    leave_to: tuple[float, float] = (0.0, 0.0)

    @property
    def settled_s(self) -> tuple[float, float]:
        """Start and end in seconds of the stretch at home, to which events are confined."""
        return self.start_s + self.enter_s + SETTLE_S, self.end_s - self.leave_s - SETTLE_S


@dataclass
class Thing:
    """One thing of a scene.

    Attributes:
        word: of the ten, or a look-alike's.
        named: whether the caption names it.
        seed: of its style and its timbre.
        height_px: of its canvas.
        width_px: of its canvas.
        mirrored: whether its sprite faces left.
        visits: to the picture.
        gestures: events that move its pose; a named thing sounds at the same times.
    """

    word: str
    named: bool
    seed: int
    height_px: int = 0
    width_px: int = 0
    mirrored: bool = False
    visits: list[Visit] = field(default_factory=list)
    gestures: list[Event] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        return self.gestures if self.named else []

    def pose_at(self, times_s: np.ndarray) -> np.ndarray:
        """Pose in [0, 1] at ``times_s`` (n,) ⇒ (n,).

        An impulse rises within 20 ms, holds until 80 ms, and is over after 220 ms. A sustained gesture rises within
        40 ms, and falls within 80 ms of its end.
        """
        pose = np.zeros(len(times_s))
        for event in self.gestures:
            since, after = times_s - event.onset_s, times_s - event.end_s
            if event.kind == IMPULSE:
                shape = np.minimum(since / 0.02, (0.22 - since) / 0.14)
            else:
                shape = np.minimum(since / 0.04, 1 - after / 0.08)
            pose = np.maximum(pose, np.clip(shape, 0, 1))
        return pose

    def sounding(self) -> np.ndarray:
        """Whether an event is under way during each picture ⇒ (128,) bool."""
        starts = np.arange(FRAMES) / FPS
        during = np.zeros(FRAMES, bool)
        for event in self.events:
            during |= (starts < event.end_s) & (starts + 1 / FPS > event.onset_s)
        return during

    def centres_px(self, times_s: np.ndarray) -> np.ndarray:
        """Centre of the canvas at ``times_s`` (n,), before camera shake ⇒ (n, 2), NaN while the thing is away."""
        centres = np.full((len(times_s), 2), np.nan)
        for visit in self.visits:
            during = (times_s >= visit.start_s) & (times_s < visit.end_s)
            centres[during] = self._path(visit, times_s[during])
        return centres

    def _path(self, visit: Visit, times_s: np.ndarray) -> np.ndarray:
        home, home_end = np.array(visit.home), np.array(visit.home_end)
        if class_of(self.word).word == "racing car":  # it moves only while its wheels turn
            grid = np.linspace(visit.start_s, visit.end_s, 129)
            driven = np.cumsum(self.pose_at(grid))
            progress = np.interp(times_s, grid, driven / max(driven[-1], 1e-9))
        else:
            progress = (times_s - visit.start_s) / (visit.end_s - visit.start_s)
        path = home + progress[:, None] * (home_end - home)
        entering = _ease((visit.start_s + visit.enter_s - times_s) / max(visit.enter_s, 1e-9))
        leaving = _ease((times_s - (visit.end_s - visit.leave_s)) / max(visit.leave_s, 1e-9))
        path = path + entering[:, None] * np.array(visit.enter_from) + leaving[:, None] * np.array(visit.leave_to)
        stepping = (entering > 0) | (leaving > 0)
        path[:, 1] += np.where(stepping, 2.0 * np.abs(np.sin(2 * np.pi * 3.5 * times_s)) - 2.0, 0.0)
        path[:, 0] += 0.8 * np.sin(2 * np.pi * 0.7 * times_s + self.seed % 7)  # a sway that tells nothing of sound
        return path


@dataclass
class Scene:
    """A clip before it is drawn.

    Attributes:
        version: of the scenes.
        seed: of the world.
        split: of the world.
        index: of the clip in its split.
        caption: of the clip.
        things: named ones first, in the caption's order, then look-alikes.
        backdrop_seed: of the backdrop.
        camera_px: (128, 2) shift of the picture in x and y, of less than MARGIN_PX - 1.
    """

    version: int
    seed: int
    split: str
    index: int
    caption: str
    things: list[Thing]
    backdrop_seed: int
    camera_px: np.ndarray

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:06d}"

    @property
    def words(self) -> list[str]:
        return [t.word for t in self.things if t.named]


def frame_times_s() -> np.ndarray:
    """The moment that each picture shows, the middle of its time on screen ⇒ (128,) in seconds."""
    return (np.arange(FRAMES) + 0.5) / FPS


def make_scene(seed: int, split: str, index: int) -> Scene:
    """The scene of one clip.

    Args:
        seed: of the world.
        split: splits differ by their random numbers alone.
        index: of the clip in its split.
    """
    rng = np.random.default_rng([SCENES_VERSION, seed, zlib.crc32(split.encode()), index])
    count = 1 + int(rng.choice(3, p=COUNT_PROBABILITIES))
    words = [str(w) for w in rng.permutation(WORDS)[:count]]
    names = [(w, True) for w in words]
    if rng.random() < LOOK_ALIKE_PROBABILITY:
        # more often than not it resembles a thing of the same clip, so that a model has to distinguish the two
        chosen = [k for k, w in LOOK_ALIKES.items() if w in words] if rng.random() < 0.5 else list(LOOK_ALIKES)
        names.append((str(rng.choice(chosen)), False))
    things = []
    for word, named in names:
        thing = Thing(word, named, int(rng.integers(2**31)), mirrored=bool(rng.random() < 0.5))
        _plan_time(thing, rng)
        things.append(thing)
    _place(things, rng)
    caption, backdrop_seed = caption_of(words, rng), int(rng.integers(2**31))
    return Scene(SCENES_VERSION, seed, split, index, caption, things, backdrop_seed, _shake(rng))


def _plan_time(thing: Thing, rng: np.random.Generator) -> None:
    """Draw visits and gestures, in place, until the thing sounds enough to be learnt from."""
    sounding_class = class_of(thing.word)
    while True:
        thing.visits = _visits(rng)
        thing.gestures = [e for visit in thing.visits for e in _gestures(sounding_class, *visit.settled_s, rng)]
        impulses = sum(e.kind == IMPULSE for e in thing.gestures)
        sustained_s = sum(e.end_s - e.onset_s for e in thing.gestures if e.kind != IMPULSE)
        if impulses >= LEAST_IMPULSES or sustained_s >= LEAST_SUSTAINED_S:
            break
    if not thing.named and rng.random() < 0.4:
        thing.gestures = []  # some look-alikes don't move


def _visits(rng: np.random.Generator) -> list[Visit]:
    """One or two random visits; the thing is away for two fifths of the clip on average."""
    enter, leave = rng.uniform(0.24, 0.5, 2)
    form = rng.choice(5, p=(0.40, 0.20, 0.20, 0.14, 0.06))
    if form == 0:  # comes and goes
        length = rng.uniform(2.2, 3.8)
        start = rng.uniform(0.1, DURATION_S - length - 0.1)
        return [Visit(start, start + length, enter, leave)]
    if form == 1:  # is there, and goes
        return [Visit(0.0, rng.uniform(2.0, 3.8), 0.0, leave)]
    if form == 2:  # comes, and remains
        return [Visit(DURATION_S - rng.uniform(2.0, 3.8), DURATION_S, enter, 0.0)]
    if form == 3:  # is there, goes, and comes back
        away = rng.uniform(0.9, 1.8)
        start = rng.uniform(1.5, DURATION_S - away - 1.5)
        return [Visit(0.0, start, 0.0, leave), Visit(start + away, DURATION_S, enter, 0.0)]
    return [Visit(0.0, DURATION_S, 0.0, 0.0)]


def _gestures(sounding_class: SoundingClass, start_s: float, end_s: float, rng: np.random.Generator) -> list[Event]:
    """Bouts of events with pauses between them, all inside [start_s, end_s]."""
    events: list[Event] = []
    now = start_s + rng.uniform(0.0, 0.7)
    while now < end_s - 0.3:
        bout_end = min(now + rng.uniform(*BOUT_S), end_s)
        while now < bout_end:
            length = rng.uniform(*sounding_class.event_s)
            gap = rng.uniform(*sounding_class.gap_s)
            if now + length > end_s:
                break
            if sounding_class.kind == IMPULSE:
                length = min(length, gap)  # the next pluck stops the last
                events.append(Event(round(now, 4), round(now + length, 4), sounding_class.kind))
                now += gap
            else:
                events.append(Event(round(now, 4), round(now + length, 4), sounding_class.kind))
                now += length + gap
        now = max(now, bout_end) + rng.uniform(*PAUSE_S)
    return events


def _place(things: list[Thing], rng: np.random.Generator) -> None:
    """Draw a size and homes for every thing, in place, with little overlap between things in view together."""
    largest = {1: 60, 2: 54, 3: 48, 4: 44}[len(things)]
    times = frame_times_s()
    best, best_cost = None, np.inf
    for attempt in range(60):
        for thing in things:
            thing.height_px = int(rng.integers(32, largest + 1))
            thing.width_px = min(round(thing.height_px * class_of(thing.word).aspect), WIDTH_PX // 2)
            thing.visits = [_with_home(visit, thing, rng) for visit in thing.visits]
        cost = _overlap(things, times)
        if cost < best_cost:
            best, best_cost = [(t.height_px, t.width_px, t.visits) for t in things], cost
        if cost < 0.08:
            break
        largest = max(36, largest - (attempt % 8 == 7) * 2)
    assert best is not None
    for thing, (thing.height_px, thing.width_px, thing.visits) in zip(things, best):
        pass


def _with_home(visit: Visit, thing: Thing, rng: np.random.Generator) -> Visit:
    """The visit with a random home inside the picture, and ways in and out."""
    half = np.array([thing.width_px / 2, thing.height_px / 2])
    low, high = half + MARGIN_PX, np.array([WIDTH_PX, HEIGHT_PX]) - half - MARGIN_PX
    home = rng.uniform(low, high)
    reach = np.array([45.0, 2.0]) if class_of(thing.word).word == "racing car" else np.array([8.0, 3.0])
    home_end = np.clip(home + rng.uniform(-reach, reach), low, high)
    if class_of(thing.word).word == "racing car":  # it drives forwards
        forward = -1 if thing.mirrored else 1
        ends = sorted((home[0], home_end[0]), reverse=forward < 0)
        home, home_end = np.array([ends[0], home[1]]), np.array([ends[1], home_end[1]])
    return Visit(visit.start_s, visit.end_s, visit.enter_s, visit.leave_s, tuple(home), tuple(home_end),
                 _outside(home, half, rng), _outside(home_end, half, rng))


def _outside(home: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Offset in px from a home to just outside the picture, over a side (mostly), the top or the bottom."""
    to_left, to_right = -home[0] - half[0] - MARGIN_PX, WIDTH_PX - home[0] + half[0] + MARGIN_PX
    to_top, to_bottom = -home[1] - half[1] - MARGIN_PX, HEIGHT_PX - home[1] + half[1] + MARGIN_PX
    side = (to_left, 0.0) if rng.random() < to_right / (to_right - to_left) else (to_right, 0.0)
    over = (0.0, to_top) if rng.random() < 0.5 else (0.0, to_bottom)
    return side if rng.random() < 0.65 else over


def _overlap(things: list[Thing], times_s: np.ndarray) -> float:
    """Largest overlap of two things: shared area over the smaller canvas, averaged over the pictures that hold both."""
    worst = 0.0
    centres = [t.centres_px(times_s) for t in things]
    for i, a in enumerate(things):
        for j in range(i):
            b = things[j]
            both = ~np.isnan(centres[i][:, 0] + centres[j][:, 0])
            if not both.any():
                continue
            distances = np.abs(centres[i][both] - centres[j][both])
            sizes_a, sizes_b = np.array([a.width_px, a.height_px]), np.array([b.width_px, b.height_px])
            shared = np.clip(np.minimum((sizes_a + sizes_b) / 2 - distances, np.minimum(sizes_a, sizes_b)), 0, None)
            worst = max(worst, float(shared.prod(axis=1).mean() / min(sizes_a.prod(), sizes_b.prod())))
    return worst


def _shake(rng: np.random.Generator) -> np.ndarray:
    """Shift of a hand-held camera, a slow drift and a faster tremble of random strength ⇒ (128, 2) px."""
    times = frame_times_s()[:, None]
    drift = rng.uniform(0, 2.2, 2) * np.sin(2 * np.pi * (rng.uniform(0.05, 0.25, 2) * times + rng.random(2)))
    tremble = rng.uniform(0, 0.9, 2) * np.sin(2 * np.pi * (rng.uniform(1.0, 3.5, 2) * times + rng.random(2)))
    return drift + tremble


def _ease(x: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 below 0, 1 above 1, with flat ends between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
