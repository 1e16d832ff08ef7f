"""Which scores of timing tell the right thing from another thing that sounds at the right times?

A scene's sound is made again with other timbres, and again with one thing's events in the voice of another class of its
kind. Both takes are scored against the scene; of a pair the first should have the higher score.

    python benchmarks/event_meters.py --scenes 128
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from _report import Report, parser

from vta_sam.embedded.event_detector import EventDetector, load_detector
from vta_sam.embedded.scene_sounds import render_sound
from vta_sam.embedded.timeline import CLASSES, WORDS, Scene, make_scene
from vta_sam.metrics.alignment import FINE_WINDOW_S, event_f1
from vta_sam.metrics.intervals import Interval, bootstrap_interval
from vta_sam.metrics.onsets import WINDOW_S, detect_onsets, onset_f1
from vta_sam.metrics.signal import envelope_correlation

Score = Callable[[np.ndarray], float | None]


def takes(scene: Scene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """⇒ the scene's sound with other timbres, and the same with one thing's events in another class's voice."""
    random = np.random.default_rng([seed, scene.index])
    things = [dataclasses.replace(thing, seed=int(random.integers(2**31))) for thing in scene.things if thing.named]
    chosen = int(random.integers(len(things)))
    own = CLASSES[things[chosen].word]
    others = [word for word, other in CLASSES.items() if other.kind == own.kind and word not in scene.words]
    exchanged = list(things)
    exchanged[chosen] = dataclasses.replace(things[chosen], word=str(random.choice(others)))
    return render_sound(dataclasses.replace(scene, things=things)), \
        render_sound(dataclasses.replace(scene, things=exchanged))


def scores_of(scene: Scene, detector: EventDetector) -> dict[str, Score]:
    """⇒ {name: a sound's score against the scene}."""
    true_sound = render_sound(scene)
    onsets_s = np.array(sorted(event.onset_s for thing in scene.things for event in thing.events))
    events = np.array(sorted((event.onset_s, WORDS.index(thing.word)) for thing in scene.things
                             for event in thing.events)).reshape(-1, 2)

    def detected(sound: np.ndarray) -> np.ndarray:
        return detector.events(torch.from_numpy(sound)[None])[0]

    return {
        "event_f1": lambda sound: event_f1(events, detected(sound), WINDOW_S),
        "event_f1_50ms": lambda sound: event_f1(events, detected(sound), FINE_WINDOW_S),
        "onset_f1": lambda sound: onset_f1(onsets_s, detect_onsets(sound)),
        "envelope_correlation": lambda sound: envelope_correlation(sound, true_sound),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--scenes", type=int, default=128)
    arguments.add_argument("--seed", type=int, default=5, help="of the world; 1 is the detector's own")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    detector, found = load_detector(), dict[str, list[tuple[float, float]]]()
    for index in range(given.scenes):
        scene = make_scene(given.seed, "test", index)
        right, wrong = takes(scene, given.seed)
        for name, score in scores_of(scene, detector).items():
            found.setdefault(name, []).append((score(right) or 0.0, score(wrong) or 0.0))
    rows = []
    for name, pairs in found.items():
        told = [1.0 if right > wrong else 0.5 if right == wrong else 0.0 for right, wrong in pairs]
        values = {"right_thing": [right for right, _ in pairs], "wrong_thing": [wrong for _, wrong in pairs],
                  "told_apart": told}
        rows.append({"score": name, **{key: _shown(bootstrap_interval(of)) for key, of in values.items()}})
    Report("mean score of the right thing and of another thing at the same times, and the share of pairs that it tells "
           "apart (a tie: half), with 95 % intervals", rows, {"scenes": given.scenes, "world": given.seed}
           ).show(given.json)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
